"""The bundled pack of furniture, surfaces and pictures that synthetic rooms are made of.

`AssetPack.load()` reads `assets.zip` beside this module; `build_assets` writes such files. In a pack:

- catalog.json: format name, version, and one record for each asset and surface;
- meshes/*.bin: the vertices, faces and coarser levels' faces of all assets, one after another, quantised (see
  `unpack_integers`);
- textures/NNNN.jpg: square images, one for each texture layer.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

FORMAT = "scenediff-assets"
VERSION = 2
PLACEMENTS = ("floor", "against_wall", "wall", "ceiling", "top", "rug", "door", "window")
SURFACE_KINDS = ("wall", "floor", "ceiling", "fabric", "wood", "poster", "outdoor")
SPLITS = ("train", "heldout")
BUNDLED_PACK = Path(__file__).with_name("assets.zip")
_HELDOUT_PERCENT = 15


@dataclass(frozen=True)
class Support:
    """A horizontal rectangle of an asset on which smaller things can stand, in the asset's own metres."""

    x0: float
    z0: float
    x1: float
    z1: float
    y: float
    clearance: float
    """Free height above the rectangle; `build_assets.OPEN_CLEARANCE` where nothing of the asset is above."""


@dataclass(frozen=True, eq=False)
class Level:
    """A coarser level of detail of a mesh."""

    faces: np.ndarray
    """(F, 3) int32, between the mesh's own vertices."""
    error: float
    """Distance in metres that nearly all points of its surface keep from the mesh's, and the other way."""


@dataclass(frozen=True, eq=False)
class Asset:
    """One object: a triangle mesh in metres, y up, its front toward +z.

    x and z are centred on the bounding box and y starts at 0, so the box is exactly `size`. Vertices are
    split where normals, texture coordinates or materials change; faces are meant to be seen from both sides.
    """

    name: str
    title: str
    category: str
    placement: str
    role: str
    size: tuple[float, float, float]
    """Width (x), height (y), depth (z)."""
    elevation: float
    """Usual height of the asset's base above the floor."""
    creator: str
    licence: str
    split: str
    support: tuple[Support, ...]
    positions: np.ndarray
    """(V, 3) float32 metres."""
    normals: np.ndarray
    """(V, 3) float32, unit length."""
    uvs: np.ndarray
    """(V, 2) float32; (0, 0) is the texture's lower left corner; values beyond 0..1 repeat it."""
    colours: np.ndarray
    """(V, 3) uint8 sRGB: the surface's colour, or the tint that multiplies its texture."""
    texture_layer: np.ndarray
    """(V,) int16 index into `AssetPack.textures`, -1 where untextured; one value within a face."""
    gloss: np.ndarray
    """(V,) uint8: 0 is matt, 255 is a mirror-like highlight."""
    faces: np.ndarray
    """(F, 3) int32, counter-clockwise from outside where the source is consistent."""
    levels: tuple[Level, ...] = ()
    """From fine to coarse, to be drawn in place of `faces` where their errors do not show."""


@dataclass(frozen=True)
class Surface:
    """A flat material: a tileable texture, or one picture (kinds "poster" and "outdoor")."""

    name: str
    kind: str
    texture_layer: int
    size: tuple[float, float]
    """Width and height in metres that one repeat of the texture covers; of a picture, its real size."""
    gloss: int
    split: str


@dataclass(frozen=True, eq=False)
class AssetPack:
    """All assets, surfaces and textures of one pack; `textures` is (L, S, S, 3) uint8 sRGB, top row first."""

    assets: tuple[Asset, ...]
    surfaces: tuple[Surface, ...]
    textures: np.ndarray

    @classmethod
    def load(cls, path: str | Path | None = None) -> AssetPack:
        """Read a pack: the bundled one, or the file at `path`.

        Raises FileNotFoundError for a missing file and ValueError for one that is not a pack of this version.
        """
        path = BUNDLED_PACK if path is None else Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"no asset pack at {path}; build one with `scenediff data assets`")
        if not zipfile.is_zipfile(path):
            raise ValueError(f"{path} is not an asset pack: not a zip file")
        with zipfile.ZipFile(path) as archive:
            catalog = _read_catalog(archive, path)
            textures = _read_textures(archive, catalog["textures"], catalog["texture_size"])
            assets = _read_assets(archive, catalog)
        surfaces = tuple(
            Surface(**{**record, "size": tuple(record["size"]), "split": split_of(record["name"])})
            for record in catalog["surfaces"]
        )
        return cls(assets, surfaces, textures)

    def select(
        self, split: str | None = None, placement: str | None = None, role: str | None = None
    ) -> tuple[Asset, ...]:
        """The assets that match every argument given, in the pack's order."""
        _check_choice("split", split, SPLITS)
        _check_choice("placement", placement, PLACEMENTS)
        return tuple(
            asset
            for asset in self.assets
            if split in (None, asset.split)
            and placement in (None, asset.placement)
            and role in (None, asset.role)
        )

    def select_surfaces(self, split: str | None = None, kind: str | None = None) -> tuple[Surface, ...]:
        """The surfaces that match every argument given, in the pack's order."""
        _check_choice("split", split, SPLITS)
        _check_choice("kind", kind, SURFACE_KINDS)
        return tuple(
            surface
            for surface in self.surfaces
            if split in (None, surface.split) and kind in (None, surface.kind)
        )


def split_of(name: str) -> str:
    """Split of an asset or surface, from its name alone: "heldout" for about 15 % of all names."""
    number = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")
    return "heldout" if number % 100 < _HELDOUT_PERCENT else "train"


def pack_integers(values: np.ndarray) -> bytes:
    """(N, C) uint8 or uint16 as bytes that compress well; the inverse of `unpack_integers`.

    Each column holds the differences of successive rows (modulo the type's range), low bytes before high.
    """
    differences = np.diff(values, axis=0, prepend=np.zeros((1, values.shape[1]), values.dtype))
    columns: np.ndarray = np.ascontiguousarray(differences.T, dtype=values.dtype.newbyteorder("<"))
    planes = columns.view(np.uint8).reshape(*columns.shape, values.dtype.itemsize)
    return planes.transpose(0, 2, 1).tobytes()


def unpack_integers(data: bytes, count: int, channels: int, dtype: type) -> np.ndarray:
    """The (count, channels) array that `pack_integers` wrote; ValueError if the bytes have another length."""
    width = np.dtype(dtype).itemsize
    if len(data) != count * channels * width:
        raise ValueError(f"broken asset pack: got {len(data)} bytes, wanted {count * channels * width}")
    planes = np.frombuffer(data, np.uint8).reshape(channels, width, count).transpose(0, 2, 1)
    columns: np.ndarray = np.ascontiguousarray(planes).view(np.dtype(dtype).newbyteorder("<"))[..., 0]
    return np.cumsum(columns, axis=1, dtype=dtype).T


def _check_choice(name: str, value: str | None, choices: tuple[str, ...]) -> None:
    if value is not None and value not in choices:
        raise ValueError(f"{name}: got {value!r}, wanted one of {choices}")


def _read_catalog(archive: zipfile.ZipFile, path: Path) -> dict[str, Any]:
    try:
        catalog = json.loads(archive.read("catalog.json"))
    except (KeyError, ValueError) as error:
        raise ValueError(f"{path} is not an asset pack: no readable catalog.json") from error
    if not isinstance(catalog, dict) or catalog.get("format") != FORMAT:
        raise ValueError(f"{path} is not an asset pack: its catalog is no {FORMAT!r} file")
    if catalog.get("version") != VERSION:
        raise ValueError(f"{path}: got asset pack version {catalog.get('version')}, wanted {VERSION}")
    return catalog


def _read_textures(archive: zipfile.ZipFile, count: int, size: int) -> np.ndarray:
    textures = np.empty((count, size, size, 3), np.uint8)
    for layer in range(count):
        with Image.open(io.BytesIO(archive.read(f"textures/{layer:04d}.jpg"))) as image:
            textures[layer] = np.asarray(image.convert("RGB"))
    return textures


def _read_assets(archive: zipfile.ZipFile, catalog: dict[str, Any]) -> tuple[Asset, ...]:
    """Decode the vertices of all assets at once (fast), then cut them into assets."""
    records = catalog["assets"]
    vertices = np.array([record["vertices"] for record in records], np.int64)
    faces = np.array([record["faces"] for record in records], np.int64)

    def read(name: str, count: int, channels: int, dtype: type) -> np.ndarray:
        return unpack_integers(archive.read(f"meshes/{name}.bin"), int(count), channels, dtype)

    def spread(values: list[list[float]]) -> np.ndarray:
        return np.repeat(np.array(values, np.float32).reshape(len(records), -1), vertices, axis=0)

    unit = np.float32(1 / 65535)
    total = vertices.sum()
    lowest = spread([[-record["size"][0] / 2, 0.0, -record["size"][2] / 2] for record in records])
    positions = lowest + read("positions", total, 3, np.uint16) * unit * spread([r["size"] for r in records])
    normals = read("normals", total, 3, np.uint8).astype(np.float32) - 128
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    uv_range = spread([record["uv_range"] for record in records])
    uvs = uv_range[:, :2] + read("uvs", total, 2, np.uint16) * unit * (uv_range[:, 2:] - uv_range[:, :2])
    material = np.array(catalog["materials"], np.int16).reshape(-1, 5)
    material = material[read("materials", total, 1, np.uint16)[:, 0]]
    corners = read("faces", faces.sum(), 3, np.uint16).astype(np.int32)
    counts = np.array([count for record in records for count, _ in record["levels"]], np.int64)
    level_faces = iter(
        np.split(read("levels", counts.sum(), 3, np.uint16).astype(np.int32), np.cumsum(counts)[:-1])
    )

    arrays = {
        "positions": positions,
        "normals": normals,
        "uvs": uvs,
        "colours": material[:, :3].astype(np.uint8),
        "texture_layer": material[:, 3],
        "gloss": material[:, 4].astype(np.uint8),
    }
    cuts = np.cumsum(vertices)[:-1]
    pieces: dict[str, list[Any]] = {name: np.split(array, cuts) for name, array in arrays.items()}
    pieces["faces"] = np.split(corners, np.cumsum(faces)[:-1])
    pieces["levels"] = [
        tuple(Level(next(level_faces), error) for _, error in record["levels"]) for record in records
    ]
    return tuple(
        _asset(record, {name: parts[index] for name, parts in pieces.items()})
        for index, record in enumerate(records)
    )


def _asset(record: dict[str, Any], arrays: dict[str, Any]) -> Asset:
    fields = ("name", "title", "category", "placement", "role", "elevation", "creator", "licence")
    values: dict[str, Any] = {field: record[field] for field in fields}
    values["size"] = tuple(record["size"])
    values["split"] = split_of(record["name"])
    values["support"] = tuple(Support(*numbers) for numbers in record["support"])
    return Asset(**values, **arrays)
