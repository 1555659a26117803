"""Unwrapped meshes of baked scenes: a surface of few faces with a base-colour texture out of the key views.

Every face is mapped as the key view that sees it best shows it, so that most of the surface lies in a few
large charts; xatlas cuts what overlaps and packs them. The colours of all views are blended in the texture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import open3d as o3d
import open3d.core as o3c
import torch
import torch.nn.functional as F
import trimesh
import xatlas
from scipy.spatial import cKDTree
from torch import Tensor

from scenediff.renderers.baked import BakedScene, fill_holes
from scenediff.renderers.depth_maps import camera_centers, project
from scenediff.renderers.layers import KeyView
from scenediff.tools.fusion import OPAQUE, cast_rays, default_voxel_size, fuse, fuse_solid
from scenediff.tools.mesh import (
    PHOTO_PREFERENCE,
    choose_views,
    decimated,
    face_normals,
    image_at,
    material,
    photo_saw,
    pixels_per_metre,
    split_at_tiles,
    vertex_normals,
)

PADDING = 4  # texels between charts
BLEND_POWER = 4  # of the views' scores: how soon the best view wins
OCCLUSION = 0.02  # relative depth by which a point may lie behind the mesh's nearest surface
FINER = 2  # of the key views' depth, for that
FLATTEST = 0.05  # cosine at which a view counts as seeing a surface from the side


@dataclass(frozen=True)
class Unwrapped:
    """A surface cut open into the plane.

    Attributes:
        vertex: (V,) which of the surface's vertices each one is.
        faces: (F, 3) of these vertices.
        uv: (V, 2) in [0, 1], from the top left corner of the texture.
        size: of the square texture, texels.
    """

    vertex: np.ndarray
    faces: np.ndarray
    uv: np.ndarray
    size: int


def unwrapped_mesh(
    baked: BakedScene, *, max_faces: int = 50_000, texture_size: int = 1024, closed: bool = False,
    uncertainty: Sequence[Tensor] | None = None,
) -> trimesh.Trimesh:
    """A mesh with one texture, in the scene's axes and metres.

    Its vertex attributes are `_SEEN`, 1 where the photo saw the surface and 0 where it was sampled, and, if
    given, `_DEPTH_STD` and `_COLOR_STD`, how much samples differ there (`exports.key_disagreement`).

    Args:
        baked: supplies the key views; nothing is rendered.
        max_faces: larger meshes are simplified. texture_size: texels, of the square texture.
        closed: whether everything unseen is filled in (`fuse_solid`), else it stays open.
        uncertainty: for each key view (1, 2, h, w) those two.
    """
    keys = baked.keys
    vertices, faces = simplified_surface(keys, max_faces, closed)
    unwrapped = unwrap(vertices, faces, keys, texture_size)
    sights = surface_depths(vertices, faces, keys)
    texture = bake_texture(vertices, unwrapped, keys, sights)
    normals = vertex_normals(vertices, faces)[unwrapped.vertex]
    uv = np.stack([unwrapped.uv[:, 0], 1 - unwrapped.uv[:, 1]], axis=1)  # trimesh counts v from the bottom
    places = torch.from_numpy(vertices[unwrapped.vertex]).float()
    attributes = {"_SEEN": photo_saw(places, keys[0]).astype(np.float32)}
    if uncertainty is not None:
        spread = blend_views(places, torch.from_numpy(normals).float(), keys, uncertainty, sights)[0].numpy()
        attributes |= {"_DEPTH_STD": spread[:, 0], "_COLOR_STD": spread[:, 1]}
    return trimesh.Trimesh(
        places.numpy(), unwrapped.faces, vertex_normals=normals, vertex_attributes=attributes,
        visual=trimesh.visual.TextureVisuals(uv=uv, material=material(texture)), process=False,
    )


def simplified_surface(
    keys: Sequence[KeyView], max_faces: int, closed: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Vertices (V, 3) and at most `max_faces` faces (F, 3)."""
    voxel_size = default_voxel_size(keys)
    surface = fuse_solid(keys, voxel_size, 3 * max_faces) if closed else fuse(keys, voxel_size)
    if closed and len(surface.triangles) > max_faces:  # slower, but what is closed stays closed
        surface = surface.simplify_quadric_decimation(max_faces)
    return decimated(np.asarray(surface.vertices), np.asarray(surface.triangles), max_faces)


def unwrap(vertices: np.ndarray, faces: np.ndarray, keys: Sequence[KeyView], texture_size: int) -> Unwrapped:
    """Cuts a surface into charts and packs them, with more texels where the photo's camera is close."""
    views = choose_views(vertices, faces, tuple(keys))
    group = np.where(views >= 0, views, len(keys) + _box_sides(face_normals(vertices, faces)))
    split = split_at_tiles(faces, group, len(keys) + 6)
    places = vertices[split.vertex]
    plane = np.zeros((len(places), 2))
    for k, key in enumerate(keys):
        mine = split.view == k
        plane[mine] = project(torch.from_numpy(places[mine]).float(), key.cameras, key.size)[0].numpy()
    for side in range(6):
        mine = split.view == len(keys) + side
        plane[mine] = places[mine][:, [axis for axis in range(3) if axis != side % 3]]
    atlas = xatlas.Atlas()
    distance = np.maximum(np.linalg.norm(places, axis=1, keepdims=True), 1e-3)
    atlas.add_mesh(
        (places / np.sqrt(distance)).astype(np.float32), split.faces.astype(np.uint32),
        uvs=plane.astype(np.float32),
    )
    charts, packing = xatlas.ChartOptions(), xatlas.PackOptions()
    charts.use_input_mesh_uvs = charts.fix_winding = packing.bilinear = True
    packing.resolution, packing.padding = texture_size, PADDING
    atlas.generate(charts, packing)
    vertex, packed_faces, uv = atlas[0]
    sides = np.array([atlas.width, atlas.height])  # hardly differ; square textures suit every viewer
    uv = uv * sides / sides.max()
    return Unwrapped(split.vertex[vertex], packed_faces.astype(np.int64), uv, texture_size)


def surface_depths(vertices: np.ndarray, faces: np.ndarray, keys: Sequence[KeyView]) -> list[Tensor]:
    """(h, w) for each key view: the depth at which it sees a mesh, infinite where it sees past."""
    rays = o3d.t.geometry.RaycastingScene()
    rays.add_triangles(vertices.astype(np.float32), faces.astype(np.uint32))
    sizes = [(FINER * key.size[0], FINER * key.size[1]) for key in keys]
    return [
        torch.from_numpy(cast_rays(rays, key.cameras, size)["t_hit"].numpy())
        for key, size in zip(keys, sizes, strict=True)
    ]


def bake_texture(
    vertices: np.ndarray, unwrapped: Unwrapped, keys: Sequence[KeyView], sights: Sequence[Tensor]
) -> np.ndarray:
    """The texture (H, W, 3) uint8; what no view sees gets the colour of the nearest surface that one sees."""
    texels, points, face = _texels(vertices, unwrapped)
    normals = face_normals(vertices[unwrapped.vertex], unwrapped.faces)[face]
    images = [key.image for key in keys]
    color, weight = blend_views(points, torch.from_numpy(normals).float(), keys, images, sights)
    seen = (weight > 0).numpy()
    if seen.any() and not seen.all():
        closest = cKDTree(points.numpy()[seen][::4]).query(points.numpy()[~seen])[1]
        color[~torch.from_numpy(seen)] = color[torch.from_numpy(np.flatnonzero(seen)[::4][closest])]
    size = unwrapped.size
    sheet, cover = torch.zeros(size * size, 3), torch.zeros(size * size)
    sheet[texels], cover[texels] = color, 1.0
    planes = sheet.T.reshape(3, size, size)
    filled = fill_holes(planes, torch.ones(size, size), cover.reshape(size, size))[0]
    return ((filled.permute(1, 2, 0) + 1) * 127.5).round().clamp(0, 255).byte().numpy()


def blend_views(
    points: Tensor, normals: Tensor, keys: Sequence[KeyView], images: Sequence[Tensor],
    sights: Sequence[Tensor],
) -> tuple[Tensor, Tensor]:
    """Means over the views that see points, the closest and most frontal ones counting most.

    Args:
        points, normals: (P, 3). images: (1, C, h, w) for each key view, any size. sights: `surface_depths`.

    Returns:
        (P, C) values, 0 where no view sees, and (P,) weights.
    """
    total, weights = torch.zeros(len(points), images[0].shape[1]), torch.zeros(len(points))
    for key, image, sight in zip(keys, images, sights, strict=True):
        pixels, z = project(points, key.cameras, key.size)
        place = pixels / torch.tensor([key.size[1], key.size[0]]) * 2 - 1
        inside = (z > 0) & (place.abs() < 1).all(-1)
        farthest = F.max_pool2d(sight.nan_to_num(posinf=1e6)[None, None], 3, stride=1, padding=1)
        visible = inside & (z < (1 + OCCLUSION) * image_at(farthest, place, mode="nearest")[:, 0])
        known = image_at(key.opacity, place)[:, 0] > OPAQUE
        towards = F.normalize(camera_centers(key.cameras) - points, dim=-1)
        frontal = (towards * normals).sum(-1)
        score = frontal.clamp(min=FLATTEST) * pixels_per_metre(key) / z.clamp(min=1e-6) / 100
        score *= PHOTO_PREFERENCE if key.from_photo else 1.0
        score *= image_at(_ramp(key), place)[:, 0]
        weight = (visible & known & (frontal > 0)) * score**BLEND_POWER
        total += weight[:, None] * image_at(image, place)
        weights += weight
    return total / weights[:, None].clamp(min=1e-20), weights


def _ramp(key: KeyView, width: float = 0.05) -> Tensor:
    """(1, 1, h, w) from 0 at the image's border to 1, so that no seam shows there."""
    rows, columns = ((torch.arange(side) + 0.5) / side for side in key.size)
    y, x = torch.minimum(rows, 1 - rows), torch.minimum(columns, 1 - columns)
    return (torch.minimum(y[:, None], x[None]) / width).clamp(0.01, 1)[None, None]


def _texels(vertices: np.ndarray, unwrapped: Unwrapped) -> tuple[Tensor, Tensor, np.ndarray]:
    """The texels (T,) that lie in a chart, their points (T, 3) on the surface and their faces (T,)."""
    size = unwrapped.size
    flat = np.zeros((len(unwrapped.uv), 3), np.float32)
    flat[:, :2] = unwrapped.uv * size
    rays = o3d.t.geometry.RaycastingScene()
    rays.add_triangles(flat, unwrapped.faces.astype(np.uint32))
    down = np.zeros((size, size, 6), np.float32)
    down[..., 0], down[..., 1] = np.meshgrid(np.arange(size) + 0.5, np.arange(size) + 0.5)
    down[..., 2], down[..., 5] = 1, -1
    hits = rays.cast_rays(o3c.Tensor(down))
    face = hits["primitive_ids"].numpy().reshape(-1)
    texels = np.flatnonzero(face != rays.INVALID_ID)
    face, second_third = face[texels], hits["primitive_uvs"].numpy().reshape(-1, 2)[texels]
    shares = np.concatenate([1 - second_third.sum(1, keepdims=True), second_third], axis=1)
    corners = vertices[unwrapped.vertex[unwrapped.faces[face]]]
    return torch.from_numpy(texels), torch.from_numpy((corners * shares[..., None]).sum(1)).float(), face


def _box_sides(normals: np.ndarray) -> np.ndarray:
    """(F,) which of a box's six sides each normal (F, 3) looks out of."""
    axis = np.abs(normals).argmax(1)
    return axis + 3 * (np.take_along_axis(normals, axis[:, None], 1)[:, 0] < 0)
