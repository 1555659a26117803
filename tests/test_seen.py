"""What of a view others have seen, in closed form; and that samples keep it."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from pytorch3d.renderer import PerspectiveCameras
from test_networks import FIELD, SMALL, photos, shaken, target

from scenediff.networks.pixel_denoiser import TYPICAL_DEPTH, PixelDenoiser
from scenediff.renderers.cameras import CameraView, look_ahead
from scenediff.renderers.pixel_field import FieldSignal, FieldView, PixelFieldRenderer, Rendering
from scenediff.renderers.rays import ray_bundle
from scenediff.renderers.seen import TOLERANCE, nearest_surface, render_scene, seen_before

SIZE, FINE = (12, 16), (48, 64)


def wall(distance: float, cameras: PerspectiveCameras, present: float = 1.0) -> FieldView:
    """A view that predicts the same depth everywhere."""
    return seen_by(cameras, torch.full((1, 1, *SIZE), math.log(distance)), present)


def seen_by(cameras: PerspectiveCameras, log_depth: torch.Tensor, present: float = 1.0) -> FieldView:
    """A black view that predicts these depths."""
    black = torch.zeros_like(log_depth).expand(-1, 3, -1, -1)
    return FieldView(cameras, torch.zeros_like(black), log_depth, black, torch.tensor([present]))


def share_of(views: list[FieldView], view: CameraView, depth: torch.Tensor, tolerance: float) -> torch.Tensor:
    return seen_before(views, view, depth, tolerance).share


def moved(cameras: PerspectiveCameras, x: float = 0.0, z: float = 0.0) -> PerspectiveCameras:
    """The camera at another place, its axes unchanged."""
    return PerspectiveCameras(
        R=cameras.R, T=cameras.T - torch.tensor([[x, 0.0, z]]), focal_length=cameras.focal_length,
        principal_point=cameras.principal_point, in_ndc=True,
    )


@pytest.mark.parametrize("apart", [-0.3, 0.0, 0.1, 0.2])
def test_the_share_falls_with_the_ratio_of_depths(apart: float) -> None:
    cameras = look_ahead(1, 60.0)
    depth = torch.full((1, 1, *SIZE), 2.0 * math.exp(apart))
    share = share_of([wall(2.0, cameras)], CameraView(cameras, SIZE), depth, 0.2)
    assert share.shape == (1, 1, *SIZE)
    assert torch.allclose(share, torch.tensor(math.exp(-((apart / 0.2) ** 2))), atol=1e-4)


def test_a_step_forward_is_accounted_for() -> None:
    """From 0.5 m nearer a wall is 0.5 m nearer, and all of it in the frame."""
    cameras = look_ahead(1, 60.0)
    nearer = CameraView(moved(cameras, z=0.5), SIZE)
    depth = torch.full((1, 1, *SIZE), 1.5)
    assert torch.allclose(share_of([wall(2.0, cameras)], nearer, depth, 0.1), torch.tensor(1.0), atol=1e-4)
    farther = share_of([wall(2.0, cameras)], nearer, depth + 0.5, 0.1)
    assert torch.allclose(farther, torch.tensor(math.exp(-((math.log(2 / 1.5) / 0.1) ** 2))), atol=1e-4)


def test_what_lies_beside_the_frame_or_behind_it_was_not_seen() -> None:
    """Half a frame's width aside, half of it is new."""
    cameras = look_ahead(1, 60.0)
    half_width = 2.0 * SIZE[1] / min(SIZE) / float(cameras.focal_length[0, 0])  # at 2 m
    aside = CameraView(moved(cameras, x=half_width), SIZE)  # +x is the left
    depth = torch.full((1, 1, *SIZE), 2.0)
    share = share_of([wall(2.0, cameras)], aside, depth, 0.1)[0, 0]
    assert torch.allclose(share[:, : SIZE[1] // 2], torch.tensor(0.0))
    assert torch.allclose(share[:, SIZE[1] // 2 :], torch.tensor(1.0), atol=1e-4)
    behind = CameraView(moved(cameras, z=-5.0), SIZE)
    assert share_of([wall(2.0, cameras)], behind, depth, 0.1).max() == 0


def test_dropped_views_saw_nothing_and_the_surest_view_counts() -> None:
    cameras = look_ahead(1, 60.0)
    view, depth = CameraView(cameras, SIZE), torch.full((1, 1, *SIZE), 2.0)
    dropped, unsure, sure = wall(2.0, cameras, 0.0), wall(2.2, cameras), wall(2.02, cameras)
    assert share_of([dropped], view, depth, 0.2).max() == 0
    both = share_of([unsure, dropped, sure], view, depth, 0.2)
    assert torch.equal(both, share_of([sure], view, depth, 0.2))


def test_surfaces_are_found_where_rays_meet_them() -> None:
    """Seen from aside, a slanted plane is where its equation says; the rendered depth only points at it."""
    cameras = look_ahead(1, 60.0)
    ahead = ray_bundle(CameraView(cameras, FINE))
    slope, distance = 0.3, 2.0  # z = distance + slope x, so on rays (x, y, 1) z: z = distance / (1 - slope x)
    log_depth = (distance / (1 - slope * ahead.directions[..., 0])).log()
    plane = seen_by(cameras, log_depth.view(1, 1, *FINE))
    view = CameraView(moved(cameras, x=0.2), FINE)
    bundle = ray_bundle(view)
    expected = ((distance + slope * 0.2) / (1 - slope * bundle.directions[..., 0])).log()
    found, there = nearest_surface(plane, bundle, expected + 0.3 * torch.rand(expected.shape) - 0.15)
    inside = there > 0
    assert inside.float().mean() > 0.75  # the rest lies beside the frame
    assert torch.allclose(found[inside], expected[inside], atol=2e-3)  # bilinear between pixels


def test_edges_are_no_surfaces() -> None:
    """Rays that pass from in front of a near half to behind it, and on to the far one, meet the far one."""
    cameras = look_ahead(1, 60.0)
    log_depth = torch.full((1, 1, *FINE), math.log(3.0))
    log_depth[..., : FINE[1] // 2] = math.log(1.5)  # the left half
    step = seen_by(cameras, log_depth)
    view = CameraView(moved(cameras, x=-0.5), FINE)  # from the right, behind the near half's edge
    bundle = ray_bundle(view)
    guess = torch.full(bundle.directions.shape[:2], math.log(2.2))
    found, there = nearest_surface(step, bundle, guess)
    surfaces = found[there > 0].exp()
    assert len(surfaces) > 0.5 * guess.numel()
    assert torch.minimum((surfaces - 3).abs(), (surfaces - 1.5).abs()).max() < 0.02
    assert torch.equal(found[there == 0], guess[there == 0])


def test_the_surface_nearest_to_the_rendered_depth_counts() -> None:
    """Of two views that saw different surfaces on a ray, the one at the rendered depth counts."""
    cameras = look_ahead(1, 60.0)
    view = CameraView(cameras, SIZE)
    walls = [wall(2.0, cameras), wall(2.5, cameras)]
    for depth, expected in ((1.9, 2.0), (2.6, 2.5)):
        seen = seen_before(walls, view, torch.full((1, 1, *SIZE), depth), 0.2)
        assert torch.allclose(seen.log_depth, torch.tensor(math.log(expected)), atol=1e-4)


def test_half_precision_around_it_changes_nothing() -> None:
    cameras = look_ahead(1, 60.0)
    view, depth = CameraView(moved(cameras, x=0.1), SIZE), torch.full((1, 1, *SIZE), 2.0)
    expected = share_of([wall(2.1, cameras)], view, depth, 0.05)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(share_of([wall(2.1, cameras)], view, depth, 0.05), expected)


class FlatRenderer(PixelFieldRenderer):
    """Shows everything at nearly the depth that is predicted before training."""

    def render_all(self, signal: FieldSignal, view: CameraView) -> Rendering:
        rendering = super().render_all(signal, view)
        depth = torch.full_like(rendering.depth, 1.03 * TYPICAL_DEPTH)
        return replace(rendering, depth=depth, opacity=torch.ones_like(depth))


@torch.no_grad()
def test_samples_keep_what_was_seen_and_nothing_else() -> None:
    torch.manual_seed(0)
    keeping, free = (
        PixelDenoiser(replace(SMALL, keep=keep), FlatRenderer(FIELD)).eval() for keep in (0.2, 0.0)
    )
    shaken(keeping)
    for part in (keeping.head.weight, keeping.head.bias):
        part[-4] = 0  # depths are what they are before training
    free.load_state_dict(keeping.state_dict())
    context, view = photos(2, (32, 48)), target(2)
    noisy, steps, drop = torch.randn(2, 3, 16, 24), torch.tensor([500, 500]), torch.tensor([False, True])
    encoded = [denoiser.encode([context], view, drop) for denoiser in (keeping, free)]
    seen = encoded[0].extras.seen
    assert seen[0].min() > 0.9
    assert seen[1].max() == encoded[1].extras.seen.max() == 0
    kept, made = (
        denoiser.denoise(noisy, steps, one, view).views[-1]
        for denoiser, one in zip((keeping, free), encoded, strict=True)
    )
    guess = encoded[0].extras
    assert torch.allclose(kept.log_depth, made.log_depth.lerp(guess.surface, seen), atol=1e-5)
    assert torch.allclose(kept.image, made.image.lerp(guess.kept, seen), atol=1e-5)
    assert torch.equal(kept.features, made.features)
    keeping.train()
    assert keeping.encode([context], view).extras.seen.max() == 0  # training leaves all to the noise


# --- finished scenes -----------------------------------------------------------------------------


def textured(view: FieldView) -> FieldView:
    """The same view of a picture of random pixels, finer than its depths."""
    noise = torch.rand(1, 3, *FINE, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return replace(view, image=noise)


class Fog(PixelFieldRenderer):
    """Renders grey at one depth, as a field does that blends too much."""

    def __init__(self, depth: float, opacity: float = 1.0):
        super().__init__(FIELD)
        self.depth, self.opacity = depth, opacity

    def render_all(self, signal: FieldSignal, view: CameraView) -> Rendering:
        size = view.size if view.pixels is None else (view.pixels.shape[1], 1)
        one = torch.ones(len(view), 1, *size)
        return Rendering(0.5 * one.expand(-1, 3, -1, -1), self.depth * one, self.opacity * one, one)


def test_a_scene_shows_the_photo_at_its_own_view_pixel_by_pixel() -> None:
    cameras = look_ahead(1, 60.0)
    photo = textured(wall(2.0, cameras))
    beside = wall(2.0, moved(cameras, x=0.3))
    shown = render_scene(Fog(2.1), FieldSignal((photo, beside)), CameraView(cameras, FINE))
    share = math.exp(-((math.log(2.1 / 2) / TOLERANCE) ** 2))
    assert torch.allclose(shown.image, torch.lerp(torch.tensor(0.5), photo.image, share), atol=1e-3)
    expected = 2.1 * (2 / 2.1) ** share
    assert torch.allclose(shown.depth, torch.tensor(expected), atol=1e-3)
    rows, columns = torch.meshgrid(torch.arange(3) + 4, torch.arange(5) + 7, indexing="ij")
    pixels = torch.stack([rows, columns], dim=-1).view(1, -1, 2)
    chosen = render_scene(Fog(2.1), FieldSignal((photo, beside)), CameraView(cameras, FINE, pixels))
    same = shown.image[0][:, rows.flatten(), columns.flatten()]
    assert torch.allclose(chosen.image[0, :, :, 0], same, atol=1e-4)


def test_a_scene_is_the_field_where_the_photo_saw_nothing_or_nothing_is() -> None:
    cameras = look_ahead(1, 60.0)
    signal, view = FieldSignal((textured(wall(2.0, cameras)),)), CameraView(cameras, FINE)
    for renderer, seen_from in (
        (Fog(6.0), view), (Fog(2.0, opacity=0.0), view), (Fog(2.0), CameraView(moved(cameras, x=9.0), FINE)),
    ):  # fmt: skip
        shown, field = render_scene(renderer, signal, seen_from), renderer.render_all(signal, seen_from)
        assert torch.allclose(shown.image, field.image, atol=1e-3)
        assert torch.allclose(shown.depth, field.depth, rtol=1e-3)


def test_many_rays_are_looked_at_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    cameras = look_ahead(1, 60.0)
    views = [textured(wall(2.0, cameras)), wall(2.1, moved(cameras, x=0.2))]
    view, depth = CameraView(moved(cameras, x=0.1), FINE), 2 + 0.2 * torch.rand(1, 1, *FINE)
    whole = seen_before(views, view, depth, 0.1)
    monkeypatch.setattr("scenediff.renderers.seen.CPU_RAYS", 100)
    parts = seen_before(views, view, depth, 0.1)
    for name in ("share", "image", "log_depth"):
        assert torch.allclose(getattr(whole, name), getattr(parts, name), atol=1e-5)
