"""How much a photo's samples disagree at points of one of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from pytorch3d.renderer import PerspectiveCameras
from torch import Tensor

from scenediff.renderers.baked import BakedScene, SceneLike
from scenediff.renderers.depth_maps import project
from scenediff.tools.report import COLOR_STD_SHOWN, DEPTH_STD_SHOWN, ramp_colors, uncertainty_map

SURFACE_TOLERANCE = 0.1  # relative difference of depth up to which a view sees a point
HIDDEN = 1.0  # disagreement where no view looks: nothing is known


@dataclass(frozen=True)
class Disagreement:
    """How much samples disagree, seen from a few cameras.

    Attributes:
        cameras: one for each view (batches of one).
        heat: (H, W) for each view: 0 where all samples agree, 1 where colours differ by a standard deviation
            of a quarter of the range, or depths by 30 %, or more.
    """

    cameras: tuple[PerspectiveCameras, ...]
    heat: tuple[Tensor, ...]

    def at(self, points: Tensor, sample: BakedScene) -> Tensor:
        """(P,) mean heat of the views that see points (P, 3) of a sample; 1 where none does."""
        total, count = torch.zeros(len(points)), torch.zeros(len(points))
        for camera, heat in zip(self.cameras, self.heat, strict=True):
            size = (heat.shape[-2], heat.shape[-1])
            pixels, z = project(points, camera, size)
            place = (pixels / torch.tensor([size[1], size[0]]) * 2 - 1)[None, None]
            depth = sample.render(camera, size).depth
            values = torch.cat([heat[None, None], depth], dim=1)
            found = F.grid_sample(values, place, mode="nearest", padding_mode="border", align_corners=False)
            inside = (place[0, 0].abs() <= 1).all(-1) & (z > 0)
            sees = inside & ((z - found[0, 1, 0]).abs() < SURFACE_TOLERANCE * z)
            total += torch.where(sees, found[0, 0, 0], 0.0)
            count += sees
        return torch.where(count > 0, total / count.clamp(min=1), HIDDEN)


def disagreement(
    scene: SceneLike, samples: Sequence[BakedScene], size: tuple[int, int]
) -> Disagreement:
    """Compares all samples from the photo's view and the first one's sampled views.

    Args:
        scene: says which views. samples: two or more. size: (height, width) of the comparison.
    """
    cameras = (scene.photo_cameras.cpu(), *(target.cpu() for target in scene.target_cameras))
    heat = []
    for camera in cameras:
        differ = uncertainty_map(samples, camera, size)
        strongest = torch.maximum(differ.color_std / COLOR_STD_SHOWN, differ.depth_std / DEPTH_STD_SHOWN)
        heat.append(strongest.clamp(0, 1))
    return Disagreement(cameras, tuple(heat))


def heat_colors(heat: Tensor) -> Tensor:
    """(P, 3) uint8 of heat (P,): dark violet for 0, yellow for 1."""
    return ((ramp_colors(heat).T + 1) * 127.5).round().byte()
