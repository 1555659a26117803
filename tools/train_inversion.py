"""Trains the denoiser of GAN inversion on patches of images: the generator's own and real ones, mixed.

The latents that made the generator's images are never used: every term compares patches of images.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from scenediff.datasets.patches import choose_size, patches_of, random_view, to_unit
from scenediff.forward import EncodedContext, Observation, Signal
from scenediff.inversion_pipeline import InversionPipeline, build_inversion
from scenediff.losses import LossWeights, TrainingBatch, squared_error
from scenediff.networks.latent_denoiser import LatentConfig
from scenediff.renderers.stylegan2 import Generator, crop
from scenediff.sampling import SEED_STRIDE
from scenediff.tools.comparison import grid
from scenediff.training import TrainConfig, TrainingStep, train

logger = logging.getLogger(__name__)

CHECKPOINT_FOLDER = "checkpoint"
GRID_SAMPLES = 5
CHUNK = 256  # images generated at once


@dataclass(frozen=True)
class GuessedContext:
    """Asks the deterministic guess, too, to show the context as it is (a `losses.Regularizer`)."""

    weight: float = 0.7

    def __call__(
        self, signal: Signal, encoded: EncodedContext, batch: TrainingBatch, level_weight: Tensor
    ) -> Mapping[str, Tensor]:
        known = batch.context[0]
        shown = crop(encoded.signal.image, known.view)
        return {"context": self.weight * squared_error(shown, known.image).mean()}


@dataclass(frozen=True)
class InversionRun:
    """One run.

    Attributes:
        output: folder of the checkpoint, logs and sample grids.
        resume: go on with the run in `output`.
        real_share: of the images, where there are real ones; the rest is the generator's.
        context_sizes: sides of the known patches, pixels; one is drawn for each step.
        target_sizes: sides of the denoised patches, likewise; larger ones than the image mean the image.
        grid_images: rows of the sample grids.
        train: lengths and rates.
        loss: weights of the objective; the novel term is the context shown again by the sampled code.
        guess: the same term of the deterministic guess.
        denoiser: sizes of the network.
    """

    output: Path
    resume: bool = False
    real_share: float = 0.4
    context_sizes: tuple[int, ...] = (16, 24, 24, 32)
    target_sizes: tuple[int, ...] = (64, 64, 64, 40)
    grid_images: int = 12
    train: TrainConfig = field(
        default_factory=lambda: TrainConfig(learning_rate=5e-4, context_dropout=0.05, ema_decay=0.998)
    )
    loss: LossWeights = field(default_factory=LossWeights)
    guess: GuessedContext = field(default_factory=GuessedContext)
    denoiser: LatentConfig = field(default_factory=LatentConfig)


def train_inversion(
    generator: Generator, images: Tensor | None, run: InversionRun, device: torch.device | str
) -> dict[str, float]:
    """Trains, and leaves in `run.output`: checkpoint/ (config.json, weights), grid_*.png, log.jsonl, state/.

    Args:
        generator: stays as it is; the checkpoint holds it too.
        images: (N, 3, size, size) uint8 real images, or None for the generator's alone.

    Returns:
        figures of the run.
    """
    denoiser, scheduler = build_inversion(generator, run.denoiser)
    pipeline = InversionPipeline(denoiser, scheduler).to(device)
    step = TrainingStep(denoiser, pipeline.renderer, scheduler, run.loss, [run.guess]).train()
    source = PatchSource(generator, images, run, torch.device(device))
    return train(
        step, source.draw, run.train, run.output, resume=run.resume,
        on_save=lambda steps: _keep(pipeline, step, source, run, steps),
    )


class PatchSource:
    """Batches of patches of the generator's images and of real ones."""

    def __init__(self, generator: Generator, images: Tensor | None, run: InversionRun, device: torch.device):
        self.generator, self.run, self.device = generator, run, device
        size = generator.config.size
        if images is not None and images.shape[1:] != (3, size, size):
            raise ValueError(f"images must be (N, 3, {size}, {size}), got {tuple(images.shape)}")
        self.images = None if images is None else images.to(device)
        self.sizes = torch.Generator().manual_seed(run.train.seed)

    def draw(self, generator: torch.Generator) -> TrainingBatch:
        """A batch of `run.train.batch_size`."""
        images = self.mixed_images(self.run.train.batch_size, generator)
        whole = self.generator.config.size
        context, target = (
            min(whole, choose_size(sizes, self.sizes))
            for sizes in (self.run.context_sizes, self.run.target_sizes)
        )
        known = self.patches(images, context, generator)
        return TrainingBatch([known], self.patches(images, target, generator), novel=known)

    def mixed_images(self, count: int, generator: torch.Generator) -> Tensor:
        """(count, 3, size, size) real images first, then the generator's."""
        real = round(count * self.run.real_share) if self.images is not None else 0
        own = generated_images(self.generator, count - real, generator)
        if self.images is None or real == 0:
            return own
        chosen = torch.randint(len(self.images), (real,), generator=generator, device=self.device)
        return torch.cat([to_unit(self.images[chosen]), own])

    def patches(self, images: Tensor, side: int, generator: torch.Generator) -> Observation:
        """Square patches of images, anywhere."""
        return patches_of(images, random_view(len(images), (side, side), images.shape[-1], generator))


@torch.no_grad()
def generated_images(generator: Generator, count: int, draws: torch.Generator) -> Tensor:
    """(count, 3, size, size) samples of a generator in [-1, 1]; `draws` may live on another device."""
    z = torch.randn(count, generator.config.style_dim, generator=draws, device=draws.device)
    w_plus = generator.to_w_plus(generator.map(z.to(generator.latent_avg)))
    return torch.cat([generator(part).clamp(-1, 1) for part in w_plus.split(CHUNK)])


def sample_grid(pipeline: InversionPipeline, images: Tensor, known: Observation) -> Image.Image:
    """Rows of the image, its patch, the deterministic guess and samples."""
    count = len(images)
    seeds = [SEED_STRIDE * sample + index for index in range(count) for sample in range(GRID_SAMPLES)]
    drawn = pipeline.sample(known, GRID_SAMPLES, seeds).images.unflatten(0, (count, GRID_SAMPLES))
    canvas = pipeline.denoiser.lay_out([known])
    shown = torch.where(canvas[:, 3:] > 0, canvas[:, :3], 1.0)
    columns = {"image": images, "patch": shown, "one guess": pipeline.deterministic(known).images}
    columns |= {f"sample {index + 1}": drawn[:, index] for index in range(GRID_SAMPLES)}
    return grid({name: column.cpu() for name, column in columns.items()}, slice(None))


def _keep(
    pipeline: InversionPipeline, step: TrainingStep, source: PatchSource, run: InversionRun, steps: int
) -> None:
    step.eval()
    pipeline.save(run.output / CHECKPOINT_FOLDER)
    draws = torch.Generator(source.device).manual_seed(4_242)
    images = source.mixed_images(run.grid_images, draws)
    side = min(images.shape[-1], run.context_sizes[len(run.context_sizes) // 2])
    known = source.patches(images, side, draws)
    sample_grid(pipeline, images, known).save(run.output / f"grid_{steps:07d}.png")
    step.train()
    logger.warning("saved at step %d", steps)
