"""Coarser levels of detail: fewer triangles between the same vertices, for meshes that are seen from afar."""

from __future__ import annotations

import numpy as np

from .assets import Level

RATIOS = (0.5, 0.25, 0.12, 0.05)
MIN_FACES = 60
_SAMPLES = 2000
_ERROR_QUANTILE = 0.98
_WORTH, _ENOUGH = 0.8, 1.3
_MATERIAL, _NORMAL, _UV = 100.0, 1.0, 2.0  # what a changed material, normal or texture coordinate costs


def coarser_levels(
    positions: np.ndarray, normals: np.ndarray, uvs: np.ndarray, materials: np.ndarray, faces: np.ndarray
) -> tuple[Level, ...]:
    """Ever coarser levels of a mesh by quadric edge collapse; none of a mesh that is simple already.

    A collapsed vertex takes the place of the original vertex nearest to it, so that a level is a list of
    faces alone. Where vertices are split, the one that looks most like the face's own corner is taken.

    Args:
        positions: (V, 3) metres.
        normals: (V, 3) unit length.
        uvs: (V, 2).
        materials: (V,) numbers.
        faces: (F, 3).
    """
    from fast_simplification import replay_simplification

    if len(faces) < 2 * MIN_FACES:
        return ()
    points, point_of = np.unique(positions.astype(np.float32), axis=0, return_inverse=True)
    point_of = point_of.reshape(-1)
    corners = point_of[faces].astype(np.int32)
    attributes = np.column_stack([_MATERIAL * materials, _NORMAL * normals, _UV * uvs])
    samples = _surface_points(points, corners)
    levels: list[Level] = []
    for ratio in RATIOS:
        count = max(MIN_FACES, round(ratio * len(faces)))
        collapses = _collapses(points, corners, count)
        moved, _, place = replay_simplification(points, corners, collapses)
        goal = _nearest_members(points, moved, place)[place]
        kept = _solid_faces(goal[corners])
        if len(kept) == 0:
            break
        coarse = _matching_vertices(faces[kept], goal[corners[kept]], point_of, attributes)
        error = _distance(samples, points, corners, goal[corners[kept]])
        if len(coarse) < _WORTH * len(levels[-1].faces if levels else faces):
            levels.append(Level(coarse, max([error, *(level.error for level in levels)])))
    return tuple(levels)


def _collapses(points: np.ndarray, corners: np.ndarray, count: int) -> np.ndarray:
    """Edge collapses that leave about `count` faces: careful ones, if these go far enough."""
    from fast_simplification import simplify

    for aggression in (3, 7):
        _, left, collapses = simplify(
            points, corners, target_count=count, agg=aggression, return_collapses=True
        )
        if len(left) <= _ENOUGH * count:
            break
    return collapses


def _nearest_members(points: np.ndarray, moved: np.ndarray, place: np.ndarray) -> np.ndarray:
    """(M,) for each of the moved points, the nearest of the points that were collapsed into it."""
    distance = np.linalg.norm(points - moved[place], axis=1)
    order = np.lexsort([distance, place])
    first = np.flatnonzero(np.diff(place[order], prepend=-1))
    nearest = np.zeros(len(moved), np.int64)
    nearest[place[order[first]]] = order[first]
    return nearest


def _solid_faces(corners: np.ndarray) -> np.ndarray:
    """Numbers of the faces with three different corners, each such triple once."""
    ordered = np.sort(corners, axis=1)
    solid = np.flatnonzero((ordered[:, 0] != ordered[:, 1]) & (ordered[:, 1] != ordered[:, 2]))
    return solid[np.sort(np.unique(ordered[solid], axis=0, return_index=True)[1])]


def _matching_vertices(
    faces: np.ndarray, goal: np.ndarray, point_of: np.ndarray, attributes: np.ndarray
) -> np.ndarray:
    """(F, 3) vertices at the points `goal` (F, 3) with attributes most like those of the vertices `faces`."""
    pairs, inverse = np.unique(
        np.stack([faces.ravel(), goal.ravel()], 1).astype(np.int64), axis=0, return_inverse=True
    )
    order = np.argsort(point_of, kind="stable")
    count = np.bincount(point_of)
    start = np.cumsum(count) - count
    options = count[pairs[:, 1]]
    pair = np.repeat(np.arange(len(pairs)), options)
    within = np.arange(len(pair)) - np.repeat(np.cumsum(options) - options, options)
    vertex = order[start[pairs[pair, 1]] + within]
    cost = np.abs(attributes[vertex] - attributes[pairs[pair, 0]]).sum(1)
    cost[vertex == pairs[pair, 0]] = -1.0
    best = np.lexsort([vertex, cost, pair])
    best = best[np.flatnonzero(np.diff(pair[best], prepend=-1))]
    return vertex[best][inverse.reshape(-1)].reshape(faces.shape).astype(np.int32)


def _surface_points(points: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """(N, 3) points spread over the faces, always the same ones."""
    rng = np.random.default_rng(0)
    a, b, c = (points[faces[:, corner]] for corner in range(3))
    area = np.linalg.norm(np.cross(b - a, c - a), axis=1) + 1e-20
    face = rng.choice(len(faces), _SAMPLES, p=area / area.sum())
    weights = rng.dirichlet((1, 1, 1), _SAMPLES)
    return (points[faces[face]] * weights[..., None]).sum(1)


def _distance(samples: np.ndarray, points: np.ndarray, fine: np.ndarray, coarse: np.ndarray) -> float:
    """Distance in metres that nearly all points of one surface keep from the other, whichever is farther."""
    there = _distances(samples, points, coarse)
    back = _distances(_surface_points(points, coarse), points, fine)
    return float(max(np.quantile(there, _ERROR_QUANTILE), np.quantile(back, _ERROR_QUANTILE)))


def _distances(queries: np.ndarray, points: np.ndarray, faces: np.ndarray) -> np.ndarray:
    import open3d

    scene = open3d.t.geometry.RaycastingScene()
    scene.add_triangles(
        open3d.core.Tensor(np.ascontiguousarray(points, np.float32)),
        open3d.core.Tensor(np.ascontiguousarray(faces, np.uint32)),
    )
    return scene.compute_distance(open3d.core.Tensor(queries.astype(np.float32))).numpy()
