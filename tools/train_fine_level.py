"""Teaches a trained model of rooms detail: a further level at twice the resolution, all else as it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from scenediff.datasets.rooms.pool import DrawConfig, GroupPool
from scenediff.forward import ForwardModel
from scenediff.losses import Regularizer, TrainingBatch
from scenediff.networks.regularizers import KeptRenderings, SampledDepth
from scenediff.pipeline import ScenePipeline, rebuilt
from scenediff.training import TrainingStep, train

if TYPE_CHECKING:
    from scenediff.tools.train_rooms import RoomsRun

FINE_WIDTH = 48


def learn_detail(
    pipeline: ScenePipeline, pool: GroupPool, run: RoomsRun,
    on_save: Callable[[ScenePipeline, TrainingStep, int], None],
) -> dict[str, float]:
    """The last stage of a run: the fine level alone, at twice the run's resolution. Returns its figures.

    Args:
        pipeline: with a fine level, trained in place.
        on_save: called with the pipeline, what trains it and the steps, as `train` calls its own.
    """
    draw = fine_draw(run.draw)
    config = replace(run.train, minutes=run.fine_minutes, learning_rate=run.fine_rate)
    step = fine_step(pipeline, run)

    def next_batch(generator: torch.Generator) -> TrainingBatch:
        return pool.draw(config.batch_size, draw, generator)

    figures = train(
        step, next_batch, config, run.output / "fine", on_save=lambda steps: on_save(pipeline, step, steps)
    )
    return {f"fine_{name}": value for name, value in figures.items()}


def fine_draw(draw: DrawConfig) -> DrawConfig:
    """Batches at twice the resolution; no photos of which only depth is learned, which is read as before."""
    return replace(draw, size=2 * draw.size, coarse_size=draw.coarse_size or draw.size, photos=0)


def fine_step(pipeline: ScenePipeline, run: RoomsRun) -> TrainingStep:
    """The objective of the fine level; everything else of the model stays as it is."""
    pipeline.denoiser.requires_grad_(False)
    pipeline.denoiser.get_submodule("fine").requires_grad_()
    forward: ForwardModel = pipeline.renderer
    regularizers: list[Regularizer] = [run.direct]
    if run.depth_supervision:
        forward = rendered = KeptRenderings(pipeline.renderer)
        regularizers.append(SampledDepth(rendered))
    weights = replace(run.loss, deterministic=0.0)  # nothing of that branch is trained
    return TrainingStep(pipeline.denoiser, forward, pipeline.scheduler, weights, regularizers).train()


def with_fine_level(
    pipeline: ScenePipeline, width: int = FINE_WIDTH, learned: ScenePipeline | None = None
) -> ScenePipeline:
    """The model with a fine level, which at first adds nothing, or what another model has learned of it.

    Args:
        pipeline: without one. width: of a new one. learned: a model with one.
    """
    width = learned.denoiser.config.fine if learned is not None else width
    fine = rebuilt(pipeline, replace(pipeline.denoiser.config, fine=width), 2 * pipeline.defaults.size)
    if learned is not None:
        known = learned.denoiser.get_submodule("fine").state_dict()
        fine.denoiser.get_submodule("fine").load_state_dict(known)
    return fine
