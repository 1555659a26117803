"""Meshes of the closed-form room: true surfaces, true colours, axes, bytes."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from analytic_scene import (
    BALL_CENTER,
    BALL_RADIUS,
    ROOM_HIGH,
    ROOM_LOW,
    AnalyticScene,
    surface_color,
    surface_distance,
)

from scenediff.renderers.baked import BakedScene, bake
from scenediff.tools.fusion import unique_rows
from scenediff.tools.mesh import choose_views, decimated, export_glb, pack_atlas, scene_mesh

VOXEL = 0.03


@pytest.fixture(scope="module")
def baked() -> Iterator[BakedScene]:
    with bake(AnalyticScene(photo_size=(192, 256)), short_side=160) as result:
        yield result


@pytest.fixture(scope="module")
def mesh(baked: BakedScene) -> trimesh.Trimesh:
    return scene_mesh(baked, voxel_size=VOXEL, max_faces=30_000)


def texture_colors(mesh: trimesh.Trimesh) -> np.ndarray:
    """(F, 3) colour in [-1, 1] of the texture at the faces' centroids."""
    image = np.asarray(mesh.visual.material.baseColorTexture)
    uv = mesh.visual.uv[mesh.faces].mean(1)
    x = np.floor(uv[:, 0] * image.shape[1]).astype(int)
    y = np.floor((1 - uv[:, 1]) * image.shape[0]).astype(int)
    return image[y, x] / 127.5 - 1


def true_surfaces(points: torch.Tensor) -> torch.Tensor:
    """The index of the nearest of the room's surfaces."""
    walls = torch.stack([points - ROOM_LOW, ROOM_HIGH - points], dim=-1).abs().flatten(-2)
    ball = ((points - BALL_CENTER).norm(dim=-1) - BALL_RADIUS).abs()
    return torch.cat([walls, ball[:, None]], dim=1).argmin(1)


def test_vertices_lie_on_the_true_surfaces(mesh: trimesh.Trimesh) -> None:
    distance = surface_distance(torch.from_numpy(np.array(mesh.vertices)).float())
    assert distance.median() < 0.1 * VOXEL
    assert distance.quantile(0.99) < 0.7 * VOXEL  # room edges and the ball's outline are rounded by a voxel
    assert distance.max() < 4 * VOXEL
    assert 10_000 < len(mesh.faces) <= 30_000


def test_the_seen_room_is_there(mesh: trimesh.Trimesh) -> None:
    low, high = mesh.bounds
    assert np.allclose(low[:2], ROOM_LOW[:2], atol=1.5 * VOXEL)
    assert np.allclose(high, ROOM_HIGH, atol=1.5 * VOXEL)


def test_faces_look_into_the_room(mesh: trimesh.Trimesh) -> None:
    towards_camera = (mesh.face_normals * -mesh.triangles_center).sum(1) > 0
    assert towards_camera.mean() > 0.97  # some of the ball is seen only from the target
    assert (np.einsum("ij,ij->i", mesh.vertex_normals, -mesh.vertices) > 0).mean() > 0.97


def test_texture_has_the_true_colours(mesh: trimesh.Trimesh) -> None:
    points = torch.from_numpy(np.array(mesh.triangles_center)).float()
    truth = surface_color(points, true_surfaces(points)).numpy()
    error = np.abs(texture_colors(mesh) - truth).max(1)
    assert np.median(error) < 0.03
    assert (error < 0.15).mean() > 0.93  # the rest: next to edges, where a pixel shows the other surface


def test_colours_of_hidden_faces_come_from_their_neighbours(baked: BakedScene) -> None:
    surface = trimesh.creation.icosphere(subdivisions=3, radius=BALL_RADIUS * 0.99)
    views = choose_views(surface.vertices + BALL_CENTER.numpy(), surface.faces, baked.keys)
    facing = (surface.face_normals * -(surface.triangles_center + BALL_CENTER.numpy())).sum(1)
    assert (views[facing < -0.8] == -1).all()  # the ball's back
    assert (views[facing > 0.8] == 0).mean() > 0.9  # the photo gives the colour of what it sees well


def test_atlas_holds_every_picture_unchanged(baked: BakedScene) -> None:
    atlas, corners = pack_atlas(baked.keys)
    for key, (x, y) in zip(baked.keys, corners, strict=True):
        height, width = key.image.shape[-2:]
        tile = torch.from_numpy(atlas[y : y + height, x : x + width].copy()).permute(2, 0, 1) / 127.5 - 1
        assert (tile - key.image[0]).abs().max() <= 0.5 / 127.5 + 1e-6
        assert (atlas[y - 1, x : x + width] == atlas[y, x : x + width]).all()


def test_glb_has_gltf_axes_and_the_same_bytes_each_time(
    mesh: trimesh.Trimesh, baked: BakedScene, tmp_path: Path
) -> None:
    export_glb(mesh, tmp_path / "one.glb")
    export_glb(scene_mesh(baked, voxel_size=VOXEL, max_faces=30_000), tmp_path / "two.glb")
    assert (tmp_path / "one.glb").read_bytes() == (tmp_path / "two.glb").read_bytes()
    read = trimesh.load_mesh(tmp_path / "one.glb")
    assert np.allclose(read.vertices, mesh.vertices * [-1, 1, -1], atol=1e-5)
    assert np.array_equal(read.faces, mesh.faces)
    assert np.allclose(read.visual.uv, mesh.visual.uv, atol=1e-5)
    material = read.visual.material
    assert (material.metallicFactor, material.roughnessFactor) == (0, 1)
    original = mesh.visual.material.baseColorTexture
    assert np.array_equal(np.asarray(material.baseColorTexture), np.asarray(original))


def test_floaters_and_far_outliers_are_dropped(baked: BakedScene) -> None:
    depth = baked.keys[0].depth.clone()
    depth[..., 20:24, 60:64] = 0.8  # a speck of 2 cm in front of the wall
    depth[..., 100:110, 100:110] = 40.0
    keys = (replace(baked.keys[0], depth=depth), *baked.keys[1:])
    noisy = scene_mesh(BakedScene(keys, depth, baked._drawer), voxel_size=VOXEL, max_faces=30_000)
    distance = surface_distance(torch.from_numpy(np.array(noisy.vertices)).float())
    assert distance.max() < 4 * VOXEL


def test_nothing_near_is_an_error(baked: BakedScene) -> None:
    empty = tuple(replace(key, depth=torch.full_like(key.depth, 40.0)) for key in baked.keys)
    with pytest.raises(ValueError, match="no surface within 15"):
        scene_mesh(BakedScene(empty, baked.photo_depth, baked._drawer), voxel_size=VOXEL)


def test_meshes_simplified_side_by_side_stay_apart() -> None:
    """The library has room for one mesh, which without a lock may be another thread's."""
    spheres = [trimesh.creation.icosphere(subdivisions=5, radius=radius) for radius in (1.0, 2.0)]

    def simplified(index: int) -> np.ndarray:
        sphere = spheres[index % 2]
        return decimated(np.array(sphere.vertices), np.array(sphere.faces), 2000)[0]

    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(simplified, range(40)))
    assert all(np.array_equal(mesh, found[index % 2]) for index, mesh in enumerate(found))
    assert [round(np.linalg.norm(mesh, axis=1).max()) for mesh in found[:2]] == [1, 2]


@pytest.mark.parametrize("dtype", [np.int64, np.float64])
@pytest.mark.parametrize("count", [0, 1, 200])
def test_rows_are_sorted_and_counted_once_as_numpy_does_it(count: int, dtype: type) -> None:
    rows = np.random.default_rng(0).integers(-2, 3, (count, 3)).astype(dtype)
    expected, places = np.unique(rows, axis=0, return_inverse=True)
    found, place = unique_rows(rows)
    assert np.array_equal(found, expected)
    assert np.array_equal(place, places.reshape(-1))
