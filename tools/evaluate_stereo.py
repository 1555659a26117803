"""Measures a model on a real stereo pair: scenes of the left photo, from where the right one was taken."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from scenediff.datasets.stereo import StereoPair
from scenediff.networks.pixel_denoiser import map_size, resize
from scenediff.sampling import SEED_STRIDE
from scenediff.tools.comparison import depth_picture, grid
from scenediff.tools.metrics import (
    EfficientNetLite0,
    depth_error,
    masked_median,
    perceptual_efficientnet_lite0,
    psnr,
)
from scenediff.tools.trials import image_size

ORDERED_PAIRS, ORDER_SEED = 200_000, 0  # random pairs of pixels whose order in depth is judged


@torch.no_grad()
def evaluate_stereo(
    pipeline: Any, pair: StereoPair, size: int = 64, steps: int = 8, samples: int = 4, seed: int = 0,
    output: str | Path | None = None, *, guidance_scale: float | None = None,
) -> dict[str, float | int]:
    """Figures of scenes sampled from the left photo; means over the samples but where said.

    Args:
        pipeline: offers `sample_views`, `defaults` and `device`, as `scenediff.load` returns it.
        size: pixels of the shorter side of what is compared.
        steps, samples, seed, guidance_scale: of the sampling.
        output: folder for `metrics.json` and a picture; None to write nothing.
    """
    left, right = (cameras.to(pipeline.device) for cameras in pair.cameras())
    shape = map_size(pair.size, size, multiple=1)
    sampled = map_size(pair.size, pipeline.defaults.size)
    renderings = []
    for index in tqdm(range(samples), desc="sampling", unit="sample"):
        (scene,) = pipeline.sample_views(
            pair.left.to(pipeline.device), left, right, 1, steps=steps, guidance_scale=guidance_scale,
            seed=seed + SEED_STRIDE * index, size=sampled,
        )  # fmt: skip
        renderings.append((scene.render(right, shape).image.cpu(), scene.render(left, pair.size).depth.cpu()))
    images, depths = map(torch.cat, zip(*renderings, strict=True))
    figures = stereo_figures(pair, images, depths)
    if output is not None:
        folder = Path(output)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "metrics.json").write_text(json.dumps(figures, indent=1) + "\n")
        comparison(pair, images, depths).save(folder / "pictures_00.png")
    return figures


def stereo_figures(pair: StereoPair, images: Tensor, depths: Tensor) -> dict[str, float | int]:
    """Of (samples, 3, h, w) images at the right camera and (samples, 1, H, W) depths at the left one."""
    shape, depth = image_size(images), pair.depth
    right, shifted = resize(pair.right, shape), resize(shifted_left(pair), shape)
    versions = torch.cat([images, shifted])
    scores = psnr(versions, right)
    perceptual = perceptual_efficientnet_lite0(versions[:, None], right, EfficientNetLite0())[:, 0]
    orders = torch.stack([ordered(one, depth) for one in depths])
    off, off_scaled = (depth_error(depths, depth, depth > 0, scaled=scaled) for scaled in (False, True))
    figures = {
        "psnr_sample": scores[:-1].mean(), "psnr_worst_sample": scores[:-1].min(), "psnr_shifted": scores[-1],
        "perceptual_sample": perceptual[:-1].mean(), "perceptual_worst_sample": perceptual[:-1].max(),
        "perceptual_shifted": perceptual[-1],
        "depth_order": orders.mean(), "depth_order_worst_sample": orders.min(),
        "depth_median_rel": off.mean(), "depth_median_rel_scaled": off_scaled.mean(),
    }  # fmt: skip
    return {"samples": len(images)} | {name: round(float(value), 4) for name, value in figures.items()}


def comparison(pair: StereoPair, images: Tensor, depths: Tensor) -> Image.Image:
    """Both photos, the moved one and the first samples, and the true and the first sample's depth."""
    shape, truth = image_size(images), pair.depth
    photos = {"left": pair.left, "right": pair.right, "left, shifted": shifted_left(pair)}
    pictures = {name: resize(photo, shape) for name, photo in photos.items()}
    pictures |= {f"sample {index + 1}": image[None] for index, image in enumerate(images[:4])}
    near, far = torch.where(truth > 0, truth, torch.inf).amin((1, 2, 3)), truth.amax((1, 2, 3))
    for name, depth in (("depth", truth), ("its depth", depths[:1])):
        pictures[name] = depth_picture(functional.interpolate(depth, size=shape, mode="nearest"), near, far)
    return grid(pictures, slice(0, 1))


def shifted_left(pair: StereoPair) -> Tensor:
    """The left photo moved by the true median disparity, its last column repeated: what needs no model."""
    pixels = round(masked_median(pair.disparity, pair.disparity > 0).item())
    last = pair.left[..., -1:].expand(*pair.left.shape[:-1], pixels)
    return torch.cat([pair.left[..., pixels:], last], dim=-1)


def ordered(depth: Tensor, truth: Tensor) -> Tensor:
    """Share of random pairs of pixels, where the truth is known and differs, whose order in depth is right.

    Args:
        depth, truth: metres for the same pixels; the truth is 0 where unknown.
    """
    known = truth.flatten().nonzero()[:, 0]
    generator = torch.Generator().manual_seed(ORDER_SEED)
    first, second = known[torch.randint(len(known), (2, ORDERED_PAIRS), generator=generator)]
    wanted, found = (
        (values.flatten()[first] - values.flatten()[second]).sign() for values in (truth, depth)
    )
    return (wanted == found)[wanted != 0].double().mean()
