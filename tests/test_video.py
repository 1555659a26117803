"""Films: of the right size, the same bytes each time, the right pictures, in every kind of file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest
from analytic_scene import AnalyticScene
from PIL import Image

from scenediff.renderers.baked import BakedScene, bake, one_camera
from scenediff.tools.camera_paths import camera_path
from scenediff.tools.video import frame_writer, to_pixels, video_size, write_video

SIZE = (64, 86)


@pytest.fixture(scope="module")
def scene() -> AnalyticScene:
    return AnalyticScene(photo_size=(96, 128))


@pytest.fixture(scope="module")
def baked(scene: AnalyticScene) -> Iterator[BakedScene]:
    with bake(scene, short_side=64) as result:
        yield result


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


def stripes(count: int = 5, size: tuple[int, int] = (32, 50)) -> list[np.ndarray]:
    """Frames with a red bar that moves to the right over a slope of blue."""
    frames = []
    for n in range(count):
        frame = np.zeros((*size, 3), np.uint8)
        frame[..., 2] = np.linspace(0, 255, size[1], dtype=np.uint8)
        frame[:, 8 * n : 8 * n + 8, 0] = 255
        frames.append(frame)
    return frames


def test_gif_plays_forever_in_the_right_colours_and_time(tmp_path: Path) -> None:
    frames = stripes()
    with frame_writer(tmp_path / "film.gif", (32, 50), fps=10) as write:
        for frame in frames:
            write(frame)
    with Image.open(tmp_path / "film.gif") as film:
        assert (film.n_frames, film.size, film.info["loop"], film.info["duration"]) == (5, (50, 32), 0, 100)
        for n, frame in enumerate(frames):
            film.seek(n)
            error = np.abs(np.asarray(film.convert("RGB")).astype(float) - frame)
            assert error.mean() < 6  # 256 colours, dithered


def test_numbered_pictures_are_exact(tmp_path: Path) -> None:
    with frame_writer(tmp_path / "frames", (32, 50)) as write:
        for frame in stripes():
            write(frame)
    names = sorted(path.name for path in (tmp_path / "frames").iterdir())
    assert names == [f"frame_{n:05d}.png" for n in range(5)]
    for name, frame in zip(names, stripes(), strict=True):
        assert np.array_equal(np.asarray(Image.open(tmp_path / "frames" / name)), frame)


def test_other_kinds_of_film_are_refused(tmp_path: Path) -> None:
    film = frame_writer(tmp_path / "film.avi", SIZE)
    with pytest.raises(ValueError, match=r"must end in \.mp4 or \.gif"), film:
        pass
