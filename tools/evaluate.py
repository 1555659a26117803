"""Measures a model on held-out rendered rooms and on posed photographs of a real place.

A trial is a photo with another view of the same place: a scene is sampled from the photo several times and
each sample is rendered at the other view. `evaluate_rooms` and `evaluate_capture` return a flat dictionary of
figures, means over trials of each trial's own figure, and write it with pictures of all trials into a folder.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scenediff.tools import metrics
from scenediff.tools.comparison import save_comparison
from scenediff.tools.metrics import (
    EfficientNetLite0,
    depth_error,
    masked_median,
    perceptual_efficientnet_lite0,
    psnr,
)
from scenediff.tools.trials import (
    Outcome,
    Sampling,
    Trials,
    capture_trials,
    image_size,
    peak_memory_gb,
    photo_view_psnr,
    room_trials,
    sample_trials,
)

HIGH_RESOLUTION = 384  # pixels of the photos that a scene must reproduce at its own view


def evaluate_rooms(
    pipeline: Any,
    rooms: int = 96,
    size: int = 64,
    steps: int = 25,
    samples: int = 8,
    seed: int = 0,
    output: str | Path | None = None,
    *,
    guidance_scale: float | None = None,
    chunk: int | None = None,
    sharp_rooms: int = 8,
) -> dict[str, float | int | None]:
    """Figures on rendered rooms that were never trained on.

    Args:
        pipeline: offers `sample_views`, `deterministic` and `device`, as `scenediff.load` returns it.
        rooms: how many; each gives a photo, a target view and a novel view.
        size: pixels of a side of what is compared; scenes are sampled at the model's own resolution.
        steps, samples, seed, guidance_scale, chunk: see `Sampling`.
        output: folder for `metrics.json` and pictures; None to write nothing.
        sharp_rooms: rooms whose photo is also given with 384 pixels a side; 0 to leave that out.

    Raises:
        ValueError: fewer than 2 rooms or samples.
    """
    if rooms < 2:
        raise ValueError(f"rooms must be at least 2, got {rooms}")
    sampling = Sampling(samples, steps, guidance_scale, seed, chunk)
    trials = room_trials(seed, rooms, size)
    outcome = sample_trials(pipeline, trials, sampling, "rooms")
    figures = {
        "rooms": rooms,
        **image_figures(trials, outcome),
        **consistency_figures(trials, outcome),
        **distribution_figures(trials, outcome, EfficientNetLite0().to(pipeline.device)),
    }
    if sharp_rooms:
        sharp = room_trials(seed, min(sharp_rooms, rooms), HIGH_RESOLUTION)
        figures["photo_view_384"] = photo_view_psnr(pipeline, sharp, sampling)
    figures["seconds_per_sample"] = outcome.seconds_per_sample
    figures["peak_memory_gb"] = peak_memory_gb(pipeline.device)
    return _finish(figures, trials, outcome, output)


def evaluate_capture(
    pipeline: Any,
    folder: str | Path,
    size: int = 64,
    steps: int = 25,
    samples: int = 8,
    seed: int = 0,
    output: str | Path | None = None,
    *,
    guidance_scale: float | None = None,
    chunk: int | None = None,
) -> dict[str, float | int | None]:
    """Figures on the pairs of a capture with depth, on central squares; arguments as for `evaluate_rooms`.

    Depth is compared at the target view where the target is visible from the photo.

    Raises:
        CaptureError: the folder is no capture, or has no pairs or no depth.
    """
    trials = capture_trials(folder, size)
    outcome = sample_trials(pipeline, trials, Sampling(samples, steps, guidance_scale, seed, chunk), "pairs")
    network = EfficientNetLite0().to(pipeline.device)
    figures = capture_figures(trials, outcome, network)
    return _finish(figures, trials, outcome, output)


# ---- figures ---------------------------------------------------------------------------------------


def image_figures(trials: Trials, outcome: Outcome) -> dict[str, Any]:
    """PSNR everywhere and split by visibility, depth, spread of the samples and their sharpness."""
    truth, visible = trials.target.image, trials.visible()
    unseen = (trials.target.depth > 0) & ~visible
    figures: dict[str, Any] = {"unseen_fraction": unseen.double().mean()}
    for suffix, mask in (("", None), ("_visible", visible), ("_unseen", unseen)):
        for name, value in psnr_figures(trials.photo.image, truth, outcome, mask).items():
            figures[name + suffix] = value
    figures["psnr_photo_view"] = psnr(outcome.photo_view, trials.photo.image)
    figures["depth_median_rel"] = _over_samples(depth_error, outcome.depths, trials.target.depth, visible)
    return _means(figures | detail_figures(truth, outcome, visible, unseen))


def detail_figures(truth: Tensor, outcome: Outcome, visible: Tensor, unseen: Tensor) -> dict[str, Tensor]:
    """How much samples differ where the photo sees and where it does not, and how sharp they are there."""
    seen_std, unseen_std = (metrics.grey_levels_apart(outcome.images, mask) for mask in (visible, unseen))
    true, guess = (metrics.sharpness(image, unseen).nanmean() for image in (truth, outcome.deterministic))
    samples = torch.stack([metrics.sharpness(image, unseen) for image in outcome.images]).nanmean()
    return {
        "std_seen": seen_std,
        "std_unseen": unseen_std,
        "std_unseen_over_seen": unseen_std.nanmean() / seen_std.nanmean(),
        "sharpness_truth_unseen": true,
        "sharpness_ratio_unseen": samples / true,
        "sharpness_ratio_unseen_deterministic": guess / true,
    }


def psnr_figures(
    photo: Tensor, truth: Tensor, outcome: Outcome, mask: Tensor | None = None
) -> dict[str, Tensor]:
    """(N,) PSNR under a mask by name; a trial's best sample is the best under that mask."""
    each = torch.stack([psnr(image, truth, mask) for image in outcome.images])
    count = len(each)
    return {
        "psnr_copy": psnr(photo, truth, mask),
        "psnr_deterministic": psnr(outcome.deterministic, truth, mask),
        "psnr_sample": each.mean(0),
        f"psnr_best_of_{count}": each.max(0).values,
        f"psnr_mean_of_{count}": psnr(outcome.images.mean(0), truth, mask),
    }


def consistency_figures(trials: Trials, outcome: Outcome) -> dict[str, Any]:
    """Is a sample one scene? Its novel view against its own target view and against another sample's.

    The target's pixels are moved to the novel view by the sample's own depth and compared where, by that
    depth, the target view sees them. Depths are compared wherever the target's surfaces fall into the novel
    view.
    """
    if trials.novel is None:
        raise ValueError("trials must have a novel view")
    target, novel = trials.target.cameras, trials.novel.cameras
    own: list[Tensor] = []
    other: list[Tensor] = []
    depths: list[Tensor] = []
    for index, (image, depth) in enumerate(zip(outcome.novel_images, outcome.novel_depths, strict=True)):
        seen = metrics.visible_from(outcome.depths[index], target, depth, novel)
        depths.append(metrics.reprojected_depth_error(outcome.depths[index], target, depth, novel))
        for values, source in ((own, index), (other, (index + 1) % len(outcome.images))):
            moved = metrics.warp_by_depth(outcome.images[source], target, depth, novel)
            values.append(psnr(image, moved, seen))
    return _means({
        "consistency_own": torch.stack(own),
        "consistency_other": torch.stack(other),
        "depth_reprojected": torch.stack(depths),
    })


def distribution_figures(trials: Trials, outcome: Outcome, network: EfficientNetLite0) -> dict[str, Any]:
    """Distances between the sets of rendered and of true target images, in EfficientNet-Lite0's features.

    A set of samples holds one of every room, as many as there are truths; figures are means over the sets.
    """
    device = next(network.parameters()).device
    truth = network.pooled(trials.target.image.to(device))
    guess = network.pooled(outcome.deterministic.to(device))
    sets = [network.pooled(images.to(device)) for images in outcome.images]
    count = len(sets)
    return {
        "images": len(truth),
        "frechet_sample": sum(metrics.frechet_distance(part, truth) for part in sets) / count,
        "frechet_deterministic": metrics.frechet_distance(guess, truth),
        "kernel_sample": sum(metrics.kernel_distance(part, truth) for part in sets) / count,
        "kernel_deterministic": metrics.kernel_distance(guess, truth),
    }


def baselines(trials: Trials) -> dict[str, Tensor]:
    """(N, 3, size, size) without a model: the photo, its mean colour, warps by a plane and by true depth."""
    photo, target = trials.photo, trials.target
    size = image_size(target.image)
    distance = masked_median(target.depth, target.depth > 0)
    return {
        "copy": photo.image,
        "mean_colour": photo.image.mean((2, 3), keepdim=True).expand_as(target.image),
        "plane_warp": metrics.plane_warp(photo.image, photo.cameras, distance, target.cameras, size),
        "true_depth_warp": metrics.warp_by_depth(photo.image, photo.cameras, target.depth, target.cameras),
    }


def capture_figures(trials: Trials, outcome: Outcome, network: EfficientNetLite0) -> dict[str, Any]:
    """All figures of `evaluate_capture`."""
    truth, depth, visible = trials.target.image, trials.target.depth, trials.visible()
    simple = baselines(trials)
    names = ("plane_warp", "true_depth_warp", "deterministic")
    pictures = [simple["plane_warp"], simple["true_depth_warp"], outcome.deterministic, *outcome.images]
    device = next(network.parameters()).device
    perceptual = perceptual_efficientnet_lite0(torch.stack(pictures).to(device), truth.to(device), network)
    return _means({
        "pairs": len(truth),
        **psnr_figures(trials.photo.image, truth, outcome),
        **{f"psnr_{name}": psnr(image, truth) for name, image in simple.items()},
        **{f"perceptual_{name}": values for name, values in zip(names, perceptual, strict=False)},
        "perceptual_sample": perceptual[len(names) :],
        "depth_median_rel": _over_samples(depth_error, outcome.depths, depth, visible),
        "depth_median_rel_scaled": _over_samples(depth_error, outcome.depths, depth, visible, scaled=True),
        "depth_constant_scaled": depth_error(torch.ones_like(depth), depth, visible, scaled=True),
    })


def _over_samples(figure: Any, samples: Tensor, *arguments: Tensor, **options: bool) -> Tensor:
    """(N,) a figure's mean over samples."""
    return torch.stack([figure(sample, *arguments, **options) for sample in samples]).mean(0)


def _means(figures: dict[str, Any]) -> dict[str, Any]:
    """Tensors replaced by the means of their numbers that are not NaN."""
    means = {name: value.nanmean().item() for name, value in figures.items() if isinstance(value, Tensor)}
    return figures | means


# ---- output ----------------------------------------------------------------------------------------


def _finish(
    figures: dict[str, Any], trials: Trials, outcome: Outcome, output: str | Path | None
) -> dict[str, Any]:
    """Rounds the figures, turns what could not be measured into None, and writes them with the pictures."""
    rounded = {name: round(value, 4) if math.isfinite(value) else None for name, value in figures.items()}
    if output is not None:
        folder = Path(output)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "metrics.json").write_text(json.dumps(rounded, indent=1) + "\n")
        save_comparison(trials, outcome, folder)
    return rounded
