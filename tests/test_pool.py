"""The pool on rooms in closed form: boxes whose colour is the position, from which geometry can be read."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from pytorch3d.renderer import PerspectiveCameras
from pytorch3d.transforms import axis_angle_to_matrix
from torch import Tensor
from torch.nn import functional

from scenediff.datasets.rooms.pool import SMALLEST_CROP, DrawConfig, GroupPool, median_pool
from scenediff.datasets.rooms.stream import RoomBatch
from scenediff.losses import TrainingBatch
from scenediff.renderers.cameras import CameraView, perspective_cameras
from scenediff.renderers.pixel_field import project
from scenediff.renderers.rays import ray_bundle

LOW, HIGH = torch.tensor([-2.0, -1.5, -2.5]), torch.tensor([2.0, 1.5, 2.5])
SIZE = 32
PLAIN = DrawConfig(size=SIZE, target_rays=50, novel_rays=60, two_contexts=0.0, photometric=0.0)


def box_room(cameras: PerspectiveCameras, size: int) -> tuple[Tensor, Tensor]:
    """Colours (views, size, size, 3) in [0, 1], the share of the way from LOW to HIGH, and depths."""
    bundle = ray_bundle(CameraView(cameras, (size, size)))
    walls = torch.stack(
        [(LOW - bundle.origins) / bundle.directions, (HIGH - bundle.origins) / bundle.directions]
    )
    depth = walls.amax(0).amin(-1)
    points = bundle.origins + depth[..., None] * bundle.directions
    return ((points - LOW) / (HIGH - LOW)).unflatten(1, (size, size)), depth.unflatten(1, (size, size))


def box_groups(groups: int, views: int = 4, size: int = SIZE) -> RoomBatch:
    """Every group looks at another side, its views from nearby."""
    count = groups * views
    yaw = torch.linspace(0, 2 * math.pi, groups + 1)[:-1].repeat_interleave(views)
    turn = torch.stack(
        [0.1 * torch.randn(count), yaw + 0.1 * torch.randn(count), 0.1 * torch.randn(count)], dim=-1
    )
    rotation, centre = axis_angle_to_matrix(turn), 0.4 * torch.randn(count, 3).clamp(-2, 2)
    translation = -(centre[:, None] @ rotation)[:, 0]
    focal, principal = 1.1 + 0.4 * torch.rand(count), 0.15 * torch.randn(count, 2)
    colour, depth = box_room(perspective_cameras(rotation, translation, focal, principal), size)
    parts = {
        "images": (colour * 255).round().to(torch.uint8),
        "depths": depth.half(),
        "rotation": rotation,
        "translation": translation,
        "focal_length": focal,
        "principal": principal,
    }
    return RoomBatch(**{name: value.unflatten(0, (groups, views)).numpy() for name, value in parts.items()})


@pytest.fixture(scope="module")
def pool() -> GroupPool:
    torch.manual_seed(0)
    pool = GroupPool(20, "cpu", depth_size=SIZE)
    pool.add(box_groups(8))
    return pool


def drawn(pool: GroupPool, count: int, seed: int = 0, **changes) -> TrainingBatch:
    config = DrawConfig(**{**vars(PLAIN), **changes})
    return pool.draw(count, config, torch.Generator().manual_seed(seed))


def positions(colour: Tensor) -> Tensor:
    """(..., 3) points of the original room from colours in [-1, 1]."""
    return LOW + (colour + 1) / 2 * (HIGH - LOW)


def unprojected(view: CameraView, depth: Tensor) -> Tensor:
    """(batch, pixels, 3) points of the batch's world from (batch, 1, size, size) depths."""
    bundle = ray_bundle(view)
    return bundle.origins + depth.flatten(1)[..., None] * bundle.directions


@pytest.mark.parametrize("cropped", [0.0, 1.0])
def test_colours_depths_and_cameras_agree_mirrored_or_not(pool: GroupPool, cropped: float) -> None:
    """A target pixel, lifted by its depth, must have the same colour where it lands in the photo."""
    batch = drawn(pool, 60, cropped_contexts=cropped)
    photo, target = batch.context[0], batch.target
    points = unprojected(target.view, batch.truth.target_depth)
    grid, depth = project(points, photo.view.cameras, (SIZE, SIZE))
    seen = (grid.abs().amax(-1) < 1 - 1 / SIZE) & (depth > 0.1)
    assert seen.float().mean() > (0.15 if cropped else 0.3)
    colour = functional.grid_sample(photo.image, grid[:, None], align_corners=False)[:, :, 0].transpose(1, 2)
    error = (colour - target.image.flatten(2).transpose(1, 2)).abs().amax(-1)[seen]
    # 8 bits of colour, 11 bits of depth, and corners of the room between two pixels
    assert error.quantile(0.9) < 0.02
    assert error.mean() < 0.02


@pytest.mark.parametrize("cropped", [0.0, 1.0])
def test_single_photos_keep_their_depths_and_focal_lengths(pool: GroupPool, cropped: float) -> None:
    """Lifted by its depth, a box's photo must be its walls, whose colours give the places in the room."""
    config = replace(PLAIN, cropped_photos=cropped)
    batch = pool.draw_photos(80, config, torch.Generator().manual_seed(0))
    assert batch.photo.image.shape == (80, 3, SIZE, SIZE)
    assert torch.allclose(batch.photo.view.cameras.R, torch.eye(3), atol=1e-6)
    points = unprojected(batch.photo.view, batch.depth)
    original = positions(batch.photo.image.flatten(2).transpose(1, 2))
    design = torch.cat([original, torch.ones_like(original[..., :1])], dim=-1)
    solution = torch.linalg.lstsq(design, points).solution  # (batch, 4, 3)
    residual = (design @ solution - points).abs().mean((1, 2))
    assert residual.median() < 0.02  # metres: 8 bits of colour and 11 of depth
    determinants = torch.linalg.det(solution[:, :3])
    assert (determinants.abs() - 1).abs().median() < 0.05
    assert 20 < (determinants < 0).sum() < 60  # mirrored; 4.5 standard deviations about 40
    with pytest.raises(ValueError, match="empty"):
        GroupPool(5, "cpu").draw_photos(1, PLAIN, torch.Generator())


def test_some_photos_are_cropped(pool: GroupPool) -> None:
    """Seen through longer lenses, up to the smallest crop; whole views stay just as they are."""
    whole, some = (
        pool.draw_photos(200, replace(PLAIN, cropped_photos=share), torch.Generator().manual_seed(0))
        for share in (0.0, 0.5)
    )
    zoom = (some.photo.view.cameras.focal_length / whole.photo.view.cameras.focal_length)[:, 0]
    assert 1.8 < zoom.max() < 1 / SMALLEST_CROP + 1e-4
    untouched = zoom == 1
    assert 70 < untouched.sum() < 130  # 4 standard deviations about 100
    assert torch.equal(some.photo.image[untouched], whole.photo.image[untouched])
    assert torch.equal(some.depth[untouched], whole.depth[untouched])


def test_batches_have_further_photos_where_wanted(pool: GroupPool) -> None:
    assert drawn(pool, 3).truth.photos is None
    photos = drawn(pool, 3, photos=4).truth.photos
    assert photos.photo.image.shape == (12, 3, SIZE, SIZE)
    assert photos.depth.shape == (12, 1, SIZE, SIZE)
    assert (photos.depth > 0).all()


def test_half_of_the_groups_are_mirrored(pool: GroupPool) -> None:
    """The affine map from the room, known by its colours, to the batch's world has determinant 1 or -1."""
    batch = drawn(pool, 60)
    points = unprojected(batch.target.view, batch.truth.target_depth)
    original = positions(batch.target.image.flatten(2).transpose(1, 2))
    design = torch.cat([original, torch.ones_like(original[..., :1])], dim=-1)
    solution = torch.linalg.lstsq(design, points).solution  # (batch, 4, 3)
    determinant = torch.linalg.det(solution[:, :3])
    assert (determinant.abs() - 1).abs().max() < 0.1
    mirrored = (determinant < 0).float().mean()
    assert 0.5 - 4 / 2 / 60**0.5 < mirrored < 0.5 + 4 / 2 / 60**0.5


def test_the_photo_camera_is_the_world(pool: GroupPool) -> None:
    batch = drawn(pool, 20)
    cameras = batch.context[0].view.cameras
    assert torch.allclose(cameras.R, torch.eye(3).expand(20, 3, 3), atol=1e-6)
    assert torch.allclose(cameras.T, torch.zeros(20, 3), atol=1e-6)
    assert (batch.target.view.cameras.T.norm(dim=-1) > 0.01).all()
    points = unprojected(batch.context[0].view, batch.truth.context_depth)
    assert torch.allclose(points[..., 2], batch.truth.context_depth.flatten(1), atol=1e-4)


def test_scored_rays_are_pixels_of_the_target(pool: GroupPool) -> None:
    batch = drawn(pool, 6)
    scored = batch.scored_target
    assert scored.image.shape == (6, 3, 50, 1)
    assert scored.view.pixels.shape == (6, 50, 2)
    assert batch.novel.image.shape == (6, 3, 60, 1)
    assert torch.equal(scored.view.cameras.R, batch.target.view.cameras.R)
    for element in range(6):
        rows, columns = scored.view.pixels[element].T
        assert torch.equal(scored.image[element, :, :, 0], batch.target.image[element][:, rows, columns])
        assert len(scored.view.pixels[element].unique(dim=0)) == 50
    everything = drawn(pool, 1, target_rays=5000).scored_target
    assert len(everything.view.pixels[0].unique(dim=0)) == SIZE**2


def test_scored_rays_come_with_their_depths(pool: GroupPool) -> None:
    batch = drawn(pool, 6, context_as_novel=1.0)
    target_depths, novel_depths = batch.truth.scored_depths
    assert (target_depths.shape, novel_depths.shape) == ((6, 1, 50, 1), (6, 1, 60, 1))
    for element in range(6):
        rows, columns = batch.scored_target.view.pixels[element].T
        expected = batch.truth.target_depth[element, 0][rows, columns]
        assert torch.equal(target_depths[element, 0, :, 0], expected)
        rows, columns = batch.novel.view.pixels[element].T
        expected = batch.truth.context_depth[element, 0][rows, columns]
        assert torch.equal(novel_depths[element, 0, :, 0], expected)


def test_rays_find_their_depths_in_coarser_maps() -> None:
    pool = GroupPool(8, "cpu", depth_size=SIZE // 2)
    pool.add(box_groups(8))
    batch = drawn(pool, 10)
    rows, columns = (batch.scored_target.view.pixels // 2).unbind(-1)
    wanted = batch.truth.target_depth[:, 0][torch.arange(10)[:, None], rows, columns]
    assert wanted.unique().numel() > 100
    assert torch.equal(batch.truth.scored_depths[0][:, 0, :, 0], wanted)


def test_some_photos_are_coarse() -> None:
    pool = GroupPool(8, "cpu", depth_size=8)
    pool.add(box_groups(8))
    pairs = [
        (one.image, other.image)
        for one, other in zip(
            drawn(pool, 40, size=8, two_contexts=1.0).context,
            drawn(pool, 40, size=8, two_contexts=1.0, coarse_photos=1.0).context, strict=True,
        )
    ]  # fmt: skip
    configs = [DrawConfig(**{**vars(PLAIN), "size": 8, "coarse_photos": share}) for share in (0.0, 1.0)]
    one, other = (pool.draw_photos(40, each, torch.Generator().manual_seed(0)) for each in configs)
    for fine, coarse in [*pairs, (one.photo.image, other.photo.image)]:
        blocks = functional.avg_pool2d(fine, SIZE // 8)
        assert (functional.interpolate(blocks, (SIZE, SIZE), mode="bilinear") - coarse).abs().max() < 1e-5
    finer = drawn(pool, 40, size=SIZE, two_contexts=1.0, coarse_photos=1.0, coarse_size=8)
    assert torch.equal(finer.context[0].image, pairs[0][1])  # as few pixels, whatever the diffusion has
    some, sharp = (drawn(pool, 400, size=8, coarse_photos=share).context[0].image for share in (0.4, 0.0))
    same = (some - sharp).abs().amax((1, 2, 3)) == 0
    assert abs(same.float().mean() - 0.6) < 4 * (0.24 / 400) ** 0.5


def test_the_novel_view_is_the_photo_in_its_share(pool: GroupPool) -> None:
    def own(batch: TrainingBatch) -> Tensor:
        cameras = batch.novel.view.cameras
        return (cameras.R - torch.eye(3)).abs().amax((1, 2)) + cameras.T.abs().amax(1) < 1e-5

    assert not own(drawn(pool, 50, context_as_novel=0.0)).any()
    assert own(drawn(pool, 50, context_as_novel=1.0)).all()
    share = own(drawn(pool, 400, context_as_novel=0.2)).float().mean()
    assert abs(share - 0.2) < 4 * (0.16 / 400) ** 0.5
    batch = drawn(pool, 4, context_as_novel=1.0)
    for element in range(4):
        rows, columns = batch.novel.view.pixels[element].T
        assert torch.allclose(
            batch.novel.image[element, :, :, 0], batch.context[0].image[element][:, rows, columns]
        )
        assert torch.equal(batch.novel.view.cameras.focal_length, batch.context[0].view.cameras.focal_length)


def test_roles_are_taken_by_different_views(pool: GroupPool) -> None:
    batch = drawn(pool, 30, two_contexts=1.0, context_as_novel=0.0)
    assert len(batch.context) == 2
    cameras = [
        *(each.view.cameras for each in batch.context),
        batch.target.view.cameras,
        batch.novel.view.cameras,
    ]
    for first in range(4):
        for second in range(first):
            assert ((cameras[first].T - cameras[second].T).abs().amax(1) > 1e-4).all()
    assert len(drawn(pool, 3, two_contexts=0.0).context) == 1
    points = unprojected(batch.target.view, batch.truth.target_depth)
    grid, depth = project(points, batch.context[1].view.cameras, (SIZE, SIZE))
    seen = (grid.abs().amax(-1) < 1 - 1 / SIZE) & (depth > 0.1)
    colour = functional.grid_sample(batch.context[1].image, grid[:, None], align_corners=False)[
        :, :, 0
    ].transpose(1, 2)
    assert (colour - batch.target.image.flatten(2).transpose(1, 2)).abs().amax(-1)[seen].mean() < 0.02


def test_targets_are_pooled_and_photos_are_not() -> None:
    pool = GroupPool(4, "cpu", depth_size=8)
    pool.add(box_groups(4))
    batch = drawn(pool, 10, size=8)
    assert batch.context[0].image.shape == (10, 3, SIZE, SIZE)
    assert batch.context[0].view.size == (SIZE, SIZE)
    assert batch.target.image.shape == (10, 3, 8, 8)
    assert batch.target.view.size == (8, 8)
    assert batch.truth.target_depth.shape == (10, 1, 8, 8)
    # the pooled colour is the position of the block's middle, but for corners of the room
    points = unprojected(batch.target.view, batch.truth.target_depth)
    original = positions(batch.target.image.flatten(2).transpose(1, 2))
    design = torch.cat([original, torch.ones_like(original[..., :1])], dim=-1)
    residual = points - design @ torch.linalg.lstsq(design, points).solution
    assert residual.norm(dim=-1).median() < 0.05  # metres; a pixel is some 0.4 m wide


def test_pixels_keep_their_colours(pool: GroupPool) -> None:
    """Without photographic effects an image is value / 127.5 - 1."""
    image = drawn(pool, 10).context[0].image
    levels = (image + 1) * 127.5
    assert (levels - levels.round()).abs().max() < 1e-3
    assert levels.min() > -1e-3
    assert levels.max() < 255 + 1e-3


def test_old_groups_make_room_for_new_ones() -> None:
    def marked(values: list[int]) -> RoomBatch:
        groups = box_groups(len(values), views=3, size=8)
        groups.images[:] = np.array(values, dtype=np.uint8)[:, None, None, None, None]
        return groups

    def values(pool: GroupPool) -> set[int]:
        image = drawn(pool, 200, size=8).context[0].image
        return set(((image[:, 0, 0, 0] + 1) * 127.5).round().int().tolist())

    pool = GroupPool(4, "cpu", depth_size=8)
    pool.add(marked([10, 20, 30]))
    assert (pool.filled, pool.written) == (3, 3)
    assert values(pool) == {10, 20, 30}
    pool.add(marked([40, 50, 60]))
    assert (pool.filled, pool.written) == (4, 6)
    assert values(pool) == {30, 40, 50, 60}
    pool.add(marked([70, 80, 90, 100, 110]))  # more than it holds
    assert (pool.filled, pool.written) == (4, 11)
    assert values(pool) == {80, 90, 100, 110}


def test_equal_generators_draw_equal_batches(pool: GroupPool) -> None:
    first, second, other = (drawn(pool, 5, seed=seed, photometric=1.0) for seed in (1, 1, 2))
    assert torch.equal(first.context[0].image, second.context[0].image)
    assert torch.equal(first.novel.view.pixels, second.novel.view.pixels)
    assert not torch.equal(first.target.image, other.target.image)


def test_what_cannot_be_drawn_is_refused() -> None:
    pool = GroupPool(4, "cpu", depth_size=8)
    with pytest.raises(ValueError, match="the pool is empty"):
        drawn(pool, 1)
    pool.add(box_groups(2, views=2, size=8))
    with pytest.raises(ValueError, match="groups need at least 3 views, got 2"):
        drawn(pool, 1)
    three = GroupPool(4, "cpu", depth_size=8)
    three.add(box_groups(2, views=3, size=8))
    assert (
        len(drawn(three, 2, size=8, two_contexts=1.0).context) == 1
    )  # three views leave none for a second photo


def test_median_pooling_by_hand() -> None:
    depth = torch.tensor([[1.0, 2, 5, 5], [3, 9, 5, 1], [0, 0, 7, 8], [0, 4, 9, 6]])
    assert median_pool(depth, 2).tolist() == [[2, 5], [0, 7]]  # the lower of the middle two
    assert median_pool(depth, 1) is depth
    edge = torch.ones(2, 3, 8, 8)
    edge[..., 3:] = 6.0  # an edge between two surfaces inside a block stays one or the other
    assert set(median_pool(edge, 4).unique().tolist()) == {1.0, 6.0}
    assert median_pool(edge, 4).shape == (2, 3, 2, 2)
