"""Meshes of the asset pack: OBJ and MTL reading, simplification, smooth normals.

Used only to build a pack; `open3d`, slow to import, is imported where it is needed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import sparse
from scipy.sparse import csgraph
from scipy.spatial import KDTree

_CREASE_DEGREES = 42.0
_ON_LINE = 1e-9
_WELD_TOLERANCES = (0.002, 0.004, 0.008)
"""Distances of points welded before a collapse, in parts of the mesh's extent."""
_MAX_COLLAPSE_ERROR = 1e-5
"""Largest squared distance times area of one collapse, for a mesh of extent and area 1."""


@dataclass(frozen=True, eq=False)
class Material:
    """One MTL material; colours in 0..1."""

    diffuse: tuple[float, float, float] = (0.8, 0.8, 0.8)
    specular: float = 0.0
    shininess: float = 0.0
    opacity: float = 1.0
    texture: str | None = None


@dataclass(frozen=True, eq=False)
class Mesh:
    """Triangles whose corners index `positions` (V, 3) and `uvs` (U, 2) apart; all faces are (F, 3) int64."""

    positions: np.ndarray
    uvs: np.ndarray
    faces: np.ndarray
    uv_faces: np.ndarray
    materials: np.ndarray
    """(F,) index of each face's material."""

    def select(self, keep: np.ndarray) -> Mesh:
        """The faces where `keep` (F,) is true, or at the indices in `keep`."""
        return Mesh(self.positions, self.uvs, self.faces[keep], self.uv_faces[keep], self.materials[keep])

    def areas(self) -> np.ndarray:
        """(F,) areas of the faces."""
        return np.linalg.norm(_cross_products(self.positions, self.faces), axis=1) / 2


@dataclass(frozen=True, eq=False)
class Vertices:
    """A mesh whose vertices carry everything: positions, normals (V, 3), uvs (V, 2), materials (V,)."""

    positions: np.ndarray
    normals: np.ndarray
    uvs: np.ndarray
    materials: np.ndarray
    faces: np.ndarray


def read_materials(text: str) -> dict[str, Material]:
    """Materials of an MTL file, by name."""
    materials: dict[str, Material] = {}
    name = ""
    values: dict[str, str] = {}
    for line in [*text.splitlines(), "newmtl"]:
        key, _, rest = line.strip().partition(" ")
        rest = rest.strip()
        if key == "newmtl":
            if name:
                materials[name] = _material(values)
            name, values = rest, {}
        elif rest:
            values[key] = rest
    return materials


def _material(values: dict[str, str]) -> Material:
    def numbers(key: str, default: str) -> tuple[float, ...]:
        return tuple(float(word) for word in values.get(key, default).split())

    diffuse = (numbers("Kd", "0.8 0.8 0.8") * 3)[:3]
    specular = numbers("Ks", "0")
    return Material(
        diffuse=(diffuse[0], diffuse[1], diffuse[2]),
        specular=sum(specular) / len(specular),
        shininess=numbers("Ns", "0")[0],
        opacity=1.0 - numbers("Tr", "0")[0] if "Tr" in values else numbers("d", "1")[0],
        texture=values.get("map_Kd"),
    )


def read_obj(text: str) -> tuple[Mesh, list[str]]:
    """Triangles of an OBJ file, and the names of its materials (indexed by `Mesh.materials`).

    Polygons are triangulated. Raises ValueError if the file has no faces or an index out of range.
    """
    positions: list[list[str]] = []
    uvs: list[list[str]] = []
    names: dict[str, int] = {}
    polygons: list[tuple[list[int], list[int], int]] = []
    material = names.setdefault("", 0)
    for line in text.splitlines():
        words = line.split()
        if not words:
            continue
        if words[0] == "v":
            positions.append(words[1:4])
        elif words[0] == "vt":
            uvs.append(words[1:3])
        elif words[0] == "usemtl":
            material = names.setdefault(line.strip().partition(" ")[2].strip(), len(names))
        elif words[0] == "f" and len(words) > 3:
            corners = [word.split("/") for word in words[1:]]
            places = [_index(corner[0], len(positions)) for corner in corners]
            has_uv = len(corners[0]) > 1 and corners[0][1] != ""
            uv_places = [_index(corner[1], len(uvs)) if has_uv else -1 for corner in corners]
            polygons.append((places, uv_places, material))
    if not polygons:
        raise ValueError("OBJ file: no faces")
    points = np.array(positions, np.float64)
    mesh = _triangulate(points, np.array(uvs, np.float64).reshape(-1, 2), polygons)
    return mesh, list(names)


def _index(word: str, count: int) -> int:
    """A 1-based OBJ index (negative ones count from the end) as a 0-based one."""
    index = int(word)
    index = index - 1 if index > 0 else count + index
    if not 0 <= index < count:
        raise ValueError(f"OBJ file: index {word} out of range, {count} elements so far")
    return index


def _triangulate(
    points: np.ndarray, uvs: np.ndarray, polygons: list[tuple[list[int], list[int], int]]
) -> Mesh:
    pieces = []
    for sides in sorted({len(places) for places, _, _ in polygons}):
        group = [polygon for polygon in polygons if len(polygon[0]) == sides]
        corners = np.array([[places, uv_places] for places, uv_places, _ in group])  # (N, 2, sides)
        triangles = _group_triangles(points[corners[:, 0]])  # (N, sides - 2, 3)
        cut = np.take_along_axis(corners[:, None], triangles[:, :, None], axis=3)
        materials = np.repeat([material for _, _, material in group], sides - 2)
        pieces.append((cut[:, :, 0].reshape(-1, 3), cut[:, :, 1].reshape(-1, 3), materials))
    faces, uv_faces, materials = (np.concatenate(parts) for parts in zip(*pieces, strict=True))
    uvs = np.concatenate([uvs, np.zeros((1, 2))])  # where the index is -1: no texture coordinates
    return Mesh(points, uvs, faces, uv_faces, materials)


def _group_triangles(points: np.ndarray) -> np.ndarray:
    """Corner numbers (N, sides - 2, 3) of the triangles of N polygons (N, sides, 3) of equal size."""
    count, sides, _ = points.shape
    if sides == 3:
        return np.broadcast_to([[0, 1, 2]], (count, 1, 3))
    if sides > 4:
        return np.array([polygon_triangles(polygon) for polygon in points])
    edges = points - points[:, :1]
    halves = np.einsum("ni,ni->n", np.cross(edges[:, 1], edges[:, 2]), np.cross(edges[:, 2], edges[:, 3]))
    return np.where((halves >= 0)[:, None, None], [[0, 1, 2], [0, 2, 3]], [[1, 2, 3], [1, 3, 0]])


def polygon_triangles(points: np.ndarray) -> list[tuple[int, int, int]]:
    """Triangles (corner numbers) of one planar, maybe concave polygon (N, 3), by cutting off ears."""
    normal = np.cross(points, np.roll(points, -1, axis=0)).sum(0)
    axis = int(np.argmax(np.abs(normal)))
    flat = np.delete(points, axis, axis=1)
    if (normal[axis] > 0) == (axis == 1):
        flat = flat * [1.0, -1.0]  # so that its corners run counter-clockwise
    corners = list(range(len(points)))
    triangles = []
    while len(corners) > 3:
        ear = next((n for n in range(len(corners)) if _is_ear(flat, corners, n)), 0)
        triangles.append((corners[ear - 1], corners[ear], corners[(ear + 1) % len(corners)]))
        del corners[ear]
    return [*triangles, (corners[0], corners[1], corners[2])]


def _is_ear(flat: np.ndarray, corners: list[int], n: int) -> bool:
    a, b, c = (flat[corners[(n + step) % len(corners)]] for step in (-1, 0, 1))
    if _turn(a, b, c) <= _ON_LINE * float(np.abs(c - a).max()) ** 2:
        return False
    others = (flat[corner] for k, corner in enumerate(corners) if (k - n + 1) % len(corners) > 2)
    return not any(_turn(a, b, p) > 0 and _turn(b, c, p) > 0 and _turn(c, a, p) > 0 for p in others)


def _turn(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> float:
    return float((b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0]))


def clean(mesh: Mesh, tolerance: float = 2e-5) -> Mesh:
    """The mesh with equal positions welded, and with degenerate and repeated faces dropped.

    Of faces on the same three points only the first stays: the sources often hold each sheet twice.
    """
    positions, inverse = _weld(mesh.positions, tolerance * float(np.ptp(mesh.positions, axis=0).max()))
    uvs, uv_inverse = np.unique(mesh.uvs.round(6), axis=0, return_inverse=True)
    faces = inverse[mesh.faces]
    uv_faces = uv_inverse.reshape(-1)[mesh.uv_faces]
    welded = Mesh(positions, uvs, faces, uv_faces, mesh.materials)
    _, first = np.unique(np.sort(faces, axis=1), axis=0, return_index=True)
    kept = np.zeros(len(faces), bool)
    kept[first] = True
    return welded.select(kept & (welded.areas() > 1e-12))


def _weld(points: np.ndarray, step: float) -> tuple[np.ndarray, np.ndarray]:
    _, first, inverse = np.unique((points / step).round(), axis=0, return_index=True, return_inverse=True)
    return points[first], inverse.reshape(-1)


def _cross_products(positions: np.ndarray, faces: np.ndarray) -> np.ndarray:
    a, b, c = (positions[faces[:, corner]] for corner in range(3))
    return np.cross(b - a, c - a)


def simplify(mesh: Mesh, max_faces: int, textured: np.ndarray) -> Mesh:
    """The mesh with about `max_faces` triangles at most, by quadric edge collapse.

    `textured` (materials,) tells which materials have a texture. Where the many small parts of a mesh cannot
    be collapsed that far, points that lie close together are welded first, ever farther ones.
    """
    if len(mesh.faces) <= max_faces:
        return mesh
    small = _collapse(mesh, max_faces, textured)
    for tolerance in _WELD_TOLERANCES:
        if len(small.faces) <= 1.2 * max_faces:
            break
        small = _collapse(clean(mesh, tolerance), max_faces, textured)
    return small


def _collapse(mesh: Mesh, max_faces: int, textured: np.ndarray) -> Mesh:
    """One round of edge collapses that stops at `max_faces`, or where they would eat up the shape.

    Vertices are kept apart where the material or, on textured faces, the texture coordinates change: such
    seams are borders for the collapse.
    """
    import open3d

    uv_faces = np.where(textured[mesh.materials][:, None], mesh.uv_faces, -1)
    keys = np.stack([mesh.faces, uv_faces, np.broadcast_to(mesh.materials[:, None], mesh.faces.shape)], -1)
    corners, inverse = np.unique(keys.reshape(-1, 3), axis=0, return_inverse=True)
    points = mesh.positions[corners[:, 0]]
    faces = inverse.reshape(-1, 3)
    piece = _pieces(faces, len(points))
    solid = open3d.geometry.TriangleMesh(
        open3d.utility.Vector3dVector(points), open3d.utility.Vector3iVector(faces.astype(np.int32))
    )
    # Collapses average the colours, so a colour that is one throughout a piece survives as its number.
    solid.vertex_colors = open3d.utility.Vector3dVector(np.repeat(piece[:, None], 3, axis=1).astype(float))
    extent = float(np.ptp(points, axis=0).max())
    limit = _MAX_COLLAPSE_ERROR * extent**2 * float(mesh.areas().sum())
    solid = solid.simplify_quadric_decimation(max(1, min(max_faces, len(faces) - 1)), maximum_error=limit)
    points_out, faces_out = np.asarray(solid.vertices), np.asarray(solid.triangles).astype(np.int64)
    piece_out = np.asarray(solid.vertex_colors)[:, 0]
    apart = 10 * extent
    tree = KDTree(np.column_stack([points, apart * piece]))
    source = tree.query(np.column_stack([points_out, apart * piece_out]))[1]
    uvs = _moved_uvs(mesh, faces, corners, points, points_out, source)
    out = Mesh(points_out, uvs, faces_out, faces_out, corners[source, 2][faces_out[:, 0]])
    return out.select(out.areas() > 1e-12)


def _pieces(faces: np.ndarray, count: int) -> np.ndarray:
    """Number of the connected piece that each of `count` vertices belongs to."""
    ends = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]]])
    graph = sparse.coo_matrix((np.ones(len(ends)), (ends[:, 0], ends[:, 1])), shape=(count, count))
    return csgraph.connected_components(graph, directed=False)[1]


def _moved_uvs(
    mesh: Mesh,
    faces: np.ndarray,
    corners: np.ndarray,
    points: np.ndarray,
    points_out: np.ndarray,
    source: np.ndarray,
) -> np.ndarray:
    """Texture coordinates of the moved vertices: the source vertex's, carried on along its largest face."""
    order = np.argsort(mesh.areas(), kind="stable")
    face_of = np.zeros(len(points), np.int64)
    face_of[faces[order].reshape(-1)] = np.repeat(order, 3)  # the last, largest, face wins
    triangle = faces[face_of[source]]
    uv = np.where((corners[:, 1] >= 0)[:, None], mesh.uvs[corners[:, 1]], 0.0)
    edges = points[triangle[:, 1:]] - points[triangle[:, :1]]
    uv_edges = uv[triangle[:, 1:]] - uv[triangle[:, :1]]
    move = points_out - points[source]
    weights = np.einsum("nij,nj->ni", np.linalg.pinv(edges.transpose(0, 2, 1), rcond=1e-4), move)
    weights /= np.maximum(1.0, np.abs(weights).max(1, keepdims=True) / 1.5)  # slivers would throw it far off
    return uv[source] + np.einsum("ni,nij->nj", weights, uv_edges)


def smooth_vertices(mesh: Mesh, textured: np.ndarray) -> Vertices:
    """Vertices with normals that are smooth across edges flatter than about 40 degrees, and sharp elsewhere.

    Every corner takes the area-weighted mean over those faces at its position that lean less than the crease
    angle from its own face. Faces that face the other way count turned round: the sources mix orientations.
    """
    faces, cross = mesh.faces, _cross_products(mesh.positions, mesh.faces)
    area = np.linalg.norm(cross, axis=1, keepdims=True)
    normal = cross / np.maximum(area, 1e-30)
    corner_face = np.repeat(np.arange(len(faces)), 3)
    _, place = _weld(mesh.positions, 1e-5)
    corner_place = place[faces.reshape(-1)]
    incidence = sparse.csr_matrix((np.ones(len(corner_face)), (np.arange(len(corner_face)), corner_place)))
    pairs = (incidence @ incidence.T).tocoo()
    own, other = corner_face[pairs.row], corner_face[pairs.col]
    cosine = np.einsum("ni,ni->n", normal[own], normal[other])
    near = np.abs(cosine) > np.cos(np.radians(_CREASE_DEGREES))
    total = np.zeros((len(corner_face), 3))
    share = np.sign(cosine[near])[:, None] * cross[other[near]]
    for axis in range(3):
        total[:, axis] = np.bincount(pairs.row[near], share[:, axis], len(corner_face))
    total += 1e-6 * np.repeat(normal, 3, axis=0)  # where the faces' shares cancel or vanish
    total /= np.maximum(np.linalg.norm(total, axis=1, keepdims=True), 1e-30)
    return _shared_vertices(mesh, total, textured)


def _shared_vertices(mesh: Mesh, corner_normals: np.ndarray, textured: np.ndarray) -> Vertices:
    """Merge corners that agree in position, texture coordinates and material, and nearly in normal."""
    place = mesh.faces.reshape(-1)
    material = np.repeat(mesh.materials, 3)
    uv = np.where(textured[material][:, None], mesh.uvs[mesh.uv_faces.reshape(-1)], 0.0)
    quantised = np.round(corner_normals * 5).astype(np.int64)
    uv_keys = np.round(uv * 4096).astype(np.int64)
    keys = np.concatenate([place[:, None], material[:, None], quantised, uv_keys], axis=1)
    _, first, inverse = np.unique(keys, axis=0, return_index=True, return_inverse=True)
    order = np.argsort(first, kind="stable")  # by first use: neighbours stay close in the file
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    first, vertex = first[order], rank[inverse.reshape(-1)]
    normals = np.stack([np.bincount(vertex, corner_normals[:, axis]) for axis in range(3)], axis=1)
    return Vertices(
        mesh.positions[place[first]],
        normals / np.linalg.norm(normals, axis=1, keepdims=True),
        uv[first],
        material[first],
        vertex.reshape(-1, 3),
    )
