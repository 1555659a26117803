"""The renderer against PyTorch3D's ray marcher, closed forms, finite differences and its own symmetries."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from pytorch3d.renderer import (
    EmissionAbsorptionRaymarcher,
    ImplicitRenderer,
    NDCMultinomialRaysampler,
    PerspectiveCameras,
    RayBundle,
    ray_bundle_to_ray_points,
)
from pytorch3d.transforms import axis_angle_to_matrix, random_rotations
from torch import Tensor
from torch.nn import functional

from scenediff.renderers import pixel_field
from scenediff.renderers.cameras import CameraView, look_ahead, perspective_cameras
from scenediff.renderers.pixel_field import (
    DENSITY_SCALE,
    FieldConfig,
    FieldSignal,
    FieldView,
    PixelFieldRenderer,
    Rendering,
    composite,
    map_signal,
    prefilter,
    project,
)
from scenediff.renderers.rays import ray_bundle

SIZE = (6, 9)
CONFIG = FieldConfig(channels=8, feature_channels=3, samples=7, proposal_bins=12)
PARTS = ("image", "depth", "opacity", "features")


def some_cameras(batch: int, turn: float = 0.15, shift: float = 0.3) -> PerspectiveCameras:
    """Cameras near the origin that look along +Z, more or less, with lenses of their own."""
    return perspective_cameras(
        axis_angle_to_matrix(turn * torch.randn(batch, 3)),
        shift * torch.randn(batch, 3),
        1.2 + 0.3 * torch.rand(batch, 2),
        0.1 * torch.randn(batch, 2),
    )


def some_view(batch: int, channels: int = 8) -> FieldView:
    """Feature maps of 6 x 9, images twice as large, surfaces around 2 m."""
    return FieldView(
        some_cameras(batch),
        torch.randn(batch, channels, *SIZE),
        0.7 + 0.2 * torch.randn(batch, 1, *SIZE),
        torch.rand(batch, 3, 12, 18) * 2 - 1,
        torch.ones(batch),
    )


def some_signal(batch: int = 2, views: int = 2) -> FieldSignal:
    return FieldSignal(tuple(some_view(batch) for _ in range(views)))


def some_renderer(config: FieldConfig = CONFIG) -> PixelFieldRenderer:
    """An untrained field whose densities vary along the rays, so that weights reach many samples."""
    renderer = PixelFieldRenderer(config).eval()
    torch.nn.init.normal_(renderer.field.output.weight, std=0.7)
    torch.nn.init.constant_(renderer.field.output.bias[:1], -4.0)
    return renderer


def assert_same(first: Rendering, second: Rendering, atol: float = 1e-5) -> None:
    for part in PARTS:
        assert torch.allclose(getattr(first, part), getattr(second, part), atol=atol), part


# --- references ----------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("size", [(6, 9), (9, 6)])
def test_agrees_with_pytorch3d_implicit_renderer(size: tuple[int, int]) -> None:
    """PyTorch3D's sampler, renderer and ray marcher, given the same samples, with the field as the volume."""
    signal, renderer = some_signal(), some_renderer()
    view = CameraView(some_cameras(2), size)
    log_depth = renderer.place_samples(prefilter(signal, min(size)), ray_bundle(view))
    lengths = log_depth.exp().unflatten(1, size)  # (batch, height, width, samples)

    def rays(cameras: PerspectiveCameras, **_: object) -> RayBundle:
        sampler = NDCMultinomialRaysampler(
            image_width=size[1],
            image_height=size[0],
            n_pts_per_ray=lengths.shape[-1],
            min_depth=1.0,
            max_depth=2.0,
        )
        return sampler(cameras)._replace(lengths=lengths)

    def field(ray_bundle: RayBundle, last_alpha: float, **_: object) -> tuple[Tensor, Tensor]:
        points = ray_bundle_to_ray_points(ray_bundle)
        logits, values = renderer.decode(prefilter(signal, min(size)), points.flatten(1, 3))
        step = ray_bundle.lengths.log().diff(dim=-1)
        alpha = 1 - torch.exp(
            -functional.softplus(logits.view(lengths.shape)[..., :-1]) * DENSITY_SCALE * step
        )
        alpha = functional.pad(alpha, (0, 1), value=last_alpha)
        return alpha[..., None], torch.cat([values.view(*lengths.shape, -1), lengths[..., None]], dim=-1)

    reference = ImplicitRenderer(rays, EmissionAbsorptionRaymarcher())
    drawn, _ = reference(cameras=view.cameras, volumetric_function=field, last_alpha=1.0)
    opacity = reference(cameras=view.cameras, volumetric_function=field, last_alpha=0.0)[0][..., -1]
    rendering = renderer.render_all(signal, view)
    drawn = drawn.permute(0, 3, 1, 2)  # (batch, 3 colours + 3 features + depth + opacity, height, width)
    assert torch.allclose(rendering.image, drawn[:, :3], atol=1e-5)
    assert torch.allclose(rendering.features, drawn[:, 3:6], atol=1e-5)
    assert torch.allclose(rendering.depth, drawn[:, 6:7], atol=1e-5 * 14)  # depths reach 14 m
    assert torch.allclose(rendering.opacity[:, 0], opacity, atol=1e-5)
    assert 0.2 < opacity.mean() < 0.95  # neither empty nor solid


def test_a_slab_in_closed_form() -> None:
    """Softplus s over k samples of width h lets T = exp(-30 s h k) through to the background."""
    samples, width, density = 20, 0.1, 0.4
    log_depth = (width * torch.arange(samples, dtype=torch.float64)).expand(1, 1, -1)
    logits = torch.full((1, 1, samples), -50.0, dtype=torch.float64)
    logits[..., 5:9] = math.log(math.expm1(density))
    values = torch.full((1, 1, samples, 1), -1.0, dtype=torch.float64)
    values[..., 5:9, :] = 0.5
    colour, depth, opacity = composite(logits, log_depth, values)
    share = math.exp(-DENSITY_SCALE * density * width)  # passes one sample
    assert float(opacity) == pytest.approx(1 - share**4, abs=1e-9)
    assert float(colour) == pytest.approx(0.5 * (1 - share**4) - share**4, abs=1e-9)
    expected = sum((1 - share) * share**i * math.exp(width * (5 + i)) for i in range(4))
    assert float(depth) == pytest.approx(expected + share**4 * math.exp(width * 19), abs=1e-9)


def test_a_wall_is_drawn_where_it_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    """An opaque half-space beyond z = 2 m, coloured by its world position, under a turned camera."""
    config = FieldConfig(channels=8, feature_channels=1, samples=400, uniform_share=1.0)
    renderer = PixelFieldRenderer(config).eval()

    def wall(signal: FieldSignal, points: Tensor) -> tuple[Tensor, Tensor]:
        return torch.where(points[..., 2] > 2, 60.0, -60.0), torch.cat([points, points[..., :1]], dim=-1)

    monkeypatch.setattr(renderer, "decode", wall)
    view = CameraView(some_cameras(1), SIZE)
    rendering = renderer.render_all(some_signal(1), view)
    bundle = ray_bundle(view)
    true_depth = ((2 - bundle.origins[..., 2]) / bundle.directions[..., 2]).unflatten(1, SIZE)[:, None]
    step = (
        math.log(14 / 0.25) / 400
    )  # the first sample behind the wall lies at most one step of log depth behind it
    ratio = rendering.depth / true_depth
    assert ratio.min() >= 1 - 1e-5
    assert ratio.max() <= math.exp(step) + 1e-5
    hit = bundle.origins + rendering.depth.flatten(2).transpose(1, 2) * bundle.directions
    assert torch.allclose(rendering.image, hit.transpose(1, 2).unflatten(-1, SIZE), atol=1e-4)
    assert torch.allclose(rendering.opacity, torch.ones(1))


def test_even_fog_in_closed_form(monkeypatch: pytest.MonkeyPatch) -> None:
    renderer = PixelFieldRenderer(replace(CONFIG, samples=50, uniform_share=1.0)).eval()
    density = 0.02
    monkeypatch.setattr(
        renderer,
        "decode",
        lambda signal, points: (
            torch.full(points.shape[:2], math.log(math.expm1(density))),
            torch.zeros(*points.shape[:2], 6),
        ),
    )
    opacity = renderer.render_all(some_signal(1), CameraView(some_cameras(1), SIZE)).opacity
    span = math.log(14 / 0.25) * 49 / 50  # between the first and the last sample
    assert torch.allclose(opacity, torch.tensor(1 - math.exp(-DENSITY_SCALE * density * span)), atol=1e-5)


def test_gradients_agree_with_finite_differences(monkeypatch: pytest.MonkeyPatch) -> None:
    """In float64: what the field computes in at least single precision, it computes in double here.

    Samples are held where they are: `place_samples` gives no gradient by design, but moves with the depth
    maps, which finite differences would see.
    """
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    renderer = some_renderer().double()
    pixels = torch.tensor([[[0, 0], [2, 3], [4, 7]]])
    view = CameraView(some_cameras(1), SIZE, pixels)
    signal = map_signal(some_signal(1), torch.Tensor.double)
    bundle = RayBundle(*(part.double() for part in ray_bundle(CameraView(some_cameras(1), SIZE, pixels))))
    monkeypatch.setattr(pixel_field, "ray_bundle", lambda _: bundle)  # PyTorch3D's sampler is in float32
    fixed = renderer.place_samples(signal, bundle)
    monkeypatch.setattr(renderer, "place_samples", lambda *_: fixed)
    names = ("features", "log_depth", "image")

    def render(*tensors: Tensor) -> tuple[Tensor, ...]:
        changed = replace(signal.views[0], **dict(zip(names, tensors, strict=True)))
        drawn = renderer.render_all(FieldSignal((changed, signal.views[1])), view)
        return tuple(getattr(drawn, part) for part in PARTS)

    inputs = [getattr(signal.views[0], name).clone().requires_grad_() for name in names]
    for name, tensor in zip(
        names, torch.autograd.grad(sum(out.sum() for out in render(*inputs)), inputs), strict=True
    ):
        assert tensor.abs().max() > 1e-3, name
    assert torch.autograd.gradcheck(render, inputs, fast_mode=True)


def test_gradients_reach_every_parameter() -> None:
    renderer = some_renderer()
    drawn = renderer.render_all(some_signal(), CameraView(some_cameras(2), SIZE))
    sum(getattr(drawn, part).square().sum() for part in PARTS).backward()
    for name, parameter in renderer.named_parameters():
        assert parameter.grad.abs().max() > 0, name


# --- symmetries ----------------------------------------------------------------------------------


@torch.no_grad()
def test_chunks_and_chosen_pixels_are_parts_of_the_whole() -> None:
    signal, renderer = some_signal(), some_renderer()
    view = CameraView(some_cameras(2), SIZE)
    whole = renderer.render_all(signal, view)
    assert whole.image.shape == (2, 3, *SIZE)
    assert whole.features.shape == (2, 3, *SIZE)
    for rays in (1, 7, 1000):
        renderer.chunk_rays = rays
        assert_same(renderer.render_all(signal, view), whole, atol=1e-6)
    pixels = torch.stack([torch.randint(6, (2, 10)), torch.randint(9, (2, 10))], dim=-1)
    some = renderer.render_all(signal, replace(view, pixels=pixels))
    assert some.image.shape == (2, 3, 10, 1)
    for part in PARTS:
        for batch in range(2):
            rows, columns = pixels[batch].T
            expected = getattr(whole, part)[batch][:, rows, columns]
            assert torch.allclose(getattr(some, part)[batch, :, :, 0], expected, atol=1e-6), part


@torch.no_grad()
def test_elements_of_a_batch_and_the_order_of_views_do_not_matter() -> None:
    signal, renderer = some_signal(3), some_renderer()
    view = CameraView(some_cameras(3), SIZE)
    together = renderer.render_all(signal, view)
    for index in range(3):
        one = slice(index, index + 1)
        cameras = perspective_cameras(
            view.cameras.R[one],
            view.cameras.T[one],
            view.cameras.focal_length[one],
            view.cameras.principal_point[one],
        )
        alone = renderer.render_all(
            map_signal(signal, lambda tensor, one=one: tensor[one]), CameraView(cameras, SIZE)
        )
        assert_same(alone, Rendering(*(getattr(together, part)[one] for part in PARTS)))
    assert_same(renderer.render_all(FieldSignal(signal.views[::-1]), view), together)


@torch.no_grad()
def test_a_rigid_motion_of_the_world_changes_nothing() -> None:
    signal, renderer = some_signal(1), some_renderer()
    rotation, translation = random_rotations(1), torch.randn(1, 3)

    def moved(cameras: PerspectiveCameras) -> PerspectiveCameras:
        """Where x' = x Q + t is the new world: x_cam = (x' - t) Q^T R + T."""
        turned = rotation.transpose(1, 2) @ cameras.R
        return perspective_cameras(
            turned,
            cameras.T - (translation[:, None] @ turned)[:, 0],
            cameras.focal_length,
            cameras.principal_point,
        )

    cameras = some_cameras(1)
    before = renderer.render_all(signal, CameraView(cameras, SIZE))
    after = renderer.render_all(
        FieldSignal(tuple(replace(view, cameras=moved(view.cameras)) for view in signal.views)),
        CameraView(moved(cameras), SIZE),
    )
    assert_same(before, after, atol=2e-3)  # samples of float32 positions, placed by steep functions


@torch.no_grad()
def test_a_dropped_view_is_as_good_as_none() -> None:
    signal, renderer = some_signal(1), some_renderer()
    view = CameraView(some_cameras(1), SIZE)
    dropped = replace(signal.views[1], present=torch.zeros(1))
    alone = renderer.render_all(FieldSignal(signal.views[:1]), view)
    assert_same(renderer.render_all(FieldSignal((signal.views[0], dropped)), view), alone)
    nonsense = replace(
        dropped, image=-dropped.image, features=dropped.features + 1, log_depth=dropped.log_depth + 1
    )
    assert_same(renderer.render_all(FieldSignal((signal.views[0], nonsense)), view), alone)


# --- what views show -----------------------------------------------------------------------------


def listens_to_pixels(renderer: PixelFieldRenderer) -> PixelFieldRenderer:
    """Blend weights in favour of the views' pixels: e^8 for them, e^-8 for the field's own colour."""
    for layer, row, value in ((renderer.field.view_gates, 1, 8.0), (renderer.field.output, 4, -8.0)):
        torch.nn.init.zeros_(layer.weight[row])
        torch.nn.init.constant_(layer.bias[row], value)
    return renderer


@torch.no_grad()
@pytest.mark.parametrize("size", [(12, 18), (12, 17), (18, 12), (24, 40)])
def test_a_view_reproduces_its_own_image(size: tuple[int, int]) -> None:
    """Whatever the shape of its feature map, whose sides are rounded."""
    renderer = listens_to_pixels(some_renderer())
    image = torch.rand(1, 3, *size) * 2 - 1
    view = replace(some_view(1), image=image)
    own = CameraView(view.cameras, size)
    assert torch.allclose(renderer.render(FieldSignal((view,)), own), image, atol=1e-4)
    assert (renderer.render(FieldSignal((replace(view, image=-image),)), own) - image).abs().mean() > 0.5


@torch.no_grad()
def test_coarse_frames_average_fine_images() -> None:
    """A checkerboard must turn grey, not alias: it is filtered down before it is read."""
    renderer = listens_to_pixels(some_renderer())
    checkers = ((torch.arange(36) + torch.arange(24)[:, None]) % 2 * 2.0 - 1).expand(1, 3, 24, 36)
    view = replace(some_view(1), image=checkers)
    coarse = renderer.render(FieldSignal((view,)), CameraView(view.cameras, SIZE))
    assert coarse.abs().max() < 0.1
    assert prefilter(FieldSignal((view,)), 6).views[0].image.shape == (1, 3, *SIZE)
    assert prefilter(FieldSignal((view,)), 24).views[0] is view


@torch.no_grad()
@pytest.mark.parametrize("short", [10, 13, 25])
def test_frames_of_any_size_show_the_photo_in_its_own_shape(short: int) -> None:
    """A photo of 25 x 34 with colour = NDC x, whose reduced sizes can't be in the same proportion."""
    renderer = listens_to_pixels(some_renderer())
    ramp = (34 - 2 * (torch.arange(34) + 0.5)) / 25
    view = replace(some_view(1), image=(ramp / 2).expand(1, 3, 25, 34).contiguous())
    frame = renderer.render(FieldSignal((view,)), CameraView(view.cameras, (short, short)))
    expected = (short - 2 * (torch.arange(short) + 0.5)) / short / 2
    assert torch.allclose(
        frame[0, 0], expected.expand(short, short), atol=2e-3
    )  # half a pixel is 0.02 or more


@torch.no_grad()
def test_samples_gather_where_depth_maps_point() -> None:
    config = FieldConfig(channels=8, samples=24, uniform_share=0.25, proposal_bins=40)
    renderer = PixelFieldRenderer(config).eval()
    view = replace(some_view(1), log_depth=torch.full((1, 1, *SIZE), math.log(3.0)))
    signal, bundle = FieldSignal((view,)), ray_bundle(CameraView(view.cameras, SIZE))
    placed = renderer.place_samples(signal, bundle)
    assert placed.shape == (1, 54, 24)
    assert (placed.diff() > 0).all()
    assert placed.min() >= math.log(0.25)
    assert placed.max() <= math.log(14.0)
    bin_width = math.log(14 / 0.25) / 40
    near_surface = ((placed - math.log(3.0)).abs() < 3 * bin_width).float().mean()
    # three quarters, of which exp(-x^2) keeps all but 1e-4 within 3 bins, and 6 of the 40 even bins
    assert near_surface == pytest.approx(0.75 + 0.25 * 6 / 40, abs=1.5 / 24)
    assert torch.equal(renderer.place_samples(signal, bundle), placed)
    blind = FieldSignal((replace(view, present=torch.zeros(1)),))
    evenly = renderer.place_samples(blind, bundle)
    assert torch.allclose(evenly.diff(), torch.tensor(math.log(14 / 0.25) / 24), atol=1e-4)
    renderer.train()
    assert not torch.equal(renderer.place_samples(signal, bundle), renderer.place_samples(signal, bundle))


def test_points_project_as_pytorch3d_projects_them() -> None:
    cameras, points = some_cameras(2), torch.randn(2, 30, 3) + torch.tensor([0.0, 0, 3.5])
    grid, depth = project(points, cameras, SIZE)
    screen = cameras.transform_points_screen(points, image_size=torch.tensor([SIZE, SIZE]))
    front = depth > 0.1
    pixels = (grid + 1) / 2 * torch.tensor([SIZE[1], SIZE[0]])
    assert front.sum() > 50
    assert torch.allclose(pixels[front], screen[..., :2][front], rtol=1e-4, atol=1e-3)
    assert torch.allclose(
        depth, cameras.get_world_to_view_transform().transform_points(points)[..., 2], atol=1e-5
    )


# --- odd cases -----------------------------------------------------------------------------------


def turned_away(batch: int) -> PerspectiveCameras:
    return perspective_cameras(
        torch.diag(torch.tensor([-1.0, 1.0, -1.0])).expand(batch, 3, 3),
        torch.zeros(batch, 3),
        torch.ones(batch),
    )


@pytest.mark.parametrize("case", ["dropped", "turned away", "inside a camera", "very large features"])
def test_blind_rays_stay_finite_with_finite_gradients(case: str) -> None:
    renderer, signal = some_renderer(), some_signal()
    cameras = {"turned away": turned_away(2), "inside a camera": signal.views[0].cameras}.get(
        case, some_cameras(2)
    )
    present = torch.zeros(2) if case == "dropped" else torch.ones(2)
    scale = 1e4 if case == "very large features" else 1.0
    names = ("features", "log_depth", "image")
    leaves = {
        name: (getattr(signal.views[0], name) * (scale if name == "features" else 1)).requires_grad_()
        for name in names
    }
    views = (replace(signal.views[0], present=present, **leaves), replace(signal.views[1], present=present))
    drawn = renderer.render_all(FieldSignal(views), CameraView(cameras, SIZE))
    assert all(getattr(drawn, part).isfinite().all() for part in PARTS)
    assert drawn.image.abs().max() <= 1 + 1e-5
    assert drawn.opacity.min() >= 0
    assert drawn.opacity.max() <= 1
    assert drawn.depth.min() >= 0.25
    assert drawn.depth.max() <= 14 + 1e-4
    sum(getattr(drawn, part).sum() for part in PARTS).backward()
    gradients = [leaf.grad for leaf in leaves.values()] + [
        parameter.grad for parameter in renderer.parameters()
    ]
    assert all(gradient.isfinite().all() for gradient in gradients if gradient is not None)
    if case == "dropped":
        assert all(leaf.grad is None or leaf.grad.abs().max() == 0 for leaf in leaves.values())


def test_no_cameras_give_empty_frames() -> None:
    signal = map_signal(some_signal(1), lambda tensor: tensor[:0])
    none = perspective_cameras(torch.zeros(0, 3, 3), torch.zeros(0, 3), torch.zeros(0))
    for size in (SIZE, (30, 40)):
        drawn = some_renderer().render_all(signal, CameraView(none, size))
        assert drawn.image.shape == (0, 3, *size)
        assert drawn.depth.shape == drawn.opacity.shape == (0, 1, *size)
        assert drawn.features.shape == (0, 3, *size)


def test_every_tensor_of_a_signal_is_mapped() -> None:
    signal = some_signal(3)
    last = map_signal(signal, lambda tensor: tensor[2:])
    for before, after in zip(signal.views, last.views, strict=True):
        for name in ("features", "log_depth", "image", "present"):
            assert torch.equal(getattr(after, name), getattr(before, name)[2:])
        for name in ("R", "T", "focal_length", "principal_point"):
            assert torch.equal(getattr(after.cameras, name), getattr(before.cameras, name)[2:])


def test_a_fresh_field_is_nearly_empty() -> None:
    view = CameraView(look_ahead(2, 60.0), SIZE)
    fresh = PixelFieldRenderer(CONFIG).eval()
    with torch.no_grad():
        opacity = fresh.render_all(some_signal(), view).opacity
    span = math.log(14 / 0.25)
    assert opacity.max() <= 1 - math.exp(-DENSITY_SCALE * math.log1p(math.exp(-4.0)) * span) + 1e-6


@torch.no_grad()
def test_a_view_has_no_say_beyond_its_edges_or_behind_it() -> None:
    renderer, (first, second) = some_renderer(), some_signal(1).views
    second = replace(second, cameras=look_ahead(1, 90.0))
    # at depth 2 and 90 degrees the 6 x 9 image reaches 2 up and down, 3 to the left and right
    inside = torch.tensor([[2.99, 0, 2], [-2.99, 0, 2], [0, 1.99, 2], [0, -1.99, 2]])[None]
    outside = torch.tensor([[3.01, 0, 2], [-3.01, 0, 2], [0, 2.01, 2], [0, -2.01, 2], [0, 0, -2]])[None]
    for points, matters in ((inside, True), (outside, False)):
        both, alone = (
            renderer.decode(FieldSignal(views), points)[1] for views in ((first, second), (first,))
        )
        assert ((both - alone).abs().amax(-1) > 1e-4).eq(matters).all()


def test_a_share_of_the_samples_is_always_even() -> None:
    with pytest.raises(ValueError, match=r"uniform_share must lie in \(0, 1\], got 0"):
        FieldConfig(uniform_share=0.0)


def test_fields_are_the_same_with_gradients_and_without() -> None:
    """Without gradients a CPU adds in place; nothing that the field reads may change by it."""
    signal, renderer, view = some_signal(), some_renderer(), CameraView(some_cameras(2), SIZE)
    before = [one.features.clone() for one in signal.views]
    with torch.no_grad():
        first, second = (renderer.render_all(signal, view) for _ in range(2))
    assert_same(first, renderer.render_all(signal, view))
    assert_same(first, second, atol=0)
    assert all(torch.equal(one.features, old) for one, old in zip(signal.views, before, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])  # oneDNN's product, and the plain one
@pytest.mark.parametrize("points", [0, 1, 11])
def test_a_layer_is_added_with_gradients_and_without(dtype: torch.dtype, points: int) -> None:
    layer, total = torch.nn.Linear(5, 7, dtype=dtype), torch.randn(2, points, 7, dtype=dtype)
    x = torch.randn(2, points, 5, dtype=dtype)
    expected = pixel_field.add_linear(total, x, layer)
    assert torch.allclose(expected, total + x @ layer.weight.T + layer.bias, atol=1e-5)
    with torch.no_grad():
        assert torch.allclose(pixel_field.add_linear(total, x, layer), expected, atol=1e-5)
