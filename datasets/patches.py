"""Images for generators and inversion: a folder or a zip of pictures, cut to squares, and patches of them.

FFHQ is read as published: numbered PNGs, 128 px or 1024, in folders of a thousand or in a zip.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from scenediff.datasets.images import DECODE_ERRORS, PhotoError
from scenediff.datasets.rooms.assets import split_of
from scenediff.forward import Observation
from scenediff.renderers.stylegan2 import PatchView, crop

SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".webp"})
THREADS = 16
Split = Literal["all", "train", "heldout"]


@dataclass(frozen=True)
class ImageFiles:
    """The pictures of a folder or a zip file, by name, in order.

    Attributes:
        source: the folder or zip.
        names: relative to it, sorted.
    """

    source: Path
    names: tuple[str, ...]

    def part(self, split: Split) -> ImageFiles:
        """All pictures, or one side of a split by their names alone: about 15 % are held out."""
        if split == "all":
            return self
        return ImageFiles(self.source, tuple(name for name in self.names if split_of(name) == split))


def find_images(source: str | Path) -> ImageFiles:
    """The pictures below a folder or in a zip file.

    Raises:
        PhotoError: there is no such place, or it has no pictures.
    """
    path = Path(source)
    if path.is_dir():
        files = (file for file in path.rglob("*") if file.is_file())
        names = [file.relative_to(path).as_posix() for file in files]
    elif zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            names = [entry.filename for entry in archive.infolist() if not entry.is_dir()]
    else:
        raise PhotoError(f"{path} is neither a folder nor a zip file of images")
    kept = sorted(name for name in names if _is_picture(PurePosixPath(name)))
    if not kept:
        raise PhotoError(f"{path} has no images ({', '.join(sorted(SUFFIXES))})")
    return ImageFiles(path, tuple(kept))


def _is_picture(name: PurePosixPath) -> bool:
    hidden = any(part.startswith((".", "__MACOSX")) for part in name.parts)
    return name.suffix.lower() in SUFFIXES and not hidden


def load_images(
    files: ImageFiles, size: int, limit: int = 0, progress: Callable[[int], None] | None = None
) -> Tensor:
    """(N, 3, size, size) uint8: the middle square of each picture, downscaled.

    Args:
        limit: read at most so many, evenly spread; 0 for all.
        progress: called with the number of pictures read.

    Raises:
        PhotoError: a picture can't be read or is smaller than `size`.
    """
    names = files.names
    if limit and len(names) > limit:
        names = tuple(names[index * len(names) // limit] for index in range(limit))
    if not names:
        raise PhotoError(f"{files.source} has no images in this part of it")
    pixels = torch.empty(len(names), size, size, 3, dtype=torch.uint8)
    readers = [_Reader(files.source) for _ in range(min(THREADS, len(names)))]

    def read_share(share: int) -> None:
        for index in range(share, len(names), len(readers)):
            name = names[index]
            pixels[index] = torch.from_numpy(square_pixels(readers[share].open(name), name, size))
            if progress is not None:
                progress(index)

    with ThreadPoolExecutor(len(readers)) as threads:
        list(threads.map(read_share, range(len(readers))))
    return pixels.permute(0, 3, 1, 2).contiguous()


class _Reader:
    """Reads files of a folder or of a zip; each thread has its own."""

    def __init__(self, source: Path):
        self.source = source
        self.archive = None if source.is_dir() else zipfile.ZipFile(source)

    def open(self, name: str) -> io.BytesIO:
        try:
            data = (self.source / name).read_bytes() if self.archive is None else self.archive.read(name)
        except (OSError, zipfile.BadZipFile) as error:
            raise PhotoError(f"{self.source}/{name} can't be read ({error})") from error
        return io.BytesIO(data)


def square_pixels(file: io.BytesIO | Path, name: str, size: int) -> np.ndarray:
    """(size, size, 3) uint8 sRGB of a picture's middle square."""
    try:
        with Image.open(file) as opened:
            image = opened.convert("RGB")
    except DECODE_ERRORS as error:
        raise PhotoError(f"{name} is no readable image") from error
    side = min(image.size)
    if side < size:
        raise PhotoError(f"{name} has {image.width}x{image.height} pixels, fewer than the {size} wanted")
    left, top = (image.width - side) // 2, (image.height - side) // 2
    image = image.crop((left, top, left + side, top + side))
    if side != size:
        image = image.resize((size, size), Image.Resampling.LANCZOS, reducing_gap=3.0)
    return np.array(image)


def read_patch(path: str | Path) -> Tensor:
    """(1, 3, height, width) in [-1, 1]: a picture of any size, pixel for pixel; transparent parts on white.

    Raises:
        PhotoError: it can't be read.
    """
    try:
        with Image.open(path) as image:
            rgba = image.convert("RGBA")
    except DECODE_ERRORS as error:
        raise PhotoError(f"{path} is no readable image: give a PNG or JPEG") from error
    flat = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return to_unit(torch.from_numpy(np.array(flat)).permute(2, 0, 1)[None])


def to_unit(pixels: Tensor) -> Tensor:
    """uint8 to float in [-1, 1]."""
    return pixels.float() / 127.5 - 1


# --- patches -------------------------------------------------------------------------------------


def random_view(
    batch: int, size: tuple[int, int], image_size: int, generator: torch.Generator
) -> PatchView:
    """Places of (height, width) patches, uniform over all that fit, on the generator's device."""
    height, width = size
    if not (0 < height <= image_size and 0 < width <= image_size):
        raise ValueError(f"size must lie within {image_size}x{image_size} pixels, got {height}x{width}")
    top, left = (
        torch.randint(image_size - side + 1, (batch,), generator=generator, device=generator.device)
        for side in (height, width)
    )
    return PatchView(top, left, (height, width))


def patches_of(images: Tensor, view: PatchView) -> Observation:
    """What a view shows of images."""
    return Observation(crop(images, view), view)


def choose_size(sizes: Sequence[int], generator: torch.Generator) -> int:
    """One of the sizes, drawn on the CPU so that shapes are known to the host."""
    return int(sizes[int(torch.randint(len(sizes), (1,), generator=generator))])
