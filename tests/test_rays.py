"""Rays through pixel centres, and samples on them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pytorch3d.transforms import random_rotations
from torch.nn import functional

from scenediff.renderers.cameras import CameraView, perspective_cameras
from scenediff.renderers.pixel_field import project
from scenediff.renderers.rays import (
    camera_rays,
    invert_cdf,
    log_spaced_edges,
    ray_bundle,
    stratified_quantiles,
)

SIZES = [(6, 9), (9, 6), (7, 7)]


def views(size: tuple[int, int], pixels: torch.Tensor | None = None) -> CameraView:
    cameras = perspective_cameras(
        random_rotations(3), torch.randn(3, 3), 1 + torch.rand(3, 2), torch.rand(3, 2) - 0.5
    )
    return CameraView(cameras, size, pixels)


def centres(size: tuple[int, int]) -> torch.Tensor:
    """(pixels, 2) column and row of the pixel centres, row after row."""
    rows, columns = torch.meshgrid(torch.arange(size[0]), torch.arange(size[1]), indexing="ij")
    return torch.stack([columns, rows], -1).flatten(0, 1) + 0.5


@pytest.mark.parametrize("size", SIZES)
def test_rays_pass_through_pixel_centres(size: tuple[int, int]) -> None:
    view = views(size)
    bundle = ray_bundle(view)
    points = bundle.origins + 3.7 * bundle.directions
    screen = view.cameras.transform_points_screen(points, image_size=torch.tensor([size]).expand(3, 2))
    assert torch.allclose(screen[..., :2], centres(size).expand(3, -1, -1), atol=1e-4)
    grid, depth = project(points, view.cameras, size)
    pixels = (grid + 1) / 2 * torch.tensor([size[1], size[0]])
    assert torch.allclose(pixels, centres(size).expand(3, -1, -1), atol=1e-4)
    assert torch.allclose(depth, torch.full_like(depth, 3.7), atol=1e-4)  # a ray's length is the depth


@pytest.mark.parametrize("size", SIZES)
def test_camera_rays_are_the_bundle_in_the_camera_frame(size: tuple[int, int]) -> None:
    view = views(size)
    local = functional.normalize(ray_bundle(view).directions @ view.cameras.R, dim=-1)
    rays = camera_rays(view)
    assert rays.shape == (3, 3, *size)
    assert torch.allclose(rays.flatten(2).transpose(1, 2), local, atol=1e-5)
    corner = rays[:, :, 0, 0] / rays[:, 2:, 0, 0]
    centred = corner[:, :2] * view.cameras.focal_length + view.cameras.principal_point
    assert (centred > 0).all()  # +X is left and +Y is up: the first pixel is at the top left


def test_chosen_pixels_are_rows_of_the_whole() -> None:
    pixels = torch.stack([torch.randint(6, (3, 11)), torch.randint(9, (3, 11))], dim=-1)
    view = views((6, 9), pixels)
    some, whole = ray_bundle(view), ray_bundle(CameraView(view.cameras, (6, 9)))
    for batch in range(3):
        for ray in range(11):
            index = int(pixels[batch, ray, 0] * 9 + pixels[batch, ray, 1])
            for part, all_of_it in zip(some, whole, strict=True):
                assert torch.equal(part[batch, ray], all_of_it[batch, index])


def test_no_cameras_give_no_rays() -> None:
    none = perspective_cameras(torch.zeros(0, 3, 3), torch.zeros(0, 3), torch.zeros(0))
    assert ray_bundle(CameraView(none, (6, 9))).directions.shape == (0, 54, 3)
    assert ray_bundle(CameraView(none, (6, 9), torch.zeros(0, 5, 2).long())).directions.shape == (0, 5, 3)


def test_edges_are_evenly_spaced_in_log_depth() -> None:
    edges = log_spaced_edges(0.25, 14.0, 10, torch.zeros(1, dtype=torch.float64))
    assert np.allclose(edges.exp(), np.geomspace(0.25, 14.0, 11), rtol=1e-12)


def test_inverting_a_distribution_agrees_with_numpy() -> None:
    source = np.random.default_rng(0)
    edges = np.sort(source.uniform(-2, 3, 9))
    weights = source.uniform(0.01, 1, (4, 5, 8)) ** 3
    quantiles = np.sort(source.uniform(0, 1, (4, 5, 20)), axis=-1)
    found = invert_cdf(*(torch.from_numpy(value) for value in (edges, weights, quantiles)))
    for index in np.ndindex(4, 5):
        cdf = np.concatenate([[0], weights[index].cumsum()]) / weights[index].sum()
        assert np.allclose(found[index], np.interp(quantiles[index], cdf, edges), atol=1e-12)


def test_inverted_positions_increase_and_stay_inside() -> None:
    edges = torch.linspace(0, 1, 41)
    weights = torch.rand(50, 40) ** 8 + 1e-6  # narrow peaks, in float32
    found = invert_cdf(edges, weights, stratified_quantiles((50, 24), weights, jitter=True))
    assert (found.diff() >= 0).all()
    assert found.min() >= 0
    assert found.max() <= 1
    ends = invert_cdf(edges, weights, torch.tensor([0.0, 1.0]).expand(50, 2))
    # float32 may round a last bin of next to no weight away, never more than its width
    assert torch.allclose(ends, torch.tensor([0.0, 1.0]).expand(50, 2), atol=1 / 40)


def test_quantiles_are_one_in_each_stratum() -> None:
    like = torch.zeros(1, dtype=torch.float64)
    middle = stratified_quantiles((3, 2, 5), like, jitter=False)
    assert middle.dtype == torch.float64
    assert torch.allclose(
        middle, torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9], dtype=torch.float64).expand(3, 2, 5)
    )
    random = stratified_quantiles((1000, 5), like, jitter=True)
    assert torch.equal((random * 5).floor(), torch.arange(5.0, dtype=torch.float64).expand(1000, 5))
    offsets = random * 5 - torch.arange(5)
    assert (offsets.mean() - 0.5).abs() < 4 * (1 / 12 / 5000) ** 0.5
    assert offsets.min() < 0.01
    assert offsets.max() > 0.99
