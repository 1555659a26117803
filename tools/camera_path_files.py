"""Camera paths from files: the JSON that nerfstudio's viewer saves and `blender_camera_path.py` exports.

The cameras stand in the world of the exported nerfstudio data set, +X right, +Y ahead of the photo, +Z up,
metres. Blender's world is the same once it has imported an exported GLB. A method of nerfstudio may have
turned and scaled that world; its `dataparser_transforms.json` tells how.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pytorch3d.renderer import PerspectiveCameras
from torch import Tensor

from scenediff.renderers.cameras import ndc_to_pixels_intrinsics, pytorch3d_to_z_up, z_up_to_pytorch3d

# from a GLB's axes (+X right, +Y up, -Z ahead) to the Z-up world, as nerfstudio's "applied_transform"
GLTF_TO_Z_UP = ((1.0, 0.0, 0.0, 0.0), (0.0, 0.0, -1.0, 0.0), (0.0, 1.0, 0.0, 0.0))


class PathFileError(ValueError):
    """A camera path that can't be read; the message names the file and what is wrong with it."""


@dataclass(frozen=True)
class PathFile:
    """Cameras of a file.

    Attributes:
        cameras: N cameras in the scene's world.
        size: (height, width) that the file wants, pixels. fps: its frames a second.
    """

    cameras: PerspectiveCameras
    size: tuple[int, int]
    fps: float


def load_camera_path(path: str | Path, dataparser_transforms: str | Path | None = None) -> PathFile:
    """Reads a camera path.

    Args:
        path: nerfstudio's JSON ("camera_path" with "camera_to_world" and vertical "fov" for each frame).
        dataparser_transforms: nerfstudio's file of that name, from the folder of the method's run in whose
            viewer the path was made; without it the world is as in the module's docstring.

    Raises:
        PathFileError: a file is missing, unreadable, or describes no perspective cameras.
    """
    path = Path(path)
    document = _read_json(path)
    kind = str(document.get("camera_type", "perspective")).lower()
    if kind != "perspective":
        raise PathFileError(f"{path}: camera_type must be perspective, got {kind!r}")
    entries = document.get("camera_path")
    if not isinstance(entries, list) or not entries:
        raise PathFileError(f"{path}: expected a list of cameras under 'camera_path'")
    size = _number(document, "render_height", path), _number(document, "render_width", path)
    height, width = round(size[0]), round(size[1])
    matrices = torch.stack([_matrix(entry, f"{path}, camera {n}") for n, entry in enumerate(entries)])
    if dataparser_transforms is not None:
        matrices = without_dataparser(matrices, *_load_transforms(Path(dataparser_transforms)))
    angles = [_fov(entry, f"{path}, camera {n}") for n, entry in enumerate(entries)]
    focal = torch.tensor([height / 2 / math.tan(math.radians(angle) / 2) for angle in angles])
    middle = torch.tensor([[width / 2, height / 2]]).expand(len(entries), 2)
    cameras = z_up_to_pytorch3d(matrices, focal[:, None].expand(-1, 2), middle, (height, width))
    fps = _number(document, "fps", path) if "fps" in document else 24.0
    return PathFile(cameras, (height, width), fps)


def save_camera_path(
    cameras: PerspectiveCameras, size: tuple[int, int], path: str | Path, fps: float = 24.0
) -> None:
    """Writes what `load_camera_path` reads and nerfstudio renders; principal points must be in the middle.

    Args:
        cameras: in the scene's world. size: (height, width), pixels.
    """
    if cameras.principal_point.abs().max() > 1e-3:
        raise ValueError("cameras must look through the middle of their images, as the format has no other")
    height, width = size
    focal = ndc_to_pixels_intrinsics(cameras, size)[0][:, 1].tolist()
    matrices = pytorch3d_to_z_up(cameras)
    entries = [
        {
            "camera_to_world": matrix.flatten().tolist(),
            "fov": math.degrees(2 * math.atan(height / 2 / length)),
            "aspect": width / height,
        }
        for matrix, length in zip(matrices, focal, strict=True)
    ]
    document = {
        "camera_type": "perspective", "render_height": height, "render_width": width, "fps": fps,
        "seconds": len(entries) / fps, "camera_path": entries,
    }
    Path(path).write_text(json.dumps(document, indent=1) + "\n")


def without_dataparser(matrices: Tensor, transform: Tensor, scale: float) -> Tensor:
    """Camera-to-world matrices (N, 4, 4) or (N, 3, 4) in the Z-up world, as before nerfstudio's data parser.

    Args:
        matrices: OpenGL axes, in the data parser's world.
        transform: (3, 4) from a GLB's axes to the data parser's, applied before the scale.
    """
    back = torch.tensor(GLTF_TO_Z_UP).to(matrices)[:, :3] @ transform[:, :3].T
    undone = matrices.clone()
    undone[:, :3, :3] = back @ matrices[:, :3, :3]
    undone[:, :3, 3] = (matrices[:, :3, 3] / scale - transform[:, 3]) @ back.T
    return undone


def _load_transforms(path: Path) -> tuple[Tensor, float]:
    """The turn and shift (3, 4) and the scale that a data parser has applied."""
    document = _read_json(path)
    try:
        transform = torch.tensor(document["transform"], dtype=torch.float32).reshape(3, 4)
        scale = float(document["scale"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise PathFileError(f"{path}: expected a 3x4 'transform' and a 'scale'") from error
    if not scale > 0 or abs(abs(torch.linalg.det(transform[:, :3]).item()) - 1) > 1e-3:
        raise PathFileError(f"{path}: 'transform' must hold a rotation and 'scale' must be positive")
    return transform, scale


def _matrix(entry: Any, where: str) -> Tensor:
    """(4, 4) of one camera's 16 numbers."""
    try:
        matrix = torch.tensor(entry["camera_to_world"], dtype=torch.float32).reshape(4, 4)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise PathFileError(f"{where}: expected 16 numbers under 'camera_to_world'") from error
    turn = matrix[:3, :3]
    if not matrix.isfinite().all() or (turn @ turn.T - torch.eye(3)).abs().max() > 1e-3:
        raise PathFileError(f"{where}: 'camera_to_world' must hold a rotation and a place")
    return matrix


def _fov(entry: dict[str, Any], where: str) -> float:
    """Degrees."""
    angle = entry.get("fov")
    if not isinstance(angle, int | float) or not 0 < angle < 180:
        raise PathFileError(f"{where}: 'fov' must be an angle in (0, 180) degrees, got {angle!r}")
    return float(angle)


def _number(document: dict[str, Any], key: str, path: Path) -> float:
    value = document.get(key)
    if not isinstance(value, int | float) or not 0 < value < 100_000:
        raise PathFileError(f"{path}: {key!r} must be a positive number, got {value!r}")
    return float(value)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PathFileError(f"{path}: can't be read as JSON ({error})") from error
    if not isinstance(document, dict):
        raise PathFileError(f"{path}: expected an object, got {type(document).__name__}")
    return document
