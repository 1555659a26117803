"""Posed folders: what is written is read back with the same pixels, depths and cameras."""

from __future__ import annotations

import numpy as np
import pytest

from scenediff.datasets.captures import load_capture
from scenediff.datasets.rooms.stream import RoomBatch
from scenediff.datasets.rooms.write import write_room, write_rooms

GROUPS, VIEWS, SIZE = 2, 2, 24


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    rotation = np.linalg.qr(rng.normal(size=(GROUPS, VIEWS, 3, 3)))[0]
    rotation *= np.linalg.det(rotation)[..., None, None]  # right-handed
    return RoomBatch(
        images=rng.integers(0, 256, (GROUPS, VIEWS, SIZE, SIZE, 3), dtype=np.uint8),
        depths=rng.uniform(0.3, 9, (GROUPS, VIEWS, SIZE, SIZE)).astype(np.float16),
        rotation=rotation.astype(np.float32),
        translation=rng.normal(size=(GROUPS, VIEWS, 3)).astype(np.float32),
        focal_length=rng.uniform(1, 2, (GROUPS, VIEWS)).astype(np.float32),
        principal=rng.uniform(-0.1, 0.1, (GROUPS, VIEWS, 2)).astype(np.float32),
    )


def test_round_trip(batch, tmp_path):
    write_room(tmp_path / "room", batch)
    frames = load_capture(tmp_path / "room").frames
    assert len(frames) == GROUPS * VIEWS
    for index, frame in enumerate(frames):
        at = divmod(index, VIEWS)
        assert frame.size == (SIZE, SIZE)
        image = ((frame.load_image().permute(1, 2, 0) + 1) * 127.5).round().numpy()
        np.testing.assert_array_equal(image, batch.images[at])
        # millimetres, rounded
        np.testing.assert_allclose(frame.load_depth().numpy(), batch.depths[at].astype(np.float32), atol=6e-4)
        np.testing.assert_allclose(frame.cameras.R[0].numpy(), batch.rotation[at], atol=1e-5)
        np.testing.assert_allclose(frame.cameras.T[0].numpy(), batch.translation[at], atol=1e-5)
        np.testing.assert_allclose(frame.cameras.focal_length[0].numpy(), batch.focal_length[at], rtol=1e-5)
        np.testing.assert_allclose(frame.cameras.principal_point[0].numpy(), batch.principal[at], atol=1e-5)


def test_bad_arguments_are_refused(tmp_path):
    with pytest.raises(ValueError, match="rooms"):
        write_rooms(tmp_path, 0)
    with pytest.raises(ValueError, match="image_format"):
        write_rooms(tmp_path, 1, image_format="bmp")
    (tmp_path / "room_00000").mkdir()
    with pytest.raises(FileExistsError, match="room_00000"):
        write_rooms(tmp_path, 1)
