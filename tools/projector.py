"""Inversion of a patch by optimisation, the baseline that everyone uses (arXiv:1912.04958, Appendix D).

Adam moves codes so that their images show the patch. The published recipe: the learning rate rises over the
first 5 % of the steps and falls over the last 25 %, noise on the codes fades over the first 75 %, and a
perceptual distance is what falls. Codes here are w+, which fit better than w; noise maps stay as stored.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from scenediff.forward import Observation
from scenediff.networks.backbone import stage_distance, unit_stages
from scenediff.renderers.stylegan2 import Generator, GeneratorForward
from scenediff.tools.metrics import EfficientNetLite0, psnr


@dataclass(frozen=True)
class ProjectorConfig:
    """How to optimise.

    Attributes:
        steps: of the whole schedule.
        learning_rate: at its peak.
        noise: initial standard deviation of the noise on the codes, in those of w.
        squared_error: weight of the patch's mean squared error.
        perceptual: weight of the distance of its EfficientNet-Lite0 features; 0 to leave the network out.
        seed: of the starts and the noise.
    """

    steps: int = 1000
    learning_rate: float = 0.1
    noise: float = 0.05
    squared_error: float = 1.0
    perceptual: float = 0.1
    seed: int = 0


@dataclass(frozen=True)
class Projection:
    """Optimised codes.

    Attributes:
        w_plus: (batch, num_latents, style_dim).
        psnr: (steps,) mean PSNR of the patch after each step, dB.
        seconds: (steps,) time since the start.
    """

    w_plus: Tensor
    psnr: Tensor
    seconds: Tensor

    def seconds_to(self, wanted: float) -> float:
        """Time until the patch is as good; the whole time if it never is."""
        reached = (self.psnr >= wanted).nonzero()
        return float(self.seconds[reached[0, 0] if len(reached) else -1])


def project(
    renderer: GeneratorForward,
    known: Observation,
    config: ProjectorConfig,
    network: EfficientNetLite0 | None = None,
    *,
    stop_at: float = math.inf,
    progress: Callable[[int, int], None] | None = None,
) -> Projection:
    """Optimises one code for each patch, from a random start each.

    Args:
        known: the patches (batch, channels, height, width) with their view, on the generator's device.
        network: needed for the perceptual distance.
        stop_at: mean PSNR of the patch that is good enough, dB.
        progress: called with (steps done, steps in all).
    """
    if config.perceptual and network is None:
        raise ValueError("the perceptual distance needs a network, got None")
    generator = renderer.generator
    draws = torch.Generator().manual_seed(config.seed)
    start, deviation = _starts(generator, len(known.image), draws)
    codes = start.requires_grad_()
    optimizer = torch.optim.Adam([codes], lr=config.learning_rate, betas=(0.9, 0.999))
    wanted = unit_stages(network(known.image).stages) if config.perceptual and network is not None else None
    quality, seconds, began = [], [], time.perf_counter()
    for step in range(config.steps):
        done = step / config.steps
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * rate_factor(done)
        strength = config.noise * deviation * max(0.0, 1 - done / 0.75) ** 2
        noise = strength * torch.randn(codes.shape, generator=draws).to(codes)
        patches = renderer.render(renderer.code(codes + noise), known.view)
        error = (patches - known.image).square().flatten(1).mean(1)
        loss = config.squared_error * error.sum()
        if wanted is not None and network is not None:
            distance = stage_distance(unit_stages(network(patches).stages), wanted)
            loss = loss + config.perceptual * distance.sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        quality.append(float(psnr(patches.detach().clamp(-1, 1), known.image).mean()))
        seconds.append(time.perf_counter() - began)
        if progress is not None:
            progress(step + 1, config.steps)
        if quality[-1] >= stop_at:
            break
    return Projection(codes.detach(), torch.tensor(quality), torch.tensor(seconds))


def rate_factor(done: float) -> float:
    """Linear rise over the first twentieth, cosine fall over the last quarter."""
    fall = 0.5 - 0.5 * math.cos(math.pi * min(1.0, (1 - done) / 0.25))
    return fall * min(1.0, done / 0.05)


@torch.no_grad()
def _starts(generator: Generator, batch: int, draws: torch.Generator) -> tuple[Tensor, float]:
    """w+ of random codes half-way to the mean, and the standard deviation of w."""
    z = torch.randn(max(batch, 1024), generator.config.style_dim, generator=draws)
    w = generator.map(z.to(generator.latent_avg))
    deviation = float((w - generator.latent_avg).square().sum(1).mean().sqrt()) / math.sqrt(w.shape[1])
    return generator.to_w_plus(generator.truncated(w[:batch], 0.5)).clone(), deviation
