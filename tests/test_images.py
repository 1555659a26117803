"""Photos of every kind, written to real files by Pillow and read back."""

from __future__ import annotations

import math
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from scenediff.datasets.images import FILM_DIAGONAL_MM, Photo, PhotoError, load_photo

RED, GREEN, BLUE = (200, 30, 40), (20, 180, 60), (30, 50, 220)
LEVEL = 2 / 255  # one 8-bit step in [-1, 1]


def quadrants(width: int = 96, height: int = 64) -> Image.Image:
    """Red at the top left, green at the top right, blue below: no two orientations look alike."""
    image = Image.new("RGB", (width, height), BLUE)
    image.paste(RED, (0, 0, width // 2, height // 2))
    image.paste(GREEN, (width // 2, 0, width, height // 2))
    return image


def colour_at(photo: Photo, row: float, column: float) -> list[int]:
    """8-bit colour at a relative position."""
    height, width = photo.size
    pixel = photo.image[:, int(row * height), int(column * width)]
    return ((pixel + 1) * 127.5).round().int().tolist()


def save(image: Image.Image, path: Path, **options: object) -> Path:
    image.save(path, **options)
    return path


def exif_with(base: dict[int, object], photo: dict[int, object]) -> Image.Exif:
    exif = Image.Exif()
    exif.update(base)
    exif.get_ifd(0x8769).update(photo)
    return exif


# --- pixels ------------------------------------------------------------------------------------------


def test_a_png_is_read_exactly(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    photo = load_photo(save(Image.fromarray(pixels), tmp_path / "photo.png"))
    assert photo.image.dtype == torch.float32
    assert photo.size == photo.original_size == (40, 50)
    expected = torch.from_numpy(pixels.astype(np.float32)).permute(2, 0, 1) / 127.5 - 1
    assert torch.equal(photo.image, expected)
    assert photo.notices == ()
    assert photo.path == tmp_path / "photo.png"


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_comes_out_upright(tmp_path, orientation):
    upright = quadrants()
    # The inverse of what the tag asks for: 6 and 8 undo each other, the others undo themselves
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # orientation -> PIL's transpose of the stored image
    stored = upright if orientation == 1 else upright.transpose(Image.Transpose(undo[orientation]))
    path = save(stored, tmp_path / "photo.png", exif=exif_with({0x0112: orientation}, {}))
    photo = load_photo(path)
    assert photo.original_size == photo.size == (64, 96)
    assert colour_at(photo, 0.25, 0.25) == list(RED)
    assert colour_at(photo, 0.25, 0.75) == list(GREEN)
    assert colour_at(photo, 0.75, 0.25) == list(BLUE)


@pytest.mark.parametrize(
    ("mode", "notice"),
    [("L", "greyscale"), ("1", "greyscale"), ("LA", None), ("P", "palette"), ("RGBA", None), ("RGB", None)],
)
def test_modes_of_png_are_converted_with_a_notice(tmp_path, mode, notice):
    photo = load_photo(save(quadrants().convert(mode), tmp_path / "photo.png"))
    assert photo.image.shape == (3, 64, 96)
    assert photo.image.abs().max() <= 1
    assert any(notice in line for line in photo.notices) if notice else photo.notices == ()


def test_transparency_becomes_white_with_a_notice(tmp_path):
    image = quadrants().convert("RGBA")
    image.paste((0, 0, 0, 0), (0, 0, 48, 32))
    image.paste((0, 0, 0, 128), (48, 0, 96, 32))
    photo = load_photo(save(image, tmp_path / "photo.png"))
    assert colour_at(photo, 0.25, 0.25) == [255, 255, 255]
    assert colour_at(photo, 0.25, 0.75) == [127, 127, 127]  # 255 x (1 - 128/255)
    assert colour_at(photo, 0.75, 0.5) == list(BLUE)
    assert any("white" in line for line in photo.notices)


def test_a_transparent_palette_gif_is_composited_too(tmp_path):
    image = quadrants().convert("P", palette=Image.Palette.ADAPTIVE, colors=4)
    corner = image.getpixel((0, 0))
    photo = load_photo(save(image, tmp_path / "photo.gif", transparency=corner))
    assert colour_at(photo, 0.25, 0.25) == [255, 255, 255]
    assert colour_at(photo, 0.75, 0.5) == pytest.approx(BLUE, abs=2)  # quantised


def test_cmyk_jpeg_is_converted_with_a_notice(tmp_path):
    photo = load_photo(save(quadrants().convert("CMYK"), tmp_path / "photo.jpg", quality=95))
    assert any("CMYK" in line for line in photo.notices)
    assert colour_at(photo, 0.25, 0.25) == pytest.approx(RED, abs=6)  # JPEG's loss


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_16_bit_grey_keeps_its_range(tmp_path, suffix):
    ramp = np.linspace(0, 65535, 64 * 48).astype(np.uint16).reshape(48, 64)
    photo = load_photo(save(Image.fromarray(ramp), tmp_path / f"photo.{suffix}"))
    expected = torch.from_numpy(ramp.astype(np.float32) / 65535) * 2 - 1
    torch.testing.assert_close(photo.image[0], expected, atol=LEVEL, rtol=0)
    assert any("16 to 8 bits" in line for line in photo.notices)


def test_16_bit_colour_is_told(tmp_path):
    pixels = np.zeros((40, 40, 3), ">u2")
    pixels[..., 0], pixels[..., 1] = 0xC800, 0x1E00  # 200 and 30 of 255
    path = tmp_path / "photo.png"
    path.write_bytes(png_16_bit(pixels))
    photo = load_photo(path)
    assert colour_at(photo, 0.5, 0.5) == pytest.approx((200, 30, 0), abs=1)
    assert any("16 to 8 bits" in line for line in photo.notices)


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_16_bit(pixels: np.ndarray) -> bytes:
    """A PNG of (height, width, 3) big-endian 16-bit values; Pillow can't write one."""
    height, width, _ = pixels.shape
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    parts = png_chunk(b"IHDR", header) + png_chunk(b"IDAT", zlib.compress(rows)) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


@pytest.mark.parametrize("suffix", ["gif", "webp", "png"])
def test_the_first_frame_of_an_animation_is_taken(tmp_path, suffix):
    frames = [Image.new("RGB", (48, 48), colour) for colour in (RED, GREEN, BLUE)]
    path = tmp_path / f"photo.{suffix}"
    frames[0].save(path, save_all=True, append_images=frames[1:], lossless=True)
    photo = load_photo(path)
    assert colour_at(photo, 0.5, 0.5) == pytest.approx(RED, abs=1)
    assert any("first frame of 3" in line for line in photo.notices)


@pytest.mark.parametrize("suffix", ["bmp", "tif", "webp", "jp2", "ppm", "jpg"])
def test_other_formats_are_read(tmp_path, suffix):
    photo = load_photo(save(quadrants(), tmp_path / f"photo.{suffix}"))
    assert colour_at(photo, 0.75, 0.5) == pytest.approx(BLUE, abs=6)  # lossy formats


def test_an_embedded_colour_profile_is_applied(tmp_path):
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
    plain = load_photo(save(quadrants(), tmp_path / "plain.png"))
    tagged = load_photo(save(quadrants(), tmp_path / "tagged.png", icc_profile=srgb.tobytes()))
    assert torch.equal(plain.image, tagged.image)
    assert tagged.notices == ()
    for name, profile in (("wrong", lab.tobytes()), ("garbage", b"no profile")):
        photo = load_photo(save(quadrants(), tmp_path / f"{name}.png", icc_profile=profile))
        assert torch.equal(photo.image, plain.image)
        assert any("profile is unusable" in line for line in photo.notices)


def test_a_pil_image_is_taken_and_left_alone():
    image = quadrants()
    photo = load_photo(image)
    assert photo.path is None
    assert photo.original_size == (64, 96)
    assert image.size == (96, 64)
    assert colour_at(photo, 0.25, 0.25) == list(RED)


# --- geometry ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("width", "height", "expected"),
    [(4000, 3000, (384, 512)), (900, 1600, (512, 288)), (500, 400, (400, 500)), (2000, 2000, (512, 512))],
)
def test_the_long_side_is_at_most_512_and_the_aspect_stays(tmp_path, width, height, expected):
    photo = load_photo(save(quadrants(width, height), tmp_path / "photo.jpg", quality=95))
    assert photo.size == expected
    assert photo.original_size == (height, width)
    assert photo.crop == (0, 0, height, width)
    assert any("downscaled" in line for line in photo.notices) == (max(width, height) > 512)
    assert colour_at(photo, 0.25, 0.25) == pytest.approx(RED, abs=6)
    assert colour_at(photo, 0.25, 0.75) == pytest.approx(GREEN, abs=6)


@pytest.mark.parametrize(("width", "height"), [(3000, 600), (600, 3000), (640, 40)])
def test_beyond_16_to_9_the_middle_is_cut_out(tmp_path, width, height):
    photo = load_photo(save(Image.linear_gradient("L").resize((width, height)), tmp_path / "photo.png"))
    top, left, cut_height, cut_width = photo.crop
    assert max(cut_width / cut_height, cut_height / cut_width) == pytest.approx(16 / 9, rel=0.01)
    assert abs(2 * top + cut_height - height) <= 1  # the middle, to a pixel
    assert abs(2 * left + cut_width - width) <= 1
    assert max(photo.size) / min(photo.size) == pytest.approx(16 / 9, rel=0.01)
    assert any("than 16:9" in line for line in photo.notices)
    # The gradient runs from black at the top to white at the bottom; its middle is left
    assert float(photo.image.mean()) == pytest.approx(0, abs=0.02)
    span = float(photo.image.amax() - photo.image.amin()) / 2
    assert span == pytest.approx(cut_height / height, abs=0.03)


def test_downscaling_is_antialiased(tmp_path):
    stripes = np.zeros((2048, 2048), np.uint8)
    stripes[:, ::2] = 255
    photo = load_photo(save(Image.fromarray(stripes), tmp_path / "photo.png"))
    assert float(photo.image[:, :, 2:-2].abs().max()) < 0.01  # even grey, no moire
    assert float(photo.image.abs().max()) < 0.1  # the filter is cut at the border


def test_100_megapixels_need_little_memory(tmp_path):
    path = save(quadrants(11600, 8700), tmp_path / "photo.jpg", quality=85)
    script = (
        "import sys, resource, warnings; warnings.simplefilter('error')\n"
        "from scenediff.datasets.images import load_photo\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "photo = load_photo(sys.argv[1])\n"
        "assert photo.size == (384, 512) and 'downscaled' in photo.notices[0], photo\n"
        "sys.stdout.write(str(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before))"
    )
    command = [sys.executable, "-c", script, str(path)]
    used_kib = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert used_kib < 100 * 1024  # the decoded photo alone would be 300 MB


# --- field of view -----------------------------------------------------------------------------------


def fov_from_focal(side: float, focal: float) -> float:
    return math.degrees(2 * math.atan(side / 2 / focal))


def test_the_given_field_of_view_is_horizontal_and_of_the_whole_photo(tmp_path):
    for width, height in ((90, 60), (60, 90), (600, 60)):
        photo = load_photo(save(quadrants(width, height), tmp_path / "photo.png"), fov_degrees=80)
        focal = width / 2 / math.tan(math.radians(40))
        assert photo.fov_source == "--fov"
        assert photo.fov_degrees == pytest.approx(fov_from_focal(min(photo.crop[2:]), focal))


def test_the_default_is_65_degrees_across_the_longer_side(tmp_path):
    for width, height in ((90, 60), (60, 90)):
        photo = load_photo(save(quadrants(width, height), tmp_path / "photo.png"))
        assert photo.fov_source == "default"
        focal = 45 / math.tan(math.radians(65 / 2))
        assert photo.fov_degrees == pytest.approx(fov_from_focal(60, focal))


@pytest.mark.parametrize("orientation", [1, 6])
def test_exif_film_equivalent_focal_length(tmp_path, orientation):
    """A 50 mm lens sees 39.6 degrees across 36 mm of film, and 27.0 across its 24 mm."""
    exif = exif_with({0x0112: orientation}, {0xA405: 50, 0x920A: 4.2})
    photo = load_photo(save(quadrants(1200, 800), tmp_path / "photo.jpg", exif=exif))
    assert photo.fov_source == "exif"
    assert photo.fov_degrees == pytest.approx(2 * math.degrees(math.atan(12 / 50)), abs=1e-6)
    assert photo.original_size == ((800, 1200) if orientation == 1 else (1200, 800))


def test_exif_focal_length_with_the_sensors_resolution(tmp_path):
    """A full-frame sensor, 36 mm wide and 6000 pixels, behind a 50 mm lens; the file was resized to 1200."""
    per_inch = 6000 / 36 * 25.4
    tags = {0x920A: 50.0, 0xA20E: per_inch, 0xA210: 2, 0xA002: 6000, 0xA003: 4000}
    photo = load_photo(save(quadrants(1200, 800), tmp_path / "photo.jpg", exif=exif_with({}, tags)))
    assert photo.fov_source == "exif"
    expected = 2 * math.degrees(math.atan(12 / 50))
    assert photo.fov_degrees == pytest.approx(expected, rel=1e-4)  # EXIF's rationals


@pytest.mark.parametrize(
    ("tags", "notice"),
    [
        ({0x920A: 4.2}, False),  # the lens alone says nothing without the sensor
        ({0xA405: 0}, False),  # 0 means unknown
        ({0xA405: 1}, True),  # 175 degrees
        ({0x920A: 50.0, 0xA20E: 100.0, 0xA210: 1}, False),  # a resolution without a unit
    ],
)
def test_useless_exif_gives_the_default(tmp_path, tags, notice):
    photo = load_photo(save(quadrants(), tmp_path / "photo.jpg", exif=exif_with({}, tags)))
    assert photo.fov_source == "default"
    assert any("ignored" in line for line in photo.notices) == notice


def test_damaged_exif_is_no_error(tmp_path):
    path = save(quadrants(), tmp_path / "photo.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\xff garbage")
    assert load_photo(path).fov_source == "default"


def test_the_film_diagonal():
    assert pytest.approx(43.27, abs=0.005) == FILM_DIAGONAL_MM


# --- errors ------------------------------------------------------------------------------------------


def one_line(path: Path, *words: str) -> None:
    with pytest.raises(PhotoError) as caught:
        load_photo(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    assert len(message) < 250 + len(str(path))
    for word in words:
        assert word in message


def test_missing_folder_and_empty(tmp_path):
    one_line(tmp_path / "none.jpg", "does not exist")
    one_line(tmp_path, "folder")
    (tmp_path / "empty.jpg").touch()
    one_line(tmp_path / "empty.jpg", "empty", "0 bytes")


@pytest.mark.parametrize("content", [b"some text\n" * 9, b"%PDF-1.7\n", b"\x89PNG\r\n\x1a\n", bytes(99)])
def test_files_that_are_no_images(tmp_path, content):
    path = tmp_path / "photo.jpg"
    path.write_bytes(content)
    one_line(path)


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp", "gif", "bmp", "jp2"])
@pytest.mark.parametrize("share", [0.1, 0.6])
def test_truncated_files(tmp_path, suffix, share):
    noise = np.random.default_rng(0).integers(0, 256, (200, 300, 3), dtype=np.uint8)
    whole = save(Image.fromarray(noise), tmp_path / f"whole.{suffix}").read_bytes()
    path = tmp_path / f"cut.{suffix}"
    path.write_bytes(whole[: int(len(whole) * share)])
    one_line(path)


@pytest.mark.parametrize("size", [(31, 400), (400, 31), (1, 1)])
def test_too_small(tmp_path, size):
    one_line(save(Image.new("RGB", size), tmp_path / "photo.png"), f"{size[0]}x{size[1]}", "32")


def test_too_large(tmp_path):
    """A header that promises 900 megapixels is refused before anything is decoded."""
    header = struct.pack(">IIBBBBB", 30000, 30000, 8, 2, 0, 0, 0)
    path = tmp_path / "photo.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", b""))
    one_line(path, "900 megapixels", "500")


def test_unsupported_kinds_name_the_remedy(tmp_path):
    heic = tmp_path / "photo.heic"
    heic.write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0" + bytes(99))
    one_line(heic, "HEIC", "JPEG")
    raw = tmp_path / "photo.DNG"
    raw.write_bytes(b"II*\0" + bytes(99))
    one_line(raw, "raw", "JPEG")
    floating = save(Image.new("F", (64, 64)), tmp_path / "photo.tif")
    one_line(floating, "32-bit", "16")


@pytest.mark.parametrize("fov", [0, -20, 4.9, 151, 180, math.nan, math.inf])
def test_a_bad_field_of_view(tmp_path, fov):
    path = save(quadrants(), tmp_path / "photo.png")
    with pytest.raises(ValueError, match="between 5 and 150 degrees"):
        load_photo(path, fov_degrees=fov)


def test_pillows_limit_is_restored(tmp_path):
    before = Image.MAX_IMAGE_PIXELS
    with pytest.raises(PhotoError):
        load_photo(tmp_path / "none.jpg")
    load_photo(save(quadrants(), tmp_path / "photo.png"))
    assert before == Image.MAX_IMAGE_PIXELS
