"""The surface of a baked scene: its key views' depths fused into signed distances (Curless and Levoy 1996).

The photo's depth counts most where the photo sees, the sampled views' behind it and beside it. Space that no
key view has seen stays open, or is filled in for a closed mesh.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import open3d as o3d
import open3d.core as o3c
import scipy.sparse
import torch
import torch.nn.functional as F
from pytorch3d.renderer import PerspectiveCameras
from torch import Tensor

from scenediff.renderers.cameras import cam_to_world, ndc_to_pixels_intrinsics
from scenediff.renderers.depth_maps import camera_centers, project, refine, unproject
from scenediff.renderers.layers import KeyView

FARTHEST = 15.0  # metres; deeper pixels are not meshed
TRUNCATION = 0.1  # of the depth: by so much key views of a soft field disagree about one surface
FEWEST_VOXELS = 3.0  # of truncation
OPAQUE = 0.9  # opacity; below it, a pixel looks out of the sampled space
REFINEMENT = 3  # of the depth's grid before fusion
SMALLEST_PIECE = 0.001  # steradians from the photo's camera; smaller pieces of surface are floaters
SAMPLED_WEIGHT, WIDE_WEIGHT = 0.3, 0.06  # of a sampled view's depth and a coarse one's, the photo's being 1
BLOCK = 8  # voxels
WALL = 10.0  # voxels, of a solid
GAP = 2  # triangles to either side
SMOOTHING = 5  # rounds
MOST_VOXELS = 4_000_000  # of a solid
CHUNK = 1 << 18  # voxels at a time, little enough for a CPU's cache


def default_voxel_size(keys: Sequence[KeyView]) -> float:
    """Metres: 1/90 of the photo's median depth, between 4 mm and 4 cm."""
    return float((keys[0].depth.median() / 90).clamp(0.004, 0.04))


def fuse(keys: Sequence[KeyView], voxel_size: float) -> o3d.geometry.TriangleMesh:
    """The surface that the key views see, open where none does; floaters are removed.

    Args:
        keys: the photo's first. voxel_size: metres.

    Raises:
        ValueError: if nothing of the scene lies within 15 m.
    """
    depths = _some_depths(keys)
    grid = _grid(voxel_size)
    blocks = _blocks_near_surfaces(grid, keys, depths)
    points, rows = _voxels(grid, blocks)
    distance, weight = signed_distances(points, keys, depths, voxel_size)
    surface = _seen_part(_zero_level(grid, rows, distance, weight > 0), keys, depths)
    _drop_small_pieces(surface, SMALLEST_PIECE)
    return _smoothed(_in_fixed_order(surface))


def fuse_solid(
    keys: Sequence[KeyView], voxel_size: float, max_faces: int | None = None
) -> o3d.geometry.TriangleMesh:
    """A closed surface: of the block around what `fuse` finds, out of which the seen space is carved.

    Args:
        keys: the photo's first. voxel_size: metres.
        max_faces: if there would be more, voxels are made larger.
    """
    depths = _some_depths(keys)
    corners = np.asarray(fuse(keys, 2 * voxel_size).vertices)
    wall = WALL * voxel_size  # behind the outermost surfaces
    low, high = corners.min(0) - wall, corners.max(0) + wall
    solid = _carved(keys, depths, low, high, 3 * voxel_size)
    finest = float(np.prod(high - low) / MOST_VOXELS) ** (1 / 3)
    if max_faces is not None:  # their number goes with the square of the voxels'
        finest = max(finest, 3 * voxel_size * (len(solid.triangles) / max_faces) ** 0.5)
    if finest < 3 * voxel_size:
        solid = _carved(keys, depths, low, high, max(finest, voxel_size))
    return solid


def _carved(
    keys: Sequence[KeyView], depths: Sequence[Tensor], low: np.ndarray, high: np.ndarray, voxel_size: float
) -> o3d.geometry.TriangleMesh:
    """The largest piece that is left of the box between two corners."""
    grid = _grid(voxel_size)
    first, last = (np.floor(corner / (BLOCK * voxel_size)).astype(np.int32) for corner in (low, high))
    sides = [np.arange(start - 1, stop + 2, dtype=np.int32) for start, stop in zip(first, last, strict=True)]
    blocks = o3c.Tensor(np.stack(np.meshgrid(*sides, indexing="ij"), axis=-1).reshape(-1, 3))
    grid.hashmap().activate(blocks)
    points, rows = _voxels(grid, blocks)
    distance, weight = signed_distances(points, keys, depths, voxel_size)
    distance[weight == 0] = -1.0
    outside = ((points < torch.from_numpy(low)) | (points > torch.from_numpy(high))).any(1)
    distance[outside] = 1.0
    surface = _zero_level(grid, rows, distance, torch.ones_like(outside))
    _drop_small_pieces(surface, np.inf)
    return _smoothed(_in_fixed_order(surface))


def fusable_depth(key: KeyView) -> Tensor:
    """(h, w) depth in metres on a finer grid, 0 where unknown, as grazing surfaces' pixels would be steps."""
    trusted = (key.opacity > OPAQUE) & (key.depth < FARTHEST)
    fine = F.interpolate(trusted.float(), scale_factor=REFINEMENT, mode="nearest")
    return (refine(key.depth, REFINEMENT) * fine)[0, 0]


def signed_distances(
    points: Tensor, keys: Sequence[KeyView], depths: Sequence[Tensor], voxel_size: float
) -> tuple[Tensor, Tensor]:
    """Weighted means of the truncated distances in [-1, 1], positive towards the cameras, and their weights.

    Args:
        points: (P, 3) metres. depths: `fusable_depth` of each key view.
    """
    parts = [_chunk_distances(chunk, keys, depths, voxel_size) for chunk in points.split(CHUNK)]
    distance, weight = (torch.cat(part) for part in zip(*parts, strict=True))
    return distance, weight


def _chunk_distances(
    points: Tensor, keys: Sequence[KeyView], depths: Sequence[Tensor], voxel_size: float
) -> tuple[Tensor, Tensor]:
    total, weights = torch.zeros(len(points)), torch.zeros(len(points))
    for key, depth in zip(keys, depths, strict=True):
        height, width = depth.shape
        pixels, z = project(points, key.cameras, (height, width))
        x, y = pixels.floor().long().unbind(-1)
        inside = (z > 0) & (x >= 0) & (x < width) & (y >= 0) & (y < height)
        x, y = x.clamp(0, width - 1), y.clamp(0, height - 1)
        surface = depth[y, x]
        reach = (TRUNCATION * surface).clamp(min=FEWEST_VOXELS * voxel_size)
        ahead = (surface - z) / reach
        known = inside & (surface > 0) & (ahead > -1)
        weight = known * key.confidence[y // REFINEMENT, x // REFINEMENT] * _weight(key)
        total += weight * ahead.clamp(max=1)
        weights += weight
    return total / weights.clamp(min=1e-12), weights


def _weight(key: KeyView) -> float:
    if key.from_photo:
        return 1.0
    return WIDE_WEIGHT if key.handicap else SAMPLED_WEIGHT


def _some_depths(keys: Sequence[KeyView]) -> list[Tensor]:
    depths = [fusable_depth(key) for key in keys]
    if not any(depth.any() for depth in depths):
        raise ValueError(f"no surface within {FARTHEST:g} m was found in {len(keys)} key views")
    return depths


def _grid(voxel_size: float) -> o3d.t.geometry.VoxelBlockGrid:
    return o3d.t.geometry.VoxelBlockGrid(
        ("tsdf", "weight"), (o3c.float32, o3c.float32), ((1,), (1,)), voxel_size, block_resolution=BLOCK,
        block_count=20_000, device=o3c.Device("CPU:0"),
    )


def _blocks_near_surfaces(
    grid: o3d.t.geometry.VoxelBlockGrid, keys: Sequence[KeyView], depths: Sequence[Tensor]
) -> o3c.Tensor:
    """The coordinates of the grid's blocks, activated, in which some view's surface lies."""
    for key, depth in zip(keys, depths, strict=True):
        if depth.any():
            image = o3d.t.geometry.Image(o3c.Tensor(np.ascontiguousarray(depth.numpy())))
            intrinsics, world_to_cam = _open3d_camera(key, (depth.shape[0], depth.shape[1]))
            blocks = grid.compute_unique_block_coordinates(
                image, intrinsics, world_to_cam, 1.0, FARTHEST, FEWEST_VOXELS
            )
            grid.hashmap().activate(blocks)
    active = grid.hashmap().active_buf_indices()
    return grid.hashmap().key_tensor()[active.to(o3c.int64)]


def _voxels(grid: o3d.t.geometry.VoxelBlockGrid, blocks: o3c.Tensor) -> tuple[Tensor, o3c.Tensor]:
    """(P, 3) world points of all voxels of some blocks, and their rows in the grid's attributes."""
    places, rows = grid.voxel_coordinates_and_flattened_indices(grid.hashmap().find(blocks)[0])
    return torch.from_numpy(places.numpy()), rows


def _zero_level(
    grid: o3d.t.geometry.VoxelBlockGrid, rows: o3c.Tensor, distance: Tensor, known: Tensor
) -> o3d.geometry.TriangleMesh:
    grid.attribute("tsdf").reshape((-1, 1))[rows] = o3c.Tensor(distance[:, None].numpy())
    grid.attribute("weight").reshape((-1, 1))[rows] = o3c.Tensor(known[:, None].float().numpy())
    return grid.extract_triangle_mesh(weight_threshold=0.5).to_legacy()


def _seen_part(
    surface: o3d.geometry.TriangleMesh, keys: Sequence[KeyView], depths: Sequence[Tensor]
) -> o3d.geometry.TriangleMesh:
    """The triangles that key views' rays meet first, and those in small gaps between these.

    Where views contradict each other, the distances also change sign behind the surface.
    """
    faces = np.asarray(surface.triangles)
    rays = o3d.t.geometry.RaycastingScene()
    rays.add_triangles(o3d.t.geometry.TriangleMesh.from_legacy(surface))
    touched = np.zeros(len(surface.vertices), bool)
    for key, depth in zip(keys, depths, strict=True):
        hits = cast_rays(rays, key.cameras, (depth.shape[0], depth.shape[1]))
        face = hits["primitive_ids"].numpy()[depth.numpy() > 0]
        touched[faces[face[face != rays.INVALID_ID]]] = True
    surface.remove_triangles_by_mask(~(_without_gaps(touched, faces) & _faces_some_camera(surface, keys)))
    surface.remove_unreferenced_vertices()
    return surface


def _without_gaps(touched: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """bool (F,): the faces between touched vertices (V,), and where others are surrounded by them closely."""
    wide = touched
    for _ in range(GAP):
        spread = wide[faces].any(1)
        wide = np.bincount(faces[spread].ravel(), minlength=len(touched)) > 0
    for _ in range(GAP):
        outside = ~wide[faces].all(1)
        wide = wide & (np.bincount(faces[outside].ravel(), minlength=len(touched)) == 0)
    return (touched | wide)[faces].all(1)


def _faces_some_camera(surface: o3d.geometry.TriangleMesh, keys: Sequence[KeyView]) -> np.ndarray:
    """bool (F,): whether some key view's camera is in front of each face, not behind it."""
    corners = np.asarray(surface.vertices)[np.asarray(surface.triangles)]
    normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    offset = (normal * corners[:, 0]).sum(1)
    centers = torch.cat([camera_centers(key.cameras) for key in keys]).double().numpy()
    return (normal @ centers.T > offset[:, None]).any(1)


def cast_rays(
    rays: o3d.t.geometry.RaycastingScene, cameras: PerspectiveCameras, size: tuple[int, int]
) -> dict[str, o3c.Tensor]:
    """What the (height, width) pixels of a camera see; `t_hit` is the depth along the optical axis."""
    points = unproject(torch.ones(1, 1, *size), cameras)[0]
    centers = camera_centers(cameras)[0].expand_as(points)
    return rays.cast_rays(o3c.Tensor(torch.cat([centers, points - centers], dim=-1).float().numpy()))


def _open3d_camera(key: KeyView, size: tuple[int, int]) -> tuple[o3c.Tensor, o3c.Tensor]:
    """Intrinsics and world-to-camera matrix with Open3D's axes, +X right and +Y down."""
    focal, principal = (values[0].tolist() for values in ndc_to_pixels_intrinsics(key.cameras, size))
    intrinsics = np.array([[focal[0], 0, principal[0]], [0, focal[1], principal[1]], [0, 0, 1]])
    world_to_cam = np.linalg.inv(cam_to_world(key.cameras)[0].double().numpy())
    return o3c.Tensor(intrinsics), o3c.Tensor(np.diag([-1.0, -1.0, 1.0, 1.0]) @ world_to_cam)


def _in_fixed_order(surface: o3d.geometry.TriangleMesh) -> o3d.geometry.TriangleMesh:
    """The same surface, vertices and triangles sorted: Open3D's parallel hash map has them in any order."""
    vertices, rank = unique_rows(np.asarray(surface.vertices))
    faces = rank[np.asarray(surface.triangles)]
    turn = (faces.argmin(1, keepdims=True) + np.arange(3)) % 3  # the smallest index first, winding kept
    faces = unique_rows(np.take_along_axis(faces, turn, axis=1))[0].astype(np.int32)
    ordered = o3d.geometry.TriangleMesh(
        o3d.utility.Vector3dVector(vertices), o3d.utility.Vector3iVector(faces)
    )
    return ordered.remove_degenerate_triangles()


def unique_rows(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The different rows (N, C), sorted, and which of them each row is; four times as fast as NumPy's own."""
    order = np.lexsort(rows.T[::-1])
    ordered = rows[order]
    first = np.ones(len(rows), bool)
    first[1:] = (ordered[1:] != ordered[:-1]).any(1)
    place = np.empty(len(rows), np.int64)
    place[order] = first.cumsum() - 1
    return ordered[first], place


def _smoothed(surface: o3d.geometry.TriangleMesh) -> o3d.geometry.TriangleMesh:
    """Taubin's smoothing, as voxels leave steps; the borders of the open surface stay where they are."""
    vertices, faces = np.asarray(surface.vertices), np.asarray(surface.triangles)
    first, second = faces.ravel(), np.roll(faces, -1, axis=1).ravel()
    edges = scipy.sparse.csr_matrix((np.ones(len(first)), (first, second)), shape=(len(vertices),) * 2)
    inner = np.ones((len(vertices), 1))
    inner[np.unique(np.concatenate((edges != edges.T).nonzero()))] = 0  # an edge of one face only
    neighbours = edges.maximum(edges.T).sign()
    count = np.maximum(neighbours.sum(1).A, 1)
    for step in (0.5, -0.53) * SMOOTHING:
        vertices = vertices + step * inner * (neighbours @ vertices / count - vertices)
    surface.vertices = o3d.utility.Vector3dVector(vertices)
    return surface


def _drop_small_pieces(surface: o3d.geometry.TriangleMesh, smallest: float) -> None:
    """Removes pieces that would cover less than so many steradians of the photo, but never the largest."""
    vertices, faces = np.asarray(surface.vertices), np.asarray(surface.triangles)
    edges = scipy.sparse.coo_matrix(
        (np.ones(2 * len(faces), bool), (faces[:, :2].ravel(), faces[:, 1:].ravel())),
        shape=(len(vertices),) * 2,
    )
    piece = scipy.sparse.csgraph.connected_components(edges, directed=False)[1][faces[:, 0]]
    corners = vertices[faces]
    areas = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1) / 2
    angles = np.bincount(piece, areas / (corners.mean(1) ** 2).sum(1))
    surface.remove_triangles_by_mask(angles[piece] < min(smallest, angles.max(initial=0.0)))
    surface.remove_unreferenced_vertices()
