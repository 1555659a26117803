"""Photos read both ways: mirror images say the same mirrored, and doubt grows with what is unusual."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny_pipeline import DENOISER, FIELD, tiny_pipeline

from scenediff.forward import Observation
from scenediff.networks.both_ways import (
    LARGEST,
    LEAST,
    USUAL_DISAGREEMENT,
    USUAL_DOUBT,
    disagreement,
    read_both_ways,
    weighed_doubt,
)
from scenediff.networks.pixel_denoiser import PixelDenoiser
from scenediff.renderers.cameras import CameraView, mirrored, perspective_cameras
from scenediff.renderers.pixel_field import PixelFieldRenderer

SIZE = (32, 48)


@pytest.fixture
def photo() -> Observation:
    """Two photos whose cameras point ahead but have their principal points off the centre."""
    torch.manual_seed(0)
    cameras = perspective_cameras(
        torch.eye(3).expand(2, 3, 3), torch.zeros(2, 3), torch.tensor([1.7, 2.1]), 0.3 * torch.randn(2, 2)
    )
    return Observation(torch.rand(2, 3, *SIZE) * 2 - 1, CameraView(cameras, SIZE))


def in_the_mirror(photo: Observation) -> Observation:
    return Observation(photo.image.flip(3), CameraView(mirrored(photo.view.cameras), photo.view.size))


@torch.no_grad()
def test_the_mirror_image_is_read_as_the_mirror_image(photo: Observation) -> None:
    denoiser = tiny_pipeline().denoiser
    once, other_once = (denoiser.read_photo(seen, 16) for seen in (photo, in_the_mirror(photo)))
    both, other = (read_both_ways(denoiser, seen, 16) for seen in (photo, in_the_mirror(photo)))
    assert not torch.allclose(once.log_depth, other_once.log_depth.flip(3), atol=1e-3)
    assert torch.allclose(both.log_depth, other.log_depth.flip(3), atol=1e-6)
    assert torch.allclose(both.log_depth, (once.log_depth + other_once.log_depth.flip(3)) / 2, atol=1e-6)
    assert torch.equal(both.features, once.features)  # averaged, they would belong to neither
    assert both.doubt is None


@torch.no_grad()
def test_the_doubt_is_weighed_where_the_model_tells_it(photo: Observation) -> None:
    torch.manual_seed(1)
    denoiser = PixelDenoiser(replace(DENOISER, tells_doubt=True), PixelFieldRenderer(FIELD)).eval()
    torch.nn.init.normal_(denoiser.head.weight, std=0.02)
    once, other = (denoiser.read_photo(seen, 16) for seen in (photo, in_the_mirror(photo)))
    apart = disagreement(once.log_depth, other.log_depth.flip(3))
    expected = weighed_doubt(once.doubt, apart)
    assert torch.allclose(read_both_ways(denoiser, photo, 16).doubt, expected)
    assert not torch.allclose(once.doubt, expected, rtol=1e-2)


def test_an_overall_scale_is_no_disagreement() -> None:
    first = torch.randn(2, 1, 6, 8)
    assert torch.allclose(disagreement(first, first + 0.7), torch.zeros(2), atol=1e-6)
    checkers = torch.tensor([[0.1, -0.1], [-0.1, 0.1]]).repeat(3, 4)
    assert torch.allclose(disagreement(first, first + checkers - 2), torch.full((2,), 0.1), atol=1e-6)


def test_usual_photos_keep_their_doubt_and_others_gain_within_bounds() -> None:
    def weighed(doubt: float, apart: float) -> float:
        return float(weighed_doubt(torch.tensor([doubt]), torch.tensor([apart])))

    assert weighed(USUAL_DOUBT, USUAL_DISAGREEMENT) == pytest.approx(USUAL_DOUBT)
    assert weighed(1.2 * USUAL_DOUBT, USUAL_DISAGREEMENT) == pytest.approx(1.2**3 * USUAL_DOUBT)
    assert weighed(USUAL_DOUBT, 1.5 * USUAL_DISAGREEMENT) == pytest.approx(1.5**2 * USUAL_DOUBT)
    assert weighed(3 * USUAL_DOUBT, 3 * USUAL_DISAGREEMENT) == pytest.approx(LARGEST)
    assert weighed(USUAL_DOUBT, 0.0) == pytest.approx(LEAST * USUAL_DOUBT)
