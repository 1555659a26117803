"""Baked scenes against the closed-form room: colours, depth, holes, edges, both ways of drawing."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from analytic_scene import AnalyticScene, surface_distance, trace, turned

from scenediff.renderers import layers
from scenediff.renderers.baked import (
    BakedScene,
    bake,
    baked_psnr,
    fill_holes,
    interpolate_cameras,
    scaled_size,
)
from scenediff.renderers.depth_maps import (
    camera_centers,
    cuts,
    normals,
    project,
    sharpen_edges,
    unproject,
)
from scenediff.renderers.layers import Layers, OpenGLDrawer, SplatDrawer, composite, make_drawer

SIZE = (96, 128)


@pytest.fixture(scope="module")
def scene() -> AnalyticScene:
    return AnalyticScene(photo_size=(192, 256))


@pytest.fixture(scope="module")
def baked(scene: AnalyticScene) -> Iterator[BakedScene]:
    with bake(scene, short_side=128) as result:
        yield result


@pytest.fixture(scope="module")
def splatted(baked: BakedScene) -> BakedScene:
    return BakedScene(baked.keys, baked.photo_depth, SplatDrawer(baked.keys))


def test_unproject_finds_true_surfaces_and_project_inverts_it(scene: AnalyticScene) -> None:
    camera = turned((0.3, 0.2, 0.1), 12.0, scene.photo_cameras.focal_length[:, 0])
    points = unproject(scene.render(camera, (30, 47)).depth, camera)
    assert surface_distance(points).max() < 1e-5  # float32 at 5 m
    pixels, depth = project(points[0], camera, (30, 47))
    assert torch.allclose(pixels[7, 11], torch.tensor([11.5, 7.5]), atol=1e-3)
    assert torch.allclose(depth, scene.render(camera, (30, 47)).depth[0, 0], atol=1e-5)


def test_project_refuses_several_cameras(scene: AnalyticScene) -> None:
    two = interpolate_cameras(scene.photo_cameras, scene.photo_cameras, 0.5)
    two.R = two.R.expand(2, 3, 3)
    with pytest.raises(ValueError, match="one camera, got 2"):
        project(torch.zeros(1, 3), two, SIZE)


def test_normals_of_walls_point_into_the_room(scene: AnalyticScene) -> None:
    camera = scene.photo_cameras
    points = unproject(scene.render(camera, SIZE).depth, camera)
    normal = normals(points, camera_centers(camera))[0]
    assert torch.allclose(normal[2, 64], torch.tensor([0.0, -1.0, 0.0]), atol=1e-3)  # the ceiling
    assert torch.allclose(normal[48, 2], torch.tensor([-1.0, 0.0, 0.0]), atol=1e-3)  # +X, the left wall
    assert torch.allclose(normal[30, 75], torch.tensor([0.0, 0.0, -1.0]), atol=1e-3)  # the wall ahead


def test_cuts_only_around_the_ball_however_slanted_the_walls(scene: AnalyticScene) -> None:
    _, depth, surface = trace(scene.photo_cameras, (192, 256))
    other_surface = (surface.diff(dim=-1) != 0, surface.diff(dim=-2) != 0)
    ratios = (depth.log().diff(dim=-1).abs(), depth.log().diff(dim=-2).abs())
    for cut, other, ratio in zip(cuts(depth[:, None]), other_surface, ratios, strict=True):
        assert cut.sum() > 100
        assert not (cut & ~other).any()
        assert cut[other & (ratio > 0.15)].all()  # the ball may stay joined to a close floor


def test_sharpening_turns_slopes_back_into_steps() -> None:
    step = torch.full((1, 1, 40, 40), 4.0)
    step[..., :20] = 2.0
    slope = F.avg_pool2d(F.pad(step, (2, 2, 2, 2), mode="replicate"), 5, stride=1)
    right, _ = cuts(sharpen_edges(slope, 4))
    assert torch.allclose(sharpen_edges(slope, 4)[..., :18], step[..., :18], rtol=0.01)
    assert (right.sum(-1) == 1).all()  # one cut in each row, at the step or a pixel beside it
    assert right[..., 18:21].any(-1).all()
    assert torch.equal(sharpen_edges(slope, 0), slope)


def test_sharpening_leaves_planes_alone() -> None:
    y, x = torch.meshgrid(torch.arange(40.0), torch.arange(60.0), indexing="ij")
    depth = 1 / (0.02 + 0.01 * x + 0.003 * y)[None, None]  # a floor at a grazing angle, 1.4 m to 50 m away
    inside = (..., slice(8, -8), slice(8, -8))
    assert torch.allclose(sharpen_edges(depth, 4)[inside], depth[inside], rtol=1e-4)


@pytest.mark.parametrize("amount", [0.0, 0.25, 0.5, 0.75, 1.0])
def test_frames_on_the_way_to_the_target_match_the_scene(
    scene: AnalyticScene, baked: BakedScene, amount: float
) -> None:
    cameras = interpolate_cameras(scene.photo_cameras, scene.target_cameras[0], amount)
    assert baked_psnr(scene, baked, cameras, (128, 170)) > 30  # measured 30.9 to 33.5; edges one pixel wide
    frames, truth = baked.render(cameras, (128, 170)), scene.render(cameras, (128, 170))
    assert frames.image.shape == (1, 3, 128, 170)
    assert frames.opacity.mean() > 0.99
    assert (frames.depth / truth.depth - 1).abs().quantile(0.95) < 0.01


def test_unseen_parts_are_wrong_so_the_comparison_can_fail(scene: AnalyticScene, baked: BakedScene) -> None:
    behind = turned((0.0, 0.0, 0.0), 180.0, scene.photo_cameras.focal_length[:, 0])
    frames = baked.render(behind, SIZE)
    assert frames.opacity.max() == 0
    assert frames.image.isfinite().all()
    assert baked_psnr(scene, baked, behind, SIZE) < 20


def test_splat_agrees_with_opengl(scene: AnalyticScene, baked: BakedScene, splatted: BakedScene) -> None:
    assert isinstance(baked._drawer, OpenGLDrawer), "tests need an EGL driver (libegl1, libgl1-mesa-dri)"
    cameras = interpolate_cameras(scene.photo_cameras, scene.target_cameras[0], 0.4)
    first, second = baked.render(cameras, SIZE), splatted.render(cameras, SIZE)
    assert (first.image - second.image).square().mean() < 4 * 10**-2.8  # 28 dB: the splat's edges are rough
    # the splat keeps the nearest of a pixel's points, and walls come nearer by 1 to 2 % a pixel at this size
    assert (first.depth / second.depth - 1).abs().median() < 0.01


def test_opengl_blends_layers_as_composite_does(scene: AnalyticScene, baked: BakedScene) -> None:
    cameras = interpolate_cameras(scene.photo_cameras, scene.target_cameras[0], 0.4)
    height, width = SIZE
    for keys in (baked.keys[:1], baked.keys, (*baked.keys, *baked.keys[:2])):
        drawer = OpenGLDrawer(keys)
        color, depth, cover = drawer.draw(cameras, SIZE)
        columns = math.ceil(len(keys) ** 0.5)
        with drawer._context:
            colors, others = (texture.read() for texture in drawer._targets[0].color_attachments)
        drawn = np.frombuffer(colors, np.uint8).reshape(-1, columns * width, 4)
        values = np.frombuffer(others, np.float32).reshape(-1, columns * width, 2)
        places = [divmod(k, columns) for k in range(len(keys))]
        tiles = [
            (slice(row * height, (row + 1) * height), slice(column * width, (column + 1) * width))
            for row, column in places
        ]
        layer = Layers(
            torch.stack([torch.tensor(drawn[tile][..., :3]).permute(2, 0, 1) / 127.5 - 1 for tile in tiles]),
            *(torch.stack([torch.tensor(values[tile][..., n]) for tile in tiles]) for n in range(2)),
        )
        drawer.close()
        expected = composite(layer)
        assert torch.allclose(color, expected[0], atol=1e-3)
        assert torch.allclose(depth, expected[1], rtol=1e-4)
        assert torch.equal(cover, expected[2])
        assert cover.mean() > 0.2


def test_without_opengl_the_splat_draws(
    baked: BakedScene, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_context(keys: object) -> None:
        raise RuntimeError("libEGL.so not loaded")

    monkeypatch.setattr(layers, "OpenGLDrawer", no_context)
    assert isinstance(make_drawer(baked.keys), SplatDrawer)
    assert "libEGL.so not loaded" in caplog.text


def test_noisy_depth_still_gives_good_frames() -> None:
    scene = AnalyticScene(photo_size=(192, 256), depth_noise=0.02)
    cameras = interpolate_cameras(scene.photo_cameras, scene.target_cameras[0], 0.5)
    with bake(scene, short_side=128) as baked:
        assert baked_psnr(scene, baked, cameras, (128, 170)) > 28


def test_baking_is_deterministic_and_counts_its_pixels() -> None:
    scene = AnalyticScene(photo_size=(96, 128))
    cameras = interpolate_cameras(scene.photo_cameras, scene.target_cameras[0], 0.3)
    scene.rendered_pixels = 0
    with bake(scene, short_side=64) as first, bake(scene, short_side=64) as second:
        assert scene.rendered_pixels <= 2 * 3.5 * 64**2
        assert torch.equal(first.render(cameras, SIZE).image, second.render(cameras, SIZE).image)


def test_sizes_keep_the_shape() -> None:
    assert scaled_size((384, 512), 256) == (256, 342)
    assert scaled_size((512, 128), 256) == (384, 96)  # not longer than 1.5 short sides
    assert scaled_size((333, 333), 64) == (64, 64)


def test_interpolated_cameras(scene: AnalyticScene) -> None:
    first, second = scene.photo_cameras, scene.target_cameras[0]
    middle = interpolate_cameras(first, second, 0.5)
    expected = turned((0.25, 0.05, 0.2), -7.0, first.focal_length[:, 0])
    assert torch.allclose(middle.R, expected.R, atol=1e-3)  # the matrix logarithm near 0 is only so exact
    assert torch.allclose(camera_centers(middle), camera_centers(expected), atol=1e-5)


def test_composite_prefers_the_near_layer_and_blends_equal_ones() -> None:
    color = torch.tensor([-1.0, 0.0, 1.0])[:, None, None, None].expand(3, 3, 1, 2)
    depth = torch.tensor([[2.0, 2.0], [2.0, 4.0], [4.0, 4.0]])[:, None]
    weight = torch.tensor([[1.0, 0.0], [1.0, 1.0], [1.0, 1.0]])[:, None]
    blended, z, cover = composite(Layers(color, depth, weight))
    assert torch.allclose(blended[0, 0], torch.tensor([-0.5, 0.5]), atol=1e-4)
    assert torch.allclose(z[0], torch.tensor([2.0, 4.0]), atol=1e-4)
    assert cover.all()


def test_holes_take_the_far_side() -> None:
    color, depth, cover = torch.zeros(3, 16, 16), torch.full((16, 16), 1.0), torch.ones(16, 16)
    color[:, :, 8:], depth[:, 8:] = 1.0, 5.0
    cover[:, 6:9] = 0
    filled, z, _ = fill_holes(color, depth, cover)
    assert filled[:, :, 8].min() > 0.95
    assert z[:, 8].min() > 4.5
    assert torch.equal(filled[:, :, :6], color[:, :, :6])
