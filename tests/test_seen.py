"""What of a view others have seen, in closed form; and that samples keep it."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from pytorch3d.renderer import PerspectiveCameras
from test_networks import FIELD, SMALL, photos, shaken, target

from scenediff.networks.pixel_denoiser import PixelDenoiser
from scenediff.renderers.cameras import CameraView, look_ahead
from scenediff.renderers.pixel_field import FieldView, PixelFieldRenderer
from scenediff.renderers.seen import seen_before

SIZE = (12, 16)


def wall(distance: float, cameras: PerspectiveCameras, present: float = 1.0) -> FieldView:
    """A view that predicts the same depth everywhere."""
    log_depth = torch.full((1, 1, *SIZE), math.log(distance))
    return FieldView(
        cameras, torch.zeros(1, 4, *SIZE), log_depth, torch.zeros(1, 3, *SIZE), torch.tensor([present])
    )


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
    assert torch.allclose(farther, torch.tensor(math.exp(-((math.log(2.5 / 2) / 0.1) ** 2))), atol=1e-4)


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


def test_half_precision_around_it_changes_nothing() -> None:
    cameras = look_ahead(1, 60.0)
    view, depth = CameraView(moved(cameras, x=0.1), SIZE), torch.full((1, 1, *SIZE), 2.0)
    expected = share_of([wall(2.1, cameras)], view, depth, 0.05)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(share_of([wall(2.1, cameras)], view, depth, 0.05), expected)


@torch.no_grad()
def test_samples_keep_what_was_seen_and_nothing_else() -> None:
    torch.manual_seed(0)
    keeping, free = (  # what is untrained renders depths far from those that it predicts
        PixelDenoiser(replace(SMALL, keep=keep), PixelFieldRenderer(FIELD)).eval() for keep in (2.0, 0.0)
    )
    shaken(keeping)
    free.load_state_dict(keeping.state_dict())
    context, view = photos(2, (32, 48)), target(2)
    noisy, steps, drop = torch.randn(2, 3, 16, 24), torch.tensor([500, 500]), torch.tensor([False, True])
    encoded = [denoiser.encode([context], view, drop) for denoiser in (keeping, free)]
    seen = encoded[0].extras.seen
    assert seen[0].max() > 0.1
    assert seen[1].max() == encoded[1].extras.seen.max() == 0
    kept, made = (
        denoiser.denoise(noisy, steps, one, view).views[-1]
        for denoiser, one in zip((keeping, free), encoded, strict=True)
    )
    guess = encoded[0].extras
    assert torch.allclose(kept.log_depth, made.log_depth.lerp(guess.depth.log(), seen), atol=1e-5)
    assert torch.allclose(kept.image, made.image.lerp(guess.kept, seen), atol=1e-5)
    assert torch.equal(kept.features, made.features)
    keeping.train()
    assert keeping.encode([context], view).extras.seen.max() == 0  # training leaves all to the noise
