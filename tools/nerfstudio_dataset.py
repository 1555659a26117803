"""A sampled scene as a data set of nerfstudio: posed pictures with depth, points, and the scene itself.

The world is +X right, +Y ahead of the photo, +Z up, in metres; cameras have OpenGL's axes, as nerfstudio
wants. `ns-train METHOD --data FOLDER` trains any method on the pictures; `ns-train scenediff --data FOLDER`
takes the scene as it is (see `nerfstudio_method`).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open3d as o3d
import torch
from PIL import Image
from pytorch3d.renderer import PerspectiveCameras
from torch import Tensor

from scenediff.renderers.baked import BakedScene, SceneLike, one_camera
from scenediff.renderers.cameras import ndc_to_pixels_intrinsics, points_to_z_up, pytorch3d_to_z_up
from scenediff.tools.camera_path_files import GLTF_TO_Z_UP, save_camera_path
from scenediff.tools.camera_paths import camera_path
from scenediff.tools.outputs import SavableScene
from scenediff.tools.pointcloud import PointCloud, scene_points
from scenediff.tools.report import save_depth_png
from scenediff.tools.video import to_pixels, video_size

TRANSFORMS_FILE, SCENE_FILE, POINTS_FILE = "transforms.json", "scene.safetensors", "sparse_pc.ply"
PATH_FILE = "camera_path.json"
FRAMES = 40
FAST_PNG = 1  # of 9: writing would take longer than drawing
PATH_FRAMES = 96  # of the example path for nerfstudio's renderer


def write_nerfstudio_dataset(
    scene: SavableScene, baked: BakedScene, folder: str | Path, *, frames: int = FRAMES,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Writes transforms.json, images/, depths/, sparse_pc.ply, scene.safetensors and a camera path.

    The first picture is the photo itself if the scene was baked with its pixels; the others are drawn, from
    the sampled views and from a sway and a spiral around them, at the photo's size.

    Args:
        baked: what pictures are drawn from.
        folder: made if need be.
        frames: pictures along the paths.
        progress: called with (done, total) pictures.
    """
    if frames < 4:
        raise ValueError(f"frames must be at least 4, got {frames}")
    folder = Path(folder)
    for name in ("images", "depths"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    cameras = dataset_cameras(scene, frames, float(baked.photo_depth.median()))
    size = scene.photo_size
    for n in range(len(cameras.R)):
        progress(n, len(cameras.R))
        shot = baked.render(one_camera(cameras, n), size)
        # the photo is sharper than pictures of a scene that was baked in its own colours: one of them, or all
        is_photo = n == 0 and baked.keys[0].image.shape == scene.photo.shape
        image = scene.photo.cpu() if is_photo else shot.image
        picture = Image.fromarray(to_pixels(image[0]))
        picture.save(folder / _file("images", n), compress_level=FAST_PNG)
        # depth where something was filled in is no measurement: 0 means unknown
        save_depth_png((shot.depth * (shot.opacity > 0.5))[0, 0], folder / _file("depths", n))
    save_points(scene_points(baked), folder / POINTS_FILE)
    scene.save(folder / SCENE_FILE)
    path = camera_path(scene, PATH_FRAMES, focus=float(baked.photo_depth.median()))
    save_camera_path(path, video_size(size, min(size) // 2 * 2), folder / PATH_FILE)
    (folder / TRANSFORMS_FILE).write_text(json.dumps(transforms(cameras, size), indent=1) + "\n")
    progress(len(cameras.R), len(cameras.R))


def dataset_cameras(scene: SceneLike, frames: int, focus: float) -> PerspectiveCameras:
    """The photo's camera, the sampled views', and `frames` along a sway and a spiral."""
    sway = camera_path(scene, frames - frames // 2, "sway", focus=focus)
    spiral = camera_path(scene, frames // 2, "spiral", focus=focus)
    stops = [scene.photo_cameras.cpu(), *(target.cpu() for target in scene.target_cameras), sway, spiral]
    parts = ("R", "T", "focal_length", "principal_point")
    return PerspectiveCameras(
        **{part: torch.cat([getattr(stop, part) for stop in stops]) for part in parts}, in_ndc=True
    )


def transforms(cameras: PerspectiveCameras, size: tuple[int, int]) -> dict[str, Any]:
    """What transforms.json says of N pictures of a (height, width)."""
    focal, principal = ndc_to_pixels_intrinsics(cameras, size)
    matrices = pytorch3d_to_z_up(cameras)
    frames = [
        {
            "file_path": _file("images", n), "depth_file_path": _file("depths", n),
            "fl_x": focal[n, 0].item(), "fl_y": focal[n, 1].item(),
            "cx": principal[n, 0].item(), "cy": principal[n, 1].item(),
            "transform_matrix": matrices[n].tolist(),
        }
        for n in range(len(matrices))
    ]  # fmt: skip
    return {
        "camera_model": "OPENCV", "w": size[1], "h": size[0],
        "k1": 0.0, "k2": 0.0, "p1": 0.0, "p2": 0.0,
        "orientation_override": "none",  # Z is up already
        "applied_transform": [list(row) for row in GLTF_TO_Z_UP],  # so that meshes come out with a GLB's axes
        "ply_file_path": POINTS_FILE,
        "frames": frames,
    }  # fmt: skip


def save_points(cloud: PointCloud, path: Path) -> None:
    """Writes positions in the Z-up world and colours."""
    points = o3d.geometry.PointCloud(_vectors(points_to_z_up(cloud.positions)))
    points.colors = _vectors(cloud.colors.double() / 255)
    if not o3d.io.write_point_cloud(str(path), points):
        raise OSError(f"{path} could not be written")


def _vectors(values: Tensor) -> o3d.utility.Vector3dVector:
    return o3d.utility.Vector3dVector(np.ascontiguousarray(values.double().numpy()))


def _file(kind: str, number: int) -> str:
    return f"{kind}/frame_{number:05d}.png"
