"""The stereo evaluation: geometry against the real pair's measured disparities, figures of known scenes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from scenediff.datasets.stereo import StereoPair, motorcycle
from scenediff.networks.pixel_denoiser import map_size
from scenediff.renderers.depth_maps import unproject
from scenediff.renderers.pixel_field import project
from scenediff.tools.evaluate_stereo import evaluate_stereo, ordered, shifted_left


@pytest.fixture(scope="module")
def pair() -> StereoPair:
    pytest.importorskip("skimage", reason="scikit-image has the pair")
    return motorcycle()


def landing(pair: StereoPair) -> Tensor:
    """(1, 1, pixels, 2) where the left photo's points, lifted by their depths, fall into the right one."""
    left, right = pair.cameras()
    depth = torch.where(pair.depth > 0, pair.depth, 3)
    points = unproject(depth, left).flatten(1, 2)
    return project(points, right, pair.size)[0][:, None]


def test_points_move_by_their_disparity(pair: StereoPair) -> None:
    height, width = pair.size
    x = (landing(pair)[0, 0, :, 0] + 1) * width / 2 - 0.5
    y = (landing(pair)[0, 0, :, 1] + 1) * height / 2 - 0.5
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    known = (pair.disparity > 0).flatten()
    # float32 over 741 pixels
    assert torch.allclose(x[known], (columns.flatten() - pair.disparity.flatten())[known], atol=2e-3)
    assert torch.allclose(y[known], rows.flatten()[known].float(), atol=2e-3)


def test_the_right_photo_shows_there_what_the_left_one_does(pair: StereoPair) -> None:
    """Much better than at the same pixels: the disparities' sign and the cameras are right."""

    def error(grid: Tensor) -> float:
        seen = functional.grid_sample(pair.right, grid, align_corners=False)[0, :, 0]
        known = (pair.disparity > 0).flatten() & (grid.abs().amax(-1) < 1).flatten()
        return (seen - pair.left.flatten(2)[0]).abs().mean(0)[known].mean().item()

    same = functional.affine_grid(torch.eye(2, 3)[None], [1, 3, *pair.size], align_corners=False)
    assert error(landing(pair)) < 0.35 * error(same.flatten(1, 2)[:, None])


def test_order_of_known_depths() -> None:
    truth = torch.arange(1.0, 401.0).view(1, 1, 20, 20)
    assert ordered(truth.square(), truth) == 1
    assert ordered(1 / truth, truth) == 0
    halves = (truth > 200).float() + 1  # pairs within a half, every second one, are not told apart
    assert ordered(halves, truth) == pytest.approx(0.5, abs=0.01)  # 200,000 pairs: 0.001 is a deviation
    unknown = torch.where(truth > 200, truth, 0)
    assert ordered(torch.where(truth > 200, truth, 1e6 - truth), unknown) == 1


def flat_pair(disparity: int = 6) -> StereoPair:
    """A wall with noise on it, right in front of both cameras."""
    torch.manual_seed(0)
    coarse = torch.rand(1, 3, 10, 16) * 2 - 1
    wall = functional.interpolate(coarse, size=(40, 64), mode="bilinear")
    left, right = wall[..., :56], wall[..., disparity : 56 + disparity]
    return StereoPair(left, right, torch.full((1, 1, 40, 56), float(disparity)), 60.0, 0.2, 2.0, (28.0, 20.0))


def test_the_shifted_photo_is_the_right_one_of_a_wall() -> None:
    pair = flat_pair()
    assert torch.equal(shifted_left(pair)[..., :-6], pair.right[..., :-6])
    assert torch.equal(shifted_left(pair)[..., -6:], pair.left[..., -1:].expand(1, 3, 40, 6))
    assert torch.allclose(pair.depth, torch.tensor(60 * 0.2 / 8))


@pytest.mark.parametrize("samples", [2, 3])
def test_figures_of_scenes_that_are_known(tmp_path: Path, samples: int) -> None:
    """The first sample is the truth, the others put it twice as far and paint it grey."""
    pair = flat_pair()
    pair = replace(pair, disparity=pair.disparity + torch.linspace(-2, 2, 56))
    seeds, sizes = [], []

    def sample_views(photo, left, right, count, *, steps, guidance_scale, seed, size):
        assert torch.equal(photo, pair.left)
        assert (count, steps, guidance_scale) == (1, 3, 2.0)
        first = not seeds
        seeds.append(seed)
        sizes.append(size)

        def render(cameras, wanted):
            image = functional.interpolate(pair.right, size=wanted, mode="bilinear", antialias=True)
            depth = functional.interpolate(pair.depth, size=wanted, mode="nearest")
            return SimpleNamespace(image=image if first else 0 * image, depth=depth * (1 if first else 2))

        return [SimpleNamespace(render=render)]

    pipeline = SimpleNamespace(
        sample_views=sample_views, device=torch.device("cpu"), defaults=SimpleNamespace(size=32)
    )
    figures = evaluate_stereo(
        pipeline, pair, size=40, steps=3, samples=samples, output=tmp_path / "out", guidance_scale=2.0
    )
    assert len(set(seeds)) == samples
    assert set(sizes) == {(32, 48)}  # 44.8 in multiples of 8
    assert figures["samples"] == samples
    assert figures["psnr_sample"] > figures["psnr_worst_sample"] > 0
    assert figures["perceptual_worst_sample"] > figures["perceptual_sample"] > 0
    assert figures["depth_order"] == figures["depth_order_worst_sample"] == 1
    assert figures["depth_median_rel"] == pytest.approx((samples - 1) / samples, abs=1e-4)  # 0 and 1
    assert figures["depth_median_rel_scaled"] == 0
    assert json.loads((tmp_path / "out" / "metrics.json").read_text()) == figures
    assert (tmp_path / "out" / "pictures_00.png").is_file()


def test_sizes_keep_their_shape() -> None:
    assert map_size((497, 741), 64, multiple=1) == (64, 95)
    assert map_size((741, 497), 64, multiple=8) == (96, 64)
