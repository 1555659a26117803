"""Camera paths from files: round trips, nerfstudio's reader and Blender's writer, and what is refused."""

from __future__ import annotations

import importlib.util
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from analytic_scene import AnalyticScene, turned

import scenediff.tools
from scenediff.renderers.cameras import look_ahead, ndc_to_pixels_intrinsics, pytorch3d_to_z_up
from scenediff.tools.camera_path_files import (
    GLTF_TO_Z_UP,
    PathFileError,
    load_camera_path,
    save_camera_path,
    without_dataparser,
)
from scenediff.tools.camera_paths import camera_path

SIZE = (90, 160)
BLENDER_SCRIPT = Path(scenediff.tools.__path__[0]) / "blender_camera_path.py"


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save_camera_path(camera_path(AnalyticScene(photo_size=(96, 128)), 7), SIZE, tmp_path / "p.json", fps=12)
    return tmp_path / "p.json"


def test_round_trip(saved: Path) -> None:
    path = camera_path(AnalyticScene(photo_size=(96, 128)), 7)
    read = load_camera_path(saved)
    assert (read.size, read.fps) == (SIZE, 12)
    for part in ("R", "T", "focal_length", "principal_point"):
        assert torch.allclose(getattr(read.cameras, part), getattr(path, part), atol=1e-5), part


def test_the_world_of_the_file_has_z_up_and_y_ahead(tmp_path: Path) -> None:
    """By hand: 1 m ahead, 2 m to the right, 3 m up, level, turned by 90 degrees to the left."""
    matrix = [[0, 0, 1, 2], [1, 0, 0, 1], [0, 1, 0, 3], [0, 0, 0, 1]]  # columns: right, up, back, place
    values = [value for row in matrix for value in row]
    document = {"render_height": 100, "render_width": 200, "camera_path": [
        {"camera_to_world": values, "fov": 90.0, "aspect": 2.0}]}  # fmt: skip
    (tmp_path / "p.json").write_text(json.dumps(document))
    read = load_camera_path(tmp_path / "p.json")
    left, up, ahead = read.cameras.R[0].T  # PyTorch3D's camera axes in its world: +X left, +Y up, +Z ahead
    assert torch.allclose(ahead, torch.tensor([1.0, 0, 0]), atol=1e-6)  # it looks left
    assert torch.allclose(up, torch.tensor([0, 1.0, 0]), atol=1e-6)
    assert torch.allclose(left, torch.tensor([0, 0, -1.0]), atol=1e-6)  # what was behind is at its left
    assert torch.allclose(read.cameras.get_camera_center()[0], torch.tensor([-2.0, 3, 1]), atol=1e-6)
    assert torch.allclose(read.cameras.focal_length, torch.ones(1, 2))  # 90 degrees high
    assert read.fps == 24


def test_a_data_parsers_turn_shift_and_scale_are_undone(saved: Path, tmp_path: Path) -> None:
    angle, scale = 0.7, 0.25
    cos, sin = math.cos(angle), math.sin(angle)
    turn = torch.tensor([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])
    shift = torch.tensor([0.3, -1.0, 2.0])
    # nerfstudio: p' = scale * (turn @ (applied @ p) + shift)
    transform = torch.cat([turn @ torch.tensor(GLTF_TO_Z_UP)[:, :3], shift[:, None]], dim=1)
    document = json.loads(saved.read_text())
    for entry in document["camera_path"]:
        matrix = torch.tensor(entry["camera_to_world"]).reshape(4, 4)
        matrix[:3, 3] = scale * (turn @ matrix[:3, 3] + shift)
        matrix[:3, :3] = turn @ matrix[:3, :3]
        entry["camera_to_world"] = matrix.flatten().tolist()
    (tmp_path / "moved.json").write_text(json.dumps(document))
    (tmp_path / "t.json").write_text(json.dumps({"transform": transform.tolist(), "scale": scale}))
    expected, read = load_camera_path(saved), load_camera_path(tmp_path / "moved.json", tmp_path / "t.json")
    assert torch.allclose(read.cameras.R, expected.cameras.R, atol=1e-5)
    assert torch.allclose(read.cameras.T, expected.cameras.T, atol=1e-4)
    moved = load_camera_path(tmp_path / "moved.json")
    assert not torch.allclose(moved.cameras.T, expected.cameras.T, atol=0.1)


def test_an_untouched_world_needs_no_undoing() -> None:
    matrices = pytorch3d_to_z_up(camera_path(AnalyticScene(photo_size=(96, 128)), 5))
    assert torch.allclose(without_dataparser(matrices, torch.tensor(GLTF_TO_Z_UP), 1.0), matrices, atol=1e-6)


@pytest.mark.skipif(importlib.util.find_spec("nerfstudio") is None, reason="nerfstudio is not installed")
def test_nerfstudio_reads_the_same_cameras(saved: Path) -> None:
    from nerfstudio.cameras.camera_paths import get_path_from_json

    theirs, ours = get_path_from_json(json.loads(saved.read_text())), load_camera_path(saved)
    assert torch.allclose(theirs.camera_to_worlds, pytorch3d_to_z_up(ours.cameras)[:, :3], atol=1e-5)
    focal, principal = ndc_to_pixels_intrinsics(ours.cameras, SIZE)
    assert torch.allclose(theirs.fx[:, 0].float(), focal[:, 0], rtol=1e-4)
    assert torch.allclose(theirs.cx[:, 0].float(), principal[:, 0])


BLENDER = """
import importlib.util, math, sys
import bpy
spec = importlib.util.spec_from_file_location("export", sys.argv[1])
export = importlib.util.module_from_spec(spec)
spec.loader.exec_module(export)
bpy.ops.wm.read_factory_settings(use_empty=True)
scene = bpy.context.scene
camera = bpy.data.objects.new("walk", bpy.data.cameras.new("walk"))
scene.collection.objects.link(camera)
scene.camera = camera
scene.frame_start, scene.frame_end, scene.render.fps = 1, 11, 30
scene.render.resolution_x, scene.render.resolution_y = 320, 180
camera.data.angle = math.radians(60)  # across the longer side
camera.rotation_euler = (math.pi / 2, 0, 0)  # level, looking along +Y
for frame, place in ((1, (0, 0, 0)), (11, (1, 2, 0.5))):
    camera.location = place
    camera.keyframe_insert("location", frame=frame)
export.main([sys.argv[2]])
scene.camera = None
try:
    export.main([sys.argv[2] + ".none"])
except ValueError as error:
    print("refused:", error)
"""


@pytest.mark.skipif(importlib.util.find_spec("bpy") is None, reason="bpy is not installed")
def test_blenders_keyframes(tmp_path: Path) -> None:
    (tmp_path / "run.py").write_text(BLENDER)
    command = [sys.executable, "run.py", str(BLENDER_SCRIPT), "walk.json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "refused: the scene has no active camera" in done.stdout
    assert not (tmp_path / "walk.json.none").exists()
    read = load_camera_path(tmp_path / "walk.json")
    assert (len(read.cameras.R), read.size, read.fps) == (11, (180, 320), 30)
    assert torch.allclose(read.cameras.R, torch.eye(3).expand(11, 3, 3), atol=1e-5)  # as the photo's camera
    centers = read.cameras.get_camera_center()
    assert torch.allclose(centers[0], torch.zeros(3), atol=1e-5)
    # Blender: 1 m right, 2 m ahead, 0.5 m up
    assert torch.allclose(centers[-1], torch.tensor([-1.0, 0.5, 2.0]), atol=1e-5)
    assert (centers.diff(dim=0)[:, 2] > 0).all()  # between the keys too
    focal = ndc_to_pixels_intrinsics(read.cameras, read.size)[0]
    assert torch.allclose(focal, torch.full((11, 2), 160 / math.tan(math.radians(30))), rtol=1e-4)


@pytest.mark.parametrize(("change", "message"), [
    ({"camera_type": "equirectangular"}, "camera_type must be perspective, got 'equirectangular'"),
    ({"camera_path": []}, "expected a list of cameras"),
    ({"camera_path": [{"camera_to_world": [1, 2], "fov": 50}]}, "camera 0: expected 16 numbers"),
    ({"camera_path": [{"camera_to_world": [0] * 16, "fov": 50}]}, "camera 0: .* must hold a rotation"),
    ({"camera_path": [{"camera_to_world": torch.eye(4).tolist(), "fov": 180}]}, r"'fov' must be .* got 180"),
    ({"camera_path": [{"camera_to_world": torch.eye(4).tolist()}]}, r"'fov' must be .* got None"),
    ({"render_height": 0}, "'render_height' must be a positive number, got 0"),
    ({"fps": "fast"}, "'fps' must be a positive number, got 'fast'"),
])  # fmt: skip
def test_bad_files_are_refused(saved: Path, tmp_path: Path, change: dict, message: str) -> None:
    (tmp_path / "bad.json").write_text(json.dumps(json.loads(saved.read_text()) | change))
    with pytest.raises(PathFileError, match=message):
        load_camera_path(tmp_path / "bad.json")


def test_files_that_are_something_else(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(PathFileError, match=r"none\.json: can't be read"):
        load_camera_path(tmp_path / "none.json")
    (tmp_path / "list.json").write_text("[1]")
    with pytest.raises(PathFileError, match="expected an object, got list"):
        load_camera_path(tmp_path / "list.json")
    (tmp_path / "t.json").write_text('{"transform": [[2, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]], "scale": 1}')
    with pytest.raises(PathFileError, match="must hold a rotation"):
        load_camera_path(saved, tmp_path / "t.json")
    with pytest.raises(PathFileError, match="expected a 3x4 'transform'"):
        load_camera_path(saved, saved)


def test_cameras_that_the_format_cannot_hold(tmp_path: Path) -> None:
    camera = look_ahead(1, 50)
    camera.principal_point = torch.tensor([[0.1, 0.0]])
    with pytest.raises(ValueError, match="through the middle"):
        save_camera_path(camera, SIZE, tmp_path / "p.json")
    save_camera_path(turned((0.1, 0, 0), 5, torch.tensor([2.0])), SIZE, tmp_path / "p.json")
