"""The bundled asset pack, and building one from furniture libraries."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scenediff.datasets.rooms.asset_catalog import LICENCES
from scenediff.datasets.rooms.asset_meshes import (
    Mesh,
    clean,
    polygon_triangles,
    read_obj,
    simplify,
    smooth_vertices,
)
from scenediff.datasets.rooms.asset_supports import find_supports, largest_rectangle
from scenediff.datasets.rooms.assets import (
    BUNDLED_PACK,
    PLACEMENTS,
    SURFACE_KINDS,
    AssetPack,
    pack_integers,
    split_of,
    unpack_integers,
)
from scenediff.datasets.rooms.build_assets import build_pack
from scenediff.datasets.rooms.surface_textures import fractal_noise

SIZE = 32


@pytest.fixture(scope="module")
def pack() -> AssetPack:
    return AssetPack.load()


# --- the bundled pack


def test_pack_is_small_and_large_enough(pack: AssetPack) -> None:
    assert BUNDLED_PACK.stat().st_size < 30e6
    assert len(pack.assets) >= 450
    assert pack.textures.dtype == np.uint8
    assert pack.textures.shape[1] == pack.textures.shape[2]
    kinds = [surface.kind for surface in pack.surfaces]
    assert kinds.count("wall") + kinds.count("floor") >= 40
    assert kinds.count("poster") >= 40
    assert kinds.count("outdoor") >= 12


def test_bounds_equal_sizes(pack: AssetPack) -> None:
    for asset in pack.assets:
        low, high = asset.positions.min(0), asset.positions.max(0)
        half = np.array(asset.size) / 2
        # 16-bit steps over the box and float32: a tenth of a millimetre is ample.
        np.testing.assert_allclose(high - low, asset.size, rtol=0.02, atol=1e-4, err_msg=asset.name)
        np.testing.assert_allclose(low, [-half[0], 0, -half[2]], atol=1e-3, err_msg=asset.name)


def test_arrays_are_consistent(pack: AssetPack) -> None:
    for asset in pack.assets:
        count = len(asset.positions)
        shapes = [asset.normals.shape, asset.uvs.shape, asset.colours.shape]
        assert shapes == [(count, 3), (count, 2), (count, 3)], asset.name
        assert asset.texture_layer.shape == asset.gloss.shape == (count,), asset.name
        assert asset.faces.dtype == np.int32
        assert asset.faces.min() >= 0, asset.name
        assert asset.faces.max() < count, asset.name
        assert asset.texture_layer.min() >= -1, asset.name
        assert asset.texture_layer.max() < len(pack.textures), asset.name
        layers = asset.texture_layer[asset.faces]
        assert (layers == layers[:, :1]).all(), asset.name
        np.testing.assert_allclose(np.linalg.norm(asset.normals, axis=1), 1, atol=1e-5, err_msg=asset.name)
        assert np.isfinite(asset.uvs).all(), asset.name


def test_normals_agree_with_faces(pack: AssetPack) -> None:
    """Smooth normals stay close to the faces they shade, up to the face's orientation."""
    for asset in pack.assets[::10]:
        a, b, c = (asset.positions[asset.faces[:, corner]].astype(np.float64) for corner in range(3))
        cross = np.cross(b - a, c - a)
        area = np.linalg.norm(cross, axis=1)
        large = area > 1e-5
        cosine = np.einsum("ni,ni->n", cross, asset.normals[asset.faces[:, 0]])[large] / area[large]
        assert np.mean(np.abs(cosine) > 0.6) > 0.98, asset.name


def test_credits_and_words(pack: AssetPack) -> None:
    for asset in pack.assets:
        library = asset.name.partition("/")[0]
        assert asset.licence == LICENCES[library]
        assert asset.creator.strip()
        assert asset.title.strip()
        assert asset.role.strip()
        assert asset.placement in PLACEMENTS
    notice = (Path(__file__).parents[1] / "NOTICE").read_text()
    assert all(library in notice for library in LICENCES)


def test_splits_are_disjoint_and_stable(pack: AssetPack) -> None:
    train, heldout = pack.select(split="train"), pack.select(split="heldout")
    assert not {asset.name for asset in train} & {asset.name for asset in heldout}
    assert len({asset.name for asset in pack.assets}) == len(train) + len(heldout)
    assert 0.08 < len(heldout) / len(pack.assets) < 0.22
    for kind in ("wall", "floor", "poster", "outdoor"):
        assert pack.select_surfaces(split="heldout", kind=kind)
        assert pack.select_surfaces(split="train", kind=kind)
    # Names written out: a change of the hash would mix objects held out into later training.
    names = ("Scopia/bed1", "KatorLegaz/bench", "BlendSwap-CC-0/radiator")
    assert [split_of(name) for name in names] == ["train", "train", "heldout"]


def test_select_filters(pack: AssetPack) -> None:
    sofas = pack.select(split="train", placement="floor", role="sofa")
    assert len(sofas) > 10
    assert all(asset.role == "sofa" and asset.split == "train" for asset in sofas)
    with pytest.raises(ValueError, match="placement"):
        pack.select(placement="ground")
    with pytest.raises(ValueError, match="split"):
        pack.select_surfaces(split="test")


def test_every_place_of_a_room_is_served(pack: AssetPack) -> None:
    for placement in PLACEMENTS:
        for split in ("train", "heldout") if placement in ("floor", "against_wall", "top") else ("train",):
            assert pack.select(split=split, placement=placement), (placement, split)
    for role in (
        "sofa",
        "armchair",
        "chair",
        "bed",
        "dining_table",
        "desk",
        "wardrobe",
        "shelf",
        "lamp",
        "plant",
    ):
        assert len(pack.select(split="train", role=role)) >= 3, role


def test_supports_lie_inside_bounds(pack: AssetPack) -> None:
    for asset in pack.assets:
        width, height, depth = asset.size
        for support in asset.support:
            assert -width / 2 - 1e-3 <= support.x0 < support.x1 <= width / 2 + 1e-3, asset.name
            assert -depth / 2 - 1e-3 <= support.z0 < support.z1 <= depth / 2 + 1e-3, asset.name
            assert 0 <= support.y <= height + 1e-3, asset.name
            assert support.clearance > 0.1, asset.name
    tables = pack.select(role="dining_table") + pack.select(role="coffee_table")
    assert np.mean([any(s.clearance >= 3 for s in table.support) for table in tables]) > 0.9


def test_surfaces_have_textures(pack: AssetPack) -> None:
    assert {surface.kind for surface in pack.surfaces} == set(SURFACE_KINDS)
    assert len({surface.name for surface in pack.surfaces}) == len(pack.surfaces)
    for surface in pack.surfaces:
        assert 0 <= surface.texture_layer < len(pack.textures)
        assert min(surface.size) > 0.1
        assert 0 <= surface.gloss <= 255


def test_tileable_surfaces_have_no_seam(pack: AssetPack) -> None:
    """Across the border, neighbouring rows and columns differ no more than rows and columns do elsewhere."""
    for surface in pack.surfaces:
        if surface.kind in ("poster", "outdoor"):
            continue
        texture = pack.textures[surface.texture_layer].astype(float)
        for axis in (0, 1):
            steps = np.abs(np.roll(texture, -1, axis) - texture).mean(axis=(1 - axis, 2))
            assert steps[-1] <= 1.2 * steps.max() + 1.5, surface.name  # JPEG blocks differ a little
            assert steps[-1] <= 3 * np.percentile(steps, 98) + 4, surface.name


# --- files that are no packs


def test_missing_and_foreign_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no asset pack"):
        AssetPack.load(tmp_path / "none.zip")
    text = tmp_path / "text.zip"
    text.write_text("not a zip file")
    with pytest.raises(ValueError, match="not a zip file"):
        AssetPack.load(text)
    for content, message in (
        (None, "no readable catalog"),
        ("{", "no readable catalog"),
        ('{"format": "other"}', "not an asset pack"),
        ('{"format": "scenediff-assets", "version": 99}', "version 99"),
    ):
        path = tmp_path / "foreign.zip"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("other.txt" if content is None else "catalog.json", content or "")
        with pytest.raises(ValueError, match=message):
            AssetPack.load(path)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_integers_round_trip(dtype: type) -> None:
    values: np.ndarray = np.random.default_rng(0).integers(0, np.iinfo(dtype).max + 1, (37, 3)).astype(dtype)
    data = pack_integers(values)
    np.testing.assert_array_equal(unpack_integers(data, 37, 3, dtype), values)
    with pytest.raises(ValueError, match="broken asset pack"):
        unpack_integers(data[:-1], 37, 3, dtype)


# --- building a pack

CUBE = """mtllib cube.mtl
v 0 0 0
v 4 0 0
v 4 2 0
v 0 2 0
v 0 0 1
v 4 0 1
v 4 2 1
v 0 2 1
vt 0 0
vt 1 0
vt 1 1
vt 0 1
usemtl picture
f 5/1 6/2 7/3 8/4
usemtl plain
f 1 4 3 2
f 1 2 6 5
f 4 8 7 3
f 1 5 8 4
f 2 3 7 6
"""
MATERIALS = """newmtl picture
Kd 0.64 0.64 0.64
map_Kd halves.png
newmtl plain
Kd 1.0 0.5 0.0
Ks 0.5 0.5 0.5
Ns 1023
"""
CATALOG = """id=test
name#1=Table
category#1=Living room
model#1=/scopia/cube/cube.obj
width#1=80
depth#1=40
height#1=60
creator#1=Nobody
name#2=Truck
category#2=Vehicles
model#2=/scopia/cube/cube.obj
width#2=80
depth#2=40
height#2=60
"""


def write_library(folder: Path, catalog: str = CATALOG, name: str = "Scopia.sh3f") -> Path:
    """A furniture folder with one library: a box whose front (+z) is red on the left, blue on the right."""
    halves = np.zeros((16, 16, 3), np.uint8)
    halves[:, :8, 0] = halves[:, 8:, 2] = 255
    file = io.BytesIO()
    Image.fromarray(halves).save(file, "PNG")
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(folder / name, "w") as archive:
        archive.writestr("PluginFurnitureCatalog.properties", catalog.encode("latin-1"))
        archive.writestr("scopia/cube/cube.obj", CUBE)
        archive.writestr("scopia/cube/cube.mtl", MATERIALS)
        archive.writestr("scopia/cube/halves.png", file.getvalue())
    return folder


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("furniture")
    build_pack(write_library(folder / "libraries"), folder / "pack.zip", texture_size=SIZE, progress=False)
    return folder / "pack.zip"


def test_build_round_trip(built: Path) -> None:
    pack = AssetPack.load(built)
    assert pack.textures.shape[1:] == (SIZE, SIZE, 3)
    (asset,) = pack.assets
    assert (asset.name, asset.title, asset.creator, asset.licence) == (
        "Scopia/cube",
        "Table",
        "Nobody",
        "CC-BY-3.0",
    )
    assert (asset.role, asset.placement) == ("dining_table", "floor")
    np.testing.assert_allclose(asset.size, (0.8, 0.6, 0.4), atol=1e-5)
    assert len(asset.faces) == 12
    assert len(asset.positions) == 24  # sharp edges: four vertices a side


def test_build_keeps_texture_and_colours(built: Path) -> None:
    pack = AssetPack.load(built)
    (asset,) = pack.assets
    front = asset.texture_layer >= 0
    np.testing.assert_allclose(asset.normals[front], [[0, 0, 1]] * 4, atol=0.01)
    np.testing.assert_array_equal(asset.colours[front], 255)
    np.testing.assert_allclose(asset.uvs[front][:, 0], asset.positions[front][:, 0] / 0.8 + 0.5, atol=1e-3)
    texture = pack.textures[asset.texture_layer[front][0]].astype(float)
    left, right = texture[:, : SIZE // 2 - 4].mean((0, 1)), texture[:, SIZE // 2 + 4 :].mean((0, 1))
    np.testing.assert_allclose([left, right], [[255, 0, 0], [0, 0, 255]], atol=12)  # JPEG
    np.testing.assert_array_equal(asset.colours[~front], [[232, 128, 23]] * 20)  # drawn a little to grey
    assert set(asset.gloss[~front]) == {127}


def test_build_finds_the_top(built: Path) -> None:
    (asset,) = AssetPack.load(built).assets
    (support,) = asset.support
    found = [support.x0, support.z0, support.x1, support.z1, support.y]
    np.testing.assert_allclose(found, [-0.4, -0.2, 0.4, 0.2, 0.6], atol=0.03)  # cells of 3 cm


def test_build_is_deterministic(built: Path, tmp_path: Path) -> None:
    build_pack(
        write_library(tmp_path / "libraries"), tmp_path / "pack.zip", texture_size=SIZE, progress=False
    )
    assert (tmp_path / "pack.zip").read_bytes() == built.read_bytes()


def test_build_turns_the_model(tmp_path: Path) -> None:
    """A rotation by 90 degrees about x puts the model's +z side, with the texture, on top (y)."""
    turned = CATALOG + "modelRotation#1=1 0 0 0 0 1 0 -1 0\n"
    build_pack(write_library(tmp_path, turned), tmp_path / "pack.zip", texture_size=SIZE, progress=False)
    (asset,) = AssetPack.load(tmp_path / "pack.zip").assets
    np.testing.assert_allclose(asset.normals[asset.texture_layer >= 0], [[0, 1, 0]] * 4, atol=0.01)


def test_build_rejects_bad_inputs(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="furniture"):
        build_pack(tmp_path / "none.deb", tmp_path / "pack.zip", progress=False)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no furniture library"):
        build_pack(tmp_path / "empty", tmp_path / "pack.zip", progress=False)
    broken = tmp_path / "broken.deb"
    broken.write_text("no package")
    with pytest.raises(ValueError, match=r"not a Debian package|dpkg-deb is not installed"):
        build_pack(broken, tmp_path / "pack.zip", progress=False)
    lacking = write_library(tmp_path / "lacking", CATALOG.replace("width#1=80\n", ""))
    with pytest.raises(ValueError, match="width"):
        build_pack(lacking, tmp_path / "pack.zip", progress=False)
    vehicles = write_library(tmp_path / "vehicles", CATALOG.replace("Living room", "Vehicles"))
    with pytest.raises(ValueError, match="no usable model"):
        build_pack(vehicles, tmp_path / "pack.zip", progress=False)
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "Scopia.sh3f").write_text("no zip")
    with pytest.raises(ValueError, match="not a furniture library"):
        build_pack(tmp_path / "text", tmp_path / "pack.zip", progress=False)


def test_broken_models_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A model that is missing costs a warning, not the pack."""
    second = CATALOG.replace("#2", "#3").replace("Vehicles", "Office").replace("Truck", "Table 2")
    catalog = CATALOG + second.replace("model#3=/scopia/cube/cube.obj", "model#3=/scopia/gone/gone.obj")
    build_pack(write_library(tmp_path, catalog), tmp_path / "pack.zip", texture_size=SIZE, progress=False)
    assert [asset.name for asset in AssetPack.load(tmp_path / "pack.zip").assets] == ["Scopia/cube"]
    assert "Scopia/gone left out" in caplog.text


def test_catalog_in_pack_names_credits(built: Path) -> None:
    with zipfile.ZipFile(built) as archive:
        (record,) = json.loads(archive.read("catalog.json"))["assets"]
    assert record["creator"] == "Nobody"
    assert record["licence"] == "CC-BY-3.0"


# --- meshes


def sphere(rows: int = 60, columns: int = 80) -> Mesh:
    """A unit sphere with longitude and latitude as texture coordinates, and a seam at longitude 0."""
    v, u = np.indices((rows + 1, columns + 1))
    u, v = u / columns, v / rows
    theta, phi = np.pi * v.reshape(-1), 2 * np.pi * (u.reshape(-1) % 1)
    points = np.stack([np.sin(theta) * np.cos(phi), np.cos(theta), np.sin(theta) * np.sin(phi)], 1)
    corner = (np.arange(rows)[:, None] * (columns + 1) + np.arange(columns)).reshape(-1)
    step = columns + 1
    faces = np.stack([corner, corner + 1, corner + step, corner + 1, corner + step + 1, corner + step], 1)
    faces = faces.reshape(-1, 3)
    return Mesh(points, np.stack([u.reshape(-1), v.reshape(-1)], 1), faces, faces, np.zeros(len(faces), int))


def test_concave_polygon_is_triangulated_without_overlap() -> None:
    """An L: the triangles' areas add up to its area only if none lies outside or on another."""
    outline = np.array([[0, 0], [3, 0], [3, 1], [1, 1], [1, 3], [0, 3]], float)
    for order in (outline, outline[::-1], np.roll(outline, 2, axis=0)):
        for axes in ([0, 1], [2, 0], [1, 2]):
            points = np.zeros((6, 3))
            points[:, axes] = order
            corners = points[np.array(polygon_triangles(points))]
            cross = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
            assert len(corners) == 4
            assert np.linalg.norm(cross, axis=1).sum() / 2 == pytest.approx(5.0)


def test_obj_errors_and_relative_indices() -> None:
    mesh, names = read_obj("v 0 0 0\nv 1 0 0\nv 0 1 0\nusemtl a b\nf -3 -2 -1\n")
    np.testing.assert_array_equal(mesh.faces, [[0, 1, 2]])
    assert names[mesh.materials[0]] == "a b"
    with pytest.raises(ValueError, match="no faces"):
        read_obj("v 0 0 0\n")
    with pytest.raises(ValueError, match="out of range"):
        read_obj("v 0 0 0\nf 1 2 3\n")


def test_clean_drops_doubled_faces() -> None:
    mesh = sphere(6, 8)
    both = np.concatenate([mesh.faces, mesh.faces[:, ::-1]])
    doubled = Mesh(mesh.positions, mesh.uvs, both, both, np.zeros(len(both), int))
    assert len(clean(doubled).faces) == len(clean(mesh).faces) == 6 * 8 * 2 - 2 * 8  # less the poles' slivers


def test_simplified_sphere_keeps_shape_and_texture() -> None:
    textured = np.array([True])
    mesh = clean(sphere())
    small = simplify(mesh, 1500, textured)
    assert len(small.faces) <= 1600
    np.testing.assert_array_equal(simplify(mesh, 1500, textured).positions, small.positions)
    assert small.areas().sum() == pytest.approx(4 * np.pi, rel=0.02)
    vertices = smooth_vertices(small, textured)
    np.testing.assert_allclose(np.linalg.norm(vertices.positions, axis=1), 1, atol=0.03)
    inward = np.einsum("ni,ni->n", vertices.normals, vertices.positions)
    assert np.percentile(np.abs(inward), 2) > 0.97
    latitude = np.arccos(np.clip(vertices.positions[:, 1], -1, 1)) / np.pi
    assert np.percentile(np.abs(vertices.uvs[:, 1] - latitude), 98) < 0.02
    away = np.abs(vertices.positions[:, 1]) < 0.9  # longitude has no value at the poles
    longitude = np.arctan2(vertices.positions[:, 2], vertices.positions[:, 0]) / (2 * np.pi)
    error = np.abs((vertices.uvs[:, 0] - longitude + 0.5) % 1 - 0.5)
    assert np.percentile(error[away], 98) < 0.02


def test_crease_stays_sharp_and_curve_smooth() -> None:
    """Two planes at 90 degrees keep two normals along their edge; at 20 degrees they share one."""
    for angle, count in ((90, 2), (20, 1)):
        t = np.radians(angle)
        points = np.array(
            [
                [0, 0, 0],
                [0, 0, 1],
                [1, 0, 0],
                [1, 0, 1],
                [-np.cos(t), np.sin(t), 0],
                [-np.cos(t), np.sin(t), 1],
            ]
        )
        faces = np.array([[0, 1, 3], [0, 3, 2], [0, 4, 5], [0, 5, 1]])
        mesh = Mesh(points, np.zeros((1, 2)), faces, np.zeros_like(faces), np.zeros(4, int))
        vertices = smooth_vertices(mesh, np.array([False]))
        at_edge = vertices.normals[np.linalg.norm(vertices.positions, axis=1) < 1e-6]
        assert len(np.unique(at_edge.round(3), axis=0)) == count


# --- supports


def boxes(*bounds: tuple[float, float, float, float, float, float]) -> tuple[np.ndarray, np.ndarray]:
    """A mesh of axis-aligned boxes (x0, y0, z0, x1, y1, z1)."""
    quads = np.array([[0, 1, 3, 2], [4, 6, 7, 5], [0, 4, 5, 1], [2, 3, 7, 6], [0, 2, 6, 4], [1, 5, 7, 3]])
    faces = np.concatenate([quads[:, [0, 1, 2]], quads[:, [0, 2, 3]]])
    pick = np.array([[x, y, z] for x in (0, 3) for y in (1, 4) for z in (2, 5)])
    positions = np.array([np.array(bound)[pick] for bound in bounds])
    every = np.concatenate([faces + 8 * index for index in range(len(bounds))])
    return positions.reshape(-1, 3), every


def test_supports_of_an_open_and_a_closed_shelf() -> None:
    """Three boards between sides: an open front offers them all, a door leaves the top alone."""
    shelf = [(-0.5, y, -0.2, 0.5, y + 0.02, 0.2) for y in (0.1, 0.5, 0.98)]
    shelf += [(-0.52, 0, -0.2, -0.5, 1.0, 0.2), (0.5, 0, -0.2, 0.52, 1.0, 0.2)]
    supports = sorted(find_supports(*boxes(*shelf)), key=lambda support: support.y)
    np.testing.assert_allclose([s.y for s in supports], [0.12, 0.52, 1.0], atol=0.005)
    np.testing.assert_allclose([s.clearance for s in supports], [0.38, 0.46, 3.0], atol=0.02)
    for support in supports:
        bounds = [support.x0, support.z0, support.x1, support.z1]
        np.testing.assert_allclose(bounds, [-0.5, -0.2, 0.5, 0.2], atol=0.06)  # two cells
    door = (-0.5, 0, 0.19, 0.5, 1.0, 0.2)
    closed = find_supports(*boxes(*shelf, door))
    assert [round(s.y, 2) for s in closed] == [1.0]


def test_support_avoids_what_stands_on_it() -> None:
    (support, *_) = find_supports(*boxes((-1, 0, -0.5, 1, 0.7, 0.5), (0.2, 0.7, -0.5, 1, 1.0, 0.5)))
    assert support.y == pytest.approx(0.7, abs=0.005)
    assert (support.x0, support.x1) == pytest.approx((-1, 0.2), abs=0.04)


def test_largest_rectangle_against_all_rectangles() -> None:
    rng = np.random.default_rng(3)
    for _ in range(20):
        free = rng.uniform(size=(6, 7)) < 0.7
        i0, k0, i1, k1 = largest_rectangle(free)
        assert free[i0:i1, k0:k1].all()
        areas = [
            (b - a) * (d - c)
            for a in range(6)
            for b in range(a + 1, 7)
            for c in range(7)
            for d in range(c + 1, 8)
            if free[a:b, c:d].all()
        ]
        assert (i1 - i0) * (k1 - k0) == max(areas, default=0)


def test_fractal_noise_falls_with_frequency() -> None:
    """Amplitudes go as frequency ** -exponent: a fit over the spectrum recovers the exponent."""
    noise = fractal_noise(np.random.default_rng(0), 128, exponent=1.5)
    assert noise.mean() == pytest.approx(0, abs=1e-9)
    assert noise.std() == pytest.approx(1)
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(128), np.fft.fftfreq(128)))
    band = (frequency > 0.02) & (frequency < 0.4)
    slope = np.polyfit(np.log(frequency[band]), np.log(np.abs(np.fft.fft2(noise)))[band], 1)[0]
    assert slope == pytest.approx(-1.5, abs=0.05)
