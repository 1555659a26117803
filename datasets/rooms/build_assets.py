"""Builds the asset pack from Sweet Home 3D's furniture libraries (Debian package sweethome3d-furniture).

Each model is brought to real size, simplified, given smooth normals and coarser levels, and stored with its
credit; textures are resized to one square size. `surface_textures` adds procedural walls, floors, pictures
and views.
"""

from __future__ import annotations

import io
import json
import logging
import shutil
import subprocess
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from .asset_catalog import LICENCES, Entry, is_usable, read_library, role_and_placement, usual_elevation
from .asset_meshes import Material, Mesh, Vertices, clean, read_materials, read_obj, simplify, smooth_vertices
from .asset_supports import find_supports
from .assets import FORMAT, VERSION, Level, pack_integers
from .levels import coarser_levels
from .surface_catalog import procedural_surfaces

TEXTURE_SIZE = 256
MAX_FACES = 2500
MAX_PLANT_FACES = 5000
MAX_SMALL_FACES = 1200
_SMALL = 0.4
_JPEG_QUALITY = 85
_ZIP_TIME = (1980, 1, 1, 0, 0, 0)
_GLASS = (214, 228, 233)
_SEE_THROUGH_ROLES = frozenset(["door", "window", "shelf", "kitchen_unit", "wardrobe", "shower"])
_SUPPORT_ROLES = frozenset(
    (
        *("coffee_table", "dining_table", "desk", "nightstand", "shelf", "tv_stand", "kitchen_unit"),
        *("dresser", "wardrobe", "fridge", "oven", "washing_machine", "fireplace", "piano"),
        *("radiator", "bench"),
    )
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class _Model:
    """One finished asset, not yet numbered into a pack."""

    record: dict[str, Any]
    vertices: Vertices
    levels: tuple[Level, ...]
    materials: list[tuple[tuple[int, int, int], bytes | None, int]]
    """Colour, texture (its JPEG file) and gloss of each material."""


def build_pack(
    furniture: str | Path,
    output: str | Path,
    max_faces: int = MAX_FACES,
    texture_size: int = TEXTURE_SIZE,
    progress: bool = True,
) -> None:
    """Write the asset pack `output` from `furniture`; the same input gives the same bytes.

    furniture: the file sweethome3d-furniture_*.deb, or a folder with its libraries (*.sh3f) somewhere below.
    Raises FileNotFoundError if `furniture` does not exist, and ValueError if it holds no known library or no
    usable model.
    """
    furniture, output = Path(furniture), Path(output)
    with _library_files(furniture) as libraries:
        entries = [(path, entry) for path in libraries for entry in read_library(path) if is_usable(entry)]
        models = []
        for path, entry in tqdm(entries, desc="assets", disable=not progress):
            with zipfile.ZipFile(path) as archive:
                model = _build_model(archive, entry, max_faces, texture_size)
            if model is not None:
                models.append(model)
    if not models:
        raise ValueError(f"{furniture}: no usable model in {[path.name for path in libraries]}")
    _write_pack(output, models, texture_size, progress)


@contextmanager
def _library_files(furniture: Path) -> Iterator[list[Path]]:
    """The furniture libraries in a folder or Debian package, in the order of `LICENCES`."""
    if not furniture.exists():
        raise FileNotFoundError(f"furniture: no file or folder {furniture}")
    with tempfile.TemporaryDirectory() as scratch:
        folder = furniture if furniture.is_dir() else Path(scratch)
        if furniture.is_file():
            _unpack_debian(furniture, folder)
        found = {path.stem: path for path in sorted(folder.rglob("*.sh3f"))}
        libraries = [found[name] for name in LICENCES if name in found]
        if not libraries:
            raise ValueError(
                f"{furniture}: no furniture library, wanted one of {[f'{n}.sh3f' for n in LICENCES]}"
            )
        yield libraries


def _unpack_debian(package: Path, folder: Path) -> None:
    program = shutil.which("dpkg-deb")
    if program is None:
        raise ValueError(f"{package}: dpkg-deb is not installed; unpack the package and give its folder")
    result = subprocess.run([program, "-x", str(package), str(folder)], capture_output=True, text=True)
    if result.returncode:
        raise ValueError(f"{package} is not a Debian package: {result.stderr.strip()}")


def _build_model(archive: zipfile.ZipFile, entry: Entry, max_faces: int, texture_size: int) -> _Model | None:
    """The finished asset of one entry; None, with a warning, if its model is missing or broken."""
    role, placement = role_and_placement(entry)
    try:
        mesh, names = read_obj(archive.read(entry.model).decode("latin-1"))
    except (KeyError, ValueError) as error:
        logger.warning("%s left out: %s", entry.name, error)
        return None
    materials = _read_materials(archive, entry, names)
    looks = [_look(archive, entry, material, texture_size) for material in materials]
    mesh = _drop_invisible(clean(_placed(mesh, entry)), looks, role)
    if len(mesh.faces) == 0:
        logger.warning("%s left out: its model has no area", entry.name)
        return None
    textured = np.array([look.texture is not None for look in looks])
    mesh = simplify(mesh, _face_budget(entry, role, max_faces), textured)
    vertices = smooth_vertices(mesh, textured)
    low, high = vertices.positions.min(0), vertices.positions.max(0)
    centred = vertices.positions - [(low[0] + high[0]) / 2, low[1], (low[2] + high[2]) / 2]
    vertices = replace(vertices, positions=centred)
    supports = find_supports(vertices.positions, vertices.faces) if role in _SUPPORT_ROLES else ()
    record = {
        "name": entry.name,
        "title": entry.title,
        "category": entry.category,
        "placement": placement,
        "role": role,
        "size": [round(float(extent), 5) for extent in high - low],
        "elevation": round(usual_elevation(entry, role, placement), 4),
        "creator": entry.creator,
        "licence": entry.licence,
        "support": [list(asdict(support).values()) for support in supports],
    }
    uvs = np.where(textured[vertices.materials][:, None], vertices.uvs, 0.0)
    levels = coarser_levels(vertices.positions, vertices.normals, uvs, vertices.materials, vertices.faces)
    return _Model(record, vertices, levels, [(look.colour, look.texture, look.gloss) for look in looks])


def _face_budget(entry: Entry, role: str, max_faces: int) -> int:
    if role == "plant":
        return MAX_PLANT_FACES
    return min(max_faces, MAX_SMALL_FACES) if max(entry.size) < _SMALL else max_faces


@dataclass(frozen=True)
class _Look:
    colour: tuple[int, int, int]
    texture: bytes | None
    gloss: int
    opacity: float


def _placed(mesh: Mesh, entry: Entry) -> Mesh:
    """The mesh turned to y up and front +z, and scaled to the size in the catalogue."""
    positions = mesh.positions @ entry.rotation.T
    used = positions[np.unique(mesh.faces)]
    low, extent = used.min(0), np.maximum(np.ptp(used, axis=0), 1e-9)
    positions = (positions - low) / extent * np.array(entry.size)
    return replace(mesh, positions=positions)


def _drop_invisible(mesh: Mesh, looks: list[_Look], role: str) -> Mesh:
    """Without glass where one looks through it, and without see-through textures, unless little is left."""
    opacity = np.array([look.opacity for look in looks])[mesh.materials]
    least = 0.5 if role in _SEE_THROUGH_ROLES else 0.05
    keep = opacity > least
    areas = mesh.areas()
    return mesh.select(keep) if areas[keep].sum() > 0.25 * areas.sum() else mesh


def _read_materials(archive: zipfile.ZipFile, entry: Entry, names: list[str]) -> list[Material]:
    folder = PurePosixPath(entry.model).parent
    found: dict[str, Material] = {}
    for line in archive.read(entry.model).decode("latin-1").splitlines():
        if line.startswith("mtllib"):
            path = str(folder / line.partition(" ")[2].strip())
            if path in archive.namelist():
                found.update(read_materials(archive.read(path).decode("latin-1")))
    return [found.get(name, Material()) for name in names]


def _look(archive: zipfile.ZipFile, entry: Entry, material: Material, texture_size: int) -> _Look:
    diffuse = np.clip(material.diffuse, 0, 1)
    image = _texture_file(archive, entry, material)
    texture, coverage = (None, 1.0) if image is None else _texture(image, texture_size)
    opacity = material.opacity * (coverage if coverage > 0.25 else 0.0)
    colour = _softened(255 * diffuse) if texture is None else _tint(diffuse)
    if texture is None and opacity < 0.5:
        colour = (0.35 * colour + 0.65 * np.array(_GLASS)).round()
    sharpness = np.log2(1 + max(0.0, material.shininess)) / 10
    gloss = 255 * np.clip(material.specular, 0, 1) * min(1.0, sharpness)
    return _Look((int(colour[0]), int(colour[1]), int(colour[2])), texture, int(gloss), opacity)


def _softened(colour: np.ndarray) -> np.ndarray:
    """A plain colour drawn a little to grey: nothing in a room is as pure as the modellers' primaries."""
    return np.round(np.clip(0.82 * colour + 0.18 * colour.mean(), 10, 245))


def _tint(diffuse: np.ndarray) -> np.ndarray:
    """White for a texture's material without hue (modellers' defaults are greys); else its brightest hue."""
    if np.ptp(diffuse) < 0.15:
        return np.full(3, 255.0)
    return np.round(255 * diffuse / diffuse.max())


def _texture_file(archive: zipfile.ZipFile, entry: Entry, material: Material) -> bytes | None:
    if material.texture is None:
        return None
    folder = PurePosixPath(entry.model).parent
    for name in (material.texture, material.texture.split()[-1], PurePosixPath(material.texture).name):
        path = str(folder / name)
        if path in archive.namelist():
            return archive.read(path)
    logger.warning("%s: texture %r is missing from the library", entry.name, material.texture)
    return None


@lru_cache(maxsize=64)
def _texture(file: bytes, size: int) -> tuple[bytes, float]:
    """JPEG file of an image at (size, size), transparent parts filled with its mean, and its mean opacity."""
    with Image.open(io.BytesIO(file)) as image:
        pixels = np.asarray(image.convert("RGBA")).astype(np.float32)
    alpha = pixels[..., 3:] / 255
    mean = (pixels[..., :3] * alpha).sum((0, 1)) / max(float(alpha.sum()), 1e-6)
    opaque = np.round(pixels[..., :3] * alpha + mean * (1 - alpha)).astype(np.uint8)
    resized = Image.fromarray(opaque).resize((size, size), Image.Resampling.LANCZOS)
    return _jpeg(resized), float(alpha.mean())


def _jpeg(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=_JPEG_QUALITY)
    return file.getvalue()


def _write_pack(output: Path, models: list[_Model], texture_size: int, progress: bool) -> None:
    textures: dict[bytes, int] = {}
    materials: dict[tuple[int, ...], int] = {}
    streams: dict[str, list[np.ndarray]] = {}
    records = []
    for model in models:
        table = []
        for colour, texture, gloss in model.materials:
            layer = -1 if texture is None else textures.setdefault(texture, len(textures))
            table.append(materials.setdefault((*colour, layer, gloss), len(materials)))
        arrays, uv_range = _quantised(model, np.array(table))
        for name, array in arrays.items():
            streams.setdefault(name, []).append(array)
        counts = {"vertices": len(arrays["positions"]), "faces": len(arrays["faces"])}
        levels = [[len(level.faces), round(level.error, 5)] for level in model.levels]
        records.append({**model.record, **counts, "uv_range": uv_range, "levels": levels})
    surfaces = []
    for surface, image in procedural_surfaces(texture_size, progress):
        layer = textures.setdefault(_jpeg(Image.fromarray(image)), len(textures))
        surfaces.append({**surface, "texture_layer": layer})
    catalog = {
        "format": FORMAT,
        "version": VERSION,
        "texture_size": texture_size,
        "textures": len(textures),
        "materials": list(materials),
        "assets": records,
        "surfaces": surfaces,
    }
    files = {f"meshes/{name}.bin": pack_integers(np.concatenate(parts)) for name, parts in streams.items()}
    files["catalog.json"] = json.dumps(catalog, separators=(",", ":")).encode()
    _write_zip(output, files, list(textures))


def _quantised(model: _Model, material_numbers: np.ndarray) -> tuple[dict[str, np.ndarray], list[float]]:
    """The arrays that `AssetPack.load` decodes, and the range of the texture coordinates."""
    vertices = model.vertices
    if len(vertices.positions) > 65535:
        raise ValueError(
            f"{model.record['name']}: got {len(vertices.positions)} vertices, wanted at most 65535"
        )
    size = np.maximum(model.record["size"], 1e-9)
    lowest = [-size[0] / 2, 0, -size[2] / 2]
    uv_low, uv_high = vertices.uvs.min(0), vertices.uvs.max(0)
    uv_unit = (vertices.uvs - uv_low) / np.maximum(uv_high - uv_low, 1e-9)
    levels = [np.zeros((0, 3)), *(level.faces for level in model.levels)]
    arrays = {
        "positions": _to_uint16((vertices.positions - lowest) / size),
        "normals": np.round(vertices.normals * 127 + 128).clip(1, 255).astype(np.uint8),
        "uvs": _to_uint16(uv_unit),
        "materials": material_numbers[vertices.materials][:, None].astype(np.uint16),
        "faces": vertices.faces.astype(np.uint16),
        "levels": np.concatenate(levels).astype(np.uint16),
    }
    return arrays, [round(float(value), 6) for value in (*uv_low, *uv_high)]


def _to_uint16(unit: np.ndarray) -> np.ndarray:
    return np.round(np.clip(unit, 0, 1) * 65535).astype(np.uint16)


def _write_zip(output: Path, files: dict[str, bytes], jpegs: list[bytes]) -> None:
    output.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(output, "w") as archive:
        for name in sorted(files):
            archive.writestr(zipfile.ZipInfo(name, _ZIP_TIME), files[name], zipfile.ZIP_LZMA)
        for layer, jpeg in enumerate(jpegs):
            archive.writestr(
                zipfile.ZipInfo(f"textures/{layer:04d}.jpg", _ZIP_TIME), jpeg, zipfile.ZIP_STORED
            )
