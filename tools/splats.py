"""Scenes as 3D Gaussian splats: a flat disc for every pixel of a key view's depth, in the plain 3DGS layout.

The file has what the reference implementation writes, a vertex element with spherical harmonics of degree 3
(zero but for the constant), and COLMAP's axes: +X right, +Y down, +Z ahead of the photo's camera, metres.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from pytorch3d.transforms import matrix_to_quaternion
from torch import Tensor

from scenediff.renderers.baked import BakedScene
from scenediff.renderers.cameras import ndc_to_pixels_intrinsics
from scenediff.renderers.depth_maps import camera_centers, near_cuts, normals, refine, unproject
from scenediff.renderers.layers import KeyView
from scenediff.tools.fusion import FARTHEST, OPAQUE
from scenediff.tools.mesh import photo_saw, visibility
from scenediff.tools.pointcloud import inliers, ply_header

FINER = 2  # discs along a side of the key view's pixel
RADIUS = 0.7  # of a disc: its standard deviation over the spacing; below it, gaps show
THICKNESS = 0.1  # of its radius
LONGEST = 4.0  # of a disc seen from the side, over its radius
SOLIDITY = 0.95  # opacity of a disc's centre
CONSTANT_HARMONIC = 0.5 / math.sqrt(math.pi)
HIGHER_HARMONICS = 45


@dataclass(frozen=True)
class Splats:
    """P Gaussians in the scene's axes.

    Attributes:
        positions: (P, 3) metres. rotations: (P, 3, 3), columns are the Gaussian's own axes.
        scales: (P, 3) standard deviations along these, metres. opacities: (P,) in (0, 1).
        colors: (P, 3) in [0, 1]. seen: (P,) bool, whether the photo shows them, else they were sampled.
    """

    positions: Tensor
    rotations: Tensor
    scales: Tensor
    opacities: Tensor
    colors: Tensor
    seen: Tensor

    def __len__(self) -> int:
        return len(self.positions)


def scene_splats(baked: BakedScene) -> Splats:
    """Discs for what the photo sees, then for what each further key view adds."""
    parts = [_key_splats(key, baked.keys[:index]) for index, key in enumerate(baked.keys)]
    positions, rotations, scales, colors = (torch.cat(values) for values in zip(*parts, strict=True))
    kept = inliers(positions)
    positions, rotations, scales, colors = positions[kept], rotations[kept], scales[kept], colors[kept]
    seen = torch.from_numpy(photo_saw(positions, baked.keys[0]))
    return Splats(positions, rotations, scales, torch.full((len(positions),), SOLIDITY), colors, seen)


def export_splats(splats: Splats, path: str | Path) -> None:
    """Writes a binary PLY; the last property, `seen`, is 1 where the photo shows a splat and 0 elsewhere."""
    down = torch.tensor([-1.0, -1.0, 1.0])
    rotations = down[:, None] * splats.rotations
    columns = {
        "xyz": splats.positions * down, "normals": torch.zeros(len(splats), 3),
        "f_dc": (splats.colors - 0.5) / CONSTANT_HARMONIC,
        "f_rest": torch.zeros(len(splats), HIGHER_HARMONICS),
        "opacity": torch.logit(splats.opacities)[:, None], "scale": splats.scales.log(),
        "rot": matrix_to_quaternion(rotations), "seen": splats.seen[:, None].float(),
    }  # fmt: skip
    names = ["x", "y", "z", "nx", "ny", "nz"]
    for name in ("f_dc", "f_rest", "opacity", "scale", "rot", "seen"):
        width = columns[name].shape[1]
        names += [name] if width == 1 else [f"{name}_{index}" for index in range(width)]
    values = torch.cat(list(columns.values()), dim=1).float().contiguous().numpy()
    records = values.view(np.dtype([(name, "<f4") for name in names]))[:, 0]
    header = ply_header(records, "axes: +X right, +Y down, +Z ahead; metres")
    Path(path).write_bytes(header + records.tobytes())


def _key_splats(key: KeyView, better: tuple[KeyView, ...]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Positions, rotations, scales and colours of what one key view sees and better ones don't."""
    depth = refine(key.depth, FINER)
    points = unproject(depth, key.cameras)
    normal = normals(points, camera_centers(key.cameras))[0]
    trusted = (key.opacity > OPAQUE) & (key.depth < FARTHEST)
    kept = F.interpolate(trusted.float(), scale_factor=FINER, mode="nearest")[0, 0] > 0
    flat = ~near_cuts(depth)[0][kept]
    positions, normal, z = points[0][kept], normal[kept], depth[0, 0][kept]
    towards = F.normalize(camera_centers(key.cameras) - positions, dim=-1)
    normal = torch.where(flat[:, None], normal, towards)  # at an edge neighbours do not tell the slope
    new = torch.ones(len(positions), dtype=torch.bool)
    for other in better:
        new &= torch.from_numpy(visibility(positions, other) == 0)
    positions, normal, towards, z = positions[new], normal[new], towards[new], z[new]
    focal = ndc_to_pixels_intrinsics(key.cameras, (depth.shape[-2], depth.shape[-1]))[0][0, 0]
    radius = RADIUS * z / focal
    cosine = (normal * towards).sum(-1).clamp(min=1 / LONGEST)
    colors = ((key.color_at(positions) + 1) / 2).clamp(0, 1)
    scales = torch.stack([radius / cosine, radius, THICKNESS * radius], dim=-1)
    return positions, _frames(normal, towards), scales, colors


def _frames(normal: Tensor, towards: Tensor) -> Tensor:
    """(P, 3, 3) rotations: first axis in the surface, the way it leans from the viewer; last its normal."""
    lean = towards - (towards * normal).sum(-1, keepdim=True) * normal
    spare = torch.eye(3)[normal.abs().argmin(dim=-1)]  # for surfaces that face the viewer
    lean = torch.where(lean.norm(dim=-1, keepdim=True) > 1e-3, lean, torch.linalg.cross(normal, spare))
    first = F.normalize(lean, dim=-1)
    return torch.stack([first, torch.linalg.cross(normal, first), normal], dim=-1)
