"""Textured sprites that jump: pairs of frames whose posterior given the first frame is known.

Every sprite takes one step, of the same length for all, in one of K directions. Its hue tells how probable
each direction is (and K), nothing in the frame tells which it takes, and sprites do not heed each other. So
the directions' true posterior given the first frame is the table `KINDS`. Shapes, textures and backgrounds
are procedural and drawn anew for every frame; everything is evaluated at real-valued positions, so that steps
of any direction are exact, and on whichever device the generator lives.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

CELL = 32  # pixels: each sprite moves within a square of its own
STEP = 5.0  # pixels, the length of every step
GRATINGS = 5
HARMONICS = 3


@dataclass(frozen=True)
class Kind:
    """Sprites of one hue.

    Attributes:
        hue: in [0, 1), of HSV.
        chances: probability of each of the K directions; direction k points to the angle 2 pi k / K, from
            right (k = 0) towards down.
    """

    hue: float
    chances: tuple[float, ...]

    def steps(self, device: torch.device | str = "cpu") -> Tensor:
        """(K, 2) float32 (x, y), pixels, the displacement of each direction from the first frame on."""
        angles = 2 * math.pi * torch.arange(len(self.chances), device=device) / len(self.chances)
        return STEP * torch.stack([angles.cos(), angles.sin()], dim=1)


KINDS = (
    Kind(0.00, (0.40, 0.30, 0.20, 0.10)),
    Kind(0.50, (0.15, 0.10, 0.25, 0.50)),
    Kind(0.25, (0.24, 0.04, 0.16, 0.08, 0.12, 0.06, 0.20, 0.10)),
    Kind(0.75, (0.06, 0.20, 0.10, 0.14, 0.04, 0.26, 0.08, 0.12)),
)
HUE_SPREAD = 0.06  # hues differ by at most so much from their kind's, and kinds by 0.25


@dataclass(frozen=True)
class Sprites:
    """Sprites of a batch of frames, one in each cell; what a shape and a texture consist of.

    Attributes:
        kinds: (batch, cells) index into `KINDS`.
        centers: (batch, cells, 2) x, y in the cell, pixels, in the first frame.
        radius: (batch, cells) mean radius, pixels.
        lobes: (batch, cells, HARMONICS, 2) cosine and sine amplitudes of the outline's harmonics 2, 3, 4,
            relative to the radius.
        color: (batch, cells, 3) mean colour in [-1, 1].
        waves: (batch, cells, GRATINGS, 2) wave vectors, radians a pixel.
        phases: (batch, cells, GRATINGS). tints: (batch, cells, GRATINGS, 3), amplitudes of the gratings.
    """

    kinds: Tensor
    centers: Tensor
    radius: Tensor
    lobes: Tensor
    color: Tensor
    waves: Tensor
    phases: Tensor
    tints: Tensor

    def draw(self, moved: Tensor) -> tuple[Tensor, Tensor]:
        """The sprites after they have moved by (batch, cells, 2) pixels.

        Returns:
            colours (batch, cells, 3, CELL, CELL) in [-1, 1] and coverage (batch, cells, 1, CELL, CELL).
        """
        axis = torch.arange(CELL, device=self.centers.device, dtype=torch.float32)
        center = self.centers + moved
        x = axis - center[..., 0, None, None]
        y = axis[:, None] - center[..., 1, None, None]
        x, y = torch.broadcast_tensors(x, y)
        angle = torch.atan2(y, x)
        edge = torch.ones_like(angle)
        for harmonic in range(HARMONICS):
            cosine, sine = self.lobes[:, :, harmonic, :, None, None].unbind(2)
            edge = edge + cosine * ((harmonic + 2) * angle).cos() + sine * ((harmonic + 2) * angle).sin()
        edge = edge * self.radius[..., None, None]
        coverage = (edge - torch.hypot(x, y) + 0.5).clamp(0, 1)  # an edge one pixel wide
        color = self.color[..., None, None].expand(-1, -1, -1, CELL, CELL)
        for grating in range(GRATINGS):
            kx, ky = self.waves[:, :, grating, :, None, None].unbind(2)
            wave = (kx * x + ky * y + self.phases[:, :, grating, None, None]).sin()
            color = color + self.tints[:, :, grating, :, None, None] * wave[:, :, None]
        return color.clamp(-1, 1), coverage[:, :, None]


@dataclass(frozen=True)
class SpritePairs:
    """Pairs of frames.

    Attributes:
        context, target: (batch, 3, size, size) in [-1, 1], before and after the step.
        sprites: what is in them; cells go row by row.
        directions: (batch, cells) which direction each sprite took.
        background: (batch, 3, size, size), without sprites.
    """

    context: Tensor
    target: Tensor
    sprites: Sprites
    directions: Tensor
    background: Tensor


def draw_pairs(
    batch: int, size: int, generator: torch.Generator, kinds: tuple[int, ...] = tuple(range(len(KINDS)))
) -> SpritePairs:
    """Draws pairs of frames on the generator's device.

    Args:
        size: of the frames, pixels, a multiple of `CELL`.
        kinds: indices into `KINDS` of the sprites to draw, equally often.
    """
    if size < CELL or size % CELL:
        raise ValueError(f"size must be a multiple of {CELL} pixels, got {size}")
    cells = (size // CELL) ** 2
    sprites = draw_sprites(batch, cells, generator, kinds)
    directions, steps = draw_steps(sprites.kinds, generator)
    background = draw_background(batch, size, generator)
    context = compose(background, *sprites.draw(torch.zeros_like(steps)))
    target = compose(background, *sprites.draw(steps))
    return SpritePairs(context, target, sprites, directions, background)


def draw_sprites(batch: int, cells: int, generator: torch.Generator, kinds: tuple[int, ...]) -> Sprites:
    """Random sprites, on the generator's device."""
    device, shape = generator.device, (batch, cells)

    def uniform(low: float, high: float, *more: int) -> Tensor:
        return low + (high - low) * torch.rand(*shape, *more, generator=generator, device=device)

    chosen = torch.randint(len(kinds), shape, generator=generator, device=device)
    index = torch.tensor(kinds, device=device)[chosen]
    hue = torch.tensor([kind.hue for kind in KINDS], device=device)[index] + uniform(-HUE_SPREAD, HUE_SPREAD)
    color = hsv_color(hue, uniform(0.65, 0.9), uniform(0.55, 0.85))
    direction, length = uniform(0, 2 * math.pi, GRATINGS), uniform(4.0, 10.0, GRATINGS)
    waves = torch.stack([direction.cos(), direction.sin()], dim=-1) * (2 * math.pi / length)[..., None]
    brightness = uniform(0.2, 0.45, GRATINGS, 1) * (1 + color[:, :, None]) / 1.4
    return Sprites(
        index, (CELL - 1) / 2 + uniform(-1.5, 1.5, 2), uniform(5.5, 7.0), uniform(-0.09, 0.09, HARMONICS, 2),
        color, waves, uniform(0, 2 * math.pi, GRATINGS), brightness + uniform(-0.05, 0.05, GRATINGS, 3),
    )  # fmt: skip


def draw_steps(kinds: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Directions (batch, cells) drawn by the kinds' chances, and their steps (batch, cells, 2), pixels."""
    device = kinds.device
    most = max(len(kind.chances) for kind in KINDS)
    more = [most - len(kind.chances) for kind in KINDS]
    chances = torch.tensor(
        [[*kind.chances, *[0.0] * count] for kind, count in zip(KINDS, more, strict=True)], device=device
    )
    steps = torch.stack([
        functional.pad(kind.steps(device), (0, 0, 0, count)) for kind, count in zip(KINDS, more, strict=True)
    ])
    # inverse transform: multinomial would check its input, which waits for the device
    drawn = torch.rand(kinds.shape, generator=generator, device=device)
    directions = (drawn[..., None] > chances.cumsum(1)[kinds][..., :-1]).sum(-1)
    last = (chances > 0).sum(1)[kinds] - 1
    directions = torch.minimum(directions, last)  # the sums of chances are rounded
    return directions, steps[kinds, directions]


def draw_background(batch: int, size: int, generator: torch.Generator) -> Tensor:
    """(batch, 3, size, size) in [-1, 1]: greyish noise of several scales."""
    device = generator.device

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(batch, *shape, generator=generator, device=device)

    image = uniform(-0.4, 0.4, 1, 1, 1).expand(-1, 3, size, size)
    for period, strength in ((16, 0.35), (8, 0.3), (4, 0.25), (2, 0.15)):
        side = size // period + 1
        grey = torch.randn(batch, 1, side, side, generator=generator, device=device)
        tint = torch.randn(batch, 3, side, side, generator=generator, device=device)
        octave = functional.interpolate(grey + 0.25 * tint, (size, size), mode="bicubic", align_corners=True)
        image = image + uniform(0.3, 1.0, 1, 1, 1) * strength * octave
    return image.clamp(-1, 1)


def compose(background: Tensor, colors: Tensor, coverage: Tensor) -> Tensor:
    """Sprites over a background (batch, 3, size, size); see `Sprites.draw`."""
    alpha = assemble(coverage)
    return background * (1 - alpha) + assemble(colors) * alpha


def assemble(cells: Tensor) -> Tensor:
    """(batch, channels, size, size) of cells (batch, rows * rows, channels, CELL, CELL), row by row."""
    batch, count, channels = cells.shape[:3]
    rows = round(count**0.5)
    grid = cells.reshape(batch, rows, rows, channels, CELL, CELL).permute(0, 3, 1, 4, 2, 5)
    return grid.reshape(batch, channels, rows * CELL, rows * CELL)


def hsv_color(hue: Tensor, saturation: Tensor, value: Tensor) -> Tensor:
    """(*shape, 3) RGB in [-1, 1] of hue, saturation and value in [0, 1]; hues repeat beyond."""
    offsets = torch.tensor([5.0, 3.0, 1.0], device=hue.device)
    k = (offsets + 6 * hue[..., None]) % 6
    ramp = torch.minimum(k, 4 - k).clamp(0, 1)
    return 2 * value[..., None] * (1 - saturation[..., None] * ramp) - 1
