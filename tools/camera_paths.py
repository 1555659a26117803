"""Camera paths through a scene: smooth, closed, from the photo's own view and back to it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, get_args

import numpy as np
import torch
from pytorch3d.renderer import PerspectiveCameras
from pytorch3d.transforms import so3_exp_map, so3_log_map
from scipy.interpolate import CubicSpline
from torch import Tensor

from scenediff.renderers.baked import SceneLike
from scenediff.renderers.cameras import perspective_cameras
from scenediff.renderers.depth_maps import camera_centers

PathKind = Literal["sway", "orbit", "spiral", "dolly", "wiggle"]
PATH_KINDS: tuple[PathKind, ...] = get_args(PathKind)

SWAY_WIDTH = 0.1  # of the way to the targets: how far the way back lies beside the way there
ORBIT_RADIUS = 0.35  # of the distance to the farthest target
SPIRAL_TURNS, SPIRAL_AHEAD = 2, 0.1  # the way ahead is a share of the focus
WIGGLES, WIGGLE_WIDTH = 2, 0.03  # to either side, of the focus: about the parallax of two eyes


def camera_path(
    scene: SceneLike, frames: int = 48, kind: PathKind = "sway", *, focus: float = 2.5
) -> PerspectiveCameras:
    """A smooth closed path of `frames` cameras; the first and the last are the photo's own.

    Args:
        scene: its targets say where it was sampled, and so how far the path may go.
        frames: at least 2.
        kind: "sway" goes past all targets and back, or orbits if there are none; "orbit" circles close to the
            photo's place, looking at a point `focus` metres ahead; "spiral" winds out and ahead and back in,
            looking there too; "dolly" goes ahead by a quarter of `focus` and back; "wiggle" rocks to the left
            and to the right.
        focus: metres.
    """
    if frames < 2:
        raise ValueError(f"frames must be at least 2, got {frames}")
    if kind not in PATH_KINDS:
        raise ValueError(f"kind must be one of {', '.join(PATH_KINDS)}, got {kind!r}")
    time = torch.linspace(0, 1, frames)
    if kind == "sway" and scene.target_cameras:
        return _sway(scene, time)
    if kind == "dolly":
        ahead = 0.125 * focus * (1 - torch.cos(2 * math.pi * time))
        return _placed(scene, ahead[:, None] * torch.tensor([0.0, 0.0, 1.0]), torch.zeros(frames, 3))
    places: dict[str, Callable[[SceneLike, Tensor, float], Tensor]] = {
        "sway": _orbit, "orbit": _orbit, "spiral": _spiral, "wiggle": _wiggle,
    }
    return _looking_at(scene, places[kind](scene, time, focus), focus)


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


def _orbit(scene: SceneLike, time: Tensor, focus: float) -> Tensor:
    """(N, 3) places on a circle through the photo's own: its centre lies one radius to the left."""
    radius, angle = _radius(scene, focus), 2 * math.pi * time
    return torch.stack(
        [radius * (1 - torch.cos(angle)), radius * torch.sin(angle), torch.zeros_like(time)], dim=-1
    )


def _spiral(scene: SceneLike, time: Tensor, focus: float) -> Tensor:
    """(N, 3) places around the optical axis, wide and ahead in the middle of the time."""
    out = torch.sin(math.pi * time) ** 2
    radius, angle = _radius(scene, focus) * out, 2 * math.pi * SPIRAL_TURNS * time
    return torch.stack(
        [radius * torch.cos(angle), radius * torch.sin(angle), SPIRAL_AHEAD * focus * out], dim=-1
    )


def _wiggle(scene: SceneLike, time: Tensor, focus: float) -> Tensor:
    """(N, 3) places on a short line across."""
    across = WIGGLE_WIDTH * focus * torch.sin(2 * math.pi * WIGGLES * time)
    return torch.stack([across, torch.zeros_like(time), torch.zeros_like(time)], dim=-1)


def _radius(scene: SceneLike, focus: float) -> float:
    """Metres that a path may go aside: less than where the scene was sampled."""
    centers = [camera_centers(stop.cpu()) for stop in scene.target_cameras]
    start = camera_centers(scene.photo_cameras.cpu())
    reach = max((float((center - start).norm()) for center in centers), default=0.1 * focus)
    return min(ORBIT_RADIUS * reach, 0.2 * focus)


def _looking_at(scene: SceneLike, places: Tensor, focus: float) -> PerspectiveCameras:
    """Cameras at places (N, 3) near the photo's, turned to the point `focus` metres ahead of the photo."""
    x, y, z = places.unbind(-1)
    pitch, yaw = torch.atan(y / (focus - z)), -torch.atan(x / (focus - z))
    return _placed(scene, places, torch.stack([pitch, yaw, torch.zeros_like(x)], dim=-1))


def _placed(scene: SceneLike, centers: Tensor, turns: Tensor) -> PerspectiveCameras:
    """Cameras with the photo's intrinsics at places (N, 3) in the world, turned by vectors (N, 3)."""
    photo = scene.photo_cameras.cpu()
    rotation = photo.R @ so3_exp_map(turns)
    translation = -(centers[:, None] @ rotation)[:, 0]
    focal, principal = (part.expand(len(turns), 2) for part in (photo.focal_length, photo.principal_point))
    return perspective_cameras(rotation, translation, focal, principal)
