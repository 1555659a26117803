"""What an inversion is written out as: images, patches shown again, latents, a grid, where they vary."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional
from torchvision.utils import make_grid

from scenediff.inversion_pipeline import Inversion
from scenediff.tools.metrics import psnr
from scenediff.tools.report import COLOR_STD_SHOWN, overlay
from scenediff.tools.video import to_pixels

SHOWN_SIDE = 128  # pixels of a side, at least, of the grid's pictures and of the map


def write_inversion(inversion: Inversion, patch: Tensor, folder: Path) -> list[dict[str, float | str]]:
    """Writes image_NN.png, patch_NN.png, grid.png, latents.safetensors and, for 2 or more, variation.png.

    Args:
        patch: (3, height, width) in [-1, 1], what was given.

    Returns:
        the files of each sample and how well it shows the patch.
    """
    images, patches = inversion.images.cpu(), inversion.patches.cpu()
    errors = psnr(patches, patch.cpu().expand_as(patches))
    records: list[dict[str, float | str]] = []
    for index in range(len(images)):
        names = {"image": f"image_{index:02d}.png", "patch": f"patch_{index:02d}.png"}
        Image.fromarray(to_pixels(images[index])).save(folder / names["image"])
        Image.fromarray(to_pixels(patches[index])).save(folder / names["patch"])
        records.append({**names, "patch_psnr_db": round(float(errors[index]), 2)})
    tensors = {"w_plus": inversion.w_plus, "top": inversion.view.top, "left": inversion.view.left}
    saved = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    save_file(saved, folder / "latents.safetensors")
    picture_grid(inversion, patch).save(folder / "grid.png")
    if len(images) > 1:
        spread = images.var(0, unbiased=True).mean(0).sqrt()
        heat = overlay(images.mean(0), spread / COLOR_STD_SHOWN)
        Image.fromarray(to_pixels(enlarged(heat[None])[0])).save(folder / "variation.png")
    return records


def picture_grid(inversion: Inversion, patch: Tensor) -> Image.Image:
    """The patch in its place on grey, then the samples with the patch framed."""
    images = inversion.images.cpu()
    height, width = inversion.view.size
    top, left = int(inversion.view.top[0]), int(inversion.view.left[0])
    known = torch.zeros_like(images[:1])
    known[0, :, top : top + height, left : left + width] = patch.cpu()
    pictures = enlarged(torch.cat([known, images]))
    factor = pictures.shape[-1] // images.shape[-1]
    box = (top * factor, left * factor, height * factor, width * factor)
    framed = [pictures[:1], *(_with_frame(picture, box)[None] for picture in pictures[1:])]
    columns = math.ceil(math.sqrt(len(pictures)))
    return Image.fromarray(to_pixels(make_grid(torch.cat(framed), nrow=columns, padding=4, pad_value=1.0)))


def enlarged(images: Tensor) -> Tensor:
    """Small images (N, 3, size, size) made larger by a whole number."""
    factor = max(1, SHOWN_SIDE // images.shape[-1])
    return functional.interpolate(images, scale_factor=factor, mode="nearest")


def _with_frame(picture: Tensor, box: tuple[int, int, int, int]) -> Tensor:
    top, left, height, width = box
    framed = picture.clone()
    framed[:, top : top + height, [left, left + width - 1]] = 1.0
    framed[:, [top, top + height - 1], left : left + width] = 1.0
    return framed
