"""The exported data set, as nerfstudio itself reads it, and the method that shows a scene in nerfstudio."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import imageio_ffmpeg
import numpy as np
import pytest
import torch
from analytic_scene import AnalyticScene
from PIL import Image
from tiny_pipeline import random_photo, tiny_pipeline
from torch import Tensor

from scenediff.datasets.captures import load_capture
from scenediff.renderers.baked import bake
from scenediff.renderers.depth_maps import project, unproject
from scenediff.tools.nerfstudio_dataset import dataset_cameras, write_nerfstudio_dataset
from scenediff.tools.video import to_pixels

needs_nerfstudio = pytest.mark.skipif(
    importlib.util.find_spec("nerfstudio") is None, reason="nerfstudio is not installed (extra: nerfstudio)"
)
METHOD = "scenediff=scenediff.tools.nerfstudio_method:method"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ray-traced room as a data set."""
    folder = tmp_path_factory.mktemp("data")
    scene = AnalyticScene(photo_size=(192, 256))
    with bake(scene, short_side=128) as baked:
        write_nerfstudio_dataset(scene, baked, folder, frames=8)
    return folder


def parsed(folder: Path, **options: Any) -> Any:
    """What nerfstudio's data parser makes of a folder, all frames."""
    from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig

    config = NerfstudioDataParserConfig(data=folder, eval_mode="all", load_3D_points=True, **options)
    return config.setup().get_dataparser_outputs(split="train")


def picture(path: Path) -> Tensor:
    """(height, width, 3) grey levels."""
    return torch.from_numpy(np.asarray(Image.open(path)).astype(np.float32))


def pixel_errors(outputs: Any, n: int, offset: tuple[float, float] = (0.0, 0.0)) -> Tensor:
    """How many pixels the points that camera n sees lie beside their colours in its picture.

    It is the colour's error over its slope, where there is one (optical flow of one point).

    Args:
        offset: (x, y) pixels by which the projection is moved on purpose.
    """
    camera, image = outputs.cameras[n], picture(outputs.image_filenames[n])
    height, width = image.shape[:2]
    pose = torch.eye(4)
    pose[:3] = camera.camera_to_worlds
    points = outputs.metadata["points3D_xyz"]
    seen = torch.cat([points, torch.ones(len(points), 1)], 1) @ pose.inverse().T
    x = camera.fx * seen[:, 0] / -seen[:, 2] + camera.cx + offset[0]  # nerfstudio's cameras: +X right, +Y up,
    y = camera.fy * -seen[:, 1] / -seen[:, 2] + camera.cy + offset[1]  # -Z ahead
    depth = picture(outputs.metadata["depth_filenames"][n]) * outputs.metadata["depth_unit_scale_factor"]
    inside = (seen[:, 2] < 0) & (x > 2) & (x < width - 3) & (y > 2) & (y < height - 3)
    row, column = y[inside].long(), x[inside].long()
    metres = -seen[inside, 2] / outputs.dataparser_scale
    visible = (depth[row, column] - metres).abs() < 0.02 * metres
    row, column, x, y = row[visible], column[visible], x[inside][visible], y[inside][visible]
    colors = outputs.metadata["points3D_rgb"][inside][visible].float()
    grey, color = image.mean(-1), colors.mean(-1)
    slope_x = (grey[row, column + 1] - grey[row, column - 1]) / 2
    slope_y = (grey[row + 1, column] - grey[row - 1, column]) / 2
    slope = torch.hypot(slope_x, slope_y)
    steep = slope > 2  # grey levels a pixel
    assert steep.sum() > 200
    at_point = grey[row, column] + slope_x * (x - column - 0.5) + slope_y * (y - row - 0.5)
    return ((color - at_point).abs() / slope)[steep]


def test_the_folder_is_a_capture_that_we_read_too(folder: Path) -> None:
    capture = load_capture(folder)
    scene = AnalyticScene(photo_size=(192, 256))
    assert len(capture.frames) == 10  # the photo, a target, eight on the way
    photo = capture.frames[0]
    assert torch.allclose(photo.load_image(), scene.photo[0], atol=1 / 255 + 1e-6)
    depth = photo.load_depth()[None, None]
    truth = scene.render(scene.photo_cameras, (192, 256)).depth
    assert ((depth / truth - 1).abs() < 0.01).float().mean() > 0.9
    # one world: what the photo sees lies where the target's camera finds it (axes differ by the Z-up turn)
    points = unproject(depth, photo.cameras).reshape(-1, 3)
    pixels, z = project(points, capture.frames[1].cameras, (192, 256))
    expected = unproject(truth, scene.photo_cameras).reshape(-1, 3)
    true_pixels, true_z = project(expected, scene.target_cameras[0], (192, 256))
    ahead = (true_z > 0.3) & (z > 0.3)
    assert (pixels - true_pixels)[ahead].norm(dim=1).median() < 0.2


def test_pictures_show_what_their_cameras_see(folder: Path) -> None:
    scene = AnalyticScene(photo_size=(192, 256))
    cameras = dataset_cameras(scene, 8, focus=3.0)
    assert len(cameras.R) == 10
    truth = to_pixels(scene.render(scene.target_cameras[0], (192, 256)).image[0]).astype(float)
    drawn = np.asarray(Image.open(folder / "images/frame_00001.png"))
    error = np.abs(drawn - truth).mean(-1)
    assert np.median(error) < 6
    assert np.median(np.abs(drawn[:, ::-1] - truth)) > 20


@needs_nerfstudio
@pytest.mark.parametrize("options", [{}, {"orientation_method": "none", "center_method": "none",
                                          "auto_scale_poses": False}])  # fmt: skip
def test_nerfstudios_cameras_put_the_points_onto_the_pictures(folder: Path, options: dict[str, Any]) -> None:
    outputs = parsed(folder, **options)
    assert len(outputs.cameras) == 10
    for n in range(10):
        right = pixel_errors(outputs, n).median()
        assert right < 1
        wrong = min(pixel_errors(outputs, n, offset).median() for offset in ((3.0, 0.0), (0.0, -3.0)))
        assert wrong > 2 * right  # the measure sees an error of three pixels
    gaze = -outputs.cameras.camera_to_worlds[:, :3, 2].mean(0)
    up = outputs.cameras.camera_to_worlds[:, :3, 1].mean(0)
    assert up[2] > 0.9  # upright in nerfstudio's viewer
    assert gaze[1] > 0.9


@needs_nerfstudio
def test_meshes_from_nerfstudio_go_back_to_a_glbs_axes(folder: Path) -> None:
    """`dataparser_transform` is from the axes of our GLB: ahead is -Z there, and Y in the data set."""
    outputs = parsed(folder, center_method="none", auto_scale_poses=False)
    ahead, up = torch.tensor([0.0, 0, -1, 1]), torch.tensor([0.0, 1, 0, 1])
    assert (outputs.dataparser_transform @ ahead).tolist() == [0, 1, 0]
    assert (outputs.dataparser_transform @ up).tolist() == [0, 0, 1]


def test_too_few_frames_are_refused(tmp_path: Path) -> None:
    scene = AnalyticScene(photo_size=(48, 64))
    refused = pytest.raises(ValueError, match="frames must be at least 4, got 3")
    with bake(scene, short_side=32) as baked, refused:
        write_nerfstudio_dataset(scene, baked, tmp_path / "out", frames=3)
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def sampled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """A scene of the tiny model, and its data set."""
    folder = tmp_path_factory.mktemp("sampled")
    scene = tiny_pipeline()(random_photo(), num_samples=1)[0]
    with bake(scene, short_side=48) as baked:
        write_nerfstudio_dataset(scene, baked, folder, frames=6)
    return scene, folder


@needs_nerfstudio
def test_the_method_draws_the_scene_in_any_world(sampled: tuple[Any, Path]) -> None:
    """Also where nerfstudio has moved and scaled the world, the photo's camera sees the photo."""
    from scenediff.tools.nerfstudio_method import SceneDataParserConfig, SceneModelConfig

    scene, folder = sampled
    for moved in (False, True):
        config = SceneDataParserConfig(
            data=folder, eval_mode="all", auto_scale_poses=moved, center_method="poses" if moved else "none"
        )
        outputs = config.setup().get_dataparser_outputs(split="train")
        model = SceneModelConfig(enable_collider=False, short_side=48).setup(
            scene_box=outputs.scene_box, num_train_data=1, metadata=outputs.metadata
        )
        for n in (0, 1):
            drawn = model.get_outputs_for_camera(outputs.cameras[n : n + 1])
            truth = picture(outputs.image_filenames[n]) / 255
            assert drawn["rgb"].shape == truth.shape
            assert (drawn["rgb"] - truth).abs().mean() < 0.03
            metres = picture(outputs.metadata["depth_filenames"][n])[..., None] / 1000
            known = metres > 0
            assert torch.allclose(drawn["depth"][known], metres[known] * outputs.dataparser_scale, rtol=0.01)
        assert drawn["invented"].shape == drawn["rgb"].shape
        assert (outputs.dataparser_scale == 1) != moved
    direct = SceneModelConfig(enable_collider=False, short_side=48, draw_field=True).setup(
        scene_box=outputs.scene_box, num_train_data=1, metadata=outputs.metadata
    )
    frame = direct.get_outputs_for_camera(outputs.cameras[1:2])["rgb"]
    exact = (scene.render(scene.target_cameras[0], scene.photo_size).image[0].permute(1, 2, 0) + 1) / 2
    assert (frame - exact).abs().max() < 0.02  # the saved scene has features in half precision


@needs_nerfstudio
@pytest.mark.slow
def test_ns_train_and_ns_render_run(sampled: tuple[Any, Path], tmp_path: Path) -> None:
    """The commands as a user types them; nerfstudio's variable stands for the installed entry point."""
    _, folder = sampled
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "ffmpeg").symlink_to(shutil.which("ffmpeg") or imageio_ffmpeg.get_ffmpeg_exe())
    environment = os.environ | {
        "NERFSTUDIO_METHOD_CONFIGS": METHOD, "PATH": f"{tools}:{os.environ['PATH']}",
        "CUDA_VISIBLE_DEVICES": "",
    }  # fmt: skip

    def run(module: str, *arguments: str) -> None:
        command = [sys.executable, "-c", f"from nerfstudio.scripts.{module} import entrypoint; entrypoint()"]
        done = subprocess.run(
            [*command, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True,
            timeout=300, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]

    run("train", "scenediff", "--data", str(folder), "--output-dir", "out", "--experiment-name", "e",
        "--timestamp", "t", "--vis", "tensorboard")  # fmt: skip
    path = json.loads((folder / "camera_path.json").read_text())
    path["camera_path"] = path["camera_path"][:4]
    (tmp_path / "path.json").write_text(json.dumps(path | {"seconds": 1}))
    run("render", "camera-path", "--load-config", "out/e/scenediff/t/config.yml", "--camera-path-filename",
        "path.json", "--output-path", "film.mp4", "--rendered-output-names", "rgb", "depth", "invented")
    frames = iio.imread(tmp_path / "film.mp4", plugin="FFMPEG")
    height, width = path["render_height"], path["render_width"]
    assert frames.shape == (4, height, 3 * width, 3)
    photo = picture(folder / "images/frame_00000.png")[:height, :width].numpy()
    assert np.abs(frames[0, :, :width] - photo).mean() < 10  # the path begins at the photo
