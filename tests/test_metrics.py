"""Figures of merit against closed forms, slow references and an analytic scene."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest
import torch
from pytorch3d.renderer import PerspectiveCameras, join_cameras_as_batch

from scenediff.datasets.captures import centre_square, load_capture
from scenediff.renderers.cameras import look_ahead, perspective_cameras
from scenediff.tools import metrics
from scenediff.tools.metrics import EfficientNetLite0, depth_error, frechet_distance, kernel_distance, psnr

REAL = Path(
    os.environ.get("SCENEDIFF_CAPTURE_DIR", Path(__file__).parents[1] / ".." / "shared" / "real_capture")
)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def network() -> EfficientNetLite0:
    return EfficientNetLite0(side=64)


# ---- images ----------------------------------------------------------------------------------------


def test_psnr_of_a_known_error():
    truth = noise(3, 3, 8, 10).clamp(-0.5, 0.5)
    offset = torch.tensor([0.2, 0.02, 0.0])[:, None, None, None]  # 0.1, 0.01 and 0 on the [0, 1] scale
    torch.testing.assert_close(
        psnr(truth + offset, truth), torch.tensor([20.0, 40.0, metrics.MAX_PSNR]).double(), atol=1e-3, rtol=0
    )


def test_masked_psnr_looks_only_at_the_mask():
    truth = torch.zeros(2, 3, 4, 4)
    image = truth.clone()
    image[..., :2] = 0.2
    mask = torch.zeros(2, 1, 4, 4, dtype=torch.bool)
    mask[0, ..., :2] = True
    values = psnr(image, truth, mask)
    assert values[0] == pytest.approx(20, abs=1e-4)
    assert values[1].isnan()
    with pytest.raises(ValueError, match="mask"):
        psnr(image, truth, mask[:, 0])


def test_sharpness_is_the_slope_in_grey_levels():
    x = torch.arange(9).float() * 3 / 127.5
    y = torch.arange(7).float() * 4 / 127.5
    plane = (x + y[:, None]).expand(1, 3, 7, 9)
    assert metrics.sharpness(plane)[0] == pytest.approx(5, rel=1e-5)
    broken = plane.clone()
    broken[..., 6:] += 1
    mask = torch.zeros(1, 1, 7, 9, dtype=torch.bool)
    mask[..., :6] = True  # the step lies between a pixel of the mask and one outside
    assert metrics.sharpness(broken, mask)[0] == pytest.approx(5, rel=1e-5)


def test_spread_of_samples_is_in_grey_levels():
    samples = noise(400, 1, 3, 6, 6) * 10 / 127.5
    # the deviation of 400 numbers is known to 3.5 %, its mean over 108 values far better
    assert metrics.grey_levels_apart(samples)[0] == pytest.approx(10, rel=0.01)


# ---- depth -----------------------------------------------------------------------------------------


def test_depth_error_with_and_without_scale():
    truth = noise(2, 1, 20, 20).abs() + 1
    mask = torch.ones_like(truth, dtype=torch.bool)
    depth = truth * torch.tensor([1.3, 0.5])[:, None, None, None]
    torch.testing.assert_close(
        depth_error(depth, truth, mask), torch.tensor([0.3, 0.5]).double(), atol=1e-6, rtol=0
    )
    assert depth_error(depth, truth, mask, scaled=True).max() < 1e-6
    truth[0] = 0  # nothing known
    values = depth_error(depth, truth, mask)
    assert values[0].isnan()
    assert values[1] == pytest.approx(0.5, abs=1e-6)


def test_a_constant_depth_scaled_is_compared_with_the_median():
    truth = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0]).view(1, 1, 1, 5)
    mask = torch.ones_like(truth, dtype=torch.bool)
    # the median ratio makes the constant 4; relative errors are 3, 1, 0, 0.5, 0.75
    assert depth_error(torch.full_like(truth, 7.0), truth, mask, scaled=True)[0] == pytest.approx(0.75)


# ---- an analytic scene: a wall at z = 4 and a square of half-width 0.5 at z = 2 ----------------------

SIZE = 96


def wall_scene(shift: float) -> tuple:
    """Depth, image and camera at (shift, 0, 0); +X is left. Wall colours are waves over its x and y."""
    position, principal = torch.tensor([[-shift, 0.0, 0.0]]), torch.tensor([[0.1, -0.05]])
    camera = perspective_cameras(torch.eye(3)[None], position, torch.tensor([1.2]), principal)
    half = SIZE / 2
    ndc = (half - torch.arange(SIZE) - 0.5) / half
    x, y = (ndc[None] - 0.1) / 1.2, (ndc[:, None] + 0.05) / 1.2
    in_front = ((2 * x + shift).abs() < 0.5) & ((2 * y).abs() < 0.5)
    depth = torch.where(in_front, 2.0, 4.0)
    wall_x, wall_y = (x * depth + shift).expand(SIZE, SIZE), (y * depth).expand(SIZE, SIZE)
    colour = torch.stack([(2 * wall_x).sin(), (2 * wall_y).cos(), depth - 3])
    return depth[None, None], colour[None], camera, wall_x, wall_y


def test_visibility_is_the_shadow_of_the_square():
    """The context at the origin throws the square's shadow, twice its size, onto the wall."""
    context_depth, _, context, _, _ = wall_scene(0.0)
    target_depth, _, target, x, y = wall_scene(0.8)
    visible = metrics.visible_from(context_depth, context, target_depth, target)[0, 0]
    on_wall = target_depth[0, 0] == 4

    def sides(grow: float) -> tuple[torch.Tensor, torch.Tensor]:
        shadow = (x.abs() < 1 + grow) & (y.abs() < 1 + grow)
        u, v = 1.2 * x / target_depth[0, 0] + 0.1, 1.2 * y / target_depth[0, 0] - 0.05
        frame = (u.abs() < 1 - grow / 4) & (v.abs() < 1 - grow / 4)
        return shadow, frame

    pixel = 2 / SIZE * 4 / 1.2  # one pixel's width on the wall; edges are uncertain by two
    shadow, frame = sides(2 * pixel)
    sure = visible[on_wall & ~shadow & frame]
    assert sure.all()
    assert len(sure) > 1000
    shadow, frame = sides(-2 * pixel)
    hidden = visible[on_wall & (shadow | ~frame)]
    assert not hidden.any()
    assert len(hidden) > 1000


def test_unknown_depth_is_not_visible():
    depth, _, camera, _, _ = wall_scene(0.0)
    assert metrics.visible_from(depth, camera, depth, camera).all()
    unknown = depth.clone()
    unknown[..., :40, :] = 0
    assert not metrics.visible_from(depth, camera, unknown, camera)[..., :40, :].any()
    assert not metrics.visible_from(unknown, camera, depth, camera)[..., :39, :].any()


def test_one_scene_has_one_depth_in_two_views():
    """The views differ by a sideways step, so points keep their distance; a scaled view shows its factor."""
    depth, _, camera, _, _ = wall_scene(0.0)
    other, _, there, _, _ = wall_scene(0.4)
    assert metrics.reprojected_depth_error(depth, camera, other, there) < 1e-6
    scaled = metrics.reprojected_depth_error(depth, camera, 1.1 * other, there)
    assert scaled.item() == pytest.approx(1 - 1 / 1.1, abs=1e-5)
    assert metrics.reprojected_depth_error(depth, camera, torch.zeros_like(other), there).isnan()
    turned = torch.diag(torch.tensor([-1.0, 1, -1]))[None]  # looks the other way
    behind = perspective_cameras(turned, torch.zeros(1, 3), torch.tensor([1.2]))
    assert metrics.reprojected_depth_error(depth, camera, other, behind).isnan()


def test_warp_by_true_depth_shows_the_target_where_visible():
    context_depth, context_image, context, _, _ = wall_scene(0.0)
    target_depth, target_image, target, _, _ = wall_scene(0.4)
    warped = metrics.warp_by_depth(context_image, context, target_depth, target)
    visible = metrics.visible_from(context_depth, context, target_depth, target)
    inner = -torch.nn.functional.max_pool2d(-visible.float(), 5, stride=1, padding=2) > 0  # away from edges
    assert inner.float().mean() > 0.4
    assert psnr(warped, target_image, inner)[0] > 45  # bilinear interpolation of slow waves
    assert psnr(context_image, target_image, inner)[0] < 20


def test_plane_warp_is_exact_for_a_plane():
    truth, image, context, _, _ = wall_scene(10.0)  # far from the square: only the wall
    _, target_image, target, _, _ = wall_scene(10.3)
    assert (truth == 4).all()
    warped = metrics.plane_warp(image, context, torch.tensor([4.0]), target, (SIZE, SIZE))
    inside = torch.zeros(1, 1, SIZE, SIZE, dtype=torch.bool)
    inside[..., 8:] = True  # moving left by 0.3 m uncovers 0.3 * 1.2 / 4 * 48 = 4.3 columns on the left
    assert psnr(warped, target_image, inside)[0] > 45
    assert psnr(warped, target_image, ~inside)[0] < 20
    assert (warped[..., :3] == 0).all()  # mid-grey outside the frame
    border = metrics.plane_warp(image, context, torch.tensor([4.0]), target, (SIZE, SIZE), "border")
    torch.testing.assert_close(border[..., :3], image[..., :1].expand(-1, -1, -1, 3), atol=1e-4, rtol=0)


def test_unknown_depth_is_warped_as_the_median():
    camera, target = look_ahead(1, 60), look_ahead(1, 60)
    target = perspective_cameras(target.R, torch.tensor([[0.1, 0.0, 0.0]]), target.focal_length)
    image = noise(1, 3, 32, 32)
    depth = torch.full((1, 1, 32, 32), 2.0)
    holes = depth.clone()
    holes[..., ::2] = 0
    filled = metrics.warp_by_depth(image, camera, holes, target)
    torch.testing.assert_close(filled, metrics.warp_by_depth(image, camera, depth, target))


# ---- feature space -------------------------------------------------------------------------------


def exact_gaussian(count: int, mean: torch.Tensor, scale: torch.Tensor, seed: int) -> torch.Tensor:
    """Points whose sample mean and covariance are exactly `mean` and diag(scale^2)."""
    points = noise(count, len(mean), seed=seed).double()
    points = torch.linalg.qr(points - points.mean(0)).Q * math.sqrt(count - 1)
    return points * scale + mean


@pytest.mark.parametrize("count", [40, 9])  # more points than channels, and a small set
def test_frechet_distance_of_gaussians(count):
    mean, other = torch.tensor([0.0, 1, 2]).double(), torch.tensor([1.0, 1, 0]).double()
    scale, other_scale = torch.tensor([1.0, 2, 3]).double(), torch.tensor([2.0, 2, 0.5]).double()
    expected = 1 + 4 + (1 - 2) ** 2 + 0 + (3 - 0.5) ** 2  # |m - n|^2 + sum of (a - b)^2 for commuting C
    first, second = exact_gaussian(count, mean, scale, 1), exact_gaussian(count, other, other_scale, 2)
    assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(first, first.clone()) == pytest.approx(0, abs=1e-9)


def test_frechet_distance_agrees_with_a_matrix_square_root():
    import numpy as np
    from scipy.linalg import sqrtm

    a, b = noise(30, 5, seed=1) @ noise(5, 5, seed=2), noise(50, 5, seed=3) @ noise(5, 5, seed=4) + 1
    c, d = np.cov(a.double().T), np.cov(b.double().T)
    root = sqrtm(c @ d).real
    mean = (a.double().mean(0) - b.double().mean(0)).square().sum().item()
    assert frechet_distance(a, b) == pytest.approx(mean + np.trace(c + d - 2 * root), rel=1e-7)


def test_kernel_distance_agrees_with_loops():
    a, b = noise(6, 4, seed=1), noise(5, 4, seed=2) + 0.5

    def k(x, y):
        return ((x @ y).double().item() / 4 + 1) ** 3

    within_a = sum(k(a[i], a[j]) for i in range(6) for j in range(6) if i != j) / 30
    within_b = sum(k(b[i], b[j]) for i in range(5) for j in range(5) if i != j) / 20
    between = sum(k(x, y) for x in a for y in b) / 30
    assert kernel_distance(a, b) == pytest.approx(within_a + within_b - 2 * between, rel=1e-5)


def test_sets_need_two_members():
    with pytest.raises(ValueError, match="at least 2"):
        frechet_distance(noise(1, 4), noise(3, 4))
    with pytest.raises(ValueError, match="at least 2"):
        kernel_distance(noise(3, 4), noise(1, 4))


def test_the_network_knows_a_cat():
    """The weights and the input's range are right: the data set's cat is classified as a cat."""
    data = pytest.importorskip("skimage.data")
    photo = torch.from_numpy(data.chelsea()).permute(2, 0, 1)[None] / 127.5 - 1
    network = EfficientNetLite0(side=128)
    likely = network.network._fc(network.pooled(photo))[0].topk(3).indices.tolist()
    assert set(likely) <= {281, 282, 283, 284, 285}  # ImageNet's five domestic cats


def test_perceptual_distance_grows_with_damage(network):
    data = pytest.importorskip("skimage.data")
    photo = torch.from_numpy(data.coffee()).permute(2, 0, 1)[None] / 127.5 - 1
    photo = torch.nn.functional.interpolate(photo, (64, 64), mode="area")
    blurred = torch.nn.functional.avg_pool2d(photo, 3, stride=1, padding=1)
    pixelated = torch.nn.functional.interpolate(blurred[..., ::6, ::6], (64, 64))
    versions = torch.stack([photo, blurred, pixelated]).expand(-1, 2, -1, -1, -1)
    distances = metrics.perceptual_efficientnet_lite0(versions, photo.expand(2, -1, -1, -1), network, chunk=1)
    assert distances.shape == (3, 2)
    assert (distances[0] == 0).all()
    assert (distances[1] > 0).all()
    assert (distances[1] < distances[2]).all()


def test_set_distances_order_damage(network):
    data = pytest.importorskip("skimage.data")
    photo = torch.from_numpy(data.astronaut()).permute(2, 0, 1)[None] / 127.5 - 1
    patches = photo.unfold(2, 64, 64).unfold(3, 64, 64).permute(0, 2, 3, 1, 4, 5).reshape(-1, 3, 64, 64)
    first, second = patches[:24:2], patches[1:24:2]
    sets = (first, second, second + 0.5 * noise(12, 3, 64, 64))
    ours, theirs, noisy = (network.pooled(images) for images in sets)
    for distance in (frechet_distance, kernel_distance):
        assert distance(ours, theirs) < distance(ours, noisy)
    few = (first[:4], second[:4])
    pooled = (ours[:4], theirs[:4])
    # the network's sums depend a little on the size of the batch
    assert metrics.fd_efficientnet_lite0(*few, network) == pytest.approx(frechet_distance(*pooled), rel=1e-3)
    assert metrics.kd_efficientnet_lite0(*few, network) == pytest.approx(kernel_distance(*pooled), rel=1e-3)


# ---- a real room ---------------------------------------------------------------------------------


@pytest.mark.skipif(not (REAL / "pairs.json").exists(), reason="the real capture is not here")
def test_visibility_on_a_real_capture_agrees_with_what_it_lists():
    """Fractions of known pixels in the whole frames that the context sees, for the first ten pairs."""
    pairs = load_capture(REAL).pairs[:10]
    frames = [[pair.context for pair in pairs], [pair.target for pair in pairs]]
    (context_depth, context), (depth, target) = (
        (torch.stack([frame.load_depth() for frame in side])[:, None], stack_cameras(side)) for side in frames
    )
    visible = metrics.visible_from(context_depth, context, depth, target)
    fraction = visible.flatten(1).sum(1) / (depth > 0).flatten(1).sum(1)
    listed = torch.tensor([pair.visible for pair in pairs])
    # edges are counted differently: one of four neighbours may agree here
    assert (fraction - listed).abs().max() < 0.15
    assert (fraction - listed).abs().mean() < 0.1
    assert torch.corrcoef(torch.stack([fraction, listed]))[0, 1] > 0.95


@pytest.mark.skipif(not (REAL / "pairs.json").exists(), reason="the real capture is not here")
def test_a_true_depth_warp_beats_a_plane_beats_copying():
    pairs = load_capture(REAL).pairs[::4]
    photos = [centre_square(pair.context, 64) for pair in pairs]
    targets = [centre_square(pair.target, 64) for pair in pairs]
    image, truth = (torch.stack([view.image for view in side]) for side in (photos, targets))
    context, target = stack_cameras(photos), stack_cameras(targets)
    depth = torch.stack([view.depth for view in targets])[:, None]
    plane = metrics.plane_warp(image, context, metrics.masked_median(depth, depth > 0), target, (64, 64))
    warped = metrics.warp_by_depth(image, context, depth, target)
    copying, flat, true = (psnr(picture, truth).mean().item() for picture in (image, plane, warped))
    assert copying + 2 < flat < true - 0.2


def stack_cameras(views: list) -> PerspectiveCameras:
    return join_cameras_as_batch([view.cameras for view in views])
