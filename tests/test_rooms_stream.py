"""Streams deliver what a single process renders, in order; they stop cleanly and pass errors on."""

from __future__ import annotations

import multiprocessing

import numpy as np
import pytest

from scenediff.datasets.rooms.assets import BUNDLED_PACK
from scenediff.datasets.rooms.stream import RoomStream, StreamConfig, render_groups

pytestmark = pytest.mark.skipif(not BUNDLED_PACK.is_file(), reason="no bundled asset pack")


def test_stream_equals_render_groups_and_shuts_down():
    expected = render_groups(11, 4, 16, "train", views=2, groups_per_room=2)
    with RoomStream(1, size=16, views=2, groups_per_room=2, seed=11) as stream:
        chunks = [chunk for chunk, _ in zip(stream, range(2), strict=False)]
    assert not [child for child in multiprocessing.active_children() if child.name.startswith("rooms-")]
    for name in vars(expected):
        got = np.concatenate([getattr(chunk, name) for chunk in chunks])
        np.testing.assert_array_equal(got, getattr(expected, name), err_msg=name)
    assert expected.images.shape == (4, 2, 16, 16, 3)
    assert expected.images.dtype == np.uint8
    assert expected.depths.dtype == np.float16
    assert expected.images.std() > 10
    assert (expected.depths > 0.05).all()


def test_error_of_a_worker_reaches_the_consumer(tmp_path):
    missing = tmp_path / "none.zip"
    with RoomStream(1, size=16, pack_path=missing) as stream, pytest.raises(RuntimeError, match=r"none\.zip"):
        next(iter(stream))


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="workers"):
        RoomStream(0)
    with pytest.raises(ValueError, match="size"):
        StreamConfig(size=0)
    with pytest.raises(ValueError, match="count"):
        render_groups(0, 0, 16, "train")
    with pytest.raises(RuntimeError, match="context manager"):
        next(iter(RoomStream(1)))
