"""Point clouds of baked scenes.

The cloud has the scene's axes; files have those of a GLB, +X right, +Y up, -Z ahead of the photo's camera, in
metres.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import open3d as o3d
import torch
from torch import Tensor

from scenediff.renderers.baked import BakedScene
from scenediff.renderers.cameras import points_to_opengl
from scenediff.renderers.depth_maps import camera_centers, near_cuts, normals, project, unproject
from scenediff.renderers.layers import KeyView
from scenediff.tools.fusion import FARTHEST, OPAQUE
from scenediff.tools.mesh import image_at, photo_saw

NEIGHBOURS, OUTLYING = 16, 3.0  # standard deviations that the mean distance to them may be above the usual


@dataclass(frozen=True)
class PointCloud:
    """P points.

    Attributes:
        positions: (P, 3) metres. normals: (P, 3), of unit length, towards the camera. colors: (P, 3) uint8.
        labels: further numbers (P,) by name, such as `seen`.
    """

    positions: Tensor
    normals: Tensor
    colors: Tensor
    labels: Mapping[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, rows: Tensor) -> PointCloud:
        labels = {name: values[rows] for name, values in self.labels.items()}
        return PointCloud(self.positions[rows], self.normals[rows], self.colors[rows], labels)


def scene_points(
    baked: BakedScene, *, voxel_size: float = 0.01, max_points: int = 500_000, labelled: bool = False,
    uncertainty: Sequence[Tensor] | None = None,
) -> PointCloud:
    """The pixels of the key views as points, at most one in each voxel, the photo's first.

    Args:
        baked: supplies the key views; nothing is rendered.
        voxel_size: metres. max_points: if there are more, the voxels are doubled until there are not.
        labelled: whether points get the label `seen`, 1 where the photo shows them and 0 where they were
            sampled, and those of `uncertainty`.
        uncertainty: `exports.key_disagreement`, for the labels `depth_std` and `color_std`.
    """
    if voxel_size <= 0:
        raise ValueError(f"voxel_size must be positive, got {voxel_size}")
    clouds = [_key_points(key) for key in baked.keys]
    if labelled:
        spreads: Sequence[Tensor | None] = uncertainty or [None] * len(clouds)
        clouds = [
            _labelled(cloud, key, baked.keys[0], spread)
            for cloud, key, spread in zip(clouds, baked.keys, spreads, strict=True)
        ]
    cloud = _joined(clouds)
    cloud = _first_in_voxels(cloud, voxel_size)
    while len(cloud) > max_points:
        voxel_size *= 2
        cloud = _first_in_voxels(cloud, voxel_size)
    return cloud


def without_outliers(cloud: PointCloud) -> PointCloud:
    """The points that are not unusually far from their neighbours."""
    return cloud[inliers(cloud.positions)]


def inliers(positions: Tensor) -> Tensor:
    """Which of (P, 3) points are not unusually far from their neighbours, in order."""
    if len(positions) <= NEIGHBOURS:
        return torch.arange(len(positions))
    points = o3d.geometry.PointCloud(o3d.utility.Vector3dVector(positions.double().numpy()))
    kept = points.remove_statistical_outlier(NEIGHBOURS, OUTLYING)[1]
    return torch.from_numpy(np.sort(np.asarray(kept)))


def to_open3d(cloud: PointCloud) -> o3d.geometry.PointCloud:
    """The same points, without labels, with the axes of files."""
    vectors = o3d.utility.Vector3dVector
    points = o3d.geometry.PointCloud(vectors(points_to_opengl(cloud.positions).double().numpy()))
    points.normals = vectors(points_to_opengl(cloud.normals).double().numpy())
    points.colors = vectors(cloud.colors.numpy() / 255.0)
    return points


def export_ply(cloud: PointCloud, path: str | Path) -> None:
    """Writes a binary little-endian PLY: x y z nx ny nz red green blue and the labels."""
    names = ("x", "y", "z", "nx", "ny", "nz")
    records = _records(cloud, names, [("red", "u1"), ("green", "u1"), ("blue", "u1")])
    for column, name in enumerate(("red", "green", "blue")):
        records[name] = cloud.colors[:, column].numpy()
    Path(path).write_bytes(ply_header(records, "axes: +X right, +Y up, -Z ahead; metres") + records.tobytes())


def ply_header(records: np.ndarray, comment: str) -> bytes:
    """The header of a binary PLY whose only element is one vertex for each of some records."""
    types = {"f4": "float", "u1": "uchar"}
    lines = ["ply", "format binary_little_endian 1.0", f"comment {comment}", f"element vertex {len(records)}"]
    lines += [f"property {types[kind.lstrip('<|')]} {name}" for name, kind in records.dtype.descr]
    return "\n".join([*lines, "end_header\n"]).encode()


def export_pcd(cloud: PointCloud, path: str | Path) -> None:
    """Writes a binary PCD 0.7: x y z normal_x normal_y normal_z rgb and the labels."""
    names = ("x", "y", "z", "normal_x", "normal_y", "normal_z")
    records = _records(cloud, names, [("rgb", "<u4")])
    red, green, blue = cloud.colors.numpy().astype(np.uint32).T
    records["rgb"] = red << 16 | green << 8 | blue
    types = {name: records.dtype[name] for name in records.dtype.names}
    sizes = [str(kind.itemsize) for kind in types.values()]
    # by convention a colour's four bytes pass for a float
    kinds = ["U" if kind.kind == "u" and name != "rgb" else "F" for name, kind in types.items()]
    lines = [
        "# .PCD v0.7 - axes: +X right, +Y up, -Z ahead; metres", "VERSION 0.7",
        "FIELDS " + " ".join(types), "SIZE " + " ".join(sizes), "TYPE " + " ".join(kinds),
        "COUNT" + " 1" * len(types), f"WIDTH {len(cloud)}", "HEIGHT 1", "VIEWPOINT 0 0 0 1 0 0 0",
        f"POINTS {len(cloud)}", "DATA binary\n",
    ]  # fmt: skip
    Path(path).write_bytes("\n".join(lines).encode() + records.tobytes())


def _records(cloud: PointCloud, names: Sequence[str], colors: list[tuple[str, str]]) -> np.ndarray:
    """(P,) records of places and normals under these names, of colours yet to be filled in, of labels."""
    kinds = {name: "u1" if values.dtype == torch.uint8 else "<f4" for name, values in cloud.labels.items()}
    records = np.empty(len(cloud), dtype=[(name, "<f4") for name in names] + colors + list(kinds.items()))
    values = torch.cat([points_to_opengl(cloud.positions), points_to_opengl(cloud.normals)], dim=1).numpy()
    for column, name in enumerate(names):
        records[name] = values[:, column]
    for name, label in cloud.labels.items():
        records[name] = label.numpy()
    return records


def _key_points(key: KeyView) -> PointCloud:
    """The pixels of one key view that lie on a surface, not on an edge."""
    points = unproject(key.depth, key.cameras)
    normal = normals(points, camera_centers(key.cameras))
    keep = ~near_cuts(key.depth)[0] & (key.opacity[0, 0] > OPAQUE) & (key.depth[0, 0] < FARTHEST)
    positions = points[0][keep]
    colors = ((key.color_at(positions) + 1) * 127.5).round().clamp(0, 255).byte()
    return PointCloud(positions, normal[0][keep], colors)


def _labelled(cloud: PointCloud, key: KeyView, photo: KeyView, spread: Tensor | None) -> PointCloud:
    """With what is known of one key view's points; `spread` is (1, 2, h, w)."""
    seen = torch.from_numpy(photo_saw(cloud.positions, photo)) | key.from_photo
    labels = {"seen": seen.to(torch.uint8)}
    if spread is not None:
        pixels = project(cloud.positions, key.cameras, key.size)[0]
        values = image_at(spread, pixels / torch.tensor([key.size[1], key.size[0]]) * 2 - 1)
        labels |= {"depth_std": values[:, 0], "color_std": values[:, 1]}
    return PointCloud(cloud.positions, cloud.normals, cloud.colors, labels)


def _joined(clouds: Sequence[PointCloud]) -> PointCloud:
    names = clouds[0].labels
    return PointCloud(
        torch.cat([part.positions for part in clouds]), torch.cat([part.normals for part in clouds]),
        torch.cat([part.colors for part in clouds]),
        {name: torch.cat([part.labels[name] for part in clouds]) for name in names},
    )


def _first_in_voxels(cloud: PointCloud, voxel_size: float) -> PointCloud:
    cells = torch.floor(cloud.positions / voxel_size).long() + 2**20
    keys = (cells[:, 0] << 42) | (cells[:, 1] << 21) | cells[:, 2]
    first = torch.from_numpy(np.sort(np.unique(keys.numpy(), return_index=True)[1]))
    return cloud[first]
