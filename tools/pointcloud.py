"""Point clouds of baked scenes.

The cloud has the scene's axes; a PLY has those of a GLB, +X right, +Y up, -Z ahead of the photo's camera, in
metres.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from scenediff.renderers.baked import BakedScene
from scenediff.renderers.cameras import points_to_opengl
from scenediff.renderers.depth_maps import camera_centers, near_cuts, normals, unproject
from scenediff.renderers.layers import KeyView

FARTHEST = 15.0  # metres; deeper pixels are left out


@dataclass(frozen=True)
class PointCloud:
    """P points: positions (P, 3) in metres, unit normals (P, 3) towards the camera, colors (P, 3) uint8."""

    positions: Tensor
    normals: Tensor
    colors: Tensor

    def __len__(self) -> int:
        return len(self.positions)


def scene_points(baked: BakedScene, *, voxel_size: float = 0.01, max_points: int = 500_000) -> PointCloud:
    """The pixels of the key views as points, at most one in each voxel, the photo's first.

    Args:
        baked: supplies the key views; nothing is rendered.
        voxel_size: metres. max_points: if there are more, the voxels are doubled until there are not.
    """
    if voxel_size <= 0:
        raise ValueError(f"voxel_size must be positive, got {voxel_size}")
    clouds = [_key_points(key) for key in baked.keys]
    cloud = PointCloud(
        torch.cat([part.positions for part in clouds]), torch.cat([part.normals for part in clouds]),
        torch.cat([part.colors for part in clouds]),
    )
    cloud = _first_in_voxels(cloud, voxel_size)
    while len(cloud) > max_points:
        voxel_size *= 2
        cloud = _first_in_voxels(cloud, voxel_size)
    return cloud


def export_ply(cloud: PointCloud, path: str | Path) -> None:
    """Writes a binary little-endian PLY: x y z nx ny nz red green blue; axes as in the module's docstring."""
    fields = [(name, "<f4") for name in ("x", "y", "z", "nx", "ny", "nz")]
    fields += [(name, "u1") for name in ("red", "green", "blue")]
    records = np.empty(len(cloud), dtype=fields)
    values = torch.cat([points_to_opengl(cloud.positions), points_to_opengl(cloud.normals)], dim=1).numpy()
    for column, (name, _) in enumerate(fields[:6]):
        records[name] = values[:, column]
    for column, (name, _) in enumerate(fields[6:]):
        records[name] = cloud.colors[:, column].numpy()
    types = {"<f4": "float", "u1": "uchar"}
    header = ["ply", "format binary_little_endian 1.0", "comment axes: +X right, +Y up, -Z ahead; metres",
              f"element vertex {len(cloud)}"]
    header += [f"property {types[kind]} {name}" for name, kind in fields]
    Path(path).write_bytes("\n".join([*header, "end_header\n"]).encode() + records.tobytes())


def _key_points(key: KeyView) -> PointCloud:
    """The pixels of one key view that lie on a surface, not on an edge."""
    points = unproject(key.depth, key.cameras)
    normal = normals(points, camera_centers(key.cameras))
    keep = ~near_cuts(key.depth)[0] & (key.opacity[0, 0] > 0.5) & (key.depth[0, 0] < FARTHEST)
    positions = points[0][keep]
    colors = ((key.color_at(positions) + 1) * 127.5).round().clamp(0, 255).byte()
    return PointCloud(positions, normal[0][keep], colors)


def _first_in_voxels(cloud: PointCloud, voxel_size: float) -> PointCloud:
    cells = torch.floor(cloud.positions / voxel_size).long() + 2**20
    keys = (cells[:, 0] << 42) | (cells[:, 1] << 21) | cells[:, 2]
    first = torch.from_numpy(np.sort(np.unique(keys.numpy(), return_index=True)[1]))
    return PointCloud(cloud.positions[first], cloud.normals[first], cloud.colors[first])
