"""Groups of hand-held cameras in a room: near each other, looking at much the same things, not into them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .raster import Rasterizer
from .room import Room, Views

MIN_FOV, MAX_FOV = 35.0, 85.0
MIN_PITCH, MAX_PITCH = -50.0, 20.0
MIN_HEIGHT, MAX_HEIGHT = 0.4, 2.0
MAX_BASELINE, MAX_ANGLE = 1.5, 35.0
CLEARANCE = 0.25
MIN_SEEN, MAX_SEEN = 0.35, 0.93
MAX_WALL, MAX_BARE = 0.74, 0.9
DEPTH_TOLERANCE = 0.05
_PROBE = 32
_ROUNDS = 8


@dataclass(frozen=True, eq=False)
class _Candidates:
    """Proposed groups: positions (M, K, 3), angles in radians (M, K) and fields of view (M, K) in degrees."""

    position: np.ndarray
    yaw: np.ndarray
    pitch: np.ndarray
    roll: np.ndarray
    fov: np.ndarray


def sample_groups(
    rng: np.random.Generator, room: Room, rasterizer: Rasterizer, groups: int, views: int
) -> Views | None:
    """(groups, views) cameras in the room that `rasterizer` holds; None where too few suit (a full room)."""
    found: list[Views] = []
    count = 0
    for _ in range(_ROUNDS):
        candidates = _propose(rng, room, 28 * groups, views)
        cameras = _to_views(candidates)
        possible = _is_clear(room, candidates.position) & _is_close(cameras)
        chosen = np.flatnonzero(possible)[: max(6, 2 * groups)]
        if len(chosen) == 0:
            continue
        cameras = cameras[chosen]
        suits = _judge(room, rasterizer, cameras, rng.random(len(chosen)) < 0.08)
        found.append(cameras[np.flatnonzero(suits)])
        count += int(suits.sum())
        if count >= groups:
            return _concatenate(found)[slice(groups)]
    return None


def unseen_fraction(views: Views, depths: np.ndarray) -> np.ndarray:
    """(..., K, K) share of view j's pixels that view i does not show; [..., i, j], the diagonal is 0.

    A pixel is seen where its point falls into the other view's frame within 5 % of the depth found there.

    Args:
        views: (..., K) cameras of square images.
        depths: (..., K, S, S) metres.
    """
    count = views.focal_length.shape[-1]
    result = np.zeros((*views.focal_length.shape, count), np.float32)
    points = world_points(views, depths)
    for i in range(count):
        for j in range(count):
            if i != j:
                seen = _is_seen(points[..., j, :, :], _member(views, i), depths[..., i, :, :])
                result[..., i, j] = 1 - seen.mean(-1)
    return result


def world_points(
    views: Views, depths: np.ndarray, rows: slice = slice(None), columns: slice = slice(None)
) -> np.ndarray:
    """(..., P, 3) world positions of the P pixels in some rows and columns of (..., S, S) depth images."""
    size = depths.shape[-1]
    ndc = 1 - (2 * np.arange(size, dtype=np.float32) + 1) / size
    y, x = (axis.ravel() for axis in np.meshgrid(ndc[rows], ndc[columns], indexing="ij"))
    depths = depths[..., rows, columns]
    z = depths.reshape(*depths.shape[:-2], -1).astype(np.float32)
    f, principal = views.focal_length[..., None], views.principal[..., None, :]
    local = np.stack([(x - principal[..., 0]) * z / f, (y - principal[..., 1]) * z / f, z], -1)
    return (local - views.translation[..., None, :]) @ views.rotation.swapaxes(-1, -2)


def _is_seen(points: np.ndarray, views: Views, depths: np.ndarray) -> np.ndarray:
    """(..., P) whether points (..., P, 3) appear in views (...) with depths (..., S, S)."""
    size = depths.shape[-1]
    local = points @ views.rotation + views.translation[..., None, :]
    z = np.maximum(local[..., 2], 1e-3)
    f = views.focal_length[..., None]
    x = (1 - (f * local[..., 0] / z + views.principal[..., None, 0])) * size / 2
    y = (1 - (f * local[..., 1] / z + views.principal[..., None, 1])) * size / 2
    inside = (local[..., 2] > 0.02) & (x >= 0) & (x < size) & (y >= 0) & (y < size)
    # inverse depth is linear over a plane's image, so interpolating it between four pixels is exact there
    flat = 1 / np.maximum(depths.reshape(*depths.shape[:-2], -1).astype(np.float32), 1e-3)
    u, v = np.clip(x - 0.5, 0, size - 1.001), np.clip(y - 0.5, 0, size - 1.001)
    j, i = u.astype(np.int32), v.astype(np.int32)
    u, v = u - j, v - i
    at = i * size + j
    corners = [np.take_along_axis(flat, at + step, -1) for step in (0, 1, size, size + 1)]
    between = (corners[0] * (1 - u) + corners[1] * u) * (1 - v) + (corners[2] * (1 - u) + corners[3] * u) * v
    agrees = np.abs(z * between - 1) < DEPTH_TOLERANCE
    nearest = np.where(
        v < 0.5, np.where(u < 0.5, corners[0], corners[1]), np.where(u < 0.5, corners[2], corners[3])
    )
    return inside & (agrees | (np.abs(z * nearest - 1) < DEPTH_TOLERANCE))


def _propose(rng: np.random.Generator, room: Room, count: int, views: int) -> _Candidates:
    """Random groups: half look at things from near or far, half stand anywhere and look around."""
    position, yaw, pitch, distance = _anchors(rng, room, count)
    forward = _direction(yaw, pitch)
    focus = position + forward * distance[:, None]
    path = _path(rng, yaw, distance, count)
    steps = rng.random((count, views))
    steps[:, 0], steps[:, 1] = 0.0, 1.0
    steps = rng.permuted(steps, axis=1) - 0.5
    extent = np.linalg.norm(path, axis=1)
    positions = position[:, None] + steps[..., None] * path[:, None]
    positions += rng.normal(0, 0.06, (count, views, 3)) * np.minimum(extent, 0.6)[:, None, None]
    towards = focus[:, None] - positions
    turn_yaw = np.arctan2(towards[..., 0], towards[..., 2])
    turn_pitch = np.arctan2(towards[..., 1], np.hypot(towards[..., 0], towards[..., 2]))
    follow = rng.choice([0.0, 0.5, 1.0, 1.0], (count, 1))  # how far a camera keeps looking at the same point
    wander = np.radians(rng.uniform(1.5, 9.0, (count, 1)))
    yaws = (
        yaw[:, None] + follow * _wrapped(turn_yaw - yaw[:, None]) + wander * rng.normal(size=(count, views))
    )
    pitches = (
        pitch[:, None]
        + follow * (turn_pitch - pitch[:, None])
        + 0.6 * wander * rng.normal(size=(count, views))
    )
    roll = np.radians(rng.normal(0, 3, (count, 1)).clip(-9, 9) + rng.normal(0, 1.2, (count, views)))
    wide = np.where(rng.random(count) < 0.3, rng.uniform(MIN_FOV, MAX_FOV, count), rng.normal(55, 8, count))
    fov = wide.clip(MIN_FOV * 1.03, MAX_FOV / 1.03)[:, None] * rng.uniform(0.985, 1.015, (count, views))
    return _Candidates(positions, yaws, pitches, roll, fov)


def _anchors(
    rng: np.random.Generator, room: Room, count: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Middle camera of each group: position, yaw, pitch (radians), and the distance of what it looks at."""
    height = np.where(
        rng.random(count) < 0.72, rng.normal(1.5, 0.13, count), rng.uniform(MIN_HEIGHT, MAX_HEIGHT, count)
    )
    height = height.clip(MIN_HEIGHT, min(MAX_HEIGHT, room.size[1] - 0.35))
    position = _anywhere(rng, room, count)
    position[:, 1] = height
    yaw = rng.uniform(-np.pi, np.pi, count)
    steep = rng.random(count)
    pitch = np.where(steep < 0.6, rng.normal(-9, 7, count), rng.uniform(-42, -15, count))
    pitch = np.radians(np.where(steep > 0.95, rng.uniform(0, MAX_PITCH - 4, count), pitch))
    distance = np.exp(rng.uniform(np.log(0.8), np.log(3.5), count))
    if len(room.focus):
        weight = room.focus[:, 3].clip(0.1, 1.5)
        aim = room.focus[rng.choice(len(room.focus), count, p=weight / weight.sum())].astype(np.float64)
        reach = np.exp(rng.uniform(np.log(0.55), np.log(3.5), count)) + 0.35 * aim[:, 3]
        angle = rng.uniform(-np.pi, np.pi, count)
        near = aim[:, :3] + reach[:, None] * np.stack([np.sin(angle), 0 * angle, np.cos(angle)], 1)
        near[:, 1] = height
        towards = aim[:, :3] + rng.normal(0, 0.15, (count, 3)) * reach[:, None] - near
        focused = rng.random(count) < 0.65
        flat = np.hypot(towards[:, 0], towards[:, 2])
        position = np.where(focused[:, None], near, position)
        yaw = np.where(focused, np.arctan2(towards[:, 0], towards[:, 2]), yaw)
        pitch = np.where(focused, np.arctan2(towards[:, 1], flat), pitch)
        distance = np.where(focused, np.linalg.norm(towards, axis=1), distance)
    return position, yaw, pitch.clip(np.radians(MIN_PITCH + 4), np.radians(MAX_PITCH - 4)), distance


def _anywhere(rng: np.random.Generator, room: Room, count: int) -> np.ndarray:
    """(count, 3) points of the floor."""
    areas = np.array(room.areas)
    extent = (areas[:, 2:] - areas[:, :2]).prod(1)
    area = areas[rng.choice(len(areas), count, p=extent / extent.sum())]
    at = area[:, :2] + rng.random((count, 2)) * (area[:, 2:] - area[:, :2])
    return np.stack([at[:, 0], np.zeros(count), at[:, 1]], 1)


def _path(rng: np.random.Generator, yaw: np.ndarray, distance: np.ndarray, count: int) -> np.ndarray:
    """(count, 3) from a group's first to its last camera: sideways, forward, upward or a mixture."""
    extent = np.exp(rng.uniform(np.log(0.4), np.log(MAX_BASELINE), count))
    extent = np.minimum(extent, 0.25 + 0.75 * distance)
    heading = yaw + np.where(
        rng.random(count) < 0.5, np.pi / 2 + rng.normal(0, 0.4, count), rng.uniform(-np.pi, np.pi, count)
    )
    rise = np.where(rng.random(count) < 0.2, rng.uniform(-0.8, 0.8, count), rng.normal(0, 0.08, count))
    direction = np.stack([np.sin(heading) * np.cos(rise), np.sin(rise), np.cos(heading) * np.cos(rise)], 1)
    return direction * extent[:, None]


def _direction(yaw: np.ndarray, pitch: np.ndarray) -> np.ndarray:
    return np.stack([np.sin(yaw) * np.cos(pitch), np.sin(pitch), np.cos(yaw) * np.cos(pitch)], -1)


def _wrapped(angle: np.ndarray) -> np.ndarray:
    return (angle + np.pi) % (2 * np.pi) - np.pi


def _to_views(c: _Candidates) -> Views:
    pitch = c.pitch.clip(np.radians(MIN_PITCH), np.radians(MAX_PITCH))
    forward = _direction(c.yaw, pitch)
    left = np.stack([np.cos(c.yaw), np.zeros_like(c.yaw), -np.sin(c.yaw)], -1)
    up = np.cross(forward, left)
    cos, sin = np.cos(c.roll)[..., None], np.sin(c.roll)[..., None]
    rotation = np.stack([cos * left + sin * up, cos * up - sin * left, forward], -1)
    translation = -np.einsum("...i,...ij->...j", c.position, rotation)
    focal = 1 / np.tan(np.radians(c.fov) / 2)
    arrays = (rotation, translation, focal, np.zeros((*focal.shape, 2)))
    return Views(*(array.astype(np.float32) for array in arrays))


def _is_clear(room: Room, position: np.ndarray) -> np.ndarray:
    """(M,) whether all cameras of a group are above the floor, inside, and at a distance from everything."""
    areas = np.array(room.areas)[:, None, None]
    x, y, z = (position[..., axis] for axis in range(3))
    inside = (x > areas[..., 0] + CLEARANCE) & (x < areas[..., 2] - CLEARANCE)
    inside &= (z > areas[..., 1] + CLEARANCE) & (z < areas[..., 3] - CLEARANCE)
    clear = inside.any(0) & (y > MIN_HEIGHT) & (y < min(MAX_HEIGHT, room.size[1] - CLEARANCE))
    clear = clear.all(1)
    some = np.flatnonzero(clear)
    if len(some) and len(room.boxes):
        points = position[some].astype(np.float32)[:, :, None]
        gap = np.maximum(np.maximum(room.boxes[:, :3] - points, points - room.boxes[:, 3:]), 0)
        near = ((gap**2).sum(-1) < CLEARANCE**2).any(axis=(1, 2))
        clear[some[near]] = False
    return clear


def _is_close(views: Views) -> np.ndarray:
    """(M,) whether all pairs of a group are within the largest baseline and turn."""
    centres = views.centres
    baseline = np.linalg.norm(centres[:, :, None] - centres[:, None], axis=-1)
    cosine = (np.einsum("miab,mjab->mij", views.rotation, views.rotation) - 1) / 2
    close = (baseline <= MAX_BASELINE) & (cosine >= np.cos(np.radians(MAX_ANGLE)))
    return close.all(axis=(1, 2))


def _judge(room: Room, rasterizer: Rasterizer, views: Views, bare: np.ndarray) -> np.ndarray:
    """(M,) whether small depth images show something worth seeing, with enough in common.

    `bare` (M,) allows some groups to show walls and floor only.
    """
    groups, count = views.focal_length.shape
    flat = Views(
        *(
            getattr(views, name).reshape(groups * count, *getattr(views, name).shape[2:])
            for name in vars(views)
        )
    )
    depth, number = rasterizer.probe(flat, _PROBE)
    median = np.median(depth.reshape(groups, count, -1), -1)
    too_near = (depth < 0.3).mean((1, 2)).reshape(groups, count)
    suits = ((median > 0.45) & (median < 7.0) & (too_near < 0.04)).all(1)
    suits &= (_largest_share(number, room.structure).reshape(groups, count) < MAX_WALL).all(1)
    furnished = (number >= room.structure).mean((1, 2)).reshape(groups, count)
    suits &= bare | (furnished.mean(1) > 1 - MAX_BARE)
    depth = depth.reshape(groups, count, _PROBE, _PROBE)
    unseen = _coarse_unseen(views, depth)
    pairs = ~np.eye(count, dtype=bool)
    seen = 1 - unseen[:, pairs]
    return suits & (seen.min(1) >= MIN_SEEN) & (seen.mean(1) <= MAX_SEEN)


def _largest_share(number: np.ndarray, structure: int) -> np.ndarray:
    """(N,) share of the image that the largest wall, floor or ceiling takes."""
    flat = number.reshape(len(number), -1)
    keys = np.where((flat >= 0) & (flat < structure), flat, structure)
    keys = keys + np.arange(len(flat))[:, None] * (structure + 1)
    counts = np.bincount(keys.ravel(), minlength=len(flat) * (structure + 1)).reshape(len(flat), -1)
    return counts[:, :structure].max(1, initial=0) / flat.shape[1]


def _coarse_unseen(views: Views, depth: np.ndarray) -> np.ndarray:
    """`unseen_fraction` for every third pixel of every third row of small depth images."""
    count = views.focal_length.shape[-1]
    points = world_points(views, depth, slice(None, None, 3), slice(1, None, 3))
    result = np.zeros((len(depth), count, count), np.float32)
    for i in range(count):
        others = points.reshape(len(depth), -1, 3)
        seen = _is_seen(others, _member(views, i), depth[:, i]).reshape(len(depth), count, -1)
        result[:, i] = 1 - seen.mean(-1)
    return result


def _member(views: Views, index: int) -> Views:
    """One camera of each group."""
    return Views(
        views.rotation[..., index, :, :],
        views.translation[..., index, :],
        views.focal_length[..., index],
        views.principal[..., index, :],
    )


def _concatenate(parts: list[Views]) -> Views:
    return Views(*(np.concatenate([getattr(part, name) for part in parts]) for name in vars(parts[0])))
