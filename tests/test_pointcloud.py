"""Point clouds of the closed-form room, read back by two other libraries."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import open3d as o3d
import pytest
import torch
import trimesh
from analytic_scene import AnalyticScene, surface_distance
from test_mesh import true_surfaces

from scenediff.renderers.baked import BakedScene, bake
from scenediff.tools.pointcloud import PointCloud, export_ply, scene_points


@pytest.fixture(scope="module")
def baked() -> Iterator[BakedScene]:
    with bake(AnalyticScene(photo_size=(192, 256)), short_side=96) as result:
        yield result


@pytest.fixture(scope="module")
def cloud(baked: BakedScene) -> PointCloud:
    return scene_points(baked)


def test_points_lie_on_the_true_surfaces(cloud: PointCloud) -> None:
    distance = surface_distance(cloud.positions)
    # the 3x3 median moves a slanted wall's depth by up to a pixel at creases, 1.7 % at this size
    assert distance.median() < 1e-3
    assert distance.quantile(0.99) < 0.02
    assert len(cloud) > 20_000


def test_normals_are_those_of_the_walls_and_face_the_camera(cloud: PointCloud) -> None:
    surface = true_surfaces(cloud.positions)
    inward = torch.tensor([[1.0, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0], [0, 0, 1], [0, 0, -1]])
    on_wall = surface < 6
    agreement = (cloud.normals[on_wall] * inward[surface[on_wall]]).sum(-1)
    assert agreement.quantile(0.1) > 0.99
    assert torch.allclose(cloud.normals.norm(dim=-1), torch.ones(len(cloud)), atol=1e-4)


def test_voxels_hold_one_point_each(baked: BakedScene) -> None:
    cloud = scene_points(baked, voxel_size=0.1)
    cells = torch.floor(cloud.positions / 0.1)
    assert len(torch.unique(cells, dim=0)) == len(cloud)
    assert len(scene_points(baked, voxel_size=0.1, max_points=1000)) <= 1000
    with pytest.raises(ValueError, match="voxel_size must be positive, got 0"):
        scene_points(baked, voxel_size=0)


def test_ply_reads_back_in_gltf_axes(cloud: PointCloud, tmp_path: Path) -> None:
    path = tmp_path / "points.ply"
    export_ply(cloud, path)
    expected = cloud.positions.numpy() * [-1, 1, -1]
    header = path.read_bytes()[:400].decode("latin1").split("end_header")[0]
    assert header.startswith("ply\nformat binary_little_endian 1.0\n")
    assert [line.split()[-1] for line in header.splitlines() if line.startswith("property")] == [
        "x", "y", "z", "nx", "ny", "nz", "red", "green", "blue"]
    by_open3d = o3d.io.read_point_cloud(str(path))
    assert np.allclose(np.asarray(by_open3d.points), expected, atol=1e-6)
    assert np.allclose(np.asarray(by_open3d.normals), cloud.normals.numpy() * [-1, 1, -1], atol=1e-6)
    assert np.array_equal((np.asarray(by_open3d.colors) * 255).round(), cloud.colors.numpy())
    by_trimesh = trimesh.load(path)
    assert np.allclose(by_trimesh.vertices, expected, atol=1e-6)
    assert np.array_equal(by_trimesh.colors[:, :3], cloud.colors.numpy())
    assert np.mean(expected[:, 2] < 0) > 0.99  # the scene lies ahead, along -Z
    green_wall = cloud.colors[:, 1].float() > 1.4 * cloud.colors[:, 0].float()
    assert expected[green_wall.numpy() & (cloud.colors[:, 2] < 100).numpy(), 0].mean() < -1  # on the left
