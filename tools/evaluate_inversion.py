"""Measures GAN inversion: are samples faithful to the patch, diverse elsewhere, and how fast?

Trials are patches of images that were never trained on: of the generator's own distribution, and renders of
furniture that no training set shows. The deterministic branch and optimisation are the baselines.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from scenediff.datasets.patches import patches_of, random_view, to_unit
from scenediff.forward import Observation
from scenediff.inversion_pipeline import InversionPipeline
from scenediff.renderers.stylegan2 import PatchView, patch_pixels
from scenediff.sampling import SEED_STRIDE
from scenediff.tools.comparison import ROWS, grid
from scenediff.tools.metrics import EfficientNetLite0, frechet_distance, grey_levels_apart, psnr
from scenediff.tools.projector import ProjectorConfig, project
from scenediff.tools.train_inversion import generated_images

BATCH = {"cpu": 64, "cuda": 1024}  # codes sampled at once
SHOWN = 5  # samples in a picture's row


@dataclass(frozen=True)
class InversionTrials:
    """How to measure.

    Attributes:
        patch: side of the patches, pixels.
        count: patches of each of the two kinds of images.
        samples: codes sampled for each patch.
        steps, guidance_scale: None for the model's own.
        distribution: images in each set of which distributions are compared; 0 to leave that out.
        optimised: patches that are also inverted by optimisation; 0 to leave that out.
        optimiser_steps: of the optimisation's schedule.
        seed: of everything random.
    """

    patch: int = 24
    count: int = 64
    samples: int = 16
    steps: int | None = None
    guidance_scale: float | None = None
    distribution: int = 1024
    optimised: int = 4
    optimiser_steps: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        for name, lowest in (("count", 1), ("samples", 1), ("patch", 1)):
            if getattr(self, name) < lowest:
                raise ValueError(f"{name} must be at least {lowest}, got {getattr(self, name)}")


@dataclass(frozen=True)
class Outcome:
    """What the model made of N patches; on the CPU.

    Attributes:
        truth: (N, 3, size, size) the images that the patches were cut from.
        known: (N, 3, patch, patch) the patches, with their places.
        guess: (N, 3, size, size) the deterministic branch's images.
        samples: (samples, N, 3, size, size).
    """

    truth: Tensor
    known: Observation
    guess: Tensor
    samples: Tensor


def evaluate_inversion(
    pipeline: InversionPipeline, trials: InversionTrials, renders: Tensor | None = None,
    output: Path | None = None,
) -> dict[str, float | int | None]:
    """All figures, flat; those on real images begin with `renders_`.

    Args:
        renders: (N, 3, size, size) uint8 real images that were never trained on; None to leave them out.
        output: folder for metrics.json and pictures; None to write nothing.
    """
    draws = torch.Generator().manual_seed(1_000_003 + trials.seed)
    sets = {"": generated_images(pipeline.generator, trials.count, draws).cpu()}
    if renders is not None:
        sets["renders_"] = to_unit(renders[: trials.count])
    figures: dict[str, Any] = {"patch_pixels": trials.patch, "samples": trials.samples}
    for prefix, images in sets.items():
        outcome = invert_patches(pipeline, images, trials, draws)
        values = patch_figures(outcome) | {"images": len(images)}
        figures |= {prefix + name: value for name, value in values.items()}
        if output is not None:
            save_pictures(outcome, output, prefix or "generated_")
    figures |= distribution_figures(pipeline, trials, draws)
    figures |= speed_figures(pipeline, trials, draws)
    rounded = {name: round(value, 4) if math.isfinite(value) else None for name, value in figures.items()}
    if output is not None:
        (output / "metrics.json").write_text(json.dumps(rounded, indent=1) + "\n")
    return rounded


def invert_patches(
    pipeline: InversionPipeline, images: Tensor, trials: InversionTrials, draws: torch.Generator
) -> Outcome:
    """Cuts one patch out of each image and samples codes for it."""
    view = random_view(len(images), (trials.patch, trials.patch), images.shape[-1], draws)
    known = patches_of(images, view)
    guesses, samples = [], []
    parts = list(_parts(known, pipeline, trials.samples))
    for first, moved in tqdm(parts, desc="patches", disable=None):
        seeds = [
            trials.seed + SEED_STRIDE * sample + number
            for number in range(first, first + len(moved.image)) for sample in range(trials.samples)
        ]  # fmt: skip
        drawn = pipeline.sample(
            moved, trials.samples, seeds, steps=trials.steps, guidance_scale=trials.guidance_scale
        )
        samples.append(drawn.images.unflatten(0, (-1, trials.samples)).transpose(0, 1).cpu())
        guesses.append(pipeline.deterministic(moved).images.cpu())
    return Outcome(images, known, torch.cat(guesses), torch.cat(samples, dim=1))


def _parts(
    known: Observation, pipeline: InversionPipeline, samples: int
) -> Iterator[tuple[int, Observation]]:
    """Some patches at a time, on the pipeline's device, with the number of the first."""
    device, view = pipeline.device, known.view
    step = max(1, BATCH.get(device.type, 64) // samples)
    for start in range(0, len(known.image), step):
        chosen = slice(start, start + step)
        yield start, Observation(known.image[chosen].to(device), view.part(chosen).to(device))


def patch_figures(outcome: Outcome) -> dict[str, float]:
    """How well samples show their patch, and how much they differ inside and outside it."""
    truth, view = outcome.known.image, outcome.known.view
    inside = patch_mask(view, outcome.truth.shape[-1])
    each = torch.stack([psnr(patches_of(images, view).image, truth) for images in outcome.samples])
    guess = psnr(patches_of(outcome.guess, view).image, truth)
    within, beyond = (grey_levels_apart(outcome.samples, mask).mean() for mask in (inside, ~inside))
    whole = torch.stack([psnr(images, outcome.truth) for images in outcome.samples])
    return {
        "patch_psnr_db": each.mean().item(),
        "patch_psnr_deterministic_db": guess.mean().item(),
        "patch_psnr_below_deterministic_db": (guess.mean() - each.mean()).item(),
        "std_inside": within.item(),
        "std_outside": beyond.item(),
        "std_ratio_outside_inside": (beyond / within).item(),
        "image_psnr_db": whole.mean().item(),
        "image_psnr_best_db": whole.max(0).values.mean().item(),
        "image_psnr_deterministic_db": psnr(outcome.guess, outcome.truth).mean().item(),
    }


def patch_mask(view: PatchView, size: int) -> Tensor:
    """(N, 1, size, size) bool: True inside the patches."""
    rows, columns = patch_pixels(view)
    mask = torch.zeros(len(view), size, size, dtype=torch.bool)
    mask[torch.arange(len(view))[:, None, None], rows[:, :, None], columns[:, None]] = True
    return mask[:, None]


def distribution_figures(
    pipeline: InversionPipeline, trials: InversionTrials, draws: torch.Generator
) -> dict[str, Any]:
    """Fréchet distances to the generator's samples: of a sample for each of many patches, of guesses.

    Those that count are on 112 channels. On the 1,280 pooled ones, more than there are images, two sets of
    the same generator are already half as far apart as the guesses are.
    """
    if not trials.distribution:
        return {}
    network = EfficientNetLite0().to(pipeline.device)
    count = trials.distribution
    images = generated_images(pipeline.generator, 3 * count, draws).cpu()
    one = replace(trials, samples=1, seed=trials.seed + 1)
    trial_images, others, reference_images = images.chunk(3)
    outcome = invert_patches(pipeline, trial_images, one, draws)
    sets = {"sample": outcome.samples[0], "deterministic": outcome.guess, "generator": others}
    figures: dict[str, Any] = {"distribution_images": count}
    references = network.means(reference_images.to(pipeline.device))
    for name, part in sets.items():
        features = network.means(part.to(pipeline.device))
        for prefix, found, reference in zip(("fd_stage", "fd_pooled"), features, references, strict=True):
            figures[f"{prefix}_{name}"] = frechet_distance(found, reference)
    ratio = figures["fd_stage_sample"] / figures["fd_stage_deterministic"]
    return figures | {"distance_ratio_to_baseline": ratio}


def speed_figures(
    pipeline: InversionPipeline, trials: InversionTrials, draws: torch.Generator
) -> dict[str, Any]:
    """Seconds for a patch's samples, and until optimising as many codes shows the patch as well."""
    if not trials.optimised:
        return {}
    images = generated_images(pipeline.generator, trials.optimised, draws)
    view = random_view(trials.optimised, (trials.patch, trials.patch), images.shape[-1], draws)
    network = EfficientNetLite0().to(pipeline.device)
    perceptual = ProjectorConfig(steps=trials.optimiser_steps, seed=trials.seed)
    plain = ProjectorConfig(steps=trials.optimiser_steps, seed=trials.seed, perceptual=0.0)
    rows = []
    for index in tqdm(range(trials.optimised), desc="optimising", disable=None):
        one = slice(index, index + 1)
        known = patches_of(images[one], view.part(one).to(pipeline.device))
        row = _timed_samples(pipeline, known, trials)
        copies = Observation(known.image.repeat(trials.samples, 1, 1, 1), known.view.repeated(trials.samples))
        for name, config in (("optimisation", perceptual), ("optimisation_mse", plain)):
            found = project(pipeline.renderer, copies, config, network, stop_at=row["psnr"])
            row[name] = found.seconds_to(row["psnr"])
            row[f"{name}_steps"] = float(len(found.psnr))
            row[f"{name}_reached"] = float(found.psnr[-1] >= row["psnr"])
        rows.append(row)
    mean = {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}
    return {
        f"seconds_for_{trials.samples}_samples": mean["seconds"],
        "seconds_for_optimisation": mean["optimisation"],
        "optimisation_steps": mean["optimisation_steps"],
        "optimisation_reached": mean["optimisation_reached"],
        "speedup_over_optimisation": mean["optimisation"] / mean["seconds"],
        "speedup_over_mse_optimisation": mean["optimisation_mse"] / mean["seconds"],
        "mse_optimisation_steps": mean["optimisation_mse_steps"],
    }


def _timed_samples(
    pipeline: InversionPipeline, known: Observation, trials: InversionTrials
) -> dict[str, float]:
    """Mean PSNR of a patch's samples, and the time that they take once everything is warm."""
    seeds = list(range(trials.seed, trials.seed + trials.samples))
    for _ in range(2):
        _wait(pipeline.device)
        began = time.perf_counter()
        drawn = pipeline.sample(
            known, trials.samples, seeds, steps=trials.steps, guidance_scale=trials.guidance_scale
        )
        _wait(pipeline.device)
        seconds = time.perf_counter() - began
    quality = psnr(drawn.patches, known.image.expand_as(drawn.patches)).mean()
    return {"seconds": seconds, "psnr": float(quality)}


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def save_pictures(outcome: Outcome, folder: Path, prefix: str) -> None:
    """Writes a picture: rows of the image, its patch, the guess, samples and their deviation."""
    inside = patch_mask(outcome.known.view, outcome.truth.shape[-1])
    spread = outcome.samples.std(0).mean(1, keepdim=True).expand_as(outcome.truth)
    columns = {
        "image": outcome.truth, "patch": torch.where(inside, outcome.truth, 1.0), "one guess": outcome.guess,
        **{f"sample {index + 1}": images for index, images in enumerate(outcome.samples[:SHOWN])},
        "std x4": (8 * spread / 2 - 1).clamp(max=1),
    }  # fmt: skip
    grid(columns, slice(0, ROWS)).save(folder / f"pictures_{prefix.rstrip('_')}.png")
