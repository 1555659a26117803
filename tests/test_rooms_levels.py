"""Coarser levels of detail: fewer triangles with the same extent, drawn where they do not show."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from rooms_pack import tiny_pack

from scenediff.datasets.rooms import geometry
from scenediff.datasets.rooms.assets import BUNDLED_PACK, AssetPack
from scenediff.datasets.rooms.levels import MIN_FACES, coarser_levels
from scenediff.datasets.rooms.projections import clip_matrices
from scenediff.datasets.rooms.raster import Grading, Rasterizer
from scenediff.datasets.rooms.room import Room, Views
from scenediff.datasets.rooms.shapes import CUBE, CUSHION, unit_shapes

needs_pack = pytest.mark.skipif(not BUNDLED_PACK.is_file(), reason="no bundled asset pack")


def ball(rings: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """A unit sphere of 2 * rings**2 faces: positions, which are normals too, and faces."""
    polar, angle = np.meshgrid(np.linspace(0, np.pi, rings + 1), np.linspace(0, 2 * np.pi, rings + 1))
    points = np.stack([np.sin(polar) * np.cos(angle), np.cos(polar), np.sin(polar) * np.sin(angle)], -1)
    i, j = (axis.ravel() for axis in np.meshgrid(np.arange(rings), np.arange(rings)))
    a = i * (rings + 1) + j
    b, c, d = a + 1, a + rings + 2, a + rings + 1
    return points.reshape(-1, 3).round(9), np.concatenate([np.stack([a, b, c], 1), np.stack([a, c, d], 1)])


def test_levels_of_a_ball_are_coarser_and_stay_on_it():
    points, faces = ball()
    half = (points[:, 0] > 0).astype(int)
    levels = coarser_levels(points, points, np.zeros((len(points), 2)), half, faces)
    counts = [len(faces), *(len(level.faces) for level in levels)]
    errors = [level.error for level in levels]
    assert len(levels) >= 3
    assert all(after < 0.8 * before for before, after in pairwise(counts))
    assert errors == sorted(errors)
    assert 0 < errors[0] < 0.02
    for level in levels:
        corners = points[level.faces]
        # a side may lose the error at both ends, and more where the 2 % beyond it are
        assert (np.ptp(corners.reshape(-1, 3), axis=0) > 2 - 4 * level.error).all()
        # the middle of a face lies inside the ball by about the error (twice, for the largest 2 %)
        inside = 1 - np.linalg.norm(corners.mean(1), axis=1)
        assert np.quantile(inside, 0.9) < 2 * level.error


def test_simple_meshes_have_no_levels():
    cube = unit_shapes()[0]
    assert len(cube.faces) < MIN_FACES
    materials = np.zeros(len(cube.positions))
    assert coarser_levels(cube.positions, cube.normals, cube.uvs, materials, cube.faces) == ()


def test_shapes_levels_keep_their_extent():
    for shape in unit_shapes():
        if shape.name.split("/")[1] in (CUBE,) or shape.name.startswith("shape/books"):
            assert shape.levels == ()
            continue
        counts = [len(shape.faces), *(len(level.faces) for level in shape.levels)]
        assert counts[2] < counts[1] < counts[0]
        for level in shape.levels:
            assert level.faces.max() < len(shape.positions)
            extent = np.ptp(shape.positions[level.faces].reshape(-1, 3), axis=0)
            # a side may shrink at both ends, and a few vertices are farther off than the error
            assert (extent > 1 - 2.5 * level.error - 0.02).all(), shape.name


@needs_pack
def test_levels_of_the_pack_keep_materials_and_shrink():
    pack = AssetPack.load()
    detailed = [asset for asset in pack.assets if len(asset.faces) > 1000]
    assert np.mean([len(asset.levels) > 0 for asset in detailed]) > 0.95
    for asset in pack.assets[::7]:
        counts = [len(asset.faces), *(len(level.faces) for level in asset.levels)]
        assert counts == sorted(counts, reverse=True)
        assert [level.error for level in asset.levels] == sorted(level.error for level in asset.levels)
        for level in asset.levels:
            assert 0 <= level.faces.min() <= level.faces.max() < len(asset.positions)


def one_cushion(pack: AssetPack, distance: float) -> tuple[Room, Views]:
    """A cushion of 0.5 m straight ahead of a camera at the origin."""
    instance = np.zeros((1, 28), np.float32)
    instance[0, [0, 5, 10]] = 0.5
    instance[0, [7, 11]] = -0.25, distance
    instance[0, 12:15] = 0.8
    instance[0, 16] = -1
    number = len(pack.assets) + [shape.name for shape in unit_shapes()].index(f"shape/{CUSHION}")
    empty = np.zeros((0, 6), np.float32)
    nothing = np.zeros(0, np.int32)
    room = Room(
        "test",
        (4.0, 2.5, 4.0),
        np.array([number], np.int32),
        instance,
        empty,
        nothing,
        nothing,
        0,
        np.zeros((0, 4), np.float32),
        ((-2.0, -2.0, 2.0, 2.0),),
        (),
        (),
        np.full((6, 3), 0.2, np.float32),
    )
    view = Views(
        np.eye(3, dtype=np.float32)[None, None],
        np.zeros((1, 1, 3), np.float32),
        np.full((1, 1), 1.5, np.float32),
        np.zeros((1, 1, 2), np.float32),
    )
    return room, view


def test_far_things_are_drawn_coarsely_and_tiny_ones_not_at_all():
    pack = tiny_pack()
    with Rasterizer(pack) as rasterizer:
        chosen = []
        for distance in (1.0, 6.0, 30.0):
            room, view = one_cushion(pack, distance)
            rasterizer.upload(room)
            level = rasterizer._geometry._select(clip_matrices(view, 0)[0], 128, 1.0, 0.0)[3]
            chosen.append(int(level[0]))
        room, view = one_cushion(pack, 59.0)
        rasterizer.upload(room)
        drawn = rasterizer._geometry._select(clip_matrices(view, 0)[0], 128, 4.0, 0.0)[0]
    assert chosen == sorted(chosen)
    assert (chosen[0], chosen[-1]) == (0, 2)
    assert len(drawn) == 0


def test_a_level_that_may_be_off_by_one_sample_hardly_changes_the_silhouette(monkeypatch):
    fine = [replace(shape, levels=()) for shape in unit_shapes()]
    pack, grading = tiny_pack(), Grading.sample(np.random.default_rng(0), 1)
    depths = []
    for shapes in (unit_shapes(), tuple(fine)):
        monkeypatch.setattr("scenediff.datasets.rooms.raster.unit_shapes", lambda shapes=shapes: shapes)
        with Rasterizer(pack) as rasterizer:
            room, view = one_cushion(pack, 2.5)
            rasterizer.upload(room)
            photos = rasterizer.render(room, view, grading, 128, unlit=True)
            depths.append(photos.depths[0, 0].astype(np.float64))
    here = [depth < 30 for depth in depths]
    assert here[1].sum() > 100
    assert not np.array_equal(depths[0], depths[1])  # a coarser level is drawn
    # the rim is some 60 of 300 pixels, and may be off by 0.8 of one here and there
    assert (here[0] != here[1]).sum() < 0.12 * here[1].sum()
    both = here[0] & here[1]
    change = np.abs(np.log(depths[0] / depths[1]))[both]
    assert change.mean() < 0.0133 / 2.2  # the level's error at its distance


def test_vertices_in_one_place_are_joined_within_a_mesh_only():
    positions = np.array([[0, 0, 0], [1, 0, 0], [0, 0, 0], [0, 0, 0], [1, 0, 0]], np.float32)
    first = geometry._first_at_place(positions, np.array([0, 0, 0, 1, 1]))
    np.testing.assert_array_equal(first, [0, 1, 0, 3, 4])
