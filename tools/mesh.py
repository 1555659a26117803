"""Textured meshes of baked scenes: fused from the key views' depth, coloured by projecting their pictures.

The mesh has the scene's axes; a GLB has glTF's (+X right, +Y up, -Z ahead of the photo's camera), in metres.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import open3d as o3d
import open3d.core as o3c
import scipy.sparse
import torch
import torch.nn.functional as F
import trimesh
from PIL import Image
from scipy.spatial import cKDTree
from torch import Tensor

from scenediff.renderers.baked import BakedScene
from scenediff.renderers.cameras import cam_to_world, ndc_to_pixels_intrinsics, points_to_opengl
from scenediff.renderers.depth_maps import camera_centers, project, refine
from scenediff.renderers.layers import KeyView

FARTHEST = 15.0  # metres; deeper pixels are not meshed
TRUNCATION = 4.0  # voxels
REFINEMENT = 3  # of the depth's grid before fusion
SMALLEST_PIECE = 0.03  # square metres; smaller pieces of surface are floaters
TILE_BORDER = 4  # pixels repeated around every picture in the atlas, against bleeding
SURFACE_TOLERANCE = 0.05  # relative difference of depth up to which a view sees a surface
PHOTO_PREFERENCE = 3.0  # how much less frontal or close the photo may be and still give the colour


def scene_mesh(
    baked: BakedScene, *, voxel_size: float | None = None, max_faces: int = 80_000
) -> trimesh.Trimesh:
    """A mesh with a texture, in the scene's axes and metres.

    Args:
        baked: supplies the key views; nothing is rendered.
        voxel_size: metres; by default 1/120 of the photo's median depth, between 1 and 4 cm.
        max_faces: larger meshes are decimated.

    Raises:
        ValueError: if nothing of the scene lies within 15 m.
    """
    if voxel_size is None:
        voxel_size = float((baked.keys[0].depth.median() / 120).clamp(0.01, 0.04))
    surface = fuse(baked.keys, voxel_size, max_faces)
    vertices, faces = np.asarray(surface.vertices), np.asarray(surface.triangles)
    views = choose_views(vertices, faces, baked.keys)
    atlas, corners = pack_atlas(baked.keys)
    return _textured(vertices, faces, np.asarray(surface.vertex_normals), views, baked.keys, atlas, corners)


def export_glb(mesh: trimesh.Trimesh, path: str | Path) -> None:
    """Writes binary glTF 2.0: +X right, +Y up, -Z ahead, metres; the same mesh gives the same bytes."""
    vertices = points_to_opengl(torch.from_numpy(np.array(mesh.vertices))).numpy()
    normals = points_to_opengl(torch.from_numpy(np.array(mesh.vertex_normals))).numpy()
    turned = trimesh.Trimesh(
        vertices, mesh.faces, vertex_normals=normals, visual=mesh.visual.copy(), process=False
    )
    data = trimesh.exchange.gltf.export_glb(trimesh.Scene({"scene": turned}), include_normals=True)
    Path(path).write_bytes(data)


def fuse(keys: tuple[KeyView, ...], voxel_size: float, max_faces: int) -> o3d.geometry.TriangleMesh:
    """The surface the key views' depths agree on, by truncated signed distances (Curless and Levoy 1996)."""
    grid = o3d.t.geometry.VoxelBlockGrid(
        ("tsdf", "weight"), (o3c.float32, o3c.float32), ((1,), (1,)), voxel_size, block_resolution=16,
        block_count=2000, device=o3c.Device("CPU:0"),
    )
    depths = [_trusted_depth(key, [other for other in keys if other.handicap < key.handicap]) for key in keys]
    for key, depth in zip(keys, depths, strict=True):
        if not depth.any():
            continue
        image = o3d.t.geometry.Image(o3c.Tensor(np.ascontiguousarray(depth.numpy())))
        intrinsics, world_to_cam = _open3d_camera(key, (depth.shape[0], depth.shape[1]))
        common = (image, intrinsics, world_to_cam, 1.0, FARTHEST, TRUNCATION)
        blocks = grid.compute_unique_block_coordinates(*common)
        grid.integrate(blocks, *common)
    if not any(depth.any() for depth in depths):
        raise ValueError(f"no surface within {FARTHEST} m was found in {len(keys)} key views")
    surface = _in_fixed_order(grid.extract_triangle_mesh(weight_threshold=1.0).to_legacy())
    _drop_small_pieces(surface)
    surface = surface.filter_smooth_taubin(number_of_iterations=5)  # voxels leave steps
    if len(surface.triangles) > max_faces:
        surface = surface.simplify_quadric_decimation(max_faces)
    return surface.compute_vertex_normals()


def choose_views(vertices: np.ndarray, faces: np.ndarray, keys: tuple[KeyView, ...]) -> np.ndarray:
    """The key view that colours each face (unoccluded, frontal, close, the photo if possible), or -1."""
    triangles = vertices[faces]
    normal = np.cross(triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0])
    normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-12)
    centroid = triangles.mean(1)
    scores = np.empty((len(faces), len(keys)))
    for k, key in enumerate(keys):
        sight = _visibility(torch.from_numpy(vertices).float(), key)[faces].min(1)
        towards = camera_centers(key.cameras)[0].numpy() - centroid
        distance = np.linalg.norm(towards, axis=1)
        facing = (normal * towards).sum(1) / distance
        sharpness = key.image.shape[-2] / np.tan(_half_fov(key)) / distance
        scores[:, k] = sight * np.maximum(facing, 0) * sharpness * (PHOTO_PREFERENCE if key.from_photo else 1)
    smooth = _smoothed_over_faces(scores, faces)
    smooth[scores <= 0] = 0
    return np.where(smooth.max(1) > 0, smooth.argmax(1), -1)


def pack_atlas(keys: tuple[KeyView, ...], width: int = 1024) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """One picture (H, W, 3) uint8 with all key images, and the (x, y) of each image's top left corner."""
    tiles = []
    for key in keys:
        pixels = ((key.image[0].permute(1, 2, 0) + 1) * 127.5).round().clamp(0, 255).byte().numpy()
        tiles.append(np.pad(pixels, ((TILE_BORDER,) * 2, (TILE_BORDER,) * 2, (0, 0)), mode="edge"))
    width = max(width, *(tile.shape[1] for tile in tiles))
    places, x, y, row_height = [], 0, 0, 0
    for tile in tiles:
        if x + tile.shape[1] > width:
            x, y, row_height = 0, y + row_height, 0
        places.append((x, y))
        x, row_height = x + tile.shape[1], max(row_height, tile.shape[0])
    atlas = np.zeros((y + row_height, width, 3), np.uint8)
    for tile, (x, y) in zip(tiles, places, strict=True):
        atlas[y : y + tile.shape[0], x : x + tile.shape[1]] = tile
    return atlas, [(x + TILE_BORDER, y + TILE_BORDER) for x, y in places]


@dataclass(frozen=True)
class _Corners:
    """Vertices split so that each belongs to one picture: original index, picture, and faces made of them."""

    vertex: np.ndarray
    view: np.ndarray
    faces: np.ndarray


def _split_at_tiles(faces: np.ndarray, views: np.ndarray, num_views: int) -> _Corners:
    """Seen faces share vertices within a picture; a face that no view sees gets three of its own."""
    view = np.repeat(views, 3)
    own = num_views + np.repeat(np.arange(len(faces)), 3)
    pairs = faces.reshape(-1).astype(np.int64) * (num_views + len(faces)) + np.where(view >= 0, view, own)
    _, first, inverse = np.unique(pairs, return_index=True, return_inverse=True)
    return _Corners(faces.reshape(-1)[first], view[first], inverse.reshape(-1, 3))


def _textured(
    vertices: np.ndarray, faces: np.ndarray, normals: np.ndarray, views: np.ndarray,
    keys: tuple[KeyView, ...], atlas: np.ndarray, corners: list[tuple[int, int]],
) -> trimesh.Trimesh:
    split = _split_at_tiles(faces, views, len(keys))
    pixels = np.zeros((len(split.vertex), 2))
    for k, key in enumerate(keys):
        mine = split.view == k
        size = (key.image.shape[-2], key.image.shape[-1])
        positions = torch.from_numpy(vertices[split.vertex[mine]]).float()
        pixels[mine] = project(positions, key.cameras, size)[0].numpy() + corners[k]
    unseen, seen = (views < 0).nonzero()[0], (split.view >= 0).nonzero()[0]
    if len(unseen) and len(seen):  # a flat patch of the colour of the closest surface that is seen
        centroids = vertices[faces[unseen]].mean(1)
        closest = seen[cKDTree(vertices[split.vertex[seen]]).query(centroids)[1]]
        pixels[split.faces[unseen]] = pixels[closest][:, None]
    uv = pixels / (atlas.shape[1], atlas.shape[0])
    uv[:, 1] = 1 - uv[:, 1]  # trimesh counts v from the bottom
    material = trimesh.visual.material.PBRMaterial(
        name="scene", baseColorTexture=Image.fromarray(atlas), roughnessFactor=1.0, metallicFactor=0.0,
        doubleSided=True,
    )
    return trimesh.Trimesh(
        vertices[split.vertex], split.faces, vertex_normals=normals[split.vertex],
        visual=trimesh.visual.TextureVisuals(uv=uv, material=material), process=False,
    )


def _trusted_depth(key: KeyView, better: list[KeyView]) -> Tensor:
    """(h, w) depth in metres on a finer grid, as pixels of grazing surfaces would be steps.

    It is 0 where unknown and where one of the better views has seen the same surface.
    """
    trusted = (key.opacity > 0.5) & (key.depth < FARTHEST)
    for other in better:
        seen = _visibility(key.points.reshape(-1, 3), other) > 0
        trusted &= ~torch.from_numpy(seen).reshape(trusted.shape)
    fine = F.interpolate(trusted.float(), scale_factor=REFINEMENT, mode="nearest")
    return (refine(key.depth, REFINEMENT) * fine)[0, 0]


def _open3d_camera(key: KeyView, size: tuple[int, int]) -> tuple[o3c.Tensor, o3c.Tensor]:
    """Intrinsics and world-to-camera matrix with Open3D's axes, +X right and +Y down.

    Its voxel grid looks up the depth at truncated coordinates, so pixel centres are at half-integers as here.
    """
    focal, principal = (values[0].tolist() for values in ndc_to_pixels_intrinsics(key.cameras, size))
    intrinsics = np.array([[focal[0], 0, principal[0]], [0, focal[1], principal[1]], [0, 0, 1]])
    world_to_cam = np.linalg.inv(cam_to_world(key.cameras)[0].double().numpy())
    return o3c.Tensor(intrinsics), o3c.Tensor(np.diag([-1.0, -1.0, 1.0, 1.0]) @ world_to_cam)


def _in_fixed_order(surface: o3d.geometry.TriangleMesh) -> o3d.geometry.TriangleMesh:
    """The same surface, vertices and triangles sorted: Open3D's parallel hash map has them in any order."""
    vertices, rank = np.unique(np.asarray(surface.vertices), axis=0, return_inverse=True)
    faces = rank.reshape(-1)[np.asarray(surface.triangles)]
    turn = (faces.argmin(1, keepdims=True) + np.arange(3)) % 3  # the smallest index first, winding kept
    faces = np.unique(np.take_along_axis(faces, turn, axis=1), axis=0).astype(np.int32)
    ordered = o3d.geometry.TriangleMesh(
        o3d.utility.Vector3dVector(vertices), o3d.utility.Vector3iVector(faces)
    )
    return ordered.remove_degenerate_triangles()


def _drop_small_pieces(surface: o3d.geometry.TriangleMesh) -> None:
    """Removes pieces under a minimal area, but never the largest."""
    clusters, _, areas = surface.cluster_connected_triangles()
    small = np.asarray(areas) < min(SMALLEST_PIECE, np.max(areas, initial=0.0))
    surface.remove_triangles_by_mask(small[np.asarray(clusters)])
    surface.remove_unreferenced_vertices()


def _half_fov(key: KeyView) -> float:
    height, width = key.size
    return float(np.arctan(height / min(height, width) / float(key.cameras.focal_length[0, 1])))


def _visibility(points: Tensor, key: KeyView) -> np.ndarray:
    """For points (P, 3): 1 if a view surely sees them, 0.01 if it may, next to an edge, and 0 otherwise."""
    pixels, z = project(points, key.cameras, key.size)
    height, width = key.size
    x, y = pixels.floor().long().unbind(-1)
    inside = (z > 0) & (x >= 0) & (x < width) & (y >= 0) & (y < height)
    place = (y.clamp(0, height - 1), x.clamp(0, width - 1))
    depth = key.depth[0, 0][place]
    farthest = F.max_pool2d(key.depth, 3, stride=1, padding=1)[0, 0][place]
    nearest = -F.max_pool2d(-key.depth, 3, stride=1, padding=1)[0, 0][place]
    maybe = inside & ((z - depth).abs() < 2 * SURFACE_TOLERANCE * z)
    surely = maybe & (z < nearest * (1 + SURFACE_TOLERANCE)) & (z > farthest * (1 - SURFACE_TOLERANCE))
    return (surely * 0.99 + maybe * 0.01).numpy()


def _smoothed_over_faces(scores: np.ndarray, faces: np.ndarray, rounds: int = 4) -> np.ndarray:
    """Scores (F, K) averaged with those of adjacent faces, so that pictures meet along few, short seams."""
    pairs = trimesh.graph.face_adjacency(faces)
    rows, columns = np.concatenate([pairs[:, 0], pairs[:, 1]]), np.concatenate([pairs[:, 1], pairs[:, 0]])
    neighbours = scipy.sparse.csr_matrix((np.ones(len(rows)), (rows, columns)), shape=(len(faces),) * 2)
    count = 1 + np.asarray(neighbours.sum(1))
    for _ in range(rounds):
        scores = (scores + neighbours @ scores) / count
    return scores
