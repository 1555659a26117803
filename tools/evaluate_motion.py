"""Measures a motion model: against a known posterior on sprites, and on the held-out part of real videos."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from scenediff.datasets.sprites import KINDS, SpritePairs, draw_pairs
from scenediff.datasets.video import PairConfig, load_clips, make_pairs, split_clips
from scenediff.motion_pipeline import MotionPipeline
from scenediff.renderers.warp import backward_warp
from scenediff.sampling import SEED_STRIDE
from scenediff.tools.flow_files import flow_colors
from scenediff.tools.video import to_pixels

HELD_OUT_SEED = 9_000_017  # of sprites and backgrounds that no training seed draws
MODE_FOUND_PX = 1.0  # a sample this close to a mode has found it
MOVED = 24  # grey levels by which a moving pixel differs, as in `PairConfig`
RESTING_PX = 0.25


@dataclass(frozen=True)
class PosteriorTrials:
    """What is sampled to compare with the known posterior.

    Attributes:
        samples: for each K. frames: distinct held-out frames among them; each is sampled equally often.
        size: of the frames, pixels. steps: denoising steps; None for the model's. seed: of the noise.
    """

    samples: int = 1000
    frames: int = 20
    size: int = 64
    steps: int | None = None
    seed: int = 0


@torch.no_grad()
def evaluate_posterior(
    pipeline: MotionPipeline, trials: PosteriorTrials, folder: Path | None = None
) -> dict[str, Any]:
    """Directions of sampled motions against the true posterior, for each K, with the baseline beside them.

    Keys are "k4" and "k8", and both again under "baseline". `total_variation` is the mean over the sprites'
    kinds of that K. `epe_nearest_mode_px` is the end-point error of the flow against the nearest mode,
    averaged over the pixels that the sprite covers in that mode, and over sprites and samples. The baseline
    is the deterministic branch's mean flow.

    Args:
        folder: for `metrics.json` and pictures; None to write nothing.
    """
    figures: dict[str, Any] = {
        "samples": trials.samples, "size": trials.size, "steps": trials.steps or pipeline.defaults.steps,
        "baseline": {},
    }  # fmt: skip
    for count in sorted({len(kind.chances) for kind in KINDS}):
        ours, baseline = _posterior_figures(pipeline, trials, count, folder)
        figures[f"k{count}"], figures["baseline"][f"k{count}"] = ours, baseline
    _keep(figures, folder)
    return figures


def _posterior_figures(
    pipeline: MotionPipeline, trials: PosteriorTrials, directions: int, folder: Path | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    kinds = tuple(index for index, kind in enumerate(KINDS) if len(kind.chances) == directions)
    generator = torch.Generator().manual_seed(HELD_OUT_SEED + directions)
    pairs = draw_pairs(trials.frames, trials.size, generator, kinds)
    context = pairs.context.to(pipeline.device)
    rounds = -(-trials.samples // trials.frames)
    errors, resting, untouched = [], [], out_of_reach(pairs)
    for turn in tqdm(range(rounds), desc=f"sampling, K = {directions}", disable=None):
        seeds = [trials.seed + SEED_STRIDE * turn + element for element in range(trials.frames)]
        field, _ = pipeline.sample(context, seeds, steps=trials.steps)
        errors.append(mode_errors(field.flow.cpu(), pairs))
        short = _cells(field.flow.cpu(), untouched).norm(dim=2) < RESTING_PX
        resting.append(short[untouched].float().mean())
        if folder is not None and turn < 4:
            picture = torch.cat([pairs.context, flow_colors(field.flow, longest=6.0)], dim=2)
            name = f"pictures_k{directions}_{turn}.png"
            Image.fromarray(to_pixels(torch.cat(list(picture[:8]), dim=2))).save(folder / name)
    guess, _ = pipeline.deterministic(context)
    baseline = mode_errors(guess.flow.cpu(), pairs)[None].expand(rounds, -1, -1, -1)
    ours = direction_figures(torch.stack(errors), pairs.sprites.kinds)
    ours["background_resting_share"] = round(float(torch.stack(resting).mean()), 4)
    return ours, direction_figures(baseline, pairs.sprites.kinds)


def mode_errors(flow: Tensor, pairs: SpritePairs) -> Tensor:
    """(batch, cells, K) end-point error against each direction's true flow, where the sprite then is.

    Args:
        flow: (batch, 2, size, size) from the target to the context.
        pairs: the frames; all their sprites have the same K.
    """
    sprites = pairs.sprites
    kinds = sprites.kinds
    count = len(KINDS[int(kinds[0, 0])].chances)
    errors = []
    for direction in range(count):
        steps = torch.stack([kind.steps()[direction % len(kind.chances)] for kind in KINDS])[kinds]
        inside = sprites.draw(steps)[1][:, :, 0] > 0.5  # (batch, cells, CELL, CELL)
        apart = (_cells(flow, inside) + steps[..., None, None]).norm(dim=2)  # the true flow is minus the step
        errors.append((apart * inside).sum((2, 3)) / inside.sum((2, 3)))
    return torch.stack(errors, dim=-1)


def _cells(maps: Tensor, like: Tensor) -> Tensor:
    """(batch, cells, channels, CELL, CELL) of maps (batch, channels, size, size); `assemble` undone."""
    batch, count, side = like.shape[:3]
    rows = round(count**0.5)
    grid = maps.reshape(batch, -1, rows, side, rows, side).permute(0, 2, 4, 1, 3, 5)
    return grid.reshape(batch, count, -1, side, side)


def out_of_reach(pairs: SpritePairs) -> Tensor:
    """bool (batch, cells, CELL, CELL): the pixels that no sprite covers, whichever way it goes."""
    sprites = pairs.sprites
    touched = torch.zeros(1, dtype=torch.bool)
    for kind in KINDS:
        for step in (*kind.steps(), torch.zeros(2)):
            touched = touched | (sprites.draw(step.expand_as(sprites.centers))[1][:, :, 0] > 0)
    return ~touched


def direction_figures(errors: Tensor, kinds: Tensor) -> dict[str, Any]:
    """Figures of (rounds, batch, cells, K) errors against each mode.

    Args:
        kinds: (batch, cells) of the sprites.
    """
    nearest = errors.argmin(-1)  # (rounds, batch, cells)
    variations, noises, found = [], [], []
    for index in kinds.unique().tolist():
        truth = torch.tensor(KINDS[index].chances)
        chosen = nearest[:, kinds == index].flatten()
        near = errors.min(-1).values[:, kinds == index].flatten() < MODE_FOUND_PX
        share = torch.bincount(chosen, minlength=len(truth)) / len(chosen)
        variations.append(float((share - truth).abs().sum() / 2))
        # of a perfect sampler: each count's mean absolute deviation, by the normal approximation
        noises.append(float((truth * (1 - truth) * 2 / (math.pi * len(chosen))).sqrt().sum() / 2))
        found.append(int((torch.bincount(chosen[near], minlength=len(truth)) > 0).sum()))
    return {
        "total_variation": round(sum(variations) / len(variations), 4),
        "total_variation_worst_kind": round(max(variations), 4),
        "total_variation_of_perfect_sampler": round(sum(noises) / len(noises), 4),
        "epe_nearest_mode_px": round(float(errors.min(-1).values.mean()), 4),
        "modes_found": min(found),
        "modes": errors.shape[-1],
    }


@dataclass(frozen=True)
class VideoTrials:
    """What is sampled to compare with real videos.

    Attributes:
        samples: motions for each pair. pairs: number of crops with motion, spread over the held-out time.
        size: side of the crops, pixels. short_side: of the videos' frames, pixels.
        steps: denoising steps; None for the model's. seed: of the noise.
    """

    samples: int = 8
    pairs: int = 96
    size: int = 64
    short_side: int = 128
    steps: int | None = None
    seed: int = 0


def held_out_pairs(videos: Path, trials: VideoTrials) -> tuple[Tensor, Tensor]:
    """Contexts and targets (pairs, 3, size, size) in [-1, 1], always the same, around places that moved.

    Raises:
        VideoError: the videos can't be used.
    """
    clips = split_clips(load_clips(videos, trials.short_side), "test")
    pairs = make_pairs(clips, PairConfig(), trials.size)
    return pairs.draw(trials.pairs, trials.size, torch.Generator().manual_seed(HELD_OUT_SEED), flip=False)


@torch.no_grad()
def evaluate_video(
    pipeline: MotionPipeline, context: Tensor, target: Tensor, trials: VideoTrials, folder: Path | None = None
) -> dict[str, Any]:
    """How well flows warp held-out contexts to their targets, on moving pixels, and how still the rest stays.

    Errors are root mean squares in grey levels of 255. A flow warps by `backward_warp`; the deterministic
    baseline's flow is its mean flow, its `blend` the mean image that it renders.

    Args:
        folder: for `metrics.json` and pictures; None to write nothing.
    """
    context, target = context.to(pipeline.device), target.to(pipeline.device)
    moved = (target - context).abs().amax(1, keepdim=True) * 127.5 > MOVED + 0.5  # between two grey levels
    still = ~torch.nn.functional.max_pool2d(moved.float(), 5, 1, 2).bool()
    guess, blend = pipeline.deterministic(context)
    errors, lengths, warped = [], [], []
    for index in tqdm(range(trials.samples), desc="sampling", disable=None):
        seeds = [trials.seed + SEED_STRIDE * index + element for element in range(trials.pairs)]
        field, _ = pipeline.sample(context, seeds, steps=trials.steps)
        warped.append(backward_warp(context, field.flow)[0])
        errors.append(squared_grey(warped[-1], target, moved))
        lengths.append(field.flow.norm(dim=1, keepdim=True)[still])
    mean_warp = backward_warp(context, guess.flow)[0]
    if folder is not None:
        columns = [context, target, mean_warp, flow_colors(guess.flow, 6.0), *warped[:3]]
        rows = torch.cat([column.cpu() for column in columns], dim=3)
        Image.fromarray(to_pixels(torch.cat(list(rows[:16]), dim=1))).save(folder / "pictures_video.png")
    sampled = torch.stack(errors)  # (samples, pairs)
    figures = {
        "pairs": trials.pairs, "samples": trials.samples, "size": trials.size,
        "steps": trials.steps or pipeline.defaults.steps,
        "moving_pixels": round(float(moved.float().mean()), 4),
        "rms_moving": {
            "identity": _root(squared_grey(context, target, moved)),
            "deterministic": _root(squared_grey(mean_warp, target, moved)),
            "deterministic_blend": _root(squared_grey(blend, target, moved)),
            "one_sample": _root(sampled),
            "best_of_samples": _root(sampled.min(0).values),
        },
        "still_pixels_moving_less_than_0.25_px": round(
            float((torch.cat(lengths) < RESTING_PX).float().mean()), 4
        ),
        "still_pixels_deterministic": round(
            float((guess.flow.norm(dim=1, keepdim=True)[still] < RESTING_PX).float().mean()), 4
        ),
    }  # fmt: skip
    _keep(figures, folder)
    return figures


def _keep(figures: dict[str, Any], folder: Path | None) -> None:
    if folder is not None:
        (folder / "metrics.json").write_text(json.dumps(figures, indent=1) + "\n")


def squared_grey(image: Tensor, truth: Tensor, where: Tensor) -> Tensor:
    """(batch,) mean squared difference over a mask (batch, 1, height, width), in grey levels of 255."""
    error = ((image - truth) * 127.5).square().mean(1, keepdim=True)
    return (error * where).flatten(1).sum(1) / where.flatten(1).sum(1)


def _root(squares: Tensor) -> float:
    return round(float(squares.mean().sqrt()), 3)
