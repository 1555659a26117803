"""Posed photographs from disk: nerfstudio and instant-ngp `transforms.json`, and Blender's synthetic scenes.

Both formats hold OpenGL camera-to-world matrices (+X right, +Y up, -Z forward) and pinhole intrinsics, for
the whole file or for each frame; `opengl_to_pytorch3d` turns them into the package's cameras. Depth, where
there is any, is a 16-bit PNG in millimetres along the optical axis, of the image's shape but maybe another
size; 0 means unknown. A file `pairs.json` beside it may name (context, target) pairs to evaluate.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from pytorch3d.renderer import PerspectiveCameras
from torch import Tensor

from scenediff.renderers.cameras import (
    ndc_to_pixels_intrinsics,
    opengl_to_pytorch3d,
    perspective_cameras,
    pixels_to_ndc_intrinsics,
)

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")  # tried in turn for names without one, as Blender's scenes have
DISTORTION = ("k1", "k2", "k3", "k4", "p1", "p2")
PAIR_FIGURES = ("baseline_m", "angle_deg", "in_frame", "visible")
MILLIMETRE = 1e-3


class CaptureError(ValueError):
    """A capture that can't be read; the message names the file and what is wrong with it."""


@dataclass(frozen=True)
class Frame:
    """One posed photograph; pixels are read when asked for.

    Attributes:
        image_path: the photograph.
        depth_path: its depth, or None.
        number: the number at the end of the file's name, or None.
        size: (height, width), pixels.
        cameras: its camera, a batch of one, in the capture's world (metres).
    """

    image_path: Path
    depth_path: Path | None
    number: int | None
    size: tuple[int, int]
    cameras: PerspectiveCameras

    def load_image(self) -> Tensor:
        """(3, height, width) sRGB in [-1, 1]; transparent parts become white."""
        with _opened(self.image_path) as file:
            image = file.convert("RGBA") if "A" in file.getbands() else file.convert("RGB")
        if image.mode == "RGBA":
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
        if (image.height, image.width) != self.size:
            raise CaptureError(
                f"{self.image_path}: expected {self.size[1]}x{self.size[0]} pixels as its intrinsics say, "
                f"got {image.width}x{image.height}"
            )
        return torch.from_numpy(np.array(image, dtype=np.float32)).permute(2, 0, 1) / 127.5 - 1

    def load_depth(self) -> Tensor:
        """(rows, columns) metres along the optical axis, 0 where unknown; maybe not of the image's size.

        Raises:
            CaptureError: the frame has no depth, or its file is no 16-bit greyscale image.
        """
        if self.depth_path is None:
            raise CaptureError(f"{self.image_path}: the capture has no depth for this frame")
        with _opened(self.depth_path) as file:
            if not file.mode.startswith("I"):
                raise CaptureError(f"{self.depth_path}: expected 16-bit grey depth, got mode {file.mode}")
            return torch.from_numpy(np.array(file).astype(np.float32)) * MILLIMETRE


@dataclass(frozen=True)
class Pair:
    """Two frames to evaluate, and how far apart they are.

    Attributes:
        context, target: the photo that a scene is sampled from, and the view to compare with.
        baseline_m: distance between their cameras, metres.
        angle_deg: angle between them, degrees.
        in_frame: fraction of the target's pixels inside the context's frame.
        visible: fraction of the target's pixels that the context sees.
    """

    context: Frame
    target: Frame
    baseline_m: float
    angle_deg: float
    in_frame: float
    visible: float


@dataclass(frozen=True)
class Capture:
    """A folder of posed photographs."""

    folder: Path
    frames: tuple[Frame, ...]
    pairs: tuple[Pair, ...]


@dataclass(frozen=True)
class SquareView:
    """The middle of a frame at a chosen size.

    Attributes:
        image: (3, size, size) in [-1, 1].
        depth: (size, size) metres, 0 where unknown; None without depth.
        cameras: a batch of one; the principal point is the lens's, not the middle of the crop.
    """

    image: Tensor
    depth: Tensor | None
    cameras: PerspectiveCameras


def load_capture(folder: str | Path, split: str = "train") -> Capture:
    """Reads a capture's cameras and pairs.

    Args:
        folder: holds `transforms.json`, or Blender's `transforms_<split>.json`.
        split: "train", "val" or "test"; used for Blender's scenes only.

    Raises:
        CaptureError: a file is missing, damaged, or describes lenses that are no pinholes.
    """
    folder = Path(folder)
    path = folder / "transforms.json"
    if not path.exists():
        path = folder / f"transforms_{split}.json"
    if not path.exists():
        raise CaptureError(f"{folder}: found neither transforms.json nor {path.name}")
    document = _read_json(path)
    entries = document.get("frames") if isinstance(document, dict) else None
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
        raise CaptureError(f"{path}: expected a list of frames under the key 'frames'")
    frames = tuple(_frame(path, index, {**document, **entry}) for index, entry in enumerate(entries))
    return Capture(folder, frames, _pairs(folder / "pairs.json", frames))


def centre_square(frame: Frame, size: int) -> SquareView:
    """Cuts out the central square and resizes it: colours by area, depth by the median of what is known."""
    if size < 1:
        raise ValueError(f"size must be at least 1 pixel, got {size}")
    height, width = frame.size
    side = min(frame.size)
    top, left = (height - side) // 2, (width - side) // 2
    focal, principal = ndc_to_pixels_intrinsics(frame.cameras, frame.size)
    principal = principal - principal.new_tensor([left, top])
    intrinsics = pixels_to_ndc_intrinsics(focal * size / side, principal * size / side, (size, size))
    cameras = perspective_cameras(frame.cameras.R, frame.cameras.T, *intrinsics)
    image = area_resize(frame.load_image()[:, top : top + side, left : left + side], (size, size))
    if frame.depth_path is None:
        return SquareView(image, None, cameras)
    window = (top / height, left / width, side / height, side / width)
    return SquareView(image, _median_resize(frame.load_depth(), window, size), cameras)


def area_resize(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Resizes (..., height, width) so that each new pixel is the exact mean of the area it covers."""
    rows = _overlaps(image.shape[-2], size[0]).to(image)
    columns = _overlaps(image.shape[-1], size[1]).to(image)
    return rows @ image @ columns.T


def _overlaps(length: int, new_length: int) -> Tensor:
    """(new_length, length): the share of every old pixel in every new one; rows sum to 1."""
    old, new = torch.arange(length), torch.arange(new_length)[:, None] * (length / new_length)
    shared = torch.minimum(old + 1, new + length / new_length) - torch.maximum(old, new)
    return shared.clamp(min=0) * (new_length / length)


def _median_resize(
    depth: Tensor, window: tuple[float, float, float, float], size: int, taps: int = 3
) -> Tensor:
    """Median of the known values at `taps` x `taps` points of each new pixel; 0 if none is known.

    A mean would put surfaces into the air between an object and the wall behind it.

    Args:
        depth: (rows, columns) metres.
        window: (top, left, height, width) of the part wanted, as fractions of the image.
    """
    position = (torch.arange(size * taps) + 0.5) / (size * taps)
    rows = ((window[0] + window[2] * position) * depth.shape[0]).long().clamp(max=depth.shape[0] - 1)
    columns = ((window[1] + window[3] * position) * depth.shape[1]).long().clamp(max=depth.shape[1] - 1)
    points = depth[rows[:, None], columns].unflatten(1, (size, taps)).unflatten(0, (size, taps))
    points = points.transpose(1, 2).flatten(2)
    known = torch.where(points > 0, points, torch.nan)
    return known.nanmedian(-1).values.nan_to_num(0)


def _frame(path: Path, index: int, entry: Mapping[str, Any]) -> Frame:
    """One frame from its entry, in which the whole file's intrinsics stand where it has none of its own."""
    where = f"{path}, frame {index}"
    image_path = _image_path(path.parent, entry.get("file_path"), where)
    matrix = np.asarray(entry.get("transform_matrix", ()), dtype=object)
    if matrix.shape not in ((4, 4), (3, 4)):
        raise CaptureError(f"{where}: expected a 4x4 'transform_matrix', got shape {matrix.shape}")
    if any(entry.get(name) for name in DISTORTION):
        raise CaptureError(f"{where}: lens distortion is not supported: undistort the images first")
    size, focal, principal = _intrinsics(image_path, entry, where)
    try:
        pose = torch.tensor(matrix.astype(np.float64), dtype=torch.float32)[None]
    except (TypeError, ValueError) as error:
        raise CaptureError(f"{where}: 'transform_matrix' holds something that is no number") from error
    depth = entry.get("depth_file_path")
    digits = re.search(r"(\d+)$", image_path.stem)
    return Frame(
        image_path=image_path,
        depth_path=path.parent / depth if depth else None,
        number=int(digits[1]) if digits else None,
        size=size,
        cameras=opengl_to_pytorch3d(pose, torch.tensor([focal]), torch.tensor([principal]), size),
    )


def _intrinsics(
    image_path: Path, entry: Mapping[str, Any], where: str
) -> tuple[tuple[int, int], tuple[float, float], tuple[float, float]]:
    """(height, width), (fx, fy) and (cx, cy) in pixels."""
    if "w" in entry and "h" in entry:
        width, height = entry["w"], entry["h"]
    else:
        with _opened(image_path) as file:
            width, height = file.size
    try:
        width, height = int(width), int(height)
        if "fl_x" in entry:
            focal_x = float(entry["fl_x"])
        else:
            focal_x = width / 2 / math.tan(float(entry["camera_angle_x"]) / 2)
        focal_y = float(entry.get("fl_y", focal_x))
        principal = float(entry.get("cx", width / 2)), float(entry.get("cy", height / 2))
    except KeyError as error:
        raise CaptureError(f"{where}: expected 'fl_x' or 'camera_angle_x', found neither") from error
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise CaptureError(f"{where}: an intrinsic is no usable number ({error})") from error
    if min(width, height, focal_x, focal_y) <= 0:
        raise CaptureError(f"{where}: sizes and focal lengths must be positive")
    return (height, width), (focal_x, focal_y), principal


def _image_path(folder: Path, name: Any, where: str) -> Path:
    if not isinstance(name, str) or not name:
        raise CaptureError(f"{where}: expected a 'file_path'")
    path = folder / name
    for candidate in (path, *(path.with_name(path.name + suffix) for suffix in IMAGE_SUFFIXES)):
        if candidate.is_file():
            return candidate
    raise CaptureError(f"{where}: {path} does not exist")


def _pairs(path: Path, frames: tuple[Frame, ...]) -> tuple[Pair, ...]:
    """Pairs by the numbers in the files' names or, where those don't fit, by position among the frames."""
    if not path.exists():
        return ()
    entries = _read_json(path)
    try:
        wanted = {int(entry[key]) for entry in entries for key in ("context", "target")}
        by_number = {frame.number: frame for frame in frames}
        if wanted <= by_number.keys() and len(by_number) == len(frames):
            lookup: dict[Any, Frame] = by_number
        else:
            lookup = dict(enumerate(frames))
        return tuple(
            Pair(
                lookup[int(entry["context"])],
                lookup[int(entry["target"])],
                *(float(entry.get(key, math.nan)) for key in PAIR_FIGURES),
            )
            for entry in entries
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CaptureError(f"{path}: expected pairs that name existing frames ({error!r})") from error


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CaptureError(f"{path}: can't be read as JSON ({error})") from error


def _opened(path: Path) -> Image.Image:
    try:
        image = Image.open(path)
        image.load()
    except (OSError, SyntaxError, ValueError) as error:
        raise CaptureError(f"{path}: can't be read as an image ({error})") from error
    return image
