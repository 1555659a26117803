"""Matrices of cameras and lights for OpenGL: column vectors, world to clip."""

from __future__ import annotations

import math

import numpy as np

from .room import Light, Room, Views

NEAR, FAR = 0.05, 60.0

LightMap = tuple[np.ndarray, tuple[float, float, float, float]]


def clip_matrices(views: Views, samples: int) -> np.ndarray:
    """(..., 4, 4) world-to-clip matrices for column vectors, the image's top row first in memory.

    With `samples` to a side the image moves by half a sample: every second sample is a pixel's centre.
    """
    f, principal = views.focal_length, views.principal
    shift = 0.0 if samples == 0 else 1.0 / samples
    projection = np.zeros((*f.shape, 4, 4), np.float64)
    projection[..., 0, 0] = -f
    projection[..., 0, 2] = -principal[..., 0] - shift
    projection[..., 1, 1] = -f
    projection[..., 1, 2] = -principal[..., 1] - shift
    projection[..., 2, 2] = (FAR + NEAR) / (FAR - NEAR)
    projection[..., 2, 3] = -2 * FAR * NEAR / (FAR - NEAR)
    projection[..., 3, 2] = 1.0
    pose = np.zeros_like(projection)
    pose[..., :3, :3] = views.rotation.swapaxes(-1, -2)
    pose[..., :3, 3] = views.translation
    pose[..., 3, 3] = 1.0
    return (projection @ pose).astype(np.float32)


def camera_rays(views: Views, samples: int) -> np.ndarray:
    """(..., 4, 4) float32 rows that turn samples of `clip_matrices`' images back into points of the world.

    They are: the camera's centre and its focal length; the ray through the first sample, 1 m long along the
    optical axis; what each sample to the right, and each one down, adds to it.
    """
    f = views.focal_length.astype(np.float64)
    first = -(2 / samples - 1 + views.principal) / f[..., None]
    rays = np.zeros((*f.shape, 4, 4))
    rays[..., 0, :3], rays[..., 0, 3] = views.centres, f
    local = np.zeros((*f.shape, 3, 3))
    local[..., 0, :2], local[..., 0, 2] = first, 1.0
    local[..., 1, 0] = local[..., 2, 1] = -2 / samples / f
    rays[..., 1:, :3] = local @ views.rotation.swapaxes(-1, -2)
    return rays.astype(np.float32)


def light_colour(room: Room) -> np.ndarray:
    """(3,) colour of the room's light, 1 on average."""
    total = np.sum([light.intensity for light in room.lights], axis=0) + 0.01 + 3 * room.ambient.mean(0)
    return (total / total.mean()).astype(np.float32)


def extent(room: Room) -> tuple[np.ndarray, np.ndarray]:
    areas = np.array(room.areas)
    low = np.array([areas[:, 0].min(), 0.0, areas[:, 1].min()])
    high = np.array([areas[:, 2].max(), room.size[1], areas[:, 3].max()])
    return low, high


def _look_along(position: np.ndarray, direction: np.ndarray) -> np.ndarray:
    """(4, 4) world-to-camera matrix, z forward, for column vectors."""
    forward = direction / np.linalg.norm(direction)
    helper = np.array([1.0, 0.0, 0.0]) if abs(forward[1]) > 0.9 else np.array([0.0, 1.0, 0.0])
    side = np.cross(helper, forward)
    side /= np.linalg.norm(side)
    matrix = np.eye(4)
    matrix[:3, :3] = side, np.cross(forward, side), forward
    matrix[:3, 3] = -matrix[:3, :3] @ position
    return matrix


def _parallel(width: float, height: float, near: float, far: float) -> np.ndarray:
    scale = np.diag([2 / width, 2 / height, 2 / (far - near), 1.0])
    scale[2, 3] = -(far + near) / (far - near)
    return scale


def light_map(light: Light, room: Room) -> LightMap:
    """World-to-clip matrix of a light's shadow map, and what the shader knows of it.

    That is: near, far, the light's radius over the half angle's tangent, that tangent (0 for parallel rays).
    """
    position, direction = np.array(light.position), np.array(light.direction)
    if light.far:
        low, high = extent(room)
        reach = float(np.linalg.norm(high - low)) / 2 + 0.3
        centre = (low + high) / 2
        matrix = _parallel(2 * reach, 2 * reach, 0.0, 2 * reach) @ _look_along(
            centre - reach * direction, direction
        )
        return matrix, (0.0, 2 * reach, 0.0, 0.0)
    near, far, tangent = 0.12, 25.0, math.tan(math.radians(66))
    projection = np.zeros((4, 4))
    projection[0, 0] = projection[1, 1] = 1 / tangent
    projection[2, 2], projection[2, 3] = (far + near) / (far - near), -2 * far * near / (far - near)
    projection[3, 2] = 1.0
    return projection @ _look_along(position, direction), (near, far, light.radius / tangent, tangent)


def overhead_map(room: Room) -> LightMap:
    """Heights seen from just under the ceiling, over the whole floor."""
    low, high = extent(room)
    centre = (low + high) / 2
    centre[1] = high[1]
    width = float(max(high[0] - low[0], high[2] - low[2])) + 0.2
    near, far = 0.03, float(high[1]) + 0.1
    return _parallel(width, width, near, far) @ _look_along(centre, np.array([0.0, -1.0, 0.0])), (
        near,
        far,
        0.0,
        0.0,
    )
