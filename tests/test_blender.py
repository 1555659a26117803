"""Exports opened by Blender itself: no warnings, upright, in metres, in colour, and looking like the scene.

Blender draws the base-colour texture unlit (an emission shader, view transform Standard): colours of a photo
hold its light already.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trimesh
from analytic_scene import AnalyticScene, turned
from mesh_view import draw, psnr
from PIL import Image
from pytorch3d.renderer import PerspectiveCameras
from test_texture import BESIDE
from torch import Tensor

from scenediff.renderers.baked import interpolate_cameras, one_camera, scaled_size
from scenediff.renderers.cameras import opengl_to_pytorch3d, points_to_opengl, pytorch3d_to_z_up
from scenediff.scene import Scene
from scenediff.tools.camera_paths import camera_path
from scenediff.tools.exports import FORMATS, ExportJob, ExportOptions, prepare_export

pytestmark = pytest.mark.skipif(importlib.util.find_spec("bpy") is None, reason="bpy is not installed")

LOOK = Path(__file__).with_name("blender_look.py")
OPTIONS = ExportOptions(max_faces=20_000)
SEEN = {"glb": "_SEEN", "usd": "seen"}  # OBJ has groups instead


def look(
    path: Path, folder: Path, size: tuple[int, int], views: dict[str, PerspectiveCameras | None]
) -> tuple[dict[str, Any], list[Tensor]]:
    """What Blender says of a file, and its pictures (3, H, W); None stands for the file's own camera."""
    wanted = [
        {"name": name, **(_pose(camera, size) if camera else {"matrix": None})}
        for name, camera in views.items()
    ]
    (folder / "wanted.json").write_text(json.dumps({"size": size, "views": wanted}))
    command = [sys.executable, str(LOOK), str(path), str(folder / "wanted.json"), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    said, _, _ = done.stdout.partition("{")
    for word in ("warn", "error", "fail"):
        assert word not in (said + done.stderr).lower(), said + done.stderr
    found = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))
    return found, [_picture(folder / f"{name}.png") for name in views]


def _pose(camera: PerspectiveCameras, size: tuple[int, int]) -> dict[str, Any]:
    fov = 2 * np.arctan(max(size) / min(size) / float(camera.focal_length[0, 0]))
    return {"matrix": pytorch3d_to_z_up(camera)[0].tolist(), "fov": float(fov)}


def _picture(path: Path) -> Tensor:
    return torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1) / 127.5 - 1


def json_camera(path: Path) -> PerspectiveCameras:
    """The camera beside an OBJ file, in the scene's axes."""
    entry = json.loads(path.read_text())[0]
    matrix = torch.eye(4)
    matrix[:3, :3] = torch.tensor(entry["rotation"]) @ torch.diag(torch.tensor([1.0, -1.0, -1.0]))
    matrix[:3, 3] = torch.tensor(entry["position"])
    matrix[:3] = points_to_opengl(matrix[:3].T).T  # the file's world has OpenGL's axes, the scene PyTorch3D's
    size = (entry["height"], entry["width"])
    focal, principal = torch.tensor([[entry["fx"], entry["fy"]]]), torch.tensor([[size[1] / 2, size[0] / 2]])
    return opengl_to_pytorch3d(matrix[None], focal, principal, size)


def check_looks(
    job: ExportJob, name: str, folder: Path, size: tuple[int, int], beside: Sequence[PerspectiveCameras]
) -> dict[str, Any]:
    """Exports, opens in Blender, compares with the scene's own frames; returns what Blender has found."""
    path = folder / f"scene{FORMATS[name].suffix}"
    FORMATS[name].write(job, path)
    own = json_camera(folder / "scene.cameras.json") if name == "obj" else None
    views = {"photo": own, **{f"beside_{index}": camera for index, camera in enumerate(beside)}}
    found, pictures = look(path, folder, size, views)
    for index, camera in enumerate((job.scene.photo_cameras, *beside)):
        truth = job.scene.render(camera, size).image[0]
        sys.stderr.write(f"{name} {index} {psnr(pictures[index], truth):.2f}\n")
        assert psnr(pictures[index], truth) >= (22 if index == 0 else 19), (name, index)
    assert found["import"] == ["FINISHED"]
    assert found["meshes"] == 1
    assert found["faces"] <= job.options.max_faces
    assert (found["picture"], found["color_space"]) == ("TEX_IMAGE", "sRGB")
    assert found["picture_size"] == [job.options.texture_size] * 2
    assert (found["metallic"], found["metres"]) == (0, 1)
    assert found["roughness"] >= 0.9
    assert found["cameras"] == ([] if name == "obj" else ["photo"])
    if name in SEEN:
        assert 0.1 < found["attributes"][SEEN[name]] < 1
    return found


@pytest.fixture(scope="module")
def room() -> Iterator[ExportJob]:
    scene: Any = AnalyticScene(photo_size=(192, 256))
    job = prepare_export(scene, OPTIONS)
    yield job
    job.baked.close()


@pytest.mark.parametrize("name", ["glb", "obj", "usd"])
def test_the_closed_form_room(room: ExportJob, name: str, tmp_path: Path) -> None:
    focal = room.scene.photo_cameras.focal_length[:, 0]
    beside = [turned(place, yaw, focal) for place, yaw in BESIDE]
    found = check_looks(room, name, tmp_path, (96, 128), beside)
    # Blender: X right, Y ahead, Z up; the room is 4 m wide, 2.6 m high, its far wall 4.2 m ahead
    assert np.allclose(np.array(found["low"])[[0, 2]], [-2.0, -1.3], atol=0.05)
    assert np.allclose(found["high"], [2.0, 4.2, 1.3], atol=0.05)


@pytest.fixture(scope="module")
def sampled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ExportJob]:
    """A scene of a real photo, by the bundled model."""
    skimage = pytest.importorskip("skimage")
    from scenediff.pipeline import load

    photo = Path(skimage.__path__[0]) / "data" / "coffee.png"
    (scene,) = load("rooms")(photo, num_samples=1, steps=4, seed=0)
    path = tmp_path_factory.mktemp("scene") / "scene.safetensors"
    scene.save(path)
    job = prepare_export(Scene.load(path), ExportOptions())
    yield job
    job.baked.close()


def beside(job: ExportJob) -> list[PerspectiveCameras]:
    """Five novel views: towards the sampled ones, and along the video's sway."""
    scene = job.scene
    sway = camera_path(scene, 48, focus=float(job.baked.photo_depth.median()))
    views = [interpolate_cameras(scene.photo_cameras, target, 0.4) for target in scene.target_cameras[:2]]
    return (views + [one_camera(sway, index) for index in (6, 28, 40)])[-5:]


@pytest.mark.slow  # sampling and the field's own frames take a minute
@pytest.mark.parametrize("name", ["glb", "obj", "usd"])
def test_a_scene_of_a_real_photo(sampled: ExportJob, name: str, tmp_path: Path) -> None:
    check_looks(sampled, name, tmp_path, scaled_size(sampled.scene.photo_size, 96), beside(sampled))


@pytest.mark.slow
def test_a_real_mesh_s_depth_is_the_scene_s(sampled: ExportJob, tmp_path: Path) -> None:
    FORMATS["glb"].write(sampled, tmp_path / "scene.glb")
    mesh = trimesh.load_mesh(tmp_path / "scene.glb", process=False)
    mesh.vertices = points_to_opengl(torch.tensor(mesh.vertices)).numpy()  # back to the scene's axes
    size = scaled_size(sampled.scene.photo_size, 64)
    errors = []
    for camera in (sampled.scene.photo_cameras, *beside(sampled)):
        truth = sampled.scene.render(camera, size)
        _, depth = draw(mesh, camera, size)
        known = depth.isfinite() & (truth.opacity[0, 0] > 0.9)
        errors.append((depth / truth.depth[0, 0] - 1).abs()[known])
    assert errors[0].median() < 0.01  # the photo's view
    assert torch.cat(errors).median() < 0.02
