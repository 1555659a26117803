"""The rasterizer against closed forms: depths of a box room, flat colours, left and right, exposure."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from rooms_pack import tiny_pack

from scenediff.datasets.rooms.builder import Builder
from scenediff.datasets.rooms.materials import stock_of
from scenediff.datasets.rooms.pieces import Part, block
from scenediff.datasets.rooms.projections import camera_rays, clip_matrices
from scenediff.datasets.rooms.raster import Grading, Rasterizer
from scenediff.datasets.rooms.room import PLAIN, Light, Material, Room, Views
from scenediff.datasets.rooms.shapes import CUBE

SIZE = (4.0, 2.6, 5.0)  # x, y, z
PIXELS = 48


@pytest.fixture(scope="module")
def pack():
    return tiny_pack()


@pytest.fixture(scope="module")
def rasterizer(pack):
    with Rasterizer(pack) as rasterizer:
        yield rasterizer


def colour(red: float, green: float, blue: float) -> Material:
    return Material((red, green, blue), PLAIN, gloss=0.0)


def box_room(pack, extra: tuple[Part, ...] = (), lights: tuple[Light, ...] = ()) -> Room:
    """A closed box of thick walls, each its own colour, with further parts in it."""
    from random import Random

    b = Builder(Random(0), stock_of(pack, "train"), "test", SIZE)
    x, y, z = SIZE
    thick = 0.2
    walls = [
        block((0, -thick, 0), (x, thick, z), colour(0.2, 0.2, 0.2)),
        block((0, y, 0), (x, thick, z), colour(0.9, 0.9, 0.9)),
        block((-x / 2 - thick / 2, 0, 0), (thick, y, z), colour(0, 0.5, 0)),
        block((x / 2 + thick / 2, 0, 0), (thick, y, z), colour(0, 0, 0.5)),
        block((0, 0, -z / 2 - thick / 2), (x, y, thick), colour(0.5, 0.5, 0)),
        block((0, 0, z / 2 + thick / 2), (x, y, thick), colour(0.3, 0.6, 0.9)),
    ]
    b.add_parts([*walls, *extra], 0, 0, 0, 0, b.new_object())
    b.lights.extend(lights)
    return b.finish(np.full((6, 3), 0.2))


def turned(yaw: float, pitch: float, roll: float = 0.0) -> np.ndarray:
    """PyTorch3D rotation (columns: left, up, forward) of a camera that first looks along +z."""
    forward = np.array([np.sin(yaw) * np.cos(pitch), np.sin(pitch), np.cos(yaw) * np.cos(pitch)])
    left = np.array([np.cos(yaw), 0.0, -np.sin(yaw)])
    up = np.cross(forward, left)
    left, up = np.cos(roll) * left + np.sin(roll) * up, np.cos(roll) * up - np.sin(roll) * left
    return np.stack([left, up, forward], 1)


def views_at(position, rotations, focal=1.3, principal=(0.0, 0.0)) -> Views:
    rotation = np.stack(rotations)[None].astype(np.float32)
    translation = -np.einsum("i,gkij->gkj", np.asarray(position, np.float32), rotation)
    shape = rotation.shape[:2]
    return Views(
        rotation,
        translation,
        np.full(shape, focal, np.float32),
        np.broadcast_to(np.float32(principal), (*shape, 2)),
    )


def grading(seed: int = 0) -> Grading:
    return Grading.sample(np.random.default_rng(seed), 1)


def pixel_rays(views: Views, size: int) -> np.ndarray:
    """(K, S, S, 3) world directions through the pixels' centres whose camera z is 1."""
    centre = (np.arange(size) + 0.5) * 2 / size - 1
    y, x = np.meshgrid(-centre, -centre, indexing="ij")  # NDC: +x left, +y up
    f, principal = views.focal_length[0, :, None, None], views.principal[0, :, None, None]
    local = np.stack([(x - principal[..., 0]) / f, (y - principal[..., 1]) / f, np.ones_like(x + 0 * f)], -1)
    return np.einsum("kuvi,kji->kuvj", local, views.rotation[0])


@pytest.mark.parametrize("principal", [(0.0, 0.0), (0.15, -0.2)])
def test_depth_of_a_box_room_is_exact(pack, rasterizer, principal):
    room = box_room(pack)
    position = np.array([0.4, 1.1, -0.7])
    views = views_at(
        position, [turned(0.3, -0.2, 0.1), turned(2.5, 0.4), turned(-1.2, -0.9)], principal=principal
    )
    rasterizer.upload(room)
    depths = rasterizer.render(room, views, grading(), PIXELS).depths[0].astype(np.float64)
    low, high = np.array([-SIZE[0] / 2, 0, -SIZE[2] / 2]), np.array([SIZE[0] / 2, SIZE[1], SIZE[2] / 2])
    rays = pixel_rays(views, PIXELS)
    truth = np.where(rays > 0, high - position, low - position) / np.where(np.abs(rays) < 1e-9, 1e-9, rays)
    # half floats have a relative step of 2**-11; twice that leaves room for two roundings
    np.testing.assert_allclose(depths, truth.min(-1), rtol=1e-3)


def test_probe_agrees_with_render_and_names_objects(pack, rasterizer):
    box = Part(CUBE, (0, 0, 1.0), (0.6, 2.0, 0.4), colour(0.8, 0, 0))
    room = box_room(pack)
    extra = box_room(pack, (box,))
    number = extra.instances.copy()
    number[-1, 23] = 9
    room = Room(**{**vars(extra), "instances": number})
    views = views_at((0, 1.3, -1.5), [turned(0, 0)])
    rasterizer.upload(room)
    depth, number = rasterizer.probe(Views(*(getattr(views, name)[0] for name in vars(views))), 32)
    assert number[0, 16, 16] == 9
    assert number[0, 16, 0] == 0
    assert depth[0, 16, 16] == pytest.approx(0.8 + 1.5, rel=1e-4)


def test_unlit_colour_and_texture(pack, rasterizer):
    card = Part(CUBE, (0, 0.8, 1.5), (1.0, 1.0, 0.1), Material((1.0, 1.0, 1.0), 0, gloss=0.0))
    room = box_room(pack, (card,))
    rasterizer.upload(room)
    photos = rasterizer.render(room, views_at((0, 1.3, 0.2), [turned(0, 0)]), grading(), PIXELS, unlit=True)
    image = photos.images[0, 0].astype(int)
    expected_wall = (np.array([0.3, 0.6, 0.9]) ** (1 / 2.2) * 255).round()
    assert np.abs(image[24, 6] - expected_wall).max() <= 1
    # the camera sees the card's back (-z), upright: the texture's first row is its top
    assert np.abs(image[18, 24] - (200, 30, 30)).max() <= 2
    assert np.abs(image[30, 24] - (30, 30, 200)).max() <= 2


def test_positive_x_appears_on_the_left(pack, rasterizer):
    red = Part(CUBE, (0.6, 1.0, 1.5), (0.3, 0.3, 0.3), colour(0.9, 0.02, 0.02))
    room = box_room(pack, (red,))
    rasterizer.upload(room)
    image = rasterizer.render(
        room, views_at((0, 1.6, 0), [turned(0, 0)]), grading(), PIXELS, unlit=True
    ).images[0, 0]
    rows, columns = np.nonzero((image[..., 0] > 200) & (image[..., 1] < 80))
    assert len(rows) > 8
    assert columns.mean() < PIXELS / 2 - 5  # +X is left
    assert rows.mean() > PIXELS / 2 + 3  # lower than the camera: below the middle


def test_views_of_a_group_share_exposure_and_groups_do_not(pack, rasterizer):
    lamp = Light((0.0, 2.4, 0.0), (0.0, -1.0, 0.0), (4.0, 4.0, 4.0), 0.2, 1.0)
    room = box_room(pack, lights=(lamp,))
    rasterizer.upload(room)
    both = views_at((0, 1.3, 0), [turned(0, -0.1), turned(0, -0.9)])
    # the first view alone is exposed for itself; together with a darker one it becomes brighter
    alone = Views(*(getattr(both, name)[:, :1] for name in vars(both)))
    first = rasterizer.render(room, both, grading(), PIXELS).images[0, 0].mean()
    single = rasterizer.render(room, alone, grading(), PIXELS).images[0, 0].mean()
    assert first > single + 1
    bright = Room(
        **{**vars(room), "lights": (lamp._replace(intensity=(8.0, 8.0, 8.0)),), "ambient": 2 * room.ambient}
    )
    again = rasterizer.render(bright, both, grading(), PIXELS).images[0, 0].mean()
    assert again == pytest.approx(first, abs=2.0)  # twice the light: the camera closes its aperture


def test_shadow_under_a_table(pack, rasterizer):
    lamp = Light((0.0, 2.4, 0.0), (0.0, -1.0, 0.0), (6.0, 6.0, 6.0), 0.1, 1.0)
    board = Part(CUBE, (0, 0.7, 0.8), (1.0, 0.05, 0.8), colour(0.5, 0.5, 0.5))
    images = []
    for parts in ((), (board,)):
        room = box_room(pack, parts, (lamp,))
        rasterizer.upload(room)
        images.append(
            rasterizer.render(room, views_at((0, 0.3, -0.3), [turned(0, -0.3)]), grading(), PIXELS).images[
                0, 0
            ]
        )
    below = (slice(21, 25), slice(22, 26))  # floor a metre ahead
    assert images[1][below].mean() < 0.75 * images[0][below].mean()


def test_camera_rays_invert_clip_matrices():
    views = views_at((0.4, 1.1, -0.7), [turned(0.3, -0.2, 0.1), turned(2.5, 0.4)], principal=(0.1, -0.2))
    samples = 12
    local = np.random.default_rng(0).uniform((-1, -1, 1), (1, 1, 4), (9, 3))
    world = (local - views.translation[0, :, None]) @ views.rotation[0].swapaxes(1, 2)
    clip = np.concatenate([world, np.ones((2, 9, 1))], -1) @ clip_matrices(views, samples)[0].swapaxes(1, 2)
    at = (clip[..., :2] / clip[..., 3:] + 1) * samples / 2 - 0.5  # the first sample's centre is 0
    eye, first, right, down = camera_rays(views, samples)[0, :, :, None, :3].swapaxes(0, 1)
    ray = first + at[..., :1] * right + at[..., 1:] * down
    # float32 matrices and poses, points some metres away
    np.testing.assert_allclose(eye + local[:, 2:] * ray, world, atol=2e-5)
    np.testing.assert_array_equal(camera_rays(views, samples)[..., 0, 3], views.focal_length)


def test_a_tile_shows_what_its_view_shows_alone(pack, rasterizer):
    """All views are drawn at once: each is clipped to its tile, however much there is to draw."""
    spread = np.random.default_rng(5).uniform((-1.5, 0.2, -2), (1.5, 2.2, 2), (400, 3))
    cubes = [
        Part(CUBE, tuple(at), (0.1, 0.1, 0.1), colour(*np.abs(np.sin(at)))) for at in spread.tolist()
    ]
    room = box_room(pack, tuple(cubes))
    rasterizer.upload(room)
    flat = views_at((0.1, 1.3, 0.2), [turned(yaw, 0.3 * np.sin(yaw)) for yaw in np.linspace(0, 6, 40)])
    together = Views(*(array.reshape(8, 5, *array.shape[2:]) for array in vars(flat).values()))
    photos = rasterizer.render(room, together, Grading.sample(np.random.default_rng(0), 8), 16, unlit=True)
    for row, column in ((0, 0), (3, 2), (7, 4)):
        alone = together[row : row + 1, column : column + 1]
        single = rasterizer.render(room, alone, grading(), 16, unlit=True)
        same = np.isclose(photos.depths[row, column], single.depths[0, 0], rtol=1e-3)
        # a tile's place moves edges by some 1e-5 samples: now and then one sample of a pixel tips over
        assert same.mean() > 0.98
        difference = np.abs(photos.images[row, column].astype(int) - single.images[0, 0])
        assert (difference <= 1).mean() > 0.98
        assert single.images.std() > 20


def test_rendering_twice_gives_the_same_bytes(pack, rasterizer):
    lamp = Light((0.0, 2.4, 0.0), (0.0, -1.0, 0.0), (4.0, 4.0, 4.0), 0.2, 1.0)
    room, views = box_room(pack, lights=(lamp,)), views_at((0, 1.3, 0), [turned(0, -0.1), turned(2, -0.9)])
    rasterizer.upload(room)
    first, second = (rasterizer.render(room, views, grading(), PIXELS) for _ in range(2))
    np.testing.assert_array_equal(first.images, second.images)
    np.testing.assert_array_equal(first.depths, second.depths)


def test_too_many_instances_are_refused(pack, rasterizer):
    room = box_room(pack)
    many = Room(
        **{**vars(room), "mesh": np.zeros(5000, np.int32), "instances": np.zeros((5000, 28), np.float32)}
    )
    with pytest.raises(ValueError, match="instances"):
        rasterizer.upload(many)


def test_missing_opengl_names_the_remedy(pack, monkeypatch):
    def fail(**_):
        raise OSError("libEGL.so not loaded")

    monkeypatch.setattr("moderngl.create_context", fail)
    with pytest.raises(RuntimeError, match=r"libEGL\.so not loaded.*apt-get install libegl1"):
        Rasterizer(pack)


def test_a_model_can_be_loaded_after_rooms_were_drawn():
    """Mesa's LLVM and Triton's in one process; the wrong order of the two crashes it."""
    code = (
        "from rooms_pack import tiny_pack\n"
        "from scenediff.datasets.rooms.raster import Rasterizer\n"
        "with Rasterizer(tiny_pack()): import scenediff.renderers.pixel_field\n"
        "print('alive')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "alive", (done.returncode, done.stderr)
