"""Teaches a trained model of rooms to enlarge the views that it samples; all else stays as it is."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from scenediff.datasets.photometric import mean_of_neighbours
from scenediff.datasets.rooms.pool import DrawConfig, GroupPool
from scenediff.networks.super_resolution import FACTOR, PatchDiscriminator, SuperResolution
from scenediff.pipeline import ScenePipeline, rebuilt
from scenediff.training import Objective, train

if TYPE_CHECKING:
    from scenediff.tools.train_rooms import RoomsRun

WIDTH = 48  # of a new network
BLURS = 2  # means over 3 x 3 pixels that make the softest images: a deviation of 1.2 pixels


def learn_super_resolution(
    pipeline: ScenePipeline, pool: GroupPool, run: RoomsRun, on_save: Callable[[ScenePipeline, str], None]
) -> dict[str, float]:
    """The last stage of a run; its log is in super_resolution/. Returns its figures.

    Args:
        pipeline: the trained model, left as it is.
        on_save: called at the end with the model that enlarges too, and a file name for its samples.
    """
    config = pipeline.denoiser.config
    larger = rebuilt(pipeline, replace(config, super_resolution=config.super_resolution or WIDTH))
    network = larger.denoiser.super_resolution
    objective = Enlarging(copy.deepcopy(network).requires_grad_()).to(pipeline.device)
    draw = enlarging_draw(run.draw)

    def next_batch(generator: torch.Generator) -> Tensor:
        return pool.draw(run.train.batch_size, draw, generator).target.image

    def keep(_: int) -> None:
        network.load_state_dict(objective.network.state_dict())
        on_save(larger, "grid_enlarged.png")

    settings = replace(
        run.train, minutes=run.enlarging_minutes, save_every_minutes=math.inf,
        cuda_graphs=False,  # spectral norms change in every step, by themselves
    )  # fmt: skip
    figures = train(objective, next_batch, settings, run.output / "super_resolution", on_save=keep)
    return {f"enlarging_{name}": value for name, value in figures.items()}


def enlarging_draw(draw: DrawConfig) -> DrawConfig:
    """Batches whose targets have the size of enlarged views; nothing else of them is wanted."""
    size = FACTOR * draw.size
    return replace(draw, size=size, target_rays=1, novel_rays=1, photos=0, two_contexts=0, cropped_contexts=0)


class Enlarging(Objective):
    """A `SuperResolution` and its discriminator, trained at once on true images of twice the size.

    What the network is given is at times softer than the mean of pixels, as sampled views are. Hinge losses
    (Lim & Ye 2017, arXiv:1705.02894); each network's terms leave the other one alone.

    Args:
        network: to train, in place.
        adversarial: weight of what the discriminator makes of an enlarged image, beside the absolute
            difference from the true one.
        width: of the discriminator.
    """

    def __init__(self, network: SuperResolution, adversarial: float = 0.03, width: int = 48):
        super().__init__()
        self.network, self.adversarial = network, adversarial
        self.discriminator = PatchDiscriminator(width)

    def draw(self, batch: Tensor, context_dropout: float, generator: torch.Generator) -> tuple[Tensor]:
        """How soft each image of the batch is to be, (batch, 1, 1, 1) in [0, 1]."""
        return (torch.rand(len(batch), 1, 1, 1, generator=generator, device=batch.device),)

    def forward(self, batch: Tensor, softness: Tensor) -> dict[str, Tensor]:
        small = functional.avg_pool2d(batch, FACTOR)
        small = torch.lerp(small, blurred(small), softness)
        image = self.network(small)
        self.discriminator.requires_grad_(False)
        judged = self.discriminator(image, small)
        self.discriminator.requires_grad_(True)
        real, fake = self.discriminator(batch, small), self.discriminator(image.detach(), small)
        return {
            "pixels": (image - batch).abs().mean(),
            "adversarial": -self.adversarial * judged.mean(),
            "discriminator": functional.relu(1 - real).mean() + functional.relu(1 + fake).mean(),
        }


def blurred(images: Tensor) -> Tensor:
    """Images (batch, 3, height, width) as soft as sampled views are at most."""
    for _ in range(BLURS):
        images = mean_of_neighbours(images)
    return images
