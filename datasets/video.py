"""Videos: folders of clips to pairs of frames a moment apart, the only thing that motion is learned from.

Clips are read by ffmpeg (package imageio-ffmpeg) and scaled while reading. A cache file holds what was read,
for machines without ffmpeg and to start at once. Pairs in which nothing moves, or everything does (a cut, a
moving camera), are rejected. Tests use the last part of every clip's time and, where there are many clips,
whole clips besides; both by rules that never change.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from scenediff.datasets.rooms.assets import split_of

SUFFIXES = frozenset({".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ogv", ".webm", ".wmv"})
CACHE_SUFFIX = ".npz"
TRAIN_SHARE = 0.8  # of every clip's time
MANY_CLIPS = 8  # from so many on, about 15 % of the clips are tested on as a whole
Split = Literal["train", "test"]


class VideoError(ValueError):
    """A video that can't be used; the message is one line that names the file and the reason."""


@dataclass(frozen=True)
class Clip:
    """A clip in memory.

    Attributes:
        name: of the file, relative to its folder.
        frames: (N, height, width, 3) uint8, in order.
        fps: frames a second.
    """

    name: str
    frames: np.ndarray
    fps: float


@dataclass(frozen=True)
class PairConfig:
    """Which frames make a pair.

    Attributes:
        gaps: numbers of frames between the context and its target, each equally probable.
        threshold: a pixel has changed if a channel differs by more grey levels (of 255).
        least, most: share of the pixels that must and may have changed.
        spots: changed pixels of each pair that are kept, to cut pictures around.
    """

    gaps: tuple[int, ...] = (2, 3)
    threshold: int = 24
    least: float = 0.001
    most: float = 0.4
    spots: int = 48


def load_clips(source: str | Path, short_side: int = 128) -> list[Clip]:
    """The clips of a folder, a single video, or a cache file (see `save_cache`).

    Args:
        short_side: of the frames, pixels; a cache must have the same.

    Raises:
        VideoError: nothing there, unreadable, or a clip of a single frame.
    """
    path = Path(source)
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
        if not files:
            raise VideoError(f"{path} has no videos ({', '.join(sorted(SUFFIXES))})")
        return [read_clip(file, short_side, name=file.relative_to(path).as_posix()) for file in files]
    if not path.exists():
        raise VideoError(f"{path} does not exist: give a video, a folder of videos or a cache file")
    if path.suffix.lower() == CACHE_SUFFIX:
        return _load_cache(path, short_side)
    return [read_clip(path, short_side)]


def read_clip(path: str | Path, short_side: int = 128, *, name: str | None = None) -> Clip:
    """Reads one video, scaled; rotation as its metadata say, other pixel formats converted to 8-bit RGB.

    Frames that change size midway are all scaled to the size of the first.

    Raises:
        VideoError: unreadable, or of a single frame.
    """
    path = Path(path)
    import imageio_ffmpeg  # not at the top: a cache is enough where ffmpeg is missing

    logging.getLogger("imageio_ffmpeg").setLevel(logging.ERROR)  # it warns of every scaling
    try:
        first = imageio_ffmpeg.read_frames(str(path), pix_fmt="rgb24")
        width, height = next(first)["size"]
        first.close()
        scale = short_side / min(width, height)
        size = max(short_side, round(width * scale)), max(short_side, round(height * scale))
        filters = ["-vf", f"scale={size[0]}:{size[1]}:flags=area", "-fps_mode", "passthrough"]
        reader = imageio_ffmpeg.read_frames(str(path), pix_fmt="rgb24", output_params=filters)
        meta = next(reader)
        frames = [np.frombuffer(frame, np.uint8).reshape(size[1], size[0], 3) for frame in reader]
    except (OSError, RuntimeError, StopIteration, KeyError, ValueError) as error:
        raise VideoError(f"{path} is no video that ffmpeg can read") from error
    if len(frames) < 2:
        raise VideoError(f"{path} has {len(frames)} frame: a video of two or more is needed")
    return Clip(name or path.name, np.stack(frames), float(meta.get("fps") or 0.0))


def save_cache(clips: Sequence[Clip], path: str | Path) -> None:
    """Writes clips to one compressed .npz, as differences in time, of which a resting camera has few."""
    arrays = {}
    for index, clip in enumerate(clips):
        changes = np.diff(clip.frames, axis=0, prepend=np.zeros_like(clip.frames[:1]))  # modulo 256
        arrays[f"changes_{index}"] = changes
    names, fps = [clip.name for clip in clips], [clip.fps for clip in clips]
    np.savez_compressed(path, names=np.array(names), fps=np.array(fps), **arrays)


def _load_cache(path: Path, short_side: int) -> list[Clip]:
    try:
        with np.load(path) as arrays:
            clips = [
                Clip(str(name), np.cumsum(arrays[f"changes_{index}"], axis=0, dtype=np.uint8), float(fps))
                for index, (name, fps) in enumerate(zip(arrays["names"], arrays["fps"], strict=True))
            ]
    except Exception as error:  # of damaged files, the parsers of numpy and zip raise almost anything
        raise VideoError(f"{path} is no cache of clips") from error
    sides = {min(clip.frames.shape[1:3]) for clip in clips}
    if sides != {short_side}:
        raise VideoError(f"{path} was made for a short side of {sorted(sides)} pixels, not {short_side}")
    return clips


def split_clips(clips: Sequence[Clip], split: Split) -> list[Clip]:
    """The training or the test part: by time in every clip, and by whole clips where there are many.

    Raises:
        VideoError: no clip has two frames in that part.
    """
    parts = []
    for clip in clips:
        held_out = len(clips) >= MANY_CLIPS and split_of(clip.name) == "heldout"
        cut = 0 if held_out else round(TRAIN_SHARE * len(clip.frames))
        frames = clip.frames[:cut] if split == "train" else clip.frames[cut:]
        if len(frames) > 1:
            parts.append(Clip(clip.name, frames, clip.fps))
    if not parts:
        raise VideoError(f"no clip is long enough to have frames to {split} on")
    return parts


def changed_pixels(first: np.ndarray, second: np.ndarray, threshold: int) -> np.ndarray:
    """Bool (..., height, width) where two uint8 images (..., height, width, 3) differ by more than that."""
    return (np.maximum(first, second) - np.minimum(first, second)).max(-1) > threshold


@dataclass(frozen=True)
class Pairs:
    """Pairs of frames of one set of clips, with places where something moved.

    Attributes:
        pixels: (total,) uint8, the frames of all clips one after the other, each (height, width, 3).
        starts, heights, widths: (clips,) place of a clip's first frame in `pixels`, and its size.
        spots: (M, 5) int64: clip, frame of the context, gap to the target, row and column of a changed pixel.
    """

    pixels: Tensor
    starts: Tensor
    heights: Tensor
    widths: Tensor
    spots: Tensor

    def to(self, device: torch.device | str) -> Pairs:
        """A copy on another device."""
        return Pairs(*(tensor.to(device) for tensor in vars(self).values()))

    def draw(
        self, batch: int, size: int, generator: torch.Generator, *, flip: bool = True
    ) -> tuple[Tensor, Tensor]:
        """Random crops around places that changed, of contexts and their targets.

        Args:
            size: side of the crops, pixels. flip: mirror half of them.

        Returns:
            two (batch, 3, size, size) in [-1, 1], on the device of pairs and generator.
        """
        device = self.spots.device
        chosen = torch.randint(len(self.spots), (batch,), generator=generator, device=device)
        clip, frame, gap, row, column = self.spots[chosen].unbind(1)
        corners = []
        for place, sides in ((row, self.heights), (column, self.widths)):
            within = torch.rand(batch, generator=generator, device=device) * (size - 1)
            corners.append((place - within.round().long()).clamp(min=0).minimum(sides[clip] - size))
        images = self.crop(clip, torch.stack([frame, frame + gap]), corners[0], corners[1], size)
        if flip:
            mirror = torch.rand(batch, generator=generator, device=device) < 0.5
            images = torch.where(mirror[:, None, None, None], images.flip(-1), images)
        return images[0], images[1]

    def crop(self, clip: Tensor, frame: Tensor, top: Tensor, left: Tensor, size: int) -> Tensor:
        """(*, batch, 3, size, size) in [-1, 1]: squares of frames (*, batch), all arguments int64."""
        inner = torch.arange(size, device=clip.device)
        width, height = self.widths[clip], self.heights[clip]
        origin = self.starts[clip] + ((frame * height + top) * width + left) * 3
        rows = (inner * 3)[:, None] * width[:, None, None]  # (batch, size, 1)
        index = origin[..., None, None] + rows + inner * 3
        channels = torch.arange(3, device=clip.device)[:, None, None]
        pixels = self.pixels[index[..., None, :, :] + channels]
        return pixels.float() / 127.5 - 1


def make_pairs(clips: Sequence[Clip], config: PairConfig, size: int) -> Pairs:
    """Finds the pairs in which something moves.

    Args:
        size: of the crops that will be drawn, pixels.

    Raises:
        VideoError: frames are smaller than the crops, or there is no pair with motion.
    """
    spots, rng = [], np.random.default_rng(0)
    for index, clip in enumerate(clips):
        height, width = clip.frames.shape[1:3]
        if min(height, width) < size:
            raise VideoError(f"{clip.name}: frames of {width}x{height} are smaller than crops of {size}")
        for gap in config.gaps:
            for frame in range(len(clip.frames) - gap):
                changed = changed_pixels(clip.frames[frame], clip.frames[frame + gap], config.threshold)
                if config.least <= changed.mean() <= config.most:
                    places = np.argwhere(changed)
                    places = places[rng.choice(len(places), config.spots)]
                    known = np.tile((index, frame, gap), (len(places), 1))
                    spots.append(np.concatenate([known, places], axis=1))
    if not spots:
        raise VideoError("nothing moves in the clips, or everything does: no pairs to learn from")
    sizes = torch.tensor([clip.frames.shape for clip in clips], dtype=torch.int64)
    ends = sizes.prod(1).cumsum(0)
    pixels = torch.from_numpy(np.concatenate([clip.frames.reshape(-1) for clip in clips]))
    starts = torch.cat([ends.new_zeros(1), ends[:-1]])
    return Pairs(pixels, starts, sizes[:, 1], sizes[:, 2], torch.from_numpy(np.concatenate(spots)))
