"""Rooms as folders of posed photographs in nerfstudio's format, with depths."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from scenediff.renderers.cameras import ndc_to_pixels_intrinsics, perspective_cameras, pytorch3d_to_opengl

from .stream import RoomBatch, RoomPhotographer, StreamConfig

MILLIMETRES = 1000
IMAGE_FORMATS = ("png", "jpg")


def write_rooms(
    folder: str | Path,
    rooms: int,
    size: int = 256,
    split: str = "train",
    seed: int = 0,
    *,
    groups_per_room: int = 4,
    views: int = 4,
    image_format: str = "png",
    pack_path: str | Path | None = None,
    progress: bool = True,
) -> list[Path]:
    """Write `rooms` folders `room_00000`, ... and return their paths.

    Each holds `transforms.json` (OpenGL camera-to-world matrices, intrinsics of every frame in pixels; frames
    of one group share the number "group"), `images/` and `depth/` (16-bit PNG, millimetres along the optical
    axis).

    Raises ValueError for fewer than one room, and FileExistsError where a room's folder is there already.
    """
    if rooms < 1:
        raise ValueError(f"rooms: got {rooms}, wanted at least 1")
    if image_format not in IMAGE_FORMATS:
        raise ValueError(f"image_format: got {image_format!r}, wanted one of {IMAGE_FORMATS}")
    paths = [Path(folder) / f"room_{number:05d}" for number in range(rooms)]
    for path in paths:
        if path.exists():
            raise FileExistsError(f"{path} exists already; choose an empty folder")
    config = StreamConfig(
        size, views, groups_per_room, seed, split, None if pack_path is None else str(pack_path)
    )
    with RoomPhotographer(config) as photographer:
        for number, path in enumerate(tqdm(paths, desc="rooms", disable=not progress)):
            write_room(path, photographer.photograph(number), image_format)
    return paths


def write_room(path: Path, batch: RoomBatch, image_format: str = "png") -> None:
    """Write one room's groups as one posed folder."""
    for name in ("images", "depth"):
        (path / name).mkdir(parents=True)
    groups, views, size = batch.images.shape[:3]
    rotation, translation, focal, principal = (
        torch.from_numpy(array.reshape(groups * views, *array.shape[2:]).astype(np.float64))
        for array in (batch.rotation, batch.translation, batch.focal_length, batch.principal)
    )
    cameras = perspective_cameras(rotation, translation, focal, principal)
    poses = pytorch3d_to_opengl(cameras).numpy()
    focal_pixels, centre_pixels = (value.numpy() for value in ndc_to_pixels_intrinsics(cameras, (size, size)))
    frames = []
    for index in range(groups * views):
        group, view = divmod(index, views)
        name, depth_name = f"images/{index:04d}.{image_format}", f"depth/{index:04d}.png"
        Image.fromarray(batch.images[group, view]).save(path / name, quality=95)  # of JPEG; PNG has none
        depth = (batch.depths[group, view].astype(np.float32) * MILLIMETRES).round().clip(0, 65535)
        Image.fromarray(depth.astype(np.uint16)).save(path / depth_name)
        frames.append(
            {
                "file_path": name,
                "depth_file_path": depth_name,
                "group": group,
                "fl_x": float(focal_pixels[index, 0]),
                "fl_y": float(focal_pixels[index, 1]),
                "cx": float(centre_pixels[index, 0]),
                "cy": float(centre_pixels[index, 1]),
                "w": size,
                "h": size,
                "transform_matrix": poses[index].tolist(),
            }
        )
    record = {"camera_model": "OPENCV", "depth_unit_scale_factor": 1 / MILLIMETRES, "frames": frames}
    (path / "transforms.json").write_text(json.dumps(record, indent=1))
