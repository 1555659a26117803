"""Camera paths and videos: closed, smooth, of the right size, the same bytes, the right pictures."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest
import torch
from analytic_scene import AnalyticScene, turned

from scenediff.renderers.baked import BakedScene, bake, one_camera
from scenediff.renderers.depth_maps import camera_centers, project
from scenediff.tools.video import PathKind, camera_path, to_pixels, video_size, write_video

SIZE = (64, 86)


@pytest.fixture(scope="module")
def scene() -> AnalyticScene:
    return AnalyticScene(photo_size=(96, 128))


@pytest.fixture(scope="module")
def baked(scene: AnalyticScene) -> Iterator[BakedScene]:
    with bake(scene, short_side=64) as result:
        yield result


@pytest.mark.parametrize("kind", ["sway", "orbit", "dolly"])
def test_paths_start_and_end_at_the_photo_and_are_smooth(scene: AnalyticScene, kind: PathKind) -> None:
    path = camera_path(scene, 48, kind)
    assert len(path.R) == 48
    for end in (0, -1):
        assert torch.allclose(path.R[end], torch.eye(3), atol=1e-5)
        assert torch.allclose(path.T[end], torch.zeros(3), atol=1e-5)
    steps = camera_centers(path).diff(dim=0).norm(dim=1)
    assert steps.sum() > 0.1
    assert steps.max() < 2.2 * steps.mean()  # no jumps: a sine's fastest step is 1.6 times its mean
    identity = path.R @ path.R.transpose(1, 2)
    assert torch.allclose(identity, torch.eye(3).expand_as(identity), atol=1e-5)
    reach = (camera_centers(scene.target_cameras[0])[0]).norm()
    assert camera_centers(path).norm(dim=1).max() < 1.2 * reach  # stays where the scene was sampled


def test_sway_meets_all_targets(scene: AnalyticScene) -> None:
    focal = scene.photo_cameras.focal_length[:, 0]
    several = AnalyticScene(photo_size=(96, 128))
    several.target_cameras = [turned((0.4, 0.0, 0.2), -10.0, focal), turned((-0.3, 0.1, 0.3), 15.0, focal)]
    path = camera_path(several, 49)
    for target in several.target_cameras:
        distance = (camera_centers(path) - camera_centers(target)).norm(dim=1)
        nearest = int(distance.argmin())
        assert distance[nearest] < 0.06  # a tenth of the reach aside at most
        assert (path.R[nearest] - target.R[0]).abs().max() < 0.05


def test_orbit_keeps_the_focus_in_the_middle(scene: AnalyticScene) -> None:
    path = camera_path(scene, 16, "orbit", focus=2.0)
    for n in range(16):
        pixels, _ = project(torch.tensor([[0.0, 0.0, 2.0]]), one_camera(path, n), (100, 100))
        assert torch.allclose(pixels, torch.full((1, 2), 50.0), atol=2.0)


def test_a_scene_without_targets_has_a_path_too(scene: AnalyticScene) -> None:
    alone = AnalyticScene(photo_size=(96, 128))
    alone.target_cameras = []
    assert camera_centers(camera_path(alone, 12)).norm(dim=1).max() > 0.05


@pytest.mark.parametrize(("arguments", "message"), [
    ({"frames": 1}, "frames must be at least 2, got 1"), ({"kind": "fly"}, "kind must be .* got 'fly'")])
def test_bad_paths_are_refused(scene: AnalyticScene, arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        camera_path(scene, **arguments)


def test_video_sizes() -> None:
    assert video_size((384, 512)) == (256, 342)
    assert video_size((512, 288)) == (456, 256)
    with pytest.raises(ValueError, match="short_side must be positive and even, got 255"):
        video_size((384, 512), 255)


def test_video_has_the_frames_and_the_same_bytes_each_time(
    scene: AnalyticScene, baked: BakedScene, tmp_path: Path
) -> None:
    path, drawn = camera_path(scene, 12), []
    write_video(baked, path, tmp_path / "one.mp4", SIZE, fps=12, progress=drawn.append)
    write_video(baked, path, tmp_path / "two.mp4", SIZE, fps=12)
    assert (tmp_path / "one.mp4").read_bytes() == (tmp_path / "two.mp4").read_bytes()
    assert drawn == list(range(12))
    frames = iio.imread(tmp_path / "one.mp4", plugin="FFMPEG")
    assert frames.shape == (12, *SIZE, 3)
    metadata = iio.immeta(tmp_path / "one.mp4", plugin="FFMPEG")
    assert (metadata["codec"], metadata["fps"], metadata["pix_fmt"][:7]) == ("h264", 12, "yuv420p")
    for n in (0, 6, 11):
        truth = to_pixels(baked.render(one_camera(path, n), SIZE).image[0])
        error = np.abs(frames[n].astype(float) - truth).mean()
        assert error < 6  # grey levels; chroma has half the resolution
        assert np.abs(frames[n].astype(float) - truth[:, ::-1]).mean() > 20
    box_order = (tmp_path / "one.mp4").read_bytes()
    assert box_order.index(b"moov") < box_order.index(b"mdat")  # plays before it is all there


def test_odd_sizes_are_refused(scene: AnalyticScene, baked: BakedScene, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"even.*got 64 x 85"):
        write_video(baked, camera_path(scene, 2), tmp_path / "odd.mp4", (64, 85))
