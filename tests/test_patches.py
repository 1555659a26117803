"""Folders and zips of pictures: FFHQ's layouts, splits, squares, damaged files; where patches are drawn."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from scenediff.datasets.images import PhotoError
from scenediff.datasets.patches import (
    ImageFiles,
    choose_size,
    find_images,
    load_images,
    patches_of,
    random_view,
    read_patch,
    to_unit,
)


def picture(path: Path, value: int, size: tuple[int, int] = (16, 16)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, 100, 50)).save(path)
    return path


@pytest.fixture(scope="module")
def ffhq(tmp_path_factory) -> Path:
    """Numbered PNGs in folders of a thousand, as FFHQ is published, with other files beside them."""
    root = tmp_path_factory.mktemp("ffhq")
    for number in (0, 1, 2, 999, 1000, 1001):
        picture(root / f"{number // 1000 * 1000:05d}" / f"{number:05d}.png", number % 251)
    (root / "LICENSE.txt").write_text("text")
    (root / ".hidden").mkdir()
    picture(root / ".hidden" / "00003.png", 0)
    return root


def test_ffhq_as_a_folder_and_as_a_zip(ffhq, tmp_path):
    files = find_images(ffhq)
    assert files.names == tuple(f"{n // 1000 * 1000:05d}/{n:05d}.png" for n in (0, 1, 2, 999, 1000, 1001))
    images = load_images(files, 16)
    assert images.shape == (6, 3, 16, 16)
    assert images[:, 0, 0, 0].tolist() == [n % 251 for n in (0, 1, 2, 999, 1000, 1001)]
    with zipfile.ZipFile(tmp_path / "thumbnails.zip", "w") as archive:
        for name in files.names:
            archive.write(ffhq / name, f"thumbnails128x128/{name}")
    zipped = find_images(tmp_path / "thumbnails.zip")
    assert torch.equal(load_images(zipped, 16), images)
    assert torch.equal(load_images(zipped, 16, limit=3), images[[0, 2, 4]])


def test_splits_depend_on_names_alone():
    files = ImageFiles(Path("x"), tuple(f"{number:05d}.png" for number in range(4000)))
    train, held = (files.part(split).names for split in ("train", "heldout"))
    assert not set(train) & set(held)
    assert sorted((*train, *held)) == list(files.names)
    assert 0.13 < len(held) / 4000 < 0.17  # 15 %, four standard errors
    some = ImageFiles(Path("y"), files.names[:100])
    assert set(some.part("heldout").names) == set(held) & set(files.names[:100])
    assert files.part("all") is files


def test_the_middle_square_is_taken_and_downscaled(tmp_path):
    wide = np.zeros((32, 64, 3), np.uint8)
    wide[:, 16:48] = 200
    Image.fromarray(wide).save(tmp_path / "wide.png")
    image = load_images(find_images(tmp_path), 16)
    assert image.shape == (1, 3, 16, 16)
    assert (image == 200).all()


def test_wrong_pictures(tmp_path):
    with pytest.raises(PhotoError, match="neither a folder nor a zip"):
        find_images(tmp_path / "nowhere")
    with pytest.raises(PhotoError, match="has no images"):
        find_images(tmp_path)
    picture(tmp_path / "small.png", 1, (16, 8))
    with pytest.raises(PhotoError, match=r"small\.png has 16x8 pixels, fewer than the 16"):
        load_images(find_images(tmp_path), 16)
    (tmp_path / "small.png").write_bytes(b"no picture")
    with pytest.raises(PhotoError, match=r"small\.png is no readable image"):
        load_images(find_images(tmp_path), 16)


def test_a_patch_is_read_pixel_for_pixel(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (5, 7, 4), dtype=np.uint8)
    pixels[..., 3] = 255
    pixels[0, 0, 3] = 0
    Image.fromarray(pixels).save(tmp_path / "patch.png")
    patch = read_patch(tmp_path / "patch.png")
    assert patch.shape == (1, 3, 5, 7)
    assert patch[0, :, 0, 0].tolist() == [1.0, 1.0, 1.0]  # transparent: white
    wanted = torch.from_numpy(pixels[1:, :, :3].copy()).permute(2, 0, 1).float() / 127.5 - 1
    assert torch.allclose(patch[0, :, 1:], wanted)
    with pytest.raises(PhotoError, match="no readable image"):
        read_patch(tmp_path / "absent.png")


def test_patches_lie_anywhere_in_the_image():
    draws = torch.Generator().manual_seed(0)
    view = random_view(4000, (5, 3), 8, draws)
    for start, options in ((view.top, 4), (view.left, 6)):
        counts = torch.bincount(start)
        assert len(counts) == options
        assert (counts / 4000 - 1 / options).abs().max() < 0.04  # five standard errors
    again = random_view(4000, (5, 3), 8, torch.Generator().manual_seed(0))
    assert torch.equal(view.top, again.top)
    with pytest.raises(ValueError, match="size must lie within 8x8"):
        random_view(1, (9, 3), 8, draws)


def test_patches_of_images():
    images = to_unit(torch.arange(2 * 3 * 8 * 8).reshape(2, 3, 8, 8) % 256)
    view = random_view(2, (4, 4), 8, torch.Generator().manual_seed(3))
    seen = patches_of(images, view)
    top, left = int(view.top[1]), int(view.left[1])
    assert torch.equal(seen.image[1], images[1, :, top : top + 4, left : left + 4])
    assert images.min() >= -1
    assert images.max() <= 1


def test_sizes_are_drawn_from_those_given():
    draws = torch.Generator().manual_seed(0)
    assert {choose_size((16, 24), draws) for _ in range(40)} == {16, 24}
