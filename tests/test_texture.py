"""Unwrapped meshes of the closed-form room: their charts, colours, labels, and how they look."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import open3d as o3d
import pytest
import torch
import trimesh
from analytic_scene import ROOM_HIGH, ROOM_LOW, AnalyticScene, surface_color, surface_distance, trace, turned
from mesh_view import draw, psnr
from test_mesh import texture_colors, true_surfaces

from scenediff.renderers.baked import BakedScene, bake
from scenediff.renderers.depth_maps import project
from scenediff.tools.texture import unwrapped_mesh

SIZE = (144, 192)
BESIDE = (  # novel views: metres, degrees
    ((0.2, 0.0, 0.1), -5.0), ((0.4, 0.1, 0.3), -12.0), ((0.1, 0.1, 0.3), 0.0), ((0.5, 0.0, 0.2), -16.0),
    ((0.3, -0.1, 0.4), -6.0),
)  # fmt: skip


@pytest.fixture(scope="module")
def scene() -> AnalyticScene:
    return AnalyticScene(photo_size=(192, 256))


@pytest.fixture(scope="module")
def baked(scene: AnalyticScene) -> Iterator[BakedScene]:
    with bake(scene, short_side=128) as result:
        yield result


@pytest.fixture(scope="module")
def mesh(baked: BakedScene) -> trimesh.Trimesh:
    spread = [torch.stack([key.depth[0] * 0 + 0.25, key.depth[0]], dim=1) for key in baked.keys]
    return unwrapped_mesh(baked, max_faces=20_000, texture_size=1024, uncertainty=spread)


def test_it_looks_like_the_scene(mesh: trimesh.Trimesh, scene: AnalyticScene) -> None:
    focal = scene.photo_cameras.focal_length[:, 0]
    beside = [turned(place, yaw, focal) for place, yaw in BESIDE]
    for cameras, wanted in [(scene.photo_cameras, 25.0), *((camera, 22.0) for camera in beside)]:
        truth = scene.render(cameras, SIZE)
        image, depth = draw(mesh, cameras, SIZE)
        seen = depth.isfinite()
        assert psnr(image, truth.image[0]) > wanted
        assert seen.float().mean() > 0.97
        assert ((depth - truth.depth[0, 0]).abs() / truth.depth[0, 0])[seen].median() < 0.005


def test_charts_fill_the_texture_without_overlap(mesh: trimesh.Trimesh) -> None:
    uv = mesh.visual.uv
    assert uv.min() >= 0
    assert uv.max() <= 1
    flat = np.concatenate([uv * 512, np.zeros((len(uv), 1))], axis=1).astype(np.float32)
    rays = o3d.t.geometry.RaycastingScene()
    rays.add_triangles(flat, mesh.faces.astype(np.uint32))
    down = np.zeros((512, 512, 6), np.float32)
    down[..., 0], down[..., 1] = np.meshgrid(np.arange(512) + 0.37, np.arange(512) + 0.61)
    down[..., 2], down[..., 5] = 1, -1
    covered = rays.count_intersections(o3d.core.Tensor(down)).numpy()
    assert (covered > 0).mean() > 0.5
    assert (covered > 1).sum() < 0.01 * (covered > 0).sum()


def test_texture_has_the_true_colours(mesh: trimesh.Trimesh) -> None:
    points = torch.from_numpy(np.array(mesh.triangles_center)).float()
    error = np.abs(texture_colors(mesh) - surface_color(points, true_surfaces(points)).numpy()).max(1)
    assert np.median(error) < 0.03
    assert (error < 0.15).mean() > 0.9  # the rest: next to edges, where a pixel shows the other surface


def test_seen_is_what_the_photo_shows(mesh: trimesh.Trimesh, scene: AnalyticScene) -> None:
    points = torch.from_numpy(np.array(mesh.vertices)).float()
    pixels, z = project(points, scene.photo_cameras, (512, 512))
    x, y = pixels.long().unbind(-1)
    inside = (z > 0) & (x >= 8) & (x < 504) & (y >= 8) & (y < 504)  # square: the photo's height
    depth = trace(scene.photo_cameras, (512, 512))[1][0]
    behind = z / depth[y.clamp(0, 511), x.clamp(0, 511)] - 1
    seen = torch.from_numpy(mesh.vertex_attributes["_SEEN"]) > 0
    assert seen[inside & (behind < 0.02)].float().mean() > 0.97
    assert seen[inside & (behind > 0.25)].float().mean() < 0.1
    assert not seen[(z < 0) | (pixels[:, 1] < -20)].any()


def test_disagreement_is_carried_to_vertices(mesh: trimesh.Trimesh) -> None:
    spread = mesh.vertex_attributes["_DEPTH_STD"]
    assert np.isclose(spread[spread > 0], 0.25, atol=1e-4).all()
    assert (spread > 0).mean() > 0.9  # the rest no view sees, next to edges
    seen = mesh.vertex_attributes["_SEEN"] > 0
    carried = mesh.vertex_attributes["_COLOR_STD"][seen]  # the views' depth stands for it here
    assert np.median(np.abs(carried - mesh.vertices[seen, 2])) < 0.2


def test_budget_and_open_borders(mesh: trimesh.Trimesh, baked: BakedScene) -> None:
    assert len(mesh.faces) <= 20_000
    small = unwrapped_mesh(baked, max_faces=500, texture_size=128)
    assert 400 < len(small.faces) <= 500
    assert small.visual.material.baseColorTexture.size == (128, 128)
    assert surface_distance(torch.from_numpy(np.array(small.vertices)).float()).median() < 0.05
    low, _ = mesh.bounds
    assert low[2] > float(ROOM_LOW[2]) + 0.5  # the wall behind the camera was never seen


def test_closed_mesh_is_a_solid_with_the_room_carved_out(baked: BakedScene, scene: AnalyticScene) -> None:
    mesh = unwrapped_mesh(baked, max_faces=8_000, texture_size=256, closed=True)
    merged = trimesh.Trimesh(mesh.vertices, mesh.faces, process=False)
    merged.merge_vertices(merge_tex=True, merge_norm=True)
    assert merged.is_watertight
    assert merged.volume > 1.0  # positive: the faces look out of the solid, into the room
    assert len(mesh.faces) <= 8_000
    assert np.all(merged.bounds[1] < ROOM_HIGH.numpy() + 0.5)  # the wall of the solid
    image, depth = draw(mesh, scene.photo_cameras, SIZE)
    truth = scene.render(scene.photo_cameras, SIZE)
    assert depth.isfinite().all()
    assert ((depth - truth.depth[0, 0]).abs() / truth.depth[0, 0]).median() < 0.02
    assert psnr(image, truth.image[0]) > 20


def test_same_bytes_each_time(baked: BakedScene) -> None:
    first, second = (unwrapped_mesh(baked, max_faces=2_000, texture_size=128) for _ in range(2))
    assert np.array_equal(first.vertices, second.vertices)
    assert np.array_equal(first.faces, second.faces)
    pictures = [np.asarray(one.visual.material.baseColorTexture) for one in (first, second)]
    assert np.array_equal(*pictures)
