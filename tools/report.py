"""Pictures that a person looks at: contact sheets, depth in colours, and where samples disagree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from pytorch3d.renderer import PerspectiveCameras
from torch import Tensor

from scenediff.cores import on_cores
from scenediff.renderers.baked import BakedScene, SceneLike, interpolate_cameras
from scenediff.tools.video import to_pixels

MARGIN, LABEL_HEIGHT = 8, 18  # pixels
BACKGROUND, INK = (250, 250, 248), (40, 40, 40)
COLOR_STD_SHOWN = 0.5  # standard deviation of colours in [-1, 1] that is drawn as the hottest
DEPTH_STD_SHOWN = 0.3  # of the natural logarithm of depth
MAX_MILLIMETRES = 65535
# dark violet, blue, teal, green, yellow: ever brighter, also to the colour-blind
RAMP = torch.tensor([[48, 18, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]]) / 255.0


class Renderable(Protocol):
    """A scene or a baked scene."""

    def render(self, cameras: PerspectiveCameras, size: tuple[int, int]) -> Any: ...


@dataclass(frozen=True)
class Panel:
    """A picture (3, H, W) in [-1, 1] and the words above it."""

    label: str
    image: Tensor


@dataclass(frozen=True)
class Uncertainty:
    """Where samples disagree, seen from one camera.

    Attributes:
        mean: (3, H, W) mean image in [-1, 1].
        color_std: (H, W) standard deviation of the colours, over samples, root mean square over channels.
        depth_std: (H, W) standard deviation of the natural logarithm of depth, that is, relative.
    """

    mean: Tensor
    color_std: Tensor
    depth_std: Tensor


def uncertainty_map(
    scenes: Sequence[Renderable], cameras: PerspectiveCameras, size: tuple[int, int]
) -> Uncertainty:
    """Standard deviation over two or more samples of what one camera (batch 1) sees at a (height, width)."""
    if len(scenes) < 2:
        raise ValueError(f"scenes must hold at least two samples to disagree, got {len(scenes)}")
    renderings = on_cores(lambda scene: scene.render(cameras, size), scenes, cameras.device)
    images = torch.stack([rendering.image[0].float().cpu() for rendering in renderings])
    depths = torch.stack([rendering.depth[0, 0].float().cpu() for rendering in renderings])
    color_std = images.var(0, unbiased=True).mean(0).sqrt()
    return Uncertainty(images.mean(0), color_std, depths.clamp(min=1e-3).log().std(0, unbiased=True))


def overlay(image: Tensor, heat: Tensor) -> Tensor:
    """A grey version of an image (3, H, W) in [-1, 1], coloured where heat (H, W) in [0, 1] is high."""
    grey = image.mean(0, keepdim=True).expand(3, -1, -1)
    strength = heat.clamp(0, 1)
    return torch.lerp(0.7 * grey, ramp_colors(strength), (0.15 + 0.85 * strength.sqrt())[None])


def ramp_colors(values: Tensor) -> Tensor:
    """(3, *shape) colours in [-1, 1] of values (*shape) in [0, 1]: dark violet for 0, yellow for 1."""
    place = values.clamp(0, 1) * (len(RAMP) - 1)
    low = place.floor().long().clamp(max=len(RAMP) - 2)
    colors = torch.lerp(RAMP[low], RAMP[low + 1], (place - low)[..., None])
    return colors.movedim(-1, 0) * 2 - 1


def color_depth(depth: Tensor, near: float | None = None, far: float | None = None) -> Tensor:
    """(3, H, W) picture of a depth (H, W) in metres, yellow near and violet far, in equal steps of log-depth.

    `near` and `far` default to the 2nd and 98th percentile.
    """
    log_depth = depth.clamp(min=1e-3).log()
    low = log_depth.quantile(0.02) if near is None else torch.tensor(near).log()
    high = log_depth.quantile(0.98) if far is None else torch.tensor(far).log()
    return ramp_colors(1 - (log_depth - low) / (high - low).clamp(min=1e-6))


def sample_row(scene: SceneLike, baked: BakedScene, size: tuple[int, int], name: str) -> list[Panel]:
    """One sample in the contact sheet: photo's view, half-way, the first targets, and the depth."""
    at_photo = baked.render(scene.photo_cameras, size)
    panels = [Panel(f"{name}: photo's view", at_photo.image[0])]
    if scene.target_cameras:
        between = interpolate_cameras(scene.photo_cameras, scene.target_cameras[0], 0.5)
        panels.append(Panel("half-way", baked.render(between, size).image[0]))
    for k, target in enumerate(scene.target_cameras[:2]):
        panels.append(Panel(f"target view {k + 1}", baked.render(target, size).image[0]))
    depth = at_photo.depth[0, 0]
    near, far = depth.quantile(0.02).item(), depth.quantile(0.98).item()
    return [*panels, Panel(f"depth {near:.1f} (yellow) to {far:.1f} m", color_depth(depth, near, far))]


def uncertainty_panels(scene: SceneLike, scenes: Sequence[Renderable], size: tuple[int, int]) -> list[Panel]:
    """Where samples of one photo differ: in colour from the first target's view, in depth from the photo's.

    Args:
        scene: says which views. scenes: the samples, baked or not; fewer than two give no panels.
    """
    if len(scenes) < 2:
        return []
    at_photo = uncertainty_map(scenes, scene.photo_cameras, size)
    panels = [Panel("samples differ: depth", overlay(at_photo.mean, at_photo.depth_std / DEPTH_STD_SHOWN))]
    if scene.target_cameras:
        target = uncertainty_map(scenes, scene.target_cameras[0], size)
        heat = target.color_std / COLOR_STD_SHOWN
        panels.append(Panel("target view: they differ", overlay(target.mean, heat)))
        panels.append(Panel("target view: their mean", target.mean))
    return panels


def contact_sheet(
    photo: Tensor, rows: Sequence[Sequence[Panel]], header: Sequence[Panel] = ()
) -> Image.Image:
    """One picture: the photo and the header's panels on top, then one row for each sample.

    Args:
        photo: (1, 3, H, W) in [-1, 1], drawn at the size of the panels.
        rows: one for each sample, all panels of one size (see `sample_row`).
        header: beside the photo (see `uncertainty_panels`).
    """
    if not rows or not rows[0]:
        raise ValueError("rows must hold at least one row with a panel, got none")
    height, width = rows[0][0].image.shape[-2:]
    small = F.interpolate(photo.float().cpu(), (height, width), mode="bilinear", antialias=True)[0]
    grid = [[Panel("photo", small), *header], *rows]
    columns = max(len(row) for row in grid)
    step_x, step_y = width + MARGIN, height + LABEL_HEIGHT + MARGIN
    sheet = Image.new("RGB", (MARGIN + columns * step_x, MARGIN + len(grid) * step_y), BACKGROUND)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for i, row in enumerate(grid):
        for j, panel in enumerate(row):
            got = tuple(panel.image.shape[-2:])
            if got != (height, width):
                raise ValueError(f"panel {panel.label!r} must be {height} x {width}, got {got}")
            x, y = MARGIN + j * step_x, MARGIN + i * step_y
            draw.text((x, y), panel.label, fill=INK, font=font)
            sheet.paste(Image.fromarray(to_pixels(panel.image)), (x, y + LABEL_HEIGHT))
    return sheet


def save_depth_png(depth: Tensor, path: str | Path) -> None:
    """Writes a depth (H, W) in metres as a 16-bit PNG in millimetres.

    Unknown depth, not finite or not positive, becomes 0. Depths over 65.535 m become 65.535 m.
    """
    if depth.ndim != 2:
        raise ValueError(f"depth must be (height, width), got shape {tuple(depth.shape)}")
    known = depth.isfinite() & (depth > 0)
    millimetres = (torch.where(known, depth, 0).double() * 1000).round().clamp(0, MAX_MILLIMETRES)
    millimetres = torch.where(known, millimetres.clamp(min=1), 0)
    Image.fromarray(millimetres.cpu().numpy().astype(np.uint16)).save(path)


def load_depth_png(path: str | Path) -> Tensor:
    """(H, W) metres of a PNG written by `save_depth_png`; 0 where unknown."""
    with Image.open(path) as image:
        return torch.from_numpy(np.asarray(image).astype(np.float32)) / 1000
