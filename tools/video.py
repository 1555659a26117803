"""Pictures in motion: MP4, GIF and numbered PNGs, frame by frame."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image
from pytorch3d.renderer import PerspectiveCameras
from torch import Tensor

from scenediff.renderers.baked import BakedScene, one_camera, scaled_size

FrameWriter = Callable[[np.ndarray], None]

# one thread and bit-exact flags: no dates, no version, nothing that depends on the machine's load
_EXACT = ("-threads", "1", "-fflags", "+bitexact", "-flags:v", "+bitexact", "-map_metadata", "-1")
_GIF_COLORS = "split[a][b];[a]palettegen=stats_mode=diff[p];[b][p]paletteuse=dither=bayer:bayer_scale=4"


def video_size(photo_size: tuple[int, int], short_side: int = 256) -> tuple[int, int]:
    """(height, width) of the photo's shape, both even as H.264 wants, the shorter side as given."""
    if short_side % 2 or short_side <= 0:
        raise ValueError(f"short_side must be positive and even, got {short_side}")
    return scaled_size(photo_size, short_side, longest=math.inf)


def baked_frames(
    baked: BakedScene, cameras: PerspectiveCameras, size: tuple[int, int],
    progress: Callable[[int], None] = lambda frame: None,
) -> Iterator[np.ndarray]:
    """The frames (height, width, 3) uint8 of a path, in order; `progress` gets each one's number."""
    for n in range(len(cameras.R)):
        progress(n)
        yield to_pixels(baked.render(one_camera(cameras, n), size).image[0])


def to_pixels(image: Tensor) -> np.ndarray:
    """(height, width, 3) uint8 of an image (3, height, width) in [-1, 1]."""
    return ((image.permute(1, 2, 0) + 1) * 127.5).round().clamp(0, 255).byte().cpu().contiguous().numpy()


def write_video(
    baked: BakedScene, cameras: PerspectiveCameras, path: str | Path, size: tuple[int, int], fps: float = 24,
    progress: Callable[[int], None] = lambda frame: None,
) -> None:
    """Draws a path and writes an MP4 that is the same to the last bit every time.

    Args:
        size: (height, width), even. fps: frames a second.
        progress: called with the number of each frame before it is drawn.
    """
    with mp4_writer(path, size, fps) as write:
        for frame in baked_frames(baked, cameras, size, progress):
            write(frame)


@contextmanager
def frame_writer(path: str | Path, size: tuple[int, int], fps: float = 24) -> Iterator[FrameWriter]:
    """A function that takes frames (height, width, 3) uint8, for any kind of film.

    Args:
        path: FILE.mp4 (H.264), FILE.gif, or a folder for frame_00000.png, ...; it is there or has no suffix.
        size: (height, width), even for H.264. fps: frames a second; numbered pictures have none.
    """
    path = Path(path)
    writers = {".mp4": mp4_writer, ".gif": gif_writer}
    if path.is_dir() or not path.suffix:
        yield _png_writer(path)
    elif path.suffix.lower() in writers:
        with writers[path.suffix.lower()](path, size, fps) as write:
            yield write
    else:
        raise ValueError(f"{path} must end in .mp4 or .gif, or be a folder for pictures, without suffix")


@contextmanager
def mp4_writer(path: str | Path, size: tuple[int, int], fps: float = 24) -> Iterator[FrameWriter]:
    """Writes H.264 with yuv420p, which browsers play before it is all there."""
    height, width = size
    if height % 2 or width % 2:
        raise ValueError(f"size must be even, as H.264 halves the colours, got {height} x {width}")
    options = ["-preset", "fast", "-crf", "18", "-movflags", "+faststart", *_EXACT]
    import imageio_ffmpeg  # not at the top: trainings write no videos and run where it is missing

    writer = imageio_ffmpeg.write_frames(
        str(path), (width, height), fps=fps, codec="libx264", pix_fmt_in="rgb24", pix_fmt_out="yuv420p",
        quality=None, macro_block_size=2, ffmpeg_log_level="error", output_params=options,
    )
    with _feeding(writer) as write:
        yield write


@contextmanager
def gif_writer(path: str | Path, size: tuple[int, int], fps: float = 24) -> Iterator[FrameWriter]:
    """Writes an endless GIF whose 256 colours are chosen for the whole film."""
    height, width = size
    import imageio_ffmpeg

    writer = imageio_ffmpeg.write_frames(
        str(path), (width, height), fps=fps, codec="gif", pix_fmt_in="rgb24", pix_fmt_out="pal8",
        quality=None, macro_block_size=1, ffmpeg_log_level="error",
        output_params=["-filter_complex", _GIF_COLORS, "-loop", "0", *_EXACT],
    )
    with _feeding(writer) as write:
        yield write


def _png_writer(folder: Path) -> FrameWriter:
    folder.mkdir(parents=True, exist_ok=True)
    numbers = itertools.count()

    def write(frame: np.ndarray) -> None:
        Image.fromarray(frame).save(folder / f"frame_{next(numbers):05d}.png")

    return write


@contextmanager
def _feeding(writer: Generator[None, np.ndarray, None]) -> Iterator[FrameWriter]:
    """Sends frames to a process of ffmpeg's, which ends with the block."""
    next(writer)
    try:
        yield writer.send
    finally:
        writer.close()
