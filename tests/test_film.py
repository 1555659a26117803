"""Layouts of films: depth beside the picture, two eyes, and the marks of what the photo did not see."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from analytic_scene import BALL_CENTER, BALL_RADIUS, AnalyticRendering, AnalyticScene, trace, turned

from scenediff.renderers.baked import BakedScene, bake
from scenediff.renderers.depth_maps import project
from scenediff.tools.camera_paths import camera_path
from scenediff.tools.film import Film, Layout, draw, invented, mark_invented, stereo_pair

SIZE = (48, 64)


@pytest.fixture(scope="module")
def scene() -> AnalyticScene:
    return AnalyticScene(photo_size=(96, 128))


@pytest.fixture(scope="module")
def baked(scene: AnalyticScene) -> Iterator[BakedScene]:
    with bake(scene, short_side=64) as result:
        yield result


def test_eyes_have_only_horizontal_parallax_and_none_at_the_focus(scene: AnalyticScene) -> None:
    camera, focus, distance = turned((0.3, 0.1, 0.2), -10.0, torch.tensor([1.7])), 2.0, 0.065
    left, right = stereo_pair(camera, distance, focus)
    assert torch.allclose((left.T - right.T).norm(), torch.tensor(distance))
    points = torch.tensor([[0.2, 0.3, 2.0], [-0.4, -0.1, 2.0], [0.1, 0.2, 1.0], [0.1, 0.2, 8.0]])
    world = (points - camera.T) @ camera.R[0].T
    (seen_left, _), (seen_right, _) = (project(world, eye, (100, 160)) for eye in (left, right))
    shift = seen_left - seen_right
    assert torch.allclose(shift[:, 1], torch.zeros(4), atol=1e-3)
    focal = 1.7 * 50
    # near things lie further to the right for the left eye
    expected = focal * distance * (1 / points[:, 2] - 1 / focus)
    assert torch.allclose(shift[:, 0], expected, atol=1e-3)
    assert shift[2, 0] > 1  # so that swapped eyes would fail


def test_a_focus_behind_the_camera_is_refused() -> None:
    with pytest.raises(ValueError, match="focus must be positive, got 0"):
        stereo_pair(turned((0.0, 0, 0), 0.0, torch.tensor([1.0])), 0.06, 0)


@pytest.mark.parametrize(("layout", "width"), [("picture", 64), ("depth", 128), ("stereo", 128)])
def test_frames_of_each_layout(scene: AnalyticScene, baked: BakedScene, layout: Layout, width: int) -> None:
    film = Film(baked, camera_path(scene, 3, "orbit"), SIZE, layout)
    frames: list[np.ndarray] = []
    marked: list[np.ndarray] = []
    drawn: list[int] = []
    draw(film, frames.append, marked.append, progress=drawn.append)
    assert drawn == [0, 1, 2]
    assert film.frame_size == (48, width)
    assert [frame.shape for frame in frames + marked] == [(48, width, 3)] * 6
    truth = ((scene.render(scene.photo_cameras, SIZE).image[0].permute(1, 2, 0) + 1) * 127.5).numpy()
    if layout != "stereo":  # the eyes stand beside the photo's camera
        assert np.abs(frames[0][:, :64] - truth).mean() < 8
    if layout == "depth":
        assert np.array_equal(frames[1][:, 64:], marked[1][:, 64:])  # depth carries no marks
        brightness = frames[0][:, 64:].mean(2)
        ball, corner = brightness[32, 20], brightness[24, 40]
        assert ball > corner  # near is bright
    if layout == "stereo":
        assert np.abs(frames[0][:, :64].astype(int) - frames[0][:, 64:]).mean() > 1


def test_invented_is_what_the_photo_did_not_see(scene: AnalyticScene, baked: BakedScene) -> None:
    """Against the truth by ray tracing, with true depth: a shadow behind the ball and a strip at the side."""
    camera = turned((0.9, 0.1, 0.3), -25.0, scene.photo_cameras.focal_length[:, 0])
    shot = scene.render(camera, SIZE)
    mask = invented(baked, camera, shot)[0, 0]
    points, _, _ = trace(camera, SIZE)
    pixels, depth = project(points[0].reshape(-1, 3), scene.photo_cameras, (1, 1))
    pixels, depth = pixels.reshape(*SIZE, 2), depth.reshape(SIZE)
    half_wide, half_high = 128 / 96 / 2, 0.5
    inside = ((pixels - 0.5).abs() <= torch.tensor([half_wide, half_high])).all(-1) & (depth > 0)
    # the line from the photo's camera, at the origin, to the point: does it meet the ball on its way?
    along = points[0] @ BALL_CENTER
    length = points[0].square().sum(-1)
    root = (along**2 - length * (BALL_CENTER.square().sum() - BALL_RADIUS**2)).clamp(min=0).sqrt()
    hidden = (root > 0) & ((along - root) / length < 0.99)
    truth = ~inside | hidden
    assert 0.2 < truth.float().mean() < 0.8
    assert (hidden & inside).float().mean() > 0.03
    assert (mask == truth).float().mean() > 0.95  # edges are a pixel wide, and the baked depth's are moved
    missing = AnalyticRendering(shot.image, shot.depth, torch.zeros_like(shot.depth))
    assert invented(baked, camera, missing).all()  # filled holes were seen by nobody
    assert invented(baked, scene.photo_cameras, scene.render(scene.photo_cameras, SIZE)).float().mean() < 0.05


def test_marks_leave_the_rest_alone() -> None:
    image, mask = torch.rand(1, 3, 4, 4) * 2 - 1, torch.zeros(1, 1, 4, 4, dtype=torch.bool)
    mask[..., 0] = True
    marked = mark_invented(image, mask)
    assert torch.equal(marked[..., 1:], image[..., 1:])
    green, others = marked[:, 1, :, 0], marked[:, [0, 2], :, 0]
    assert (green < others.amin(1)).float().mean() > 0.7  # magenta
