"""A scene in closed form with the interface of `scenediff.Scene`: a patterned box room with a ball in it."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path

import torch
from pytorch3d.renderer import PerspectiveCameras
from torch import Tensor

from scenediff.renderers.cameras import look_ahead, perspective_cameras

ROOM_LOW = torch.tensor([-2.0, -1.3, -0.6])
ROOM_HIGH = torch.tensor([2.0, 1.3, 4.2])
BALL_CENTER = torch.tensor([0.5, -0.5, 2.6])
BALL_RADIUS = 0.6
PHOTO_FOV = 60.0
# -X (right), +X (left), floor, ceiling, behind, ahead, ball
SURFACE_COLORS = torch.tensor([
    [0.8, 0.3, 0.2], [0.2, 0.7, 0.3], [0.5, 0.4, 0.3], [0.9, 0.9, 0.85], [0.4, 0.4, 0.4], [0.3, 0.4, 0.8],
    [0.9, 0.75, 0.2],
])


@dataclass(frozen=True)
class AnalyticRendering:
    image: Tensor
    depth: Tensor
    opacity: Tensor
    features: Tensor | None = None


def surface_distance(points: Tensor) -> Tensor:
    """Metres from points (..., 3) to the nearest true surface."""
    walls = torch.minimum((points - ROOM_LOW).abs(), (points - ROOM_HIGH).abs()).amin(-1)
    ball = ((points - BALL_CENTER).norm(dim=-1) - BALL_RADIUS).abs()
    return torch.minimum(walls, ball)


def surface_color(points: Tensor, surface: Tensor) -> Tensor:
    """Colour in [-1, 1] of points (..., 3) on surface (...) 0..6: soft blobs of 0.5 m on the base colour."""
    waves = torch.sin(2 * math.pi * points + 0.4)
    pattern = torch.tanh(2 * (waves[..., 0] * waves[..., 1] + waves[..., 1] * waves[..., 2]
                              + waves[..., 2] * waves[..., 0]))
    color = SURFACE_COLORS[surface] * (0.8 + 0.2 * pattern[..., None])
    return color * 2 - 1


def trace(cameras: PerspectiveCameras, size: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """Hit points (N, H, W, 3), depth (N, H, W) and surface (N, H, W) by intersecting every pixel's ray."""
    height, width = size
    short = min(size)
    y = (height - 2 * (torch.arange(height) + 0.5)) / short
    x = (width - 2 * (torch.arange(width) + 0.5)) / short
    ndc = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], dim=-1)
    plane = (ndc - cameras.principal_point[:, None, None]) / cameras.focal_length[:, None, None]
    direction = torch.cat([plane, torch.ones_like(plane[..., :1])], -1) @ cameras.R.transpose(1, 2)[:, None]
    origin = -(cameras.R @ cameras.T[..., None])[:, None, None, :, 0]
    walls = torch.stack([(ROOM_LOW - origin) / direction, (ROOM_HIGH - origin) / direction], dim=-1)
    exit_depth, axis = walls.amax(-1).min(dim=-1)
    side = (direction.gather(-1, axis[..., None])[..., 0] > 0).long()
    a = (direction**2).sum(-1)
    b = (direction * (origin - BALL_CENTER)).sum(-1)
    root = b**2 - a * (((origin - BALL_CENTER) ** 2).sum(-1) - BALL_RADIUS**2)
    ball_depth = (-b - root.clamp(min=0).sqrt()) / a
    on_ball = (root > 0) & (ball_depth > 0)
    depth = torch.where(on_ball, ball_depth, exit_depth)
    surface = torch.where(on_ball, torch.full_like(axis, 6), 2 * axis + side)
    return origin + depth[..., None] * direction, depth, surface


def turned(position: tuple[float, float, float], yaw_degrees: float, focal: Tensor) -> PerspectiveCameras:
    """A level camera at a position (metres) that is turned about +Y, to the left for positive angles."""
    angle = math.radians(yaw_degrees)
    cos, sin = math.cos(angle), math.sin(angle)
    rotation = torch.tensor([[[cos, 0.0, sin], [0.0, 1.0, 0.0], [-sin, 0.0, cos]]])  # columns: camera axes
    translation = -(torch.tensor([position])[:, None] @ rotation)[:, 0]
    return perspective_cameras(rotation, translation, focal)


@dataclass
class AnalyticScene:
    """Renders by ray tracing; `depth_noise` is the relative standard deviation of an error of the depth."""

    photo_size: tuple[int, int] = (192, 256)
    depth_noise: float = 0.0
    tint: float = 0.0
    metadata: dict[str, object] = field(default_factory=lambda: {"seed": 0})
    rendered_pixels: int = 0

    def __post_init__(self) -> None:
        self.photo_cameras = look_ahead(1, PHOTO_FOV)
        focal = self.photo_cameras.focal_length[:, 0]
        self.target_cameras = [turned((0.5, 0.1, 0.4), -14.0, focal)]
        self.photo = AnalyticScene.render(self, self.photo_cameras, self.photo_size).image

    def render(self, cameras: PerspectiveCameras, size: tuple[int, int]) -> AnalyticRendering:
        self.rendered_pixels += len(cameras.R) * size[0] * size[1]
        points, depth, surface = trace(cameras, size)
        image = surface_color(points, surface).permute(0, 3, 1, 2)
        image = (image + self.tint * (points[..., 0] < -0.5).float()[:, None]).clamp(-1, 1)
        noise = torch.randn(depth.shape, generator=torch.Generator().manual_seed(3))
        depth = (depth * (1 + self.depth_noise * noise))[:, None]
        return AnalyticRendering(image, depth, torch.ones_like(depth))

    def save(self, path: Path) -> None:
        Path(path).write_text(json.dumps(self.metadata))
