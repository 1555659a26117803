"""Camera paths through a scene, and videos of what they see."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import imageio_ffmpeg
import numpy as np
import torch
from pytorch3d.renderer import PerspectiveCameras
from pytorch3d.transforms import so3_exp_map, so3_log_map
from scipy.interpolate import CubicSpline
from torch import Tensor

from scenediff.renderers.baked import BakedScene, SceneLike, one_camera, scaled_size
from scenediff.renderers.cameras import perspective_cameras
from scenediff.renderers.depth_maps import camera_centers

PathKind = Literal["sway", "orbit", "dolly"]

SWAY_WIDTH = 0.1  # of the way to the targets: how far the way back lies beside the way there
ORBIT_RADIUS = 0.35  # of the distance to the farthest target


def camera_path(
    scene: SceneLike, frames: int = 48, kind: PathKind = "sway", *, focus: float = 2.5
) -> PerspectiveCameras:
    """A smooth closed path of `frames` cameras; the first and the last are the photo's own.

    Args:
        scene: its targets say where it was sampled, and so how far the path may go.
        frames: at least 2.
        kind: "sway" goes past all targets and back, or orbits if there are none; "orbit" circles close to the
            photo's place, looking at a point `focus` metres ahead; "dolly" goes ahead by a quarter of `focus`
            and back.
        focus: metres.
    """
    if frames < 2:
        raise ValueError(f"frames must be at least 2, got {frames}")
    time = torch.linspace(0, 1, frames)
    if kind == "sway" and scene.target_cameras:
        return _sway(scene, time)
    if kind in ("orbit", "sway"):
        return _orbit(scene, time, focus)
    if kind == "dolly":
        ahead = 0.125 * focus * (1 - torch.cos(2 * math.pi * time))
        return _placed(scene, ahead[:, None] * torch.tensor([0.0, 0.0, 1.0]), torch.zeros(frames, 3))
    raise ValueError(f"kind must be 'sway', 'orbit' or 'dolly', got {kind!r}")


def video_size(photo_size: tuple[int, int], short_side: int = 256) -> tuple[int, int]:
    """(height, width) of the photo's shape, both even as H.264 wants, the shorter side as given."""
    if short_side % 2 or short_side <= 0:
        raise ValueError(f"short_side must be positive and even, got {short_side}")
    return scaled_size(photo_size, short_side, longest=math.inf)


def baked_frames(
    baked: BakedScene, cameras: PerspectiveCameras, size: tuple[int, int],
    progress: Callable[[int], None] = lambda frame: None,
) -> Iterator[np.ndarray]:
    """The frames (height, width, 3) uint8 of a path, in order; `progress` gets each one's number."""
    for n in range(len(cameras.R)):
        progress(n)
        yield to_pixels(baked.render(one_camera(cameras, n), size).image[0])


def to_pixels(image: Tensor) -> np.ndarray:
    """(height, width, 3) uint8 of an image (3, height, width) in [-1, 1]."""
    return ((image.permute(1, 2, 0) + 1) * 127.5).round().clamp(0, 255).byte().cpu().contiguous().numpy()


def write_video(
    baked: BakedScene, cameras: PerspectiveCameras, path: str | Path, size: tuple[int, int], fps: int = 24,
    progress: Callable[[int], None] = lambda frame: None,
) -> None:
    """Draws a path and writes an MP4 (H.264, yuv420p) that is the same to the last bit every time.

    Args:
        size: (height, width), even. fps: frames a second.
        progress: called with the number of each frame before it is drawn.
    """
    height, width = size
    if height % 2 or width % 2:
        raise ValueError(f"size must be even, as H.264 halves the colours, got {height} x {width}")
    # one thread and bit-exact flags: no dates, no version, nothing that depends on the machine's load
    exact = ["-threads", "1", "-fflags", "+bitexact", "-flags:v", "+bitexact", "-map_metadata", "-1"]
    options = ["-preset", "fast", "-crf", "18", "-movflags", "+faststart", *exact]
    writer = imageio_ffmpeg.write_frames(
        str(path), (width, height), fps=fps, codec="libx264", pix_fmt_in="rgb24", pix_fmt_out="yuv420p",
        quality=None, macro_block_size=2, ffmpeg_log_level="error", output_params=options,
    )
    writer.send(None)
    try:
        for frame in baked_frames(baked, cameras, size, progress):
            writer.send(frame)
    finally:
        writer.close()


def _sway(scene: SceneLike, time: Tensor) -> PerspectiveCameras:
    """Through the photo's view and the targets', by a periodic spline, pushed a little aside on its way."""
    stops = [stop.cpu() for stop in (scene.photo_cameras, *scene.target_cameras)]
    centers = torch.cat([camera_centers(stop) for stop in stops])
    turns = torch.cat([so3_log_map(stops[0].R.transpose(1, 2) @ stop.R) for stop in stops])
    poses = torch.cat([centers, turns], dim=1)
    poses = torch.cat([poses, poses[:1]])
    spline = CubicSpline(np.linspace(0, 1, len(poses)), poses.double().numpy(), bc_type="periodic")
    pose = torch.from_numpy(spline(time.double().numpy())).float()
    reach = (centers - centers[:1]).norm(dim=1).max()
    # up on the way there, down on the way back: without it a single target's path would be a line
    aside = SWAY_WIDTH * reach * torch.sin(2 * math.pi * time)
    return _placed(scene, pose[:, :3] + aside[:, None] * torch.tensor([0.0, 1.0, 0.0]), pose[:, 3:])


def _orbit(scene: SceneLike, time: Tensor, focus: float) -> PerspectiveCameras:
    centers = [camera_centers(stop.cpu()) for stop in scene.target_cameras]
    start = camera_centers(scene.photo_cameras.cpu())
    reach = max((float((center - start).norm()) for center in centers), default=0.1 * focus)
    radius, angle = min(ORBIT_RADIUS * reach, 0.2 * focus), 2 * math.pi * time
    # a circle through the photo's place: its centre lies one radius to the left
    x, y = radius * (1 - torch.cos(angle)), radius * torch.sin(angle)
    pitch, yaw, zero = torch.atan(y / focus), -torch.atan(x / focus), torch.zeros_like(x)
    return _placed(scene, torch.stack([x, y, zero], dim=-1), torch.stack([pitch, yaw, zero], dim=-1))


def _placed(scene: SceneLike, centers: Tensor, turns: Tensor) -> PerspectiveCameras:
    """Cameras with the photo's intrinsics at places (N, 3) in the world, turned by vectors (N, 3)."""
    photo = scene.photo_cameras.cpu()
    rotation = photo.R @ so3_exp_map(turns)
    translation = -(centers[:, None] @ rotation)[:, 0]
    focal, principal = (part.expand(len(turns), 2) for part in (photo.focal_length, photo.principal_point))
    return perspective_cameras(rotation, translation, focal, principal)
