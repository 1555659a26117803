"""Warps: images moved by dense motion fields, backwards (look-up) and forwards (softmax splatting).

Motion fields are (batch, 2, height, width), in pixels, x to the right and y down. A *flow* belongs to the
target's pixels and points from the target to the context: target(p) = context(p + flow(p)). A *motion*
belongs to the context's pixels and says where they go: context(q) arrives at q + motion(q). Pixel centres
have integer coordinates, (0, 0) is the centre of the top left pixel.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor


def pixel_grid(size: tuple[int, int], device: torch.device | str = "cpu") -> Tensor:
    """(2, height, width) float32 x and y of every pixel's centre."""
    y, x = (torch.arange(side, device=device, dtype=torch.float32) for side in size)
    return torch.stack([x.expand(size), y[:, None].expand(size)])


def backward_warp(image: Tensor, flow: Tensor) -> tuple[Tensor, Tensor]:
    """Looks an image up at displaced positions, bilinearly; differentiable in the image and the flow.

    `grid_sample` would round: its positions are shares of the image's size, so that even a flow of zero or of
    whole pixels would change most images a little. Here those are exact.

    Args:
        image: (batch, channels, height, width), the context.
        flow: (batch, 2, rows, columns), from the target to the context.

    Returns:
        (batch, channels, rows, columns), where positions outside take the nearest border pixel's colour, and
        a mask (batch, 1, rows, columns), True where the position lies within the outermost pixel centres.
    """
    _check_field("flow", flow, image, same_size=False)
    height, width = image.shape[-2:]
    position = pixel_grid((flow.shape[-2], flow.shape[-1]), flow.device).to(flow.dtype) + flow
    x, y = position[:, 0], position[:, 1]
    valid = ((x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1))[:, None]
    x, y = x.clamp(0, width - 1), y.clamp(0, height - 1)
    left, top = x.detach().floor(), y.detach().floor()
    across, down = (x - left)[:, None], (y - top)[:, None]
    left, top = left.long(), top.long()
    right, bottom = (left + 1).clamp(max=width - 1), (top + 1).clamp(max=height - 1)

    def pixels(row: Tensor, column: Tensor) -> Tensor:
        index = (row * width + column).flatten(1)[:, None].expand(-1, image.shape[1], -1)
        return image.flatten(2).gather(2, index).unflatten(2, (flow.shape[-2], flow.shape[-1]))

    upper = pixels(top, left) * (1 - across) + pixels(top, right) * across
    lower = pixels(bottom, left) * (1 - across) + pixels(bottom, right) * across
    return upper * (1 - down) + lower * down, valid


def splat(values: Tensor, motion: Tensor, importance: Tensor) -> tuple[Tensor, Tensor]:
    """Moves every pixel to where its motion says; what meets there is blended by softmax.

    Softmax splatting (Niklaus & Liu 2020, arXiv:2003.05534, Eq. 6): a pixel's share at a place is its
    bilinear weight times exp(importance). Differentiable in all arguments.

    Args:
        values: (batch, channels, height, width) of the context's pixels.
        motion: (batch, 2, height, width), from the context to the target.
        importance: (batch, 1, height, width); of two pixels that meet, the larger one covers the other.

    Returns:
        (batch, channels, height, width), zero where nothing arrives, and (batch, 1, height, width) the sum of
        the bilinear weights that arrive: 0 in holes, 1 where one pixel arrives, more where several meet.
    """
    _check_field("motion", motion, values)
    if importance.shape != values[:, :1].shape:
        raise ValueError(f"importance must be {tuple(values[:, :1].shape)}, got {tuple(importance.shape)}")
    places = list(_places_and_shares(motion))
    importance = importance.flatten(2)
    highest = torch.full_like(importance, -torch.inf)  # of what arrives at each place
    for place, share in places:
        arriving = importance.detach().masked_fill(share == 0, -torch.inf)
        highest = highest.scatter_reduce(2, place, arriving, "amax")
    colors = values.flatten(2)
    total = torch.zeros_like(torch.cat([colors, importance, importance], dim=1))
    for place, share in places:
        weight = (importance - highest.gather(2, place)).clamp(max=0).exp() * share
        part = torch.cat([colors * weight, weight, share], dim=1)
        total = total.scatter_add(2, place.expand_as(part), part)
    total = total.unflatten(2, values.shape[-2:])
    blended, weights, arrived = total[:, :-2], total[:, -2:-1], total[:, -1:]
    # where nothing arrives 0 / 1, not 0 / 0, also in the gradient
    return blended / torch.where(weights > 0, weights, 1), arrived


def _places_and_shares(motion: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """The four pixels around where each pixel goes: their index and its bilinear weight, (batch, 1, pixels).

    The weight of pixels out of the frame is 0.
    """
    height, width = motion.shape[-2:]
    position = pixel_grid((height, width), motion.device).to(motion.dtype) + motion
    corner = position.detach().floor()
    fraction = position - corner
    for right in (0, 1):
        for below in (0, 1):
            x, y = corner[:, 0] + right, corner[:, 1] + below
            inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
            across = fraction[:, 0] if right else 1 - fraction[:, 0]
            bilinear = across * (fraction[:, 1] if below else 1 - fraction[:, 1])
            index = (y.clamp(0, height - 1) * width + x.clamp(0, width - 1)).long()
            yield index.flatten(1)[:, None], (bilinear * inside).flatten(1)[:, None]


def _check_field(name: str, field: Tensor, image: Tensor, *, same_size: bool = True) -> None:
    """Raises ValueError unless a motion field fits an image."""
    sizes_fit = not same_size or field.shape[-2:] == image.shape[-2:]
    if image.ndim != 4 or field.ndim != 4 or field.shape[:2] != (len(image), 2) or not sizes_fit:
        raise ValueError(
            f"{name} must be ({image.shape[0]}, 2, height, width) for an image {tuple(image.shape)}, "
            f"got {tuple(field.shape)}"
        )
