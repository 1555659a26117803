"""Where smaller things can stand on a piece of furniture: free horizontal rectangles of its mesh."""

from __future__ import annotations

import numpy as np

from .assets import Support

OPEN_CLEARANCE = 3.0
MAX_SUPPORTS = 8
_STEP = 0.015
"""Spacing of the points that stand for the mesh, metres."""
_CELL = 0.03
_LEVEL = 0.02
_MIN_CLEARANCE = 0.12
_MIN_SIDE = 0.14
_MIN_HEIGHT = 0.05


def find_supports(positions: np.ndarray, faces: np.ndarray) -> tuple[Support, ...]:
    """The largest free level rectangles of a mesh, (V, 3) metres and (F, 3), largest first.

    A rectangle is covered by level faces of one height, has free height above, and can be reached from the
    top or from the front (+z): boards behind closed doors do not count.
    """
    points, is_level = _sample(positions, faces)
    low, high = points.min(0), points.max(0)
    cells = np.maximum(1, np.ceil((high - low)[[0, 2]] / _CELL)).astype(int)
    column = np.minimum(((points[:, [0, 2]] - low[[0, 2]]) / _CELL).astype(int), cells - 1)
    supports = []
    for level in _levels(points[is_level, 1]):
        roof = _free_height(points, column, cells, level)
        at_level = is_level & (np.abs(points[:, 1] - level) < _LEVEL)
        free = np.zeros(cells, bool)
        free[tuple(column[at_level].T)] = True
        free &= roof > _MIN_CLEARANCE
        for _ in range(2):
            (i0, k0, i1, k1) = largest_rectangle(free)
            clearance = float(roof[i0:i1, k0:k1].min(initial=OPEN_CLEARANCE))
            x0, z0, x1, z1 = (
                low[0] + i0 * _CELL,
                low[2] + k0 * _CELL,
                low[0] + i1 * _CELL,
                low[2] + k1 * _CELL,
            )
            x1, z1 = min(x1, high[0]), min(z1, high[2])
            if min(x1 - x0, z1 - z0) < _MIN_SIDE:
                break
            free[i0:i1, k0:k1] = False
            if clearance >= OPEN_CLEARANCE or _is_open_in_front(points, (x0, x1), z1, level, clearance):
                supports.append(Support(*(round(float(v), 4) for v in (x0, z0, x1, z1, level, clearance))))
    supports.sort(key=lambda s: (-(s.x1 - s.x0) * (s.z1 - s.z0), s.y))
    return tuple(supports[:MAX_SUPPORTS])


def _sample(positions: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Points (N, 3) on a regular grid within every face, and whether their face is level."""
    corners = positions[faces].astype(np.float64)
    edges = corners[:, 1:] - corners[:, :1]
    cross = np.cross(edges[:, 0], edges[:, 1])
    is_level = np.abs(cross[:, 1]) > 0.97 * np.linalg.norm(cross, axis=1)
    longest = np.linalg.norm(np.roll(corners, 1, axis=1) - corners, axis=2).max(1)
    steps = np.clip(np.ceil(longest / _STEP), 1, 200).astype(int)
    points, level = [], []
    for count in np.unique(steps):
        u, v = (grid[np.add(*np.indices((count, count))) < count] for grid in np.indices((count, count)))
        weights = (np.stack([u, v], 1) + 1 / 3) / count
        group = steps == count
        points.append((corners[group, :1] + np.einsum("wk,nkj->nwj", weights, edges[group])).reshape(-1, 3))
        level.append(np.repeat(is_level[group], len(weights)))
    return np.concatenate(points), np.concatenate(level)


def _levels(heights: np.ndarray) -> list[float]:
    """Heights at which level faces gather, each the top of its cluster."""
    counts = np.bincount(np.round(np.maximum(heights, 0) / 0.005).astype(int), minlength=1)
    wanted = _MIN_SIDE**2 / _STEP**2 / 4
    levels: list[float] = []
    for index in range(len(counts) - 1, int(_MIN_HEIGHT / 0.005), -1):
        if counts[index] >= wanted and (not levels or levels[-1] - index * 0.005 > 2 * _LEVEL):
            near = heights[np.abs(heights - index * 0.005) < 0.004]
            levels.append(float(np.median(near)))
    return levels


def _free_height(points: np.ndarray, column: np.ndarray, cells: np.ndarray, level: float) -> np.ndarray:
    """Free height above `level` in every cell, at most `OPEN_CLEARANCE`."""
    above = points[:, 1] > level + 0.012
    roof = np.full(cells, OPEN_CLEARANCE)
    np.minimum.at(roof, tuple(column[above].T), points[above, 1] - level)
    return roof


def _is_open_in_front(
    points: np.ndarray, span: tuple[float, float], z: float, level: float, clearance: float
) -> bool:
    """Whether nothing covers the space above a rectangle from the front: few points there beyond its edge."""
    inside = (points[:, 0] > span[0] + 0.03) & (points[:, 0] < span[1] - 0.03) & (points[:, 2] > z - 0.02)
    inside &= (points[:, 1] > level + 0.03) & (points[:, 1] < level + clearance - 0.03)
    tiles = np.unique(np.floor(points[inside][:, :2] / _CELL).astype(int), axis=0)
    window = max(1.0, (span[1] - span[0]) * (clearance - 0.06) / _CELL**2)
    return len(tiles) < 0.25 * window


def largest_rectangle(free: np.ndarray) -> tuple[int, int, int, int]:
    """The largest all-true rectangle of a (I, K) mask as half-open bounds (i0, k0, i1, k1)."""
    heights = np.zeros(free.shape[1], int)
    best, bounds = 0, (0, 0, 0, 0)
    for i, row in enumerate(free):
        heights = np.where(row, heights + 1, 0)
        for height in np.unique(heights[heights > 0]):
            wide = np.concatenate([[False], heights >= height, [False]])
            starts, ends = np.flatnonzero(wide[1:] & ~wide[:-1]), np.flatnonzero(~wide[1:] & wide[:-1])
            longest = int(np.argmax(ends - starts))
            area = int(height) * int(ends[longest] - starts[longest])
            if area > best:
                best = area
                bounds = (i + 1 - int(height), int(starts[longest]), i + 1, int(ends[longest]))
    return bounds
