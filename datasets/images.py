"""Photographs: any image file to the tensor and the field of view that a scene is sampled from.

The model sees the whole upright photo, up to an aspect ratio of 16:9 (more is cut off at both ends), with a
long side of at most 512 pixels. Pixels are square, the optical axis passes through the photo's middle, and
everything done to the pixels that is not a plain decode is told in `Photo.notices`.

The field of view comes from, in this order: the caller; the file's EXIF focal length; a default of 65 degrees
across the longer side, which is what the main cameras of phones have (26 to 28 mm, film equivalent).
"""

from __future__ import annotations

import io
import math
import struct
import warnings
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image, ImageCms
from torch import Tensor

FovSource = Literal["--fov", "exif", "default"]

DEFAULT_FOV_DEGREES = 65.0  # across the longer side
FOV_RANGE_DEGREES = (5.0, 150.0)  # across the width; beyond it a pinhole camera is no sensible model
MAX_ASPECT = 16 / 9
MAX_SIDE = 512
MIN_SIDE = 32
MAX_PIXELS = 500_000_000
FILM_DIAGONAL_MM = math.hypot(36, 24)

FORMATS = ("JPEG", "MPO", "PNG", "TIFF", "WEBP", "AVIF", "BMP", "GIF", "PPM", "JPEG2000")
RAW_SUFFIXES = frozenset({".arw", ".cr2", ".cr3", ".dng", ".nef", ".orf", ".raf", ".rw2"})
HEIF_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1"})
DECODE_ERRORS = (
    OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, struct.error, zlib.error
)  # fmt: skip

# EXIF tags: https://exiv2.org/tags.html
ORIENTATION, EXIF_IFD, FOCAL_LENGTH, FOCAL_LENGTH_35MM = 0x0112, 0x8769, 0x920A, 0xA405
PIXEL_X, PIXEL_Y, FOCAL_PLANE_X_RESOLUTION, FOCAL_PLANE_UNIT = 0xA002, 0xA003, 0xA20E, 0xA210
UNIT_MM = {2: 25.4, 3: 10.0, 4: 1.0, 5: 1e-3}
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip


class PhotoError(ValueError):
    """A photo that can't be used; the message is one line that names the file, the reason and the remedy."""


@dataclass(frozen=True)
class Photo:
    """A photo as the model sees it.

    Attributes:
        image: (3, height, width) float32, sRGB in [-1, 1].
        fov_degrees: field of view of the SHORTER side of `image`.
        fov_source: where it comes from.
        original_size: (height, width) of the upright photo in the file, pixels.
        crop: (top, left, height, width) of what `image` shows, in pixels of the upright original.
        path: the file, or None for an image from memory.
        notices: what was converted, cut or ignored, one sentence each.
    """

    image: Tensor
    fov_degrees: float
    fov_source: FovSource
    original_size: tuple[int, int]
    crop: tuple[int, int, int, int]
    path: Path | None = None
    notices: tuple[str, ...] = ()

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of `image`, pixels."""
        return self.image.shape[-2], self.image.shape[-1]


def load_photo(
    source: str | Path | Image.Image, fov_degrees: float | None = None, *, max_side: int = MAX_SIDE
) -> Photo:
    """Reads, converts, turns upright, crops and downscales one photo.

    Args:
        source: a file, or an opened PIL image.
        fov_degrees: horizontal field of view of the whole upright photo; None to take EXIF's or the default.
        max_side: the longest side of the result, pixels; smaller photos keep their size.

    Raises:
        PhotoError: the file is missing, damaged, no image, of an unsupported kind, too small or too large.
        ValueError: `fov_degrees` or `max_side` is out of range.
    """
    check_fov(fov_degrees)
    if max_side < MIN_SIDE:
        raise ValueError(f"max_side must be at least {MIN_SIDE} pixels, got {max_side}")
    if isinstance(source, Image.Image):
        return _prepare(source, None, fov_degrees, max_side)
    path = Path(source)
    _check_file(path)
    with _pillow_at_ease():
        try:
            opened = Image.open(path, formats=_supported_formats())
        except DECODE_ERRORS as error:
            raise PhotoError(f"{path} is no readable image: give a JPEG, PNG, TIFF or WebP") from error
        with opened:
            return _prepare(opened, path, fov_degrees, max_side)


def check_fov(fov_degrees: float | None) -> None:
    """Raises ValueError unless `fov_degrees` is None or a sensible horizontal field of view."""
    low, high = FOV_RANGE_DEGREES
    if fov_degrees is not None and not low <= fov_degrees <= high:
        raise ValueError(
            f"the field of view must lie between {low:g} and {high:g} degrees across the photo's width, "
            f"got {fov_degrees:g}"
        )


def _check_file(path: Path) -> None:
    """Finds what can be said about a file without decoding it."""
    if path.is_dir():
        raise PhotoError(f"{path} is a folder: give a photo, such as {path}/photo.jpg")
    if not path.exists():
        raise PhotoError(f"{path} does not exist: check the photo's name")
    try:
        with path.open("rb") as file:
            head = file.read(16)
    except OSError as error:
        raise PhotoError(f"{path} can't be read ({error.strerror}): check its permissions") from error
    if not head:
        raise PhotoError(f"{path} is empty (0 bytes): copy or download the photo again")
    if path.suffix.lower() in RAW_SUFFIXES:
        raise PhotoError(f"{path} is a camera's raw file, which is not supported: export it as JPEG or PNG")
    if head[4:8] == b"ftyp" and head[8:12] in HEIF_BRANDS:
        raise PhotoError(f"{path} is a HEIC photo, which is not supported: export it as JPEG or PNG")


def _prepare(image: Image.Image, path: Path | None, fov_degrees: float | None, max_side: int) -> Photo:
    stored = image.size  # (width, height), before EXIF's orientation
    _check_size(_name(path), stored)
    notices = _note_file(image)
    exif = _read_exif(image)
    crop = _central_crop(*_upright_size(stored, exif))
    scale = min(1.0, max_side / max(crop[2:]))
    small = _decode(image, path, scale, notices)
    if exif.get(ORIENTATION) in UPRIGHT:
        small = small.transpose(UPRIGHT[exif[ORIENTATION]])
    width, height = _upright_size(stored, exif)
    small = _crop_scaled(small, crop, (height, width))
    _note_geometry(notices, (height, width), crop, small.size)
    focal, fov_source = _focal_pixels(width, height, fov_degrees, exif, notices)
    pixels = torch.from_numpy(np.array(small, dtype=np.float32)).permute(2, 0, 1)
    return Photo(
        image=(pixels / 127.5 - 1).contiguous(),
        fov_degrees=math.degrees(2 * math.atan(min(crop[2:]) / 2 / focal)),
        fov_source=fov_source,
        original_size=(height, width),
        crop=crop,
        path=path,
        notices=tuple(notices),
    )


def _name(path: Path | None) -> str:
    return "the image" if path is None else str(path)


def _check_size(name: str, size: tuple[int, int]) -> None:
    width, height = size
    if min(size) < MIN_SIDE:
        raise PhotoError(f"{name} has {width}x{height} pixels: give one of at least {MIN_SIDE} a side")
    if width * height > MAX_PIXELS:
        raise PhotoError(
            f"{name} has {width}x{height} = {width * height / 1e6:.0f} megapixels: "
            f"downscale it to at most {MAX_PIXELS / 1e6:.0f}"
        )


# --- geometry ------------------------------------------------------------------------------------


def _upright_size(stored: tuple[int, int], exif: Mapping[int, Any]) -> tuple[int, int]:
    """(width, height) after EXIF's orientation; orientations 5 to 8 swap the axes."""
    return (stored[1], stored[0]) if exif.get(ORIENTATION) in (5, 6, 7, 8) else stored


def _central_crop(width: int, height: int) -> tuple[int, int, int, int]:
    """(top, left, height, width) of the middle that is at most 16:9, either way round."""
    cut_width = min(width, max(1, round(height * MAX_ASPECT)))
    cut_height = min(height, max(1, round(width * MAX_ASPECT)))
    return (height - cut_height) // 2, (width - cut_width) // 2, cut_height, cut_width


def _crop_scaled(image: Image.Image, crop: tuple[int, int, int, int], size: tuple[int, int]) -> Image.Image:
    """Cuts `crop`, given in pixels of an original of (height, width) `size`, out of its downscaled image."""
    top, left, height, width = crop
    if (height, width) == size:
        return image
    horizontal, vertical = image.width / size[1], image.height / size[0]
    cut_width, cut_height = max(1, round(width * horizontal)), max(1, round(height * vertical))
    left, top = (image.width - cut_width) // 2, (image.height - cut_height) // 2
    return image.crop((left, top, left + cut_width, top + cut_height))


def _note_geometry(
    notices: list[str], original: tuple[int, int], crop: tuple[int, int, int, int], small: tuple[int, int]
) -> None:
    height, width = original
    if crop[2:] != original:
        kind = "wider" if width > height else "taller"
        notices.append(f"{kind} than 16:9: cropped from {width}x{height} to its middle {crop[3]}x{crop[2]}")
    if small != (crop[3], crop[2]):
        notices.append(f"downscaled from {crop[3]}x{crop[2]} to {small[0]}x{small[1]} pixels")


def _focal_pixels(
    width: int, height: int, fov_degrees: float | None, exif: Mapping[int, Any], notices: list[str]
) -> tuple[float, FovSource]:
    """Focal length in pixels of the whole upright photo, and where it comes from."""
    if fov_degrees is not None:
        return width / 2 / math.tan(math.radians(fov_degrees) / 2), "--fov"
    focal = _exif_focal_pixels(width, height, exif)
    if focal is not None:
        fov = math.degrees(2 * math.atan(width / 2 / focal))
        if FOV_RANGE_DEGREES[0] <= fov <= FOV_RANGE_DEGREES[1]:
            return focal, "exif"
        notices.append(f"EXIF's focal length ignored: it would mean {fov:.1f} degrees across the width")
    return max(width, height) / 2 / math.tan(math.radians(DEFAULT_FOV_DEGREES) / 2), "default"


def _exif_focal_pixels(width: int, height: int, exif: Mapping[int, Any]) -> float | None:
    """Focal length in pixels from EXIF, or None where the file does not tell.

    The film-equivalent length is taken by the diagonal (43.27 mm), as CIPA DCG-001 defines it for any aspect
    ratio. Without it, the sensor's pixel pitch gives the length, rescaled if the file was resized since.
    """
    equivalent = _positive(exif.get(FOCAL_LENGTH_35MM))
    if equivalent is not None:
        return equivalent * math.hypot(width, height) / FILM_DIAGONAL_MM
    length, resolution = _positive(exif.get(FOCAL_LENGTH)), _positive(exif.get(FOCAL_PLANE_X_RESOLUTION))
    unit = UNIT_MM.get(exif.get(FOCAL_PLANE_UNIT, 2))
    if length is None or resolution is None or unit is None:
        return None
    taken = max(_positive(exif.get(PIXEL_X)) or 0, _positive(exif.get(PIXEL_Y)) or 0)
    return length * resolution / unit * (max(width, height) / taken if taken else 1)


def _positive(value: Any) -> float | None:
    """A number above zero, or None: EXIF's rationals may be 0/0, absent or text."""
    try:
        number = float(value)
    except (TypeError, ValueError, ZeroDivisionError):
        return None
    return number if math.isfinite(number) and number > 0 else None


def _read_exif(image: Image.Image) -> dict[int, Any]:
    """The tags of the image and of its EXIF part in one dictionary; empty where they are damaged."""
    try:
        exif = image.getexif()
        return {**exif, **exif.get_ifd(EXIF_IFD)}
    except DECODE_ERRORS:
        return {}


# --- pixels --------------------------------------------------------------------------------------


def _note_file(image: Image.Image) -> list[str]:
    """What can only be told before the pixels are read: frames and bits."""
    notices = []
    if getattr(image, "is_animated", False) and image.format != "MPO":  # MPO: a phone's photo with a gain map
        notices.append(f"its first frame of {getattr(image, 'n_frames', 1)} was taken")
    # Pillow decodes 16-bit colour as RGB: only the layout of the stored pixels, as in "RGB;16B", tells
    if image.format in ("PNG", "TIFF", "PPM") and ";16" in str(getattr(image, "tile", "")):
        notices.append("converted from 16 to 8 bits a channel")
    return notices


def _decode(image: Image.Image, path: Path | None, scale: float, notices: list[str]) -> Image.Image:
    """8-bit sRGB pixels of the whole stored image, downscaled by `scale`."""
    name = _name(path)
    target = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    if path is not None:  # a JPEG is decoded at 1/2, 1/4 or 1/8: 100 megapixels then need 5 MB, not 300
        image.draft(None, (3 * target[0], 3 * target[1]))
    try:
        image.load()
        profile = image.info.get("icc_profile")
        image = _to_resizable(image, name, notices)
    except DECODE_ERRORS as error:
        if isinstance(error, PhotoError):
            raise
        reason = str(error).splitlines()[0] if str(error) else "unreadable data"
        raise PhotoError(f"{name} is damaged or incomplete ({reason}): copy or download it again") from error
    if image.size != target:
        image = image.resize(target, Image.Resampling.LANCZOS, reducing_gap=3.0)
    return _to_rgb(image, profile, notices)


def _to_resizable(image: Image.Image, name: str, notices: list[str]) -> Image.Image:
    """A mode that can be filtered: L, RGB, RGBA or CMYK."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        table = (np.arange(65536) / 257 + 0.5).astype(np.uint8)
        return Image.fromarray(table[np.asarray(image)])
    if image.mode in ("F", "I"):
        raise PhotoError(f"{name} has 32-bit pixels of unknown range: export it with 8 or 16 bits a channel")
    if image.mode in ("P", "PA") or "transparency" in image.info:
        if image.mode in ("P", "PA"):
            notices.append("converted from a palette to full colour")
        return image.convert("RGBA")
    if image.mode in ("LA", "La", "RGBa"):
        return image.convert("RGBA")
    if image.mode in ("L", "RGB", "RGBA", "CMYK"):
        return image
    return image.convert("L" if image.mode == "1" else "RGB")


def _to_rgb(image: Image.Image, profile: bytes | None, notices: list[str]) -> Image.Image:
    """sRGB from greyscale, CMYK, transparent and colour-managed images."""
    if image.mode == "RGBA":
        if np.asarray(image.getchannel("A")).min() < 255:
            notices.append("transparent parts were filled with white")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image).convert("RGB")
    if image.mode == "CMYK":
        notices.append("converted from CMYK to RGB")
    if image.mode == "L":
        notices.append("converted from greyscale: scenes will be grey")
    return _apply_profile(image, profile, notices).convert("RGB")


def _apply_profile(image: Image.Image, profile: bytes | None, notices: list[str]) -> Image.Image:
    """Converts from an embedded ICC profile to sRGB; an unusable profile is ignored with a notice."""
    if not profile or image.mode == "L":
        return image
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        description = ImageCms.getProfileDescription(source).strip()
        if "srgb" in description.lower():
            return image
        converted = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        notices.append("its colour profile is unusable and was ignored")
        return image
    notices.append(f"converted from the colour profile {description!r} to sRGB")
    return converted or image


def _supported_formats() -> list[str]:
    """The formats that the installed Pillow was built with, of those supported here."""
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


@contextmanager
def _pillow_at_ease() -> Iterator[None]:
    """Lifts Pillow's limit of 179 megapixels, as `MAX_PIXELS` is checked, and silences its warnings."""
    limit = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit
