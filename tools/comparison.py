"""Pictures that put a model's samples beside the truth, one row for each trial."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn import functional as F

from scenediff.tools.metrics import warp_by_depth
from scenediff.tools.trials import Outcome, Trials

ROWS = 12  # trials in one picture


def save_comparison(trials: Trials, outcome: Outcome, folder: Path) -> None:
    """Writes pictures_00.png, pictures_01.png, ... with `ROWS` trials each."""
    pictures = columns(trials, outcome)
    for number, start in enumerate(range(0, len(trials.target.image), ROWS)):
        grid(pictures, slice(start, start + ROWS)).save(folder / f"pictures_{number:02d}.png")


def columns(trials: Trials, outcome: Outcome) -> dict[str, Tensor]:
    """(N, 3, size, size) pictures by their column's heading; the photo itself is the copying baseline."""
    photo, target, depth = trials.photo, trials.target, trials.target.depth
    pictures = {"photo": photo.image, "truth": target.image}
    pictures["depth warp"] = warp_by_depth(photo.image, photo.cameras, depth, target.cameras)
    pictures["one guess"] = outcome.deterministic
    pictures |= {f"sample {index + 1}": image for index, image in enumerate(outcome.images[:4])}
    pictures["mean"] = outcome.images.mean(0)
    spread = outcome.images.std(0).mean(1, keepdim=True).expand_as(target.image)
    pictures["std x4"] = (8 * spread / 2 - 1).clamp(max=1)
    near, far = (torch.where(depth > 0, depth, value).flatten(1) for value in (math.inf, 0.0))
    limits = near.min(1).values, far.max(1).values
    pictures["depth"] = depth_picture(depth, *limits)
    pictures["its depth"] = depth_picture(outcome.depths[0], *limits)
    return pictures


def depth_picture(depth: Tensor, near: Tensor, far: Tensor) -> Tensor:
    """(N, 3, height, width): near is white and far is dark, evenly in log depth; unknown is black."""
    near, far = near[:, None, None, None], far[:, None, None, None]
    share = (far / depth.clamp(min=1e-3)).log() / (far / near).log().clamp(min=1e-3)
    grey = 0.1 + 0.9 * share.clamp(0, 1)
    return torch.where(depth > 0, 2 * grey - 1, -1).expand(-1, 3, -1, -1)


def grid(pictures: dict[str, Tensor], rows: slice, enlarge: int = 2, heading: int = 14) -> Image.Image:
    """One row for each trial and one column with a heading for each kind of picture."""
    strips = [torch.cat(list(images[rows].float()), dim=1) for images in pictures.values()]
    sheet = F.interpolate(torch.cat(strips, dim=2)[None], scale_factor=enlarge, mode="nearest")[0]
    pixels = ((sheet.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0)
    canvas = Image.new("RGB", (pixels.shape[1], pixels.shape[0] + heading), "white")
    canvas.paste(Image.fromarray(pixels.numpy()), (0, heading))
    draw = ImageDraw.Draw(canvas)
    for index, name in enumerate(pictures):
        draw.text((index * pixels.shape[1] // len(pictures) + 3, 1), name, fill="black")
    return canvas
