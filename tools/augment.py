"""Adaptive augmentation of what a discriminator sees (Karras et al. 2020, arXiv:2006.06676).

Each transformation happens with probability p to each image, real or generated, and differentiably. p rises
while the discriminator is too sure of real images, which is how overfitting to a small set shows.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

GREY = 1 / math.sqrt(3)  # the axis of brightness in RGB


class AdaptiveAugment:
    """Augments images and adapts p to the sign of the logits of real ones; never waits for the device.

    Args:
        device: of the images.
        target: mean sign of real logits at which p stays; above it p rises.
        images_to_full: p needs so many images to go from 0 to 1.
        p: to begin with.
    """

    def __init__(
        self, device: torch.device | str, target: float = 0.6, images_to_full: int = 200_000, p: float = 0.0
    ):
        self.target, self.images_to_full = target, images_to_full
        self.p = torch.tensor(p, device=device)

    def __call__(self, images: Tensor) -> Tensor:
        """Images (batch, 3, size, size), transformed."""
        return recolour(move(images, self.p), self.p)

    def observe(self, real_logits: Tensor) -> None:
        """Adapts p to one batch of real images."""
        step = (real_logits.sign().mean() - self.target).sign() * len(real_logits) / self.images_to_full
        self.p.copy_((self.p + step).clamp(0, 1))


def move(images: Tensor, p: Tensor) -> Tensor:
    """Flips, quarter turns, shifts by whole pixels, zooms and small turns, mirrored at the borders."""
    batch, size = len(images), images.shape[-1]
    uniform = torch.rand(5, batch, device=images.device)
    normal = torch.randn(4, batch, device=images.device)
    happens = torch.rand(5, batch, device=images.device) < p
    flip = torch.where(happens[0] & (uniform[0] < 0.5), -1.0, 1.0)
    angle = torch.where(happens[1], (uniform[1] * 4).floor() * (math.pi / 2), 0.0)
    angle = angle + torch.where(happens[4], (uniform[4] - 0.5) * (math.pi / 6), 0.0)
    shift = torch.where(happens[2], (uniform[2:4] - 0.5) * 0.25 * size, 0.0).round() * (2 / size)
    zoom = torch.where(happens[3], (0.2 * math.log(2) * normal[0]).exp(), 1.0)
    cosine, sine = angle.cos() * zoom, angle.sin() * zoom
    rows = [torch.stack([cosine * flip, -sine, shift[0]], 1), torch.stack([sine * flip, cosine, shift[1]], 1)]
    grid = functional.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
    return functional.grid_sample(images.float(), grid, padding_mode="reflection", align_corners=False)


def recolour(images: Tensor, p: Tensor) -> Tensor:
    """Brightness, contrast, saturation and hue."""
    batch, device = len(images), images.device
    normal = torch.randn(3, batch, device=device)
    happens = torch.rand(4, batch, device=device) < p
    brightness = torch.where(happens[0], 0.2 * normal[0], 0.0)[:, None, None]
    contrast = torch.where(happens[1], (0.5 * math.log(2) * normal[1]).exp(), 1.0)[:, None, None]
    saturation = torch.where(happens[2], (math.log(2) * normal[2]).exp(), 1.0)[:, None, None]
    hue = torch.where(happens[3], (torch.rand(batch, device=device) * 2 - 1) * math.pi, 0.0)[:, None, None]
    axis = torch.full((3, 3), GREY * GREY, device=device)  # projects on the grey axis
    identity = torch.eye(3, device=device)
    across = torch.linalg.cross(torch.full((3, 3), GREY, device=device), identity, dim=1).T
    turn = hue.cos() * (identity - axis) + hue.sin() * across  # in the plane of colours
    matrix = contrast * (axis + saturation * turn)
    colours = matrix @ images.flatten(2) + brightness
    return colours.view_as(images)
