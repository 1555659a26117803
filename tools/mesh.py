"""Textured meshes of baked scenes: fused from the key views' depth, coloured by projecting their pictures.

The mesh has the scene's axes; a GLB has glTF's (+X right, +Y up, -Z ahead of the photo's camera), in metres.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fast_simplification
import numpy as np
import open3d as o3d
import scipy.sparse
import torch
import torch.nn.functional as F
import trimesh
from PIL import Image
from pytorch3d.renderer import PerspectiveCameras
from scipy.spatial import cKDTree
from torch import Tensor

from scenediff.renderers.baked import BakedScene
from scenediff.renderers.cameras import points_to_opengl, pytorch3d_to_opengl
from scenediff.renderers.depth_maps import camera_centers, project
from scenediff.renderers.layers import KeyView
from scenediff.tools.fusion import default_voxel_size, fuse

TILE_BORDER = 4  # pixels repeated around every picture in the atlas, against bleeding
SURFACE_TOLERANCE = 0.05  # relative difference of depth up to which a view sees a surface
PHOTO_PREFERENCE = 3.0  # how much less frontal or close the photo may be and still give the colour
CAMERA_NAME = "photo"
NEAREST = 0.05  # metres, the camera's near plane in a GLB
SIMPLIFYING = threading.Lock()  # fast_simplification keeps one mesh for all threads: they would mix them up


def scene_mesh(
    baked: BakedScene, *, voxel_size: float | None = None, max_faces: int = 80_000
) -> trimesh.Trimesh:
    """A mesh with the key views' pictures as its texture, in the scene's axes and metres; quick to make.

    Args:
        baked: supplies the key views; nothing is rendered.
        voxel_size: metres; by default `default_voxel_size`.
        max_faces: larger meshes are decimated.

    Raises:
        ValueError: if nothing of the scene lies within 15 m.
    """
    surface = fuse(baked.keys, voxel_size or default_voxel_size(baked.keys))
    vertices, faces = decimated(np.asarray(surface.vertices), np.asarray(surface.triangles), max_faces)
    views = choose_views(vertices, faces, baked.keys)
    atlas, corners = pack_atlas(baked.keys)
    return _textured(vertices, faces, views, baked.keys, atlas, corners)


def decimated(vertices: np.ndarray, faces: np.ndarray, max_faces: int) -> tuple[np.ndarray, np.ndarray]:
    """The surface with at most so many faces; a closed one may get holes."""
    if len(faces) > max_faces:
        with SIMPLIFYING:
            vertices, faces = fast_simplification.simplify(vertices, faces, target_count=max_faces)
    if len(faces) > max_faces:  # it gives up on pieces that have become small; what is slower does not
        surface = o3d.geometry.TriangleMesh(
            o3d.utility.Vector3dVector(vertices), o3d.utility.Vector3iVector(faces)
        ).simplify_quadric_decimation(max_faces)
        vertices, faces = np.asarray(surface.vertices), np.asarray(surface.triangles)
    return vertices.astype(np.float64), faces.astype(np.int64)


@dataclass(frozen=True)
class NamedCamera:
    """A camera that goes into a file of the scene.

    Attributes:
        cameras: a batch of one. size: (height, width) of its image.
    """

    cameras: PerspectiveCameras
    size: tuple[int, int]
    name: str = CAMERA_NAME


def export_glb(mesh: trimesh.Trimesh, path: str | Path, camera: NamedCamera | None = None) -> None:
    """Writes binary glTF 2.0: +X right, +Y up, -Z ahead, metres; the same mesh gives the same bytes."""

    def add_camera(tree: dict[str, Any]) -> None:
        if camera is not None:
            tree["cameras"] = [_gltf_camera(camera)]
            tree["scenes"][0]["nodes"].append(len(tree["nodes"]))
            pose = pytorch3d_to_gltf(camera.cameras)
            place = {} if np.array_equal(pose, np.eye(4)) else {"matrix": pose.T.ravel().tolist()}
            tree["nodes"].append({"name": camera.name, "camera": 0, **place})

    scene = trimesh.Scene({"scene": in_gltf_axes(mesh)})
    data = trimesh.exchange.gltf.export_glb(scene, include_normals=True, tree_postprocessor=add_camera)
    Path(path).write_bytes(data)


def in_gltf_axes(mesh: trimesh.Trimesh) -> trimesh.Trimesh:
    """The mesh with +X right, +Y up, -Z ahead."""
    vertices = points_to_opengl(torch.from_numpy(np.array(mesh.vertices))).numpy()
    normals = points_to_opengl(torch.from_numpy(np.array(mesh.vertex_normals))).numpy()
    return trimesh.Trimesh(
        vertices, mesh.faces, vertex_normals=normals, visual=mesh.visual.copy(), process=False,
        vertex_attributes=dict(mesh.vertex_attributes),
    )


def pytorch3d_to_gltf(cameras: PerspectiveCameras) -> np.ndarray:
    """(4, 4) camera-to-world matrix of one camera in the world of `in_gltf_axes`, column vectors."""
    turn = np.diag([-1.0, 1.0, -1.0, 1.0])
    return turn @ pytorch3d_to_opengl(cameras)[0].double().cpu().numpy()


def vertical_fov(camera: NamedCamera) -> float:
    """Radians."""
    height = camera.size[0] / min(camera.size)
    return float(2 * np.arctan(height / float(camera.cameras.focal_length[0, 1])))


def _gltf_camera(camera: NamedCamera) -> dict[str, Any]:
    height, width = camera.size
    lens = {"yfov": vertical_fov(camera), "aspectRatio": width / height, "znear": NEAREST}
    return {"name": camera.name, "type": "perspective", "perspective": lens}


def choose_views(vertices: np.ndarray, faces: np.ndarray, keys: tuple[KeyView, ...]) -> np.ndarray:
    """The key view that colours each face (unoccluded, frontal, close, the photo if possible), or -1."""
    centroid, normal = vertices[faces].mean(1), face_normals(vertices, faces)
    scores = np.empty((len(faces), len(keys)))
    for k, key in enumerate(keys):
        sight = visibility(torch.from_numpy(vertices).float(), key)[faces].min(1)
        towards = camera_centers(key.cameras)[0].numpy() - centroid
        distance = np.linalg.norm(towards, axis=1)
        facing = (normal * towards).sum(1) / distance
        preference = PHOTO_PREFERENCE if key.from_photo else 1.0
        scores[:, k] = sight * np.maximum(facing, 0) * pixels_per_metre(key) / distance * preference
    smooth = _smoothed_over_faces(scores, faces)
    smooth[scores <= 0] = 0
    return np.where(smooth.max(1) > 0, smooth.argmax(1), -1)


def face_normals(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """(F, 3) unit normals, zero for degenerate faces."""
    corners = vertices[faces]
    normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    return normal / np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-12)


def vertex_normals(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """(V, 3) unit normals; towards the photo's camera where a vertex has only degenerate faces."""
    normals = np.array(trimesh.Trimesh(vertices, faces, process=False).vertex_normals)
    lost = np.linalg.norm(normals, axis=1) < 0.5
    normals[lost] = -vertices[lost] / np.maximum(np.linalg.norm(vertices[lost], axis=1, keepdims=True), 1e-12)
    return normals


def pixels_per_metre(key: KeyView) -> float:
    """Of a key view's picture, at a distance of 1 m."""
    return min(key.image.shape[-2:]) / 2 * float(key.cameras.focal_length[0, 1])


def photo_saw(points: Tensor, photo: KeyView) -> np.ndarray:
    """bool (P,): the points (P, 3) that lie on what the photo shows, not behind it or beside."""
    return visibility(points, photo) > 0


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
class Corners:
    """Vertices split so that each belongs to one picture: original index, picture, and faces made of them."""

    vertex: np.ndarray
    view: np.ndarray
    faces: np.ndarray


def split_at_tiles(faces: np.ndarray, views: np.ndarray, num_views: int) -> Corners:
    """Seen faces share vertices within a picture; a face that no view sees gets three of its own."""
    view = np.repeat(views, 3)
    own = num_views + np.repeat(np.arange(len(faces)), 3)
    pairs = faces.reshape(-1).astype(np.int64) * (num_views + len(faces)) + np.where(view >= 0, view, own)
    _, first, inverse = np.unique(pairs, return_index=True, return_inverse=True)
    return Corners(faces.reshape(-1)[first], view[first], inverse.reshape(-1, 3))


def _textured(
    vertices: np.ndarray, faces: np.ndarray, views: np.ndarray, keys: tuple[KeyView, ...],
    atlas: np.ndarray, corners: list[tuple[int, int]],
) -> trimesh.Trimesh:
    split = split_at_tiles(faces, views, len(keys))
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
    normals = vertex_normals(vertices, faces)[split.vertex]
    return trimesh.Trimesh(
        vertices[split.vertex], split.faces, vertex_normals=normals,
        visual=trimesh.visual.TextureVisuals(uv=uv, material=material(atlas)), process=False,
    )


def material(texture: np.ndarray) -> trimesh.visual.material.PBRMaterial:
    """A rough, plain surface with a base-colour texture (H, W, 3) uint8."""
    return trimesh.visual.material.PBRMaterial(
        name="scene", baseColorTexture=Image.fromarray(texture), roughnessFactor=1.0, metallicFactor=0.0,
        doubleSided=True,
    )


def visibility(points: Tensor, key: KeyView) -> np.ndarray:
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


def image_at(image: Tensor, place: Tensor, mode: str = "bilinear") -> Tensor:
    """(P, C) values of an image (1, C, h, w) at places (P, 2), from -1 at its top left corner to 1."""
    grid = place[None, None]
    return F.grid_sample(image, grid, mode=mode, padding_mode="border", align_corners=False)[0, :, 0].T


def _smoothed_over_faces(scores: np.ndarray, faces: np.ndarray, rounds: int = 4) -> np.ndarray:
    """Scores (F, K) averaged with those of adjacent faces, so that pictures meet along few, short seams."""
    pairs = trimesh.graph.face_adjacency(faces)
    rows, columns = np.concatenate([pairs[:, 0], pairs[:, 1]]), np.concatenate([pairs[:, 1], pairs[:, 0]])
    neighbours = scipy.sparse.csr_matrix((np.ones(len(rows)), (rows, columns)), shape=(len(faces),) * 2)
    count = 1 + np.asarray(neighbours.sum(1))
    for _ in range(rounds):
        scores = (scores + neighbours @ scores) / count
    return scores
