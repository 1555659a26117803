"""Gaussian splats of the closed-form room: the file's layout, and how a plain rasterizer draws it."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from analytic_scene import AnalyticScene, surface_distance, turned
from mesh_view import psnr
from pytorch3d.renderer import PerspectiveCameras
from pytorch3d.transforms import quaternion_to_matrix
from torch import Tensor

from scenediff.renderers.baked import BakedScene, bake
from scenediff.renderers.cameras import CameraView, ndc_to_pixels_intrinsics, to_pinhole
from scenediff.tools.mesh import NamedCamera
from scenediff.tools.mesh_files import cameras_json
from scenediff.tools.splats import Splats, export_splats, scene_splats

SIZE = (192, 256)
WINDOW = (slice(80, 128), slice(70, 134))  # rows and columns that are drawn: ball, floor, walls
NAMES = ["x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2", *(f"f_rest_{n}" for n in range(45)),
         "opacity", "scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3", "seen"]  # fmt: skip


@pytest.fixture(scope="module")
def scene() -> AnalyticScene:
    return AnalyticScene(photo_size=(192, 256))


@pytest.fixture(scope="module")
def baked(scene: AnalyticScene) -> Iterator[BakedScene]:
    with bake(scene, short_side=96) as result:
        yield result


@pytest.fixture(scope="module")
def splats(baked: BakedScene) -> Splats:
    return scene_splats(baked)


@pytest.fixture(scope="module")
def columns(splats: Splats, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """What the file holds, read by its header."""
    path = tmp_path_factory.mktemp("splats") / "scene.ply"
    export_splats(splats, path)
    head, data = path.read_bytes().split(b"end_header\n", 1)
    lines = head.decode().splitlines()
    assert [line for line in lines if line.startswith("element")] == [f"element vertex {len(splats)}"]
    names = [line.split()[-1] for line in lines if line.startswith("property float ")]
    assert names == NAMES
    values = torch.from_numpy(np.frombuffer(data, "<f4").reshape(-1, len(names)).copy())
    return dict(zip(names, values.T, strict=True))


def several(columns: dict[str, Tensor], *names: str) -> Tensor:
    return torch.stack([columns[name] for name in names], dim=-1)


def rasterize(columns: dict[str, Tensor], cameras: PerspectiveCameras, size: tuple[int, int]) -> Tensor:
    """(3, h, w) in [-1, 1] of the window: elliptical Gaussians from front to back, plain and slow."""
    pinhole = to_pinhole(CameraView(cameras, size))  # the file's axes, OpenCV's
    world_to_cam = torch.linalg.inv(pinhole.cam_to_world[0])
    focal, principal = (part[0] for part in ndc_to_pixels_intrinsics(cameras, size))
    place = several(columns, "x", "y", "z") @ world_to_cam[:3, :3].T + world_to_cam[:3, 3]
    order = place[:, 2].argsort()
    order = order[place[order, 2] > 0.1]
    place = place[order]
    turn = quaternion_to_matrix(several(columns, "rot_0", "rot_1", "rot_2", "rot_3")[order])
    scales = several(columns, "scale_0", "scale_1", "scale_2")[order].exp()
    axes = world_to_cam[:3, :3] @ turn * scales[:, None]
    x, y, z = place.unbind(-1)
    zero = torch.zeros_like(z)
    slope = torch.stack([
        torch.stack([focal[0] / z, zero, -focal[0] * x / z**2], -1),
        torch.stack([zero, focal[1] / z, -focal[1] * y / z**2], -1),
    ], dim=-2)  # fmt: skip
    flat = slope @ axes
    spread = torch.linalg.inv(flat @ flat.mT + 0.3 * torch.eye(2))
    middle = torch.stack([x, y], -1) / z[:, None] * focal + principal
    color = several(columns, "f_dc_0", "f_dc_1", "f_dc_2")[order] * 0.28209479177387814 + 0.5
    opacity = torch.sigmoid(columns["opacity"][order])
    image, left = torch.zeros(*size, 3), torch.ones(size)
    first, last = (torch.tensor([getattr(side, end) for side in WINDOW[::-1]]) for end in ("start", "stop"))
    near = ((middle > first - 8) & (middle < last + 8)).all(-1)
    for n in near.nonzero()[:, 0].tolist():
        u, v = middle[n].tolist()
        rows = slice(max(0, int(v) - 8), max(0, int(v) + 9))
        across = slice(max(0, int(u) - 8), max(0, int(u) + 9))
        block = left[rows, across]
        if not block.numel() or block.max() < 1e-3:
            continue
        dy = torch.arange(rows.start, rows.start + block.shape[0]) + 0.5 - v
        dx = torch.arange(across.start, across.start + block.shape[1]) + 0.5 - u
        (a, b), (_, c) = spread[n].tolist()
        power = a * dx[None] ** 2 + 2 * b * dx[None] * dy[:, None] + c * dy[:, None] ** 2
        alpha = opacity[n] * torch.exp(-0.5 * power)
        image[rows, across] += (alpha * block)[..., None] * color[n]
        left[rows, across] = block * (1 - alpha)
    assert left[WINDOW].mean() < 0.03  # the room is closed: next to no light passes through
    return image[WINDOW].permute(2, 0, 1) * 2 - 1


def test_discs_lie_in_the_surfaces(splats: Splats) -> None:
    assert surface_distance(splats.positions).median() < 1e-3
    assert surface_distance(splats.positions).quantile(0.99) < 0.05
    tips = splats.positions + splats.rotations[..., 0] * splats.scales[:, :1]  # along the surface
    assert surface_distance(tips).quantile(0.9) < 0.2 * splats.scales[:, 0].median()
    assert torch.allclose(torch.linalg.det(splats.rotations), torch.ones(len(splats)), atol=1e-4)
    assert splats.scales[:, 2].max() < splats.scales[:, 1].min() * 10
    assert 0.3 < splats.seen.float().mean() < 0.95


def test_a_plain_rasterizer_draws_the_scene(columns: dict[str, Tensor], scene: AnalyticScene) -> None:
    truth = scene.render(scene.photo_cameras, SIZE).image[0][(slice(None), *WINDOW)]
    assert psnr(rasterize(columns, scene.photo_cameras, SIZE), truth) > 22
    aside = turned((0.3, 0.05, 0.2), -8.0, scene.photo_cameras.focal_length[:, 0])
    truth = scene.render(aside, SIZE).image[0][(slice(None), *WINDOW)]
    assert psnr(rasterize(columns, aside, SIZE), truth) > 22


GSPLAT = torch.cuda.is_available() and importlib.util.find_spec("gsplat") is not None


@pytest.mark.skipif(not GSPLAT, reason="needs a GPU and gsplat")
def test_gsplat_draws_the_scene(columns: dict[str, Tensor], scene: AnalyticScene) -> None:
    from gsplat import rasterization

    cameras = scene.photo_cameras
    focal, principal = (part[0] for part in ndc_to_pixels_intrinsics(cameras, SIZE))
    intrinsics = torch.eye(3)
    intrinsics[[0, 1], [0, 1]], intrinsics[:2, 2] = focal, principal
    world_to_cam = torch.linalg.inv(to_pinhole(CameraView(cameras, SIZE)).cam_to_world)
    parts = [
        several(columns, "x", "y", "z"), several(columns, "rot_0", "rot_1", "rot_2", "rot_3"),
        several(columns, "scale_0", "scale_1", "scale_2").exp(), torch.sigmoid(columns["opacity"]),
        several(columns, "f_dc_0", "f_dc_1", "f_dc_2")[:, None], world_to_cam, intrinsics[None],
    ]  # fmt: skip
    image, _, _ = rasterization(*(part.cuda() for part in parts), SIZE[1], SIZE[0], sh_degree=0)
    truth = scene.render(cameras, SIZE).image[0]
    assert psnr(image[0].permute(2, 0, 1).cpu() * 2 - 1, truth) > 22


def test_cameras_beside_the_file_see_its_points_where_the_photo_does(
    columns: dict[str, Tensor], splats: Splats, scene: AnalyticScene
) -> None:
    aside = turned((0.3, 0.05, 0.2), -8.0, scene.photo_cameras.focal_length[:, 0])
    cameras = [NamedCamera(scene.photo_cameras, (30, 40)), NamedCamera(aside, (40, 30), "aside")]
    first, second = json.loads(cameras_json(cameras, y_down=True))
    assert (first["img_name"], first["width"], first["height"]) == ("photo", 40, 30)
    assert np.allclose(first["rotation"], np.eye(3))
    assert first["position"] == [0, 0, 0]
    points = several(columns, "x", "y", "z")[:50]
    local = (points - torch.tensor(second["position"])) @ torch.tensor(second["rotation"])
    pixels = local[:, :2] / local[:, 2:] * torch.tensor([second["fx"], second["fy"]]) + torch.tensor([15, 20])
    expected = aside.transform_points_screen(splats.positions[:50], image_size=((40, 30),))[..., :2]
    assert torch.allclose(pixels, expected.reshape(-1, 2), atol=1e-3)
