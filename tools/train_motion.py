"""Trains the model of motion on pairs of frames: synthetic sprites, real videos, or both at once."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from scenediff.datasets.sprites import draw_pairs
from scenediff.datasets.video import PairConfig, Pairs, load_clips, make_pairs, split_clips
from scenediff.forward import EncodedContext, Observation
from scenediff.losses import LossWeights, TrainingBatch
from scenediff.motion_pipeline import (
    PHOTO,
    TARGET,
    MotionPipeline,
    MotionSampling,
    build_motion_model,
    load_motion,
)
from scenediff.networks.motion_denoiser import MotionConfig
from scenediff.renderers.motion import MotionSignal, mean_length
from scenediff.renderers.warp import backward_warp
from scenediff.tools.flow_files import flow_colors
from scenediff.tools.video import to_pixels
from scenediff.training import TrainConfig, TrainingStep, train

logger = logging.getLogger(__name__)

CHECKPOINT_FOLDER = "checkpoint"
GRID_ROWS, GRID_SEED = 8, 4_242
LOSS = LossWeights(snr_floor=1.0, snr_cap=1.0)  # modes are chosen where the SNR is low: it must count


@dataclass(frozen=True)
class RestWhereUnsure:
    """Prefers rest where the images tell no motion: the mean length of the pixels' displacements.

    It fades with the signal-to-noise ratio. At high noise it would move the shares of the possible motions.

    Attributes:
        weight: of the term, a pixel.
        floor: the noise level weight of pure noise, see `LossWeights`.
    """

    weight: float
    floor: float

    def __call__(
        self, signal: MotionSignal, encoded: EncodedContext, batch: TrainingBatch, level_weight: Tensor
    ) -> dict[str, Tensor]:
        length = mean_length(signal).flatten(1).mean(1)
        return {"rest": self.weight * ((level_weight - self.floor) * length).mean()}


@dataclass(frozen=True)
class MotionRun:
    """One training run of the model of motion.

    Attributes:
        output: folder of checkpoints, logs and grids.
        videos: a folder of clips, a clip, or a cache of them (see `datasets.video`); None for sprites alone.
        sprite_share: of the pairs of a batch, where there are videos.
        init: model to start from, a bundled one's name or a folder.
        resume: go on with the run in `output`.
        size: side of the training images, pixels. short_side: of the videos' frames, pixels.
        sample_size: of photos as the trained model sees them, pixels of the shorter side.
        rest: weight of `RestWhereUnsure`.
        pairs: which frames make a pair.
        train: lengths and rates. network: sizes.
    """

    output: Path
    videos: Path | None = None
    sprite_share: float = 0.5
    init: str | Path | None = None
    resume: bool = False
    size: int = 64
    short_side: int = 128
    sample_size: int = 128
    rest: float = 0.005
    pairs: PairConfig = field(default_factory=PairConfig)
    train: TrainConfig = field(default_factory=lambda: TrainConfig(context_dropout=0.0))
    network: MotionConfig = field(default_factory=MotionConfig)


BatchSource = Callable[[int, torch.Generator], tuple[Tensor, Tensor]]


def train_motion(run: MotionRun, source: BatchSource, device: torch.device | str) -> dict[str, float]:
    """Trains, and leaves in `run.output`: checkpoint/ (config.json, weights), grid_*.png, log.jsonl, state/.

    Args:
        source: of the pairs, see `batch_source`.

    Returns:
        figures of the run.
    """
    pipeline = starting_point(run).to(device)
    step = TrainingStep(
        pipeline.denoiser, pipeline.renderer, pipeline.scheduler, LOSS,
        [RestWhereUnsure(run.rest, LOSS.snr_floor)],
    ).train()  # fmt: skip
    shown = source(GRID_ROWS, torch.Generator(device).manual_seed(GRID_SEED))

    def next_batch(generator: torch.Generator) -> TrainingBatch:
        context, target = source(run.train.batch_size, generator)
        return TrainingBatch([Observation(context, PHOTO)], Observation(target, TARGET))

    def keep(steps: int) -> None:
        step.eval()
        pipeline.save(run.output / CHECKPOINT_FOLDER)
        sample_grid(pipeline, *shown).save(run.output / f"grid_{steps:07d}.png")
        step.train()
        logger.warning("saved at step %d", steps)

    return train(step, next_batch, run.train, run.output, resume=run.resume, on_save=keep)


def batch_source(run: MotionRun, device: torch.device | str) -> BatchSource:
    """A function of (batch, generator) that draws contexts and targets (batch, 3, size, size) on the device.

    Raises:
        VideoError: the videos can't be used.
    """
    pairs: Pairs | None = None
    if run.videos is not None:
        clips = split_clips(load_clips(run.videos, run.short_side), "train")
        pairs = make_pairs(clips, run.pairs, run.size).to(device)

    def draw(batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        if pairs is None:
            drawn = draw_pairs(batch, run.size, generator)
            return drawn.context, drawn.target
        sprites = round(run.sprite_share * batch)
        real = pairs.draw(batch - sprites, run.size, generator)
        if not sprites:
            return real
        drawn = draw_pairs(sprites, run.size, generator)
        return torch.cat([drawn.context, real[0]]), torch.cat([drawn.target, real[1]])

    return draw


def starting_point(run: MotionRun) -> MotionPipeline:
    """The run's initial model: a checkpoint, that of an interrupted run, or an untrained one."""
    if run.init is not None:
        return load_motion(run.init)
    kept = run.output / CHECKPOINT_FOLDER
    if run.resume and kept.is_dir():  # of this run's sizes, whatever it was started with
        return load_motion(kept)
    return MotionPipeline(*build_motion_model(run.network), MotionSampling(size=run.sample_size))


def sample_grid(pipeline: MotionPipeline, context: Tensor, target: Tensor, samples: int = 3) -> Image.Image:
    """Rows of context, target, deterministic warp and flow, and each sample's warp and flow."""
    guess, _ = pipeline.deterministic(context)
    fields = [guess]
    for index in range(samples):
        seeds = [1_000 * index + element for element in range(len(context))]
        fields.append(pipeline.sample(context, seeds)[0])
    columns = [context, target]
    for found in fields:
        columns += [backward_warp(context, found.flow)[0], flow_colors(found.flow, longest=6.0)]
    rows = torch.cat([column.cpu() for column in columns], dim=3)  # (rows, 3, size, columns * size)
    return Image.fromarray(to_pixels(torch.cat(list(rows), dim=1)))
