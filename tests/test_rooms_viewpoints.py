"""Groups of cameras: within their limits, clear of things, consistent, and different enough."""

from __future__ import annotations

import numpy as np
import pytest
from rooms_pack import tiny_pack

from scenediff.datasets.rooms.layout import furnish
from scenediff.datasets.rooms.raster import Grading, Rasterizer
from scenediff.datasets.rooms.viewpoints import CLEARANCE, sample_groups, unseen_fraction, world_points

GROUPS_PER_ROOM, ROOMS, VIEWS, PIXELS = 5, 20, 4, 32


@pytest.fixture(scope="module")
def scenes():
    """20 rooms with 5 groups each: (room, views, depths) with unlit, hence quick, renderings."""
    pack = tiny_pack()
    result = []
    with Rasterizer(pack) as rasterizer:
        for seed in range(2 * ROOMS):
            rng = np.random.default_rng(seed)
            room = furnish(rng, pack)
            rasterizer.upload(room)
            views = sample_groups(rng, room, rasterizer, GROUPS_PER_ROOM, VIEWS)
            if views is None:
                continue
            photos = rasterizer.render(room, views, Grading.sample(rng, GROUPS_PER_ROOM), PIXELS, unlit=True)
            result.append((room, views, photos.depths))
            if len(result) == ROOMS:
                break
    assert len(result) == ROOMS
    return result


def stacked(scenes, name):
    return np.concatenate([getattr(views, name) for _, views, _ in scenes])


def test_cameras_are_rigid_and_within_limits(scenes):
    rotation, focal = stacked(scenes, "rotation"), stacked(scenes, "focal_length")
    identity = np.einsum("gkij,gkil->gkjl", rotation, rotation)
    np.testing.assert_allclose(identity, np.broadcast_to(np.eye(3), identity.shape), atol=1e-5)
    assert (np.linalg.det(rotation) > 0).all()
    fov = np.degrees(2 * np.arctan(1 / focal))
    assert (fov >= 35).all()
    assert (fov <= 85).all()
    assert (np.ptp(focal, axis=1) / focal.mean(1) < 0.06).all()
    pitch = np.degrees(np.arcsin(rotation[..., 1, 2]))
    assert (pitch >= -50.01).all()
    assert (pitch <= 20.01).all()
    assert 0.2 < (pitch < -20).mean() < 0.7  # a solid share looks down
    assert 45 < np.median(fov) < 65


def test_groups_are_near_and_clear(scenes):
    for room, views, _ in scenes:
        centres = views.centres
        assert (centres[..., 1] > 0.4).all()
        assert (centres[..., 1] < 2.0).all()
        baseline = np.linalg.norm(centres[:, :, None] - centres[:, None], axis=-1)
        assert baseline.max() <= 1.5 + 1e-4
        cosine = (np.einsum("giab,gjab->gij", views.rotation, views.rotation) - 1) / 2
        assert np.degrees(np.arccos(cosine.clip(-1, 1))).max() <= 35 + 0.1
        points = centres.reshape(-1, 1, 3)
        gap = np.maximum(np.maximum(room.boxes[:, :3] - points, points - room.boxes[:, 3:]), 0)
        assert np.linalg.norm(gap, axis=-1).min() >= CLEARANCE - 1e-4


def test_baselines_spread(scenes):
    centres = np.concatenate([views.centres for _, views, _ in scenes])
    baseline = np.linalg.norm(centres[:, :, None] - centres[:, None], axis=-1)[:, ~np.eye(VIEWS, dtype=bool)]
    assert 0.25 < (baseline < 0.3).mean() < 0.75
    assert (baseline > 0.8).mean() > 0.03


def test_unseen_share_is_in_the_wanted_range(scenes):
    pairs = ~np.eye(VIEWS, dtype=bool)
    unseen = np.concatenate([unseen_fraction(views, depths)[:, pairs] for _, views, depths in scenes])
    assert 0.20 < unseen.mean() < 0.35
    assert unseen.max() < 0.8  # 0.65 is the limit on a coarser image


def test_depths_reproject_consistently(scenes):
    """Points of one view that land in another and are not occluded there have the depth found there."""
    ratios = []
    for _, views, depths in scenes:
        points = world_points(views, depths.astype(np.float32))
        local = points[:, 0] @ views.rotation[:, 1] + views.translation[:, 1, None]
        z = local[..., 2]
        x = (1 - views.focal_length[:, 1, None] * local[..., 0] / z) * PIXELS / 2
        y = (1 - views.focal_length[:, 1, None] * local[..., 1] / z) * PIXELS / 2
        ok = (z > 0.1) & (x > 0) & (x < PIXELS) & (y > 0) & (y < PIXELS)
        group = np.broadcast_to(np.arange(len(z))[:, None], z.shape)
        found = depths[group[ok], 1, y[ok].astype(int), x[ok].astype(int)]
        ratios.append(z[ok] / found)
    ratio = np.concatenate(ratios)
    # a pixel's width on slanted surfaces is the only error where both views see the point
    assert np.abs(np.median(ratio) - 1) < 0.005
    assert (np.abs(ratio - 1) < 0.05).mean() > 0.75
    # a wrong axis or pixel offset would put points in front of what is there as often as behind
    assert (ratio < 0.9).mean() < 0.08


def test_unseen_fraction_of_a_plane_in_closed_form():
    """A camera that looks at a wall and steps sideways sees as much less as it has moved."""
    from scenediff.datasets.rooms.room import Views

    focal, distance, step = 1.25, 2.0, 0.8
    rotation = np.broadcast_to(np.eye(3, dtype=np.float32), (2, 3, 3))
    translation = np.array([[0, 0, 0], [-step, 0, 0]], np.float32)
    views = Views(rotation, translation, np.full(2, focal, np.float32), np.zeros((2, 2), np.float32))
    unseen = unseen_fraction(views, np.full((2, 64, 64), distance, np.float32))
    width = 2 * distance / focal
    assert unseen[0, 1] == pytest.approx(step / width, abs=1 / 64)
    assert unseen[1, 0] == pytest.approx(step / width, abs=1 / 64)
    assert unseen[0, 0] == 0
