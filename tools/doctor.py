"""What becomes of a 3D file in Blender: whether it shows colour, which way is up, its size, its holes."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import scipy.sparse
import scipy.sparse.csgraph
import trimesh

Verdict = Literal["fine", "note", "problem"]
SUFFIXES = (".glb", ".gltf", ".obj", ".ply")
IMPORTED_UP = {".glb": "+Y", ".gltf": "+Y", ".obj": "+Y", ".ply": "+Z"}  # what Blender takes for up
AXES = {
    "+X": (1, 0, 0), "-X": (-1, 0, 0), "+Y": (0, 1, 0), "-Y": (0, -1, 0), "+Z": (0, 0, 1), "-Z": (0, 0, -1),
}  # fmt: skip
LEVEL = 0.94  # cosine to an axis of a surface that counts as a floor
CLEARLY = 1.5  # times as much floor as along the importer's axis
SMALLEST, LARGEST = 0.05, 200.0  # metres that a scene is likely to measure
TEXTURE_ADVICE = "shade the viewport as Material Preview to see it"
UNREADABLE = (
    OSError, ValueError, KeyError, IndexError, TypeError, AttributeError, NotImplementedError, struct.error,
    AssertionError, ZeroDivisionError, OverflowError, MemoryError,
)  # fmt: skip


class DoctorError(ValueError):
    """A file that can't be examined."""


@dataclass(frozen=True)
class Finding:
    """One thing about a file, and what to do about it ("" if nothing)."""

    topic: str
    verdict: Verdict
    text: str
    advice: str = ""


@dataclass(frozen=True)
class Geometry:
    """What a file holds, all its parts together, in the file's own axes.

    Attributes:
        kind: "mesh", "points" or "splats".
        vertices: (V, 3). faces: (F, 3), none for points.
        normals: of faces, or of points if the file has them.
        picture: whether a base-colour picture and coordinates for it are there, on how many of `parts` parts.
        vertex_colors: whether vertices, faces or points have colours.
        missing: names of pictures that are mentioned but not there.
        camera_up: (3,) which way a camera in the file holds up.
    """

    kind: Literal["mesh", "points", "splats"]
    vertices: np.ndarray
    faces: np.ndarray
    normals: np.ndarray | None
    parts: int = 1
    picture: int = 0
    vertex_colors: bool = False
    missing: tuple[str, ...] = ()
    camera_up: np.ndarray | None = None


def examine(path: str | Path) -> list[Finding]:
    """Findings on contents, colour, up, size and holes, in this order.

    Raises:
        DoctorError: the file is missing, of another format, damaged or empty.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise DoctorError(f"{path}: can examine {', '.join(SUFFIXES)} files, not {suffix or 'this'!r}")
    if not path.is_file():
        raise DoctorError(f"{path}: no such file")
    try:
        geometry = _read_ply(path) if suffix == ".ply" else _read_mesh(path)
    except UNREADABLE as error:
        detail = " ".join(str(error).split()) or type(error).__name__
        raise DoctorError(f"{path}: damaged, or no {suffix[1:].upper()} file ({detail})") from error
    if not len(geometry.vertices):
        raise DoctorError(f"{path}: holds no vertices")
    if not np.isfinite(geometry.vertices).all():
        raise DoctorError(f"{path}: has vertices that are not finite numbers")
    checks: tuple[Callable[[Geometry, str], Finding], ...] = (_contents, _color, _up, _size, _holes)
    return [check(geometry, suffix) for check in checks]


def as_record(findings: list[Finding]) -> dict[str, Any]:
    """Findings by topic, for a program."""
    return {finding.topic: {k: v for k, v in asdict(finding).items() if k != "topic"} for finding in findings}


def _contents(geometry: Geometry, suffix: str) -> Finding:
    count = f"{len(geometry.vertices):,} vertices"
    if geometry.kind == "splats":
        return Finding(
            "contents", "note", f"{len(geometry.vertices):,} Gaussian splats",
            "open it in a splat viewer such as SuperSplat; Blender shows bare vertices",
        )  # fmt: skip
    if geometry.kind == "points":
        return Finding(
            "contents", "note", f"{len(geometry.vertices):,} points, no faces",
            "in Blender add a Geometry Nodes modifier with Mesh to Points to render them, or export a mesh",
        )  # fmt: skip
    return Finding("contents", "fine", f"mesh of {count} and {len(geometry.faces):,} faces")


def _color(geometry: Geometry, suffix: str) -> Finding:
    if geometry.missing:
        names = ", ".join(geometry.missing)
        advice = "put it beside the file, as named there"
        return Finding("colour", "problem", f"picture missing: {names}", advice)
    if geometry.kind == "splats":
        return Finding("colour", "note", "in the splats' harmonics", "only splat viewers show it")
    if geometry.picture and geometry.picture == geometry.parts:
        return Finding("colour", "fine", f"base-colour texture: Blender shows it ({TEXTURE_ADVICE})")
    if geometry.picture:
        text = f"base-colour texture on {geometry.picture} of {geometry.parts} parts, the others are plain"
        return Finding("colour", "note", text, "give the other parts a texture if they should have one")
    if geometry.vertex_colors and geometry.kind == "points":
        advice = "in the material, link a Color Attribute node (Col) to Base Color"
        return Finding("colour", "note", "of points: Blender keeps it as an attribute", advice)
    if geometry.vertex_colors:
        return Finding(
            "colour", "problem", "vertex colours only: Blender shows it grey",
            "in the material, link a Color Attribute node to Base Color, or export again with a texture",
        )  # fmt: skip
    return Finding("colour", "problem", "none", "export again with a texture")


def _up(geometry: Geometry, suffix: str) -> Finding:
    expected = IMPORTED_UP[suffix]
    found, reason = _likely_up(geometry, expected)
    certain = geometry.camera_up is not None
    if found is None:
        text = f"can't tell; Blender takes {expected} for up"
        return Finding("up", "note", text, "turn it by 90 degrees about X if it lies on its back")
    if found == expected:
        return Finding("up", "fine", f"{found} ({reason}), as Blender expects of {suffix[1:].upper()}")
    if suffix in (".glb", ".gltf"):
        advice = "turn it in Blender, then Object > Apply > Rotation; the format itself has +Y up"
    else:
        advice = f"set Up to {found.replace('+', '')} in Blender's import options"
    text = f"{found if certain else f'perhaps {found}'} ({reason}), but Blender takes {expected} for up"
    return Finding("up", "problem" if certain else "note", text, advice)


def _size(geometry: Geometry, suffix: str) -> Finding:
    extent = np.ptp(geometry.vertices, axis=0)
    text = " x ".join(f"{side:.3g}" for side in extent) + " m (X, Y, Z of the file)"
    longest = float(extent.max())
    if longest == 0:
        return Finding("size", "problem", "all vertices are at one place", "export again")
    if longest > LARGEST:
        factor = 0.001 if longest > 10 * LARGEST else 0.01
        unit = "millimetres" if factor == 0.001 else "centimetres"
        return Finding("size", "problem", f"{text}, likely {unit}", f"scale by {factor} in Blender")
    if longest < SMALLEST:
        return Finding("size", "problem", f"{text}, tiny for a scene", "scale up, by 1000 if units were km")
    return Finding("size", "fine", text)


def _holes(geometry: Geometry, suffix: str) -> Finding:
    if geometry.kind != "mesh":
        return Finding("holes", "note", "not a surface")
    _, merged = np.unique(geometry.vertices.round(6), axis=0, return_inverse=True)  # seams are no holes
    faces = merged.reshape(-1)[geometry.faces]
    faces = faces[(faces != np.roll(faces, 1, axis=1)).all(1)]
    sides = np.sort(faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2), axis=1)
    edges, count = np.unique(sides, axis=0, return_counts=True)
    border, crossed = edges[count == 1], int((count > 2).sum())
    pieces = _components(edges)
    shape = f"{pieces} piece{'s' * (pieces != 1)}"
    if crossed:
        shape += f", {crossed} edges of 3 or more faces"
    if not len(border) and not crossed:
        return Finding("holes", "fine", f"none, closed; {shape}")
    if not len(border):
        advice = "Mesh > Clean Up > Merge by Distance, and delete inner faces, if it is to be printed"
        return Finding("holes", "note", f"none; {shape}", advice)
    length = np.linalg.norm(np.diff(_places(geometry, merged)[border], axis=1)[:, 0], axis=-1).sum()
    text = f"{_components(border)} open borders, {length:.3g} m in all; {shape}"
    advice = "fine for viewing; for printing or physics export with --closed, or Mesh > Clean Up > Fill Holes"
    return Finding("holes", "note", text, advice)


def _places(geometry: Geometry, merged: np.ndarray) -> np.ndarray:
    places = np.empty((merged.max() + 1, 3))
    places[merged.reshape(-1)] = geometry.vertices
    return places


def _components(edges: np.ndarray) -> int:
    """How many connected graphs edges (E, 2) make."""
    if not len(edges):
        return 0
    _, ends = np.unique(edges, return_inverse=True)
    first, second = ends.reshape(-1, 2).T
    graph = scipy.sparse.coo_matrix((np.ones(len(first)), (first, second)), shape=(ends.max() + 1,) * 2)
    return int(scipy.sparse.csgraph.connected_components(graph, directed=False)[0])


def _likely_up(geometry: Geometry, expected: str) -> tuple[str | None, str]:
    """The axis that is up, if anything tells, and what tells it."""
    if geometry.camera_up is not None:
        cosines = {name: float(np.dot(axis, geometry.camera_up)) for name, axis in AXES.items()}
        best = max(cosines, key=cosines.__getitem__)
        return best, "its camera stands so"
    if geometry.kind == "splats" or geometry.normals is None:
        return None, ""
    areas, middles = np.ones(len(geometry.normals)), geometry.vertices
    if geometry.kind == "mesh":
        corners = geometry.vertices[geometry.faces]
        areas = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1)
        middles = corners.mean(1)
    floor = {}
    for name, axis in AXES.items():
        height = middles @ np.array(axis)
        low = height < (height.min() + height.max()) / 2
        floor[name] = float(areas[low & (geometry.normals @ np.array(axis) > LEVEL)].sum())
    best = max(floor, key=floor.__getitem__)
    if floor[best] < 0.02 * areas.sum():
        return None, ""
    if floor[best] > CLEARLY * floor[expected]:
        return best, "most level surface faces that way"
    return expected, "level surfaces agree"


def _read_mesh(path: Path) -> Geometry:
    """glTF or OBJ."""
    missing = _missing_pictures(path) if path.suffix.lower() == ".obj" else ()
    loaded = trimesh.load_scene(path, process=False)
    meshes = [part for part in loaded.dump() if isinstance(part, trimesh.Trimesh) and len(part.faces)]
    if not meshes:
        raise ValueError("it has no faces")
    pictures = sum(_has_picture(mesh) for mesh in meshes)
    whole = trimesh.util.concatenate([trimesh.Trimesh(m.vertices, m.faces, process=False) for m in meshes])
    return Geometry(
        "mesh", np.asarray(whole.vertices, float), np.asarray(whole.faces), _face_normals(whole), len(meshes),
        pictures, any(_has_vertex_colors(mesh) for mesh in meshes), missing,
        _camera_up(path) if path.suffix.lower() in (".glb", ".gltf") else None,
    )  # fmt: skip


def _read_ply(path: Path) -> Geometry:
    header = path.read_bytes()[:20_000].split(b"end_header")[0].decode("latin1")
    if not header.startswith("ply"):
        raise ValueError("it does not begin with 'ply'")
    names = {line.split()[-1] for line in header.splitlines() if line.startswith("property")}
    loaded = trimesh.load(path, process=False)
    vertices = np.asarray(loaded.vertices, float)
    faces = np.asarray(getattr(loaded, "faces", np.empty((0, 3))))
    picture = 0
    if {"f_dc_0", "scale_0", "rot_0"} <= names:
        kind: Literal["mesh", "points", "splats"] = "splats"
    else:
        kind = "mesh" if len(faces) else "points"
        picture = int(kind == "mesh" and _has_picture(loaded))
    normals: np.ndarray | None = None
    if kind == "mesh":
        normals = _face_normals(loaded)
    elif {"nx", "ny", "nz"} <= names:
        normals = _point_normals(path, vertices)
    return Geometry(kind, vertices, faces.astype(int), normals, 1, picture, "red" in names)


def _face_normals(mesh: trimesh.Trimesh) -> np.ndarray:
    corners = np.asarray(mesh.vertices)[mesh.faces]
    normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    return normal / np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-30)


def _point_normals(path: Path, vertices: np.ndarray) -> np.ndarray | None:
    import open3d as o3d

    normals = np.asarray(o3d.io.read_point_cloud(str(path)).normals)
    return normals if normals.shape == vertices.shape else None


def _has_picture(mesh: trimesh.Trimesh) -> bool:
    visual = mesh.visual
    material = getattr(visual, "material", None)
    picture = getattr(material, "baseColorTexture", None) or getattr(material, "image", None)
    return picture is not None and getattr(visual, "uv", None) is not None


def _has_vertex_colors(mesh: trimesh.Trimesh) -> bool:
    visual = mesh.visual
    if "color" in getattr(visual, "vertex_attributes", {}):
        return True
    return getattr(visual, "kind", None) in ("vertex", "face")


def _missing_pictures(path: Path) -> tuple[str, ...]:
    """The material library or pictures that an OBJ file mentions and that are not there."""
    names = []
    for line in path.read_text(errors="replace").splitlines():
        if line.startswith("mtllib "):
            library = path.parent / line[7:].strip()
            if not library.is_file():
                names.append(library.name)
                continue
            lines = [text.split() for text in library.read_text(errors="replace").splitlines()]
            wanted = [words[-1] for words in lines if len(words) > 1 and words[0].lower() == "map_kd"]
            names += [name for name in wanted if not (library.parent / name).is_file()]
    return tuple(dict.fromkeys(names))


def _camera_up(path: Path) -> np.ndarray | None:
    """Which way the first camera of a glTF file holds up, if its node hangs from the root."""
    tree = _gltf_tree(path)
    nodes = tree.get("nodes", [])
    roots = {root for scene in tree.get("scenes", []) for root in scene.get("nodes", [])}
    for index in sorted(roots):
        node = nodes[index]
        if "camera" in node:
            if "matrix" in node:
                return np.reshape(node["matrix"], (4, 4))[1, :3]
            x, y, z, w = node.get("rotation", (0, 0, 0, 1))
            return np.array([2 * (x * y - z * w), 1 - 2 * (x * x + z * z), 2 * (y * z + x * w)])
    return None


def _gltf_tree(path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    if data[:4] == b"glTF":
        length = struct.unpack("<I", data[12:16])[0]
        data = data[20 : 20 + length]
    tree = json.loads(data)
    if not isinstance(tree, dict):
        raise ValueError("its JSON is no object")
    return tree
