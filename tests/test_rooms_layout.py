"""Furnished rooms: things are apart, inside, plausible, and the same again for the same seed."""

from __future__ import annotations

import numpy as np
import pytest
from rooms_pack import tiny_pack

from scenediff.datasets.rooms.assets import BUNDLED_PACK, AssetPack
from scenediff.datasets.rooms.layout import furnish

ROOMS = 50


@pytest.fixture(scope="module", params=["tiny", "bundled"])
def rooms(request):
    if request.param == "bundled" and not BUNDLED_PACK.is_file():
        pytest.skip("no bundled asset pack")
    pack = tiny_pack() if request.param == "tiny" else AssetPack.load()
    return [furnish(np.random.default_rng(seed), pack) for seed in range(ROOMS)]


def furniture(room):
    chosen = room.box_object >= room.structure
    return room.boxes[chosen], room.box_object[chosen], room.stands_on[chosen]


def test_nothing_intersects(rooms):
    for room in rooms:
        boxes, owner, below = furniture(room)
        low = np.maximum(boxes[:, None, :3], boxes[None, :, :3])
        high = np.minimum(boxes[:, None, 3:], boxes[None, :, 3:])
        overlap = ((high - low) > 2e-3).all(-1) & (owner[:, None] != owner[None])
        within = below[:, None] == owner[None]  # books in a shelf are in its box by design
        assert not (overlap & ~within & ~within.T).any()


def test_things_stand_on_what_is_below_them(rooms):
    count = 0
    for room in rooms:
        boxes, owner, below = furniture(room)
        for box, support in zip(boxes[below >= 0], below[below >= 0], strict=True):
            parts = boxes[owner == support]
            middle = (box[[0, 2]] + box[[3, 5]]) / 2
            assert (parts[:, [0, 2]].min(0) <= middle).all()
            assert (middle <= parts[:, [3, 5]].max(0)).all()
            assert parts[:, 1].min() <= box[1] <= parts[:, 4].max() + 0.05
            count += 1
    assert count > ROOMS


def test_everything_is_inside(rooms):
    for room in rooms:
        boxes, _, _ = furniture(room)
        width, height, depth = room.size
        assert (np.abs(boxes[:, [0, 3]]) <= width / 2 + 1e-3).all()
        assert (np.abs(boxes[:, [2, 5]]) <= depth / 2 + 1e-3).all()
        assert (boxes[:, 1] >= 0).all()
        assert (boxes[:, 4] <= height + 1e-3).all()


def test_rooms_are_furnished_and_varied(rooms):
    assert len({room.kind for room in rooms}) >= 6
    assert np.mean([len(np.unique(furniture(room)[1])) for room in rooms]) > 15
    sizes = np.array([room.size for room in rooms])
    assert (sizes[:, 1] >= 2.3).all()
    assert (sizes[:, 1] <= 3.5).all()
    assert (sizes[:, [0, 2]] >= 2.2).all()
    assert (sizes[:, [0, 2]] <= 9.0).all()
    assert np.ptp(sizes[:, 0]) > 2


def test_every_room_has_light(rooms):
    for room in rooms:
        assert (room.ambient > 0).all()
        assert np.isfinite(room.instances).all()


def test_equal_seeds_give_equal_rooms():
    pack = tiny_pack()
    first, second, other = (furnish(np.random.default_rng(seed), pack) for seed in (7, 7, 8))
    np.testing.assert_array_equal(first.instances, second.instances)
    np.testing.assert_array_equal(first.mesh, second.mesh)
    np.testing.assert_array_equal(first.boxes, second.boxes)
    assert first.lights == second.lights
    assert first.instances.shape != other.instances.shape or (first.instances != other.instances).any()


def test_split_is_respected():
    if not BUNDLED_PACK.is_file():
        pytest.skip("no bundled asset pack")
    pack = AssetPack.load()
    for split in ("train", "heldout"):
        for seed in range(5):
            meshes = furnish(np.random.default_rng(seed), pack, split).mesh
            used = [pack.assets[index] for index in np.unique(meshes) if index < len(pack.assets)]
            assert all(asset.split == split for asset in used)
