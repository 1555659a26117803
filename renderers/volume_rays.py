"""Rays of the densely integrated field: where they run, where samples lie on them, what they add up to.

Rays are integrated over evenly spaced samples, then over further ones where the first found something (NeRF,
Mildenhall et al. 2020, arXiv:2003.08934).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from scenediff.renderers.cameras import PinholeView
from scenediff.renderers.volume_network import STANDARD_RGB, constants

EMPTY_MASS = 1e-5  # added to every bin's weight; a bin with less takes no part in the inversion


def fixed_uniform(shape: tuple[int, int, int], device: torch.device) -> Tensor:
    """(batch, rays, samples) uniform numbers that are the same in every call and for every batch element.

    Frames are then the same whatever was rendered before, at which batch size, and on which device.
    """
    return _fixed_numbers(shape[1], shape[2], device).expand(shape)


@lru_cache(maxsize=4)  # drawn on the CPU, they would keep a GPU waiting in every step
def _fixed_numbers(rays: int, samples: int, device: torch.device) -> Tensor:
    return torch.rand(rays, samples, generator=torch.Generator().manual_seed(0)).to(device)


def fresh_uniform(shape: tuple[int, int, int], device: torch.device) -> Tensor:
    """(batch, rays, samples) new uniform numbers."""
    return torch.rand(shape, device=device)


def pinhole_rays(view: PinholeView) -> tuple[Tensor, Tensor]:
    """World origins (batch, 1, 3) and unit directions (batch, rays, 3) of a view's rays, row-major."""
    height, width = view.size
    like = view.intrinsics
    v, u = (torch.linspace(0, 1, side, dtype=like.dtype, device=like.device) for side in (height, width))
    if view.pixels is None:
        plane = torch.stack([u.expand(height, width), v[:, None].expand(height, width)], dim=-1)
        plane = plane.flatten(0, 1)[None]
    else:
        plane = torch.stack([u[view.pixels[..., 1]], v[view.pixels[..., 0]]], dim=-1)
    plane = torch.cat([plane, torch.ones_like(plane[..., :1])], dim=-1)
    local = plane @ torch.linalg.inv_ex(like)[0].transpose(1, 2)
    directions = functional.normalize(local, dim=-1) @ view.cam_to_world[:, :3, :3].transpose(1, 2)
    return view.cam_to_world[:, None, :3, 3], directions


def absorption(density: Tensor, distances: Tensor) -> Tensor:
    """(..., samples) share of each ray that ends in each sample; distances increase."""
    step = distances.diff(dim=-1)
    alpha = 1 - torch.exp(-density * torch.cat([step, step[..., -1:]], dim=-1))
    passed = _Products.apply(1 - alpha + 1e-10)
    return alpha * torch.cat([torch.ones_like(passed[..., :1]), passed[..., :-1]], dim=-1)


class _Products(torch.autograd.Function):
    """Running products of positive numbers. PyTorch's own gradient looks for zeros, and waits for a GPU."""

    @staticmethod
    def forward(ctx: Any, factors: Tensor) -> Tensor:
        products = factors.cumprod(dim=-1)
        ctx.save_for_backward(factors, products)
        return products

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        factors, products = ctx.saved_tensors
        return (gradient * products).flip(-1).cumsum(-1).flip(-1) / factors


def fine_distances(distances: Tensor, weights: Tensor, uniform: Tensor) -> Tensor:
    """Further distances where the weights are, by inverting their distribution function.

    Args:
        distances: (..., samples) increasing. weights: the same. uniform: (..., fine) in [0, 1).

    Returns:
        (..., fine), in the order of `uniform`.
    """
    middles = (distances[..., 1:] + distances[..., :-1]) / 2
    mass = weights[..., 1:-1] + EMPTY_MASS
    cdf = functional.pad((mass / mass.sum(-1, keepdim=True)).cumsum(-1), (1, 0))
    above = torch.searchsorted(cdf, uniform.contiguous())
    below, above = (above - 1).clamp(min=0), above.clamp(max=cdf.shape[-1] - 1)
    low, high = cdf.gather(-1, below), cdf.gather(-1, above)
    share = torch.where(high - low < EMPTY_MASS, 1.0, high - low)
    start, end = middles.gather(-1, below), middles.gather(-1, above)
    return start + (uniform - low) / share * (end - start)


def integrate(
    density: Tensor, values: Tensor, distances: Tensor, background: tuple[float, float, float]
) -> tuple[Tensor, Tensor, Tensor]:
    """Integrals along rays of samples in any order, in float32.

    Args:
        density, distances: (batch, rays, samples). values: (batch, rays, samples, 3 + features), the colour
            in [0, 1]. background: red, green, blue in [0, 1].

    Returns:
        values (batch, rays, 3 + features) with the colour in [-1, 1], distance and opacity (batch, rays).
    """
    ordered, order = distances.sort(dim=-1, stable=True)
    weights = absorption(density.gather(-1, order), ordered)
    distance, opacity = (weights * ordered).sum(-1), weights.sum(-1)
    weights = torch.zeros_like(weights).scatter(-1, order, weights)  # back to the order of the values
    with torch.autocast(values.device.type, enabled=False):
        total = (weights[..., None, :] @ values)[..., 0, :]
    colour = total[..., :STANDARD_RGB] + (1 - opacity)[..., None] * constants(background, total)
    return torch.cat([2 * colour - 1, total[..., STANDARD_RGB:]], dim=-1), distance, opacity


def spread(density: Tensor, distances: Tensor, near: float, far: float) -> Tensor:
    """(...,) how far apart a ray's weights lie (Barron et al. 2022, arXiv:2111.12077, Eq. 15), in float32.

    The sum of w_i w_j |m_i - m_j| over all pairs, and of w_i^2 l_i / 3: a sample's weight w is spread over
    the length l behind it, whose middle is m. Lengths are shares of the way from `near` to `far`.

    Args:
        density, distances: (..., samples) in any order.
    """
    ordered, order = distances.float().sort(dim=-1, stable=True)
    weights = absorption(density.float().gather(-1, order), ordered)
    step = ordered.diff(dim=-1)
    length = torch.cat([step, step[..., -1:]], dim=-1)
    middle = (ordered + length / 2 - near) / (far - near)
    before, reach = weights.cumsum(-1) - weights, (weights * middle).cumsum(-1) - weights * middle
    apart = 2 * (weights * (middle * before - reach)).sum(-1)
    return apart + (weights.square() * length).sum(-1) / (3 * (far - near))


def worth_decoding(weights: Tensor, even: Tensor, distances: Tensor, share: float) -> Tensor:
    """(batch, rays, samples) bool: where the first pass found that a ray may end.

    A sample is worth it if the step between first samples in which it lies, or the one before or behind,
    has at least that share of the ray.

    Args:
        weights, even: (batch, rays, first) weights and increasing distances of the first samples.
        distances: (batch, rays, samples) of the samples in question, first ones or others.
    """
    around = functional.max_pool1d(weights, 3, stride=1, padding=1)
    step = torch.searchsorted(even.contiguous(), distances.contiguous(), right=True) - 1
    return around.gather(-1, step.clamp(min=0)) >= share


def compact(wanted: Tensor) -> tuple[Tensor, Tensor]:
    """How to bring what is wanted of each batch element to its front, and back.

    Args:
        wanted: (batch, points) bool.

    Returns:
        (batch, most) indices of the wanted points, filled up with others, where `most` is the largest number
        of points wanted of any element, at least 1; (batch, points) where each wanted point is then.
    """
    batch, points = wanted.shape
    place = wanted.cumsum(1) - 1
    most = max(1, int(place[:, -1].max()) + 1)
    index = torch.arange(points, device=wanted.device).expand(batch, points)
    chosen = torch.zeros(batch, most + 1, dtype=torch.long, device=wanted.device)
    chosen.scatter_(1, torch.where(wanted, place, most), index)  # the last column takes all the others
    return chosen[:, :most], place.clamp(min=0)
