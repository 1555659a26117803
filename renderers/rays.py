"""Rays of a camera view and where to place samples on them, on PyTorch3D's ray samplers and ray bundles.

PyTorch3D's ray directions have unit length along the optical axis, so a sample's `length` is its depth (z).
Samples live in log depth: a fixed step is a fixed fraction of the distance.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import torch
from pytorch3d.renderer import NDCMultinomialRaysampler, PerspectiveCameras, RayBundle
from torch import Tensor

from scenediff.renderers.cameras import CameraView


def ray_bundle(view: CameraView) -> RayBundle:
    """One ray for each wanted pixel of a view, at depth 1.

    Returns:
        PyTorch3D's RayBundle: origins and directions (batch, rays, 3), lengths (batch, rays, 1) of ones,
        xys (batch, rays, 2) NDC; rays are row-major, or in the order of `view.pixels`.
    """
    height, width = view.size
    sampler = _sampler(height, width, view.cameras.R.device)
    if len(view) == 0:
        rays = height * width if view.pixels is None else view.pixels.shape[1]
        empty = view.cameras.R.new_zeros(0, rays, 3)
        return RayBundle(empty, empty, empty[..., :1], empty[..., :2])
    with torch.autocast(view.cameras.R.device.type, enabled=False):
        bundle = RayBundle(*(part.flatten(1, 2) for part in sampler(_closed_form(view.cameras))))
    if view.pixels is None:
        return bundle
    index = (view.pixels[..., 0] * width + view.pixels[..., 1])[..., None]  # (batch, rays, 1)
    return RayBundle(*(part.gather(1, index.expand(-1, -1, part.shape[-1])) for part in bundle))


class _ClosedFormCameras(PerspectiveCameras):
    """Cameras that unproject by transposing their rotation.

    PyTorch3D inverts general 4x4 matrices, which makes the host wait for the device and can't be recorded in
    CUDA graphs.
    """

    def unproject_points(
        self, xy_depth: Tensor, world_coordinates: bool = True, from_ndc: bool = False, **kwargs: Any
    ) -> Tensor:
        """World points (batch, points, 3) of NDC x, y and depth."""
        if not (world_coordinates and from_ndc):
            return super().unproject_points(
                xy_depth, world_coordinates=world_coordinates, from_ndc=from_ndc, **kwargs
            )
        depth = xy_depth[..., 2:]
        plane = (xy_depth[..., :2] - self.principal_point[:, None]) / self.focal_length[:, None] * depth
        return (torch.cat([plane, depth], dim=-1) - self.T[:, None]) @ self.R.transpose(1, 2)


def _closed_form(cameras: PerspectiveCameras) -> _ClosedFormCameras:
    return _ClosedFormCameras(
        R=cameras.R, T=cameras.T, focal_length=cameras.focal_length, principal_point=cameras.principal_point,
        device=cameras.R.device, in_ndc=True,
    )


@cache
def _sampler(height: int, width: int, device: torch.device) -> NDCMultinomialRaysampler:
    sampler = NDCMultinomialRaysampler(
        image_width=width, image_height=height, n_pts_per_ray=1, min_depth=1.0, max_depth=1.0
    )
    return sampler.to(device)


def camera_rays(view: CameraView) -> Tensor:
    """(batch, 3, height, width) unit ray directions of a view in ITS OWN camera's frame."""
    batch, (height, width) = len(view), view.size
    ones = view.cameras.R.new_ones
    half = min(height, width) / 2
    y, x = (
        (size / 2 - torch.arange(size, device=view.cameras.R.device) - 0.5) / half for size in (height, width)
    )  # NDC: +1 at the left and top of the shorter side
    grid = torch.stack([x[None].expand(height, width), y[:, None].expand(height, width)]).to(view.cameras.R)
    offset, focal = view.cameras.principal_point, view.cameras.focal_length
    plane = (grid[None] - offset[..., None, None]) / focal[..., None, None]
    return torch.nn.functional.normalize(torch.cat([plane, ones(batch, 1, height, width)], dim=1), dim=1)


def along(origins: Tensor, directions: Tensor, distances: Tensor) -> Tensor:
    """(batch, rays, samples, 3) world points at distances ([batch, rays,] samples) along rays."""
    return origins[:, :, None] + directions[:, :, None] * distances[..., None]


def log_spaced_edges(near: float, far: float, bins: int, like: Tensor) -> Tensor:
    """(bins + 1,) log depths of the edges of bins that are equally wide in log depth."""
    return torch.linspace(math.log(near), math.log(far), bins + 1, dtype=like.dtype, device=like.device)


def invert_cdf(edges: Tensor, weights: Tensor, quantiles: Tensor) -> Tensor:
    """Samples a piecewise constant density by inverting its distribution function.

    Args:
        edges: (bins + 1,) increasing.
        weights: (..., bins) positive, not necessarily normalised.
        quantiles: (..., samples) in (0, 1), increasing.

    Returns:
        (..., samples) positions, increasing.
    """
    bins = weights.shape[-1]
    cdf = weights.cumsum(-1)
    total = cdf[..., -1:]
    wanted = (quantiles * total).clamp(max=total)
    index = torch.searchsorted(cdf, wanted).clamp(max=bins - 1)  # the first bin whose end reaches `wanted`
    weight = weights.gather(-1, index)
    start = cdf.gather(-1, index) - weight
    fraction = ((wanted - start) / weight).clamp(0, 1)
    return edges[index] + fraction * (edges[index + 1] - edges[index])


def stratified_quantiles(shape: tuple[int, ...], like: Tensor, *, jitter: bool) -> Tensor:
    """(*shape,) quantiles rising along the last axis, one a stratum: random if `jitter`, or its middle."""
    samples = shape[-1]
    offset = torch.rand(shape, dtype=like.dtype, device=like.device) if jitter else 0.5
    return ((torch.arange(samples, dtype=like.dtype, device=like.device) + offset) / samples).expand(shape)
