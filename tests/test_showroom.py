"""Single pieces of furniture: they fill the frame, lie in the middle, and are the same for any workers."""

from __future__ import annotations

import zipfile
from random import Random

import numpy as np
import pytest
from rooms_pack import tiny_pack

from scenediff.datasets.rooms.assets import BUNDLED_PACK
from scenediff.datasets.rooms.projections import clip_matrices
from scenediff.datasets.rooms.showroom import (
    VIEWS,
    FurniturePhotographer,
    Showing,
    render_furniture,
    show,
    views_around,
    write_furniture,
)

needs_pack = pytest.mark.skipif(not BUNDLED_PACK.is_file(), reason="no bundled asset pack")


@pytest.mark.parametrize("size", [(0.5, 0.9, 0.5), (2.0, 0.8, 0.9), (0.4, 1.4, 0.4)])
def test_cameras_see_the_whole_piece(size):
    views = views_around(np.random.default_rng(0), size, 64)
    corners = np.array([[x, y, z, 1] for x in (-0.5, 0.5) for y in (0, 1) for z in (-0.5, 0.5)])
    corners[:, :3] *= size
    clip = np.einsum("gkij,cj->gkci", clip_matrices(views, 0).astype(np.float64), corners)
    image = clip[..., :2] / clip[..., 3:]
    assert (clip[..., 3] > 0).all()
    assert (np.abs(image) < 1.15).mean() > 0.99  # the closest cameras may cut a corner of its box
    assert np.abs(image).max((2, 3)).min() > 0.4  # and the farthest still show it large
    middle = np.einsum("gkij,j->gki", clip_matrices(views, 0).astype(np.float64), [0, size[1] / 2, 0, 1])
    np.testing.assert_allclose(middle[..., :2], 0, atol=1e-5)
    assert (views.centres[..., 1] > size[1] / 2).all()  # from above
    assert (views.centres[..., 2] > 0).all()  # from in front


def test_a_piece_stands_alone():
    pack = tiny_pack()
    chair = next(index for index, asset in enumerate(pack.assets) if asset.role == "chair")
    room, size = show(Random(3), pack, "train", [chair])
    assert (room.mesh == chair).sum() == 1
    assert len(room.mesh) == 3  # with the wall and the floor
    np.testing.assert_allclose(size, pack.assets[chair].size, rtol=0.06)


@needs_pack
def test_pictures(tmp_path):
    showing = Showing(size=24, seed=3)
    with FurniturePhotographer(showing) as photographer:
        first = photographer.photograph(0)
        assert first.shape == (VIEWS, 24, 24, 3)
        assert first.std() > 10
        np.testing.assert_array_equal(photographer.photograph(0), first)
        assert not np.array_equal(photographer.photograph(1), first)
    np.testing.assert_array_equal(render_furniture(2, showing)[0], first[0])
    for workers in (1, 2):
        write_furniture(tmp_path / f"{workers}.zip", VIEWS + 3, showing, workers)
    with zipfile.ZipFile(tmp_path / "1.zip") as one, zipfile.ZipFile(tmp_path / "2.zip") as two:
        assert one.namelist() == two.namelist() == [f"{number:08d}.png" for number in range(VIEWS + 3)]
        assert all(one.read(name) == two.read(name) for name in one.namelist())


@needs_pack
def test_wrong_requests():
    with pytest.raises(ValueError, match="no heldout furniture among submarine"):
        FurniturePhotographer(Showing(split="heldout", roles=("submarine",)))
    with pytest.raises(ValueError, match="count"):
        render_furniture(0, Showing())
