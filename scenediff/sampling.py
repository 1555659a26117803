"""The sampler: denoises a target observation through the forward model; the last signal is the sample.

Tewari et al. 2023 (arXiv:2306.11719), Sec. 3.3. Any diffusers scheduler that predicts the clean sample
(`prediction_type="sample"`) will do; the rendering of the estimated signal is its model output.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from diffusers import DDPMScheduler, DPMSolverMultistepScheduler, SchedulerMixin
from torch import Tensor
from torch.nn import functional

from scenediff.forward import (
    Denoiser,
    EncodedContext,
    ForwardModel,
    Observation,
    PairedDenoiser,
    RememberingDenoiser,
    SelfConditionedDenoiser,
    Signal,
    View,
)

# DDIM is DPM-Solver++ of first order (Lu et al. 2022, arXiv:2211.01095, Sec. 5); diffusers' DDIMScheduler
# itself steps to wrong noise levels unless the number of steps divides that of the training schedule.
SCHEDULERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "ddim": (DPMSolverMultistepScheduler, {"algorithm_type": "dpmsolver++", "solver_order": 1}),
    "ddpm": (DDPMScheduler, {"clip_sample": False}),
    "dpmsolver++": (DPMSolverMultistepScheduler, {"algorithm_type": "dpmsolver++"}),
}

COARSE_BLOCK = 8  # pixels, of 64 along the shorter side
SEED_STRIDE = 100_003  # between the samples of an evaluation's trial; its trials use the seeds between


@dataclass(frozen=True)
class Sample:
    """Signals drawn from the posterior, with the observations that were denoised on the way.

    Attributes:
        signal: the conditional signal of the last step of the last target view.
        observations: one for each target view, in turn.
    """

    signal: Signal
    observations: tuple[Observation, ...]


def make_scheduler(name: str, training: DDPMScheduler) -> SchedulerMixin:
    """The sampler of that name ("ddim", "ddpm", "dpmsolver++") for a model trained with `training`."""
    if name not in SCHEDULERS:
        raise ValueError(f"scheduler must be one of {', '.join(SCHEDULERS)}, got {name!r}")
    scheduler, options = SCHEDULERS[name]
    # trailing steps start at pure noise, as arXiv:2305.08891 advises
    return scheduler.from_config(training.config, timestep_spacing="trailing", **options)


def generators(seeds: Sequence[int]) -> list[torch.Generator]:
    """One CPU generator for each seed: a seed means the same on every device and at any batch size."""
    return [torch.Generator().manual_seed(int(seed)) for seed in seeds]


def draw_noise(
    shape: Sequence[int], sources: Sequence[torch.Generator], device: torch.device | str
) -> Tensor:
    """(len(sources), *shape) standard normal noise; each element comes from its own generator alone."""
    return torch.stack([torch.randn(*shape, generator=source) for source in sources]).to(device)


def laplace_in_turn(seeds: Sequence[int]) -> Tensor:
    """(len(seeds),) numbers of a Laplace distribution of scale 1, spread evenly over consecutive seeds.

    Multiples of an irrational number, modulo 1, fill the unit interval more evenly than random numbers do,
    and of the golden ratio the most evenly (Kronecker sequences), so that few samples show what is likely.
    The fraction is rounded so that the seeds of evaluations, `SEED_STRIDE` apart, are spread as well. Seed 0
    gives 0, which is likeliest.
    """
    steps, period = 6_180_277, 10_000_000
    ranks = [(int(seed) * steps + period // 2) % period - period // 2 for seed in seeds]
    centred = torch.tensor(ranks, dtype=torch.float64) / period  # [-0.5, 0.5)
    return (-centred.sign() * (1 - 2 * centred.abs()).clamp(min=1 / period).log()).float()


def calm_coarse(noise: Tensor, factor: float) -> Tensor:
    """Image noise (batch, channels, height, width) whose means over blocks of pixels are scaled.

    They hold little of an image's detail but most of its squared error: with a factor below 1 samples differ
    less in what is large, as at a lower temperature, and stay sharp. Where no block divides a side, those at
    its end are smaller.
    """
    if factor == 1:
        return noise
    height, width = noise.shape[-2:]
    coarse = functional.avg_pool2d(noise, COARSE_BLOCK, ceil_mode=True)
    for axis in (-2, -1):
        coarse = coarse.repeat_interleave(COARSE_BLOCK, axis)
    return noise + (factor - 1) * coarse[..., :height, :width]


@torch.no_grad()
def sample(
    denoiser: Denoiser,
    forward: ForwardModel,
    scheduler: SchedulerMixin,
    context: Sequence[Observation],
    target_view: View,
    noise: Tensor,
    *,
    steps: int,
    timesteps: Sequence[int] = (),
    guidance_scale: float = 1.0,
    temperature: float = 1.0,
    threshold: Callable[[Tensor], Tensor] | None = None,
    step_generators: Sequence[torch.Generator] | None = None,
    callback: Callable[[int, Signal, Tensor], None] | None = None,
) -> tuple[Signal, Tensor]:
    """Draws one signal for each batch element.

    Args:
        context: what is known, one or more observations of each element.
        target_view: the view whose observation is denoised.
        noise: (batch, channels, *size) standard normal; the element's random choice.
        steps: denoising steps.
        timesteps: the noise levels of the steps, falling; evenly spaced by default.
        guidance_scale: 1 samples the model's own distribution; above 1 moves away from the rendering without
            context, x0 = u + guidance_scale (c - u) (Ho & Salimans 2022, arXiv:2207.12598).
        temperature: standard deviation of the noise to begin with; below 1, samples vary less.
        threshold: applied to every clean estimate after guidance, as `DynamicThreshold` is.
        step_generators: one for each element, for schedulers that add noise in every step.
        callback: called after every step with (index, signal, clean estimate).

    Returns:
        the last step's conditional signal and the denoised target image.
    """
    levels = len(scheduler.alphas_cumprod)
    if not 1 <= steps <= levels:
        raise ValueError(f"steps must lie in [1, {levels}], got {steps}")
    if timesteps:
        _check_timesteps(timesteps, steps, levels)
        scheduler.set_timesteps(timesteps=list(timesteps), device=noise.device)
    else:
        scheduler.set_timesteps(steps, device=noise.device)
    estimate = _estimator(denoiser, forward, context, target_view, len(noise), guidance_scale)
    noisy = noise * (scheduler.init_noise_sigma * temperature)
    for index, step in enumerate(scheduler.timesteps):
        level = _on_device(step, noise.device).expand(len(noise))
        signal, clean = estimate(noisy, level)
        if threshold is not None:
            clean = threshold(clean)
        noisy = _step(scheduler, clean, step, noisy, step_generators)
        if callback is not None:
            callback(index, signal, clean)
    return signal, clean


def _check_timesteps(timesteps: Sequence[int], steps: int, levels: int) -> None:
    falling = all(a > b for a, b in pairwise([levels, *timesteps, -1]))
    if len(timesteps) != steps or not falling:
        raise ValueError(f"timesteps must be {steps} falling levels below {levels}, got {list(timesteps)}")


def _on_device(step: Tensor, device: torch.device) -> Tensor:
    """An integer; filled in rather than copied from the CPU, which would wait for the device."""
    return step.long() if step.device == device else torch.full((), int(step), device=device)


@dataclass(frozen=True)
class DynamicThreshold:
    """Keeps guided estimates within the range of images (Saharia et al. 2022, arXiv:2205.11487, Sec. 2.3).

    An element whose absolute values exceed 1 at the given quantile is clamped there and divided by it.
    """

    quantile: float = 0.95

    def __call__(self, clean: Tensor) -> Tensor:
        size = clean.float().abs().flatten(1).quantile(self.quantile, dim=1).clamp(min=1)
        size = size.view(-1, *[1] * (clean.ndim - 1))
        return clean.clamp(-size, size) / size


def sample_in_turn(
    denoiser: Denoiser,
    forward: ForwardModel,
    scheduler: SchedulerMixin,
    context: Sequence[Observation],
    target_views: Sequence[View],
    noises: Sequence[Tensor],
    **options,
) -> Sample:
    """Samples several target views, each with all earlier ones as context too; `options` as for `sample`."""
    if not target_views or len(target_views) != len(noises):
        counts = f"{len(target_views)} and {len(noises)}"
        raise ValueError(f"one noise for each target view is needed, got {counts}")
    known, drawn = list(context), []
    for view, noise in zip(target_views, noises, strict=True):
        signal, image = sample(denoiser, forward, scheduler, known, view, noise, **options)
        drawn.append(Observation(image.clamp(-1, 1), view))
        if isinstance(denoiser, RememberingDenoiser):
            known.append(denoiser.finished(signal, drawn[-1]))
        else:
            known.append(drawn[-1])
    return Sample(signal, tuple(drawn))


def sample_at_once(
    denoiser: Denoiser,
    forward: ForwardModel,
    scheduler: SchedulerMixin,
    context: Sequence[Observation],
    target_views: Sequence[View],
    noise: Tensor,
    *,
    denoised: int = -1,
    **options,
) -> Sample:
    """Samples one of several target views and renders the others from its signal; `options` as for `sample`.

    Args:
        denoised: which of the target views is sampled.
    """
    if not target_views:
        raise ValueError("at least one target view is needed, got none")
    signal, image = sample(denoiser, forward, scheduler, context, target_views[denoised], noise, **options)
    chosen = target_views[denoised]
    with torch.no_grad():
        images = [image if view is chosen else forward.render(signal, view) for view in target_views]
    return Sample(signal, tuple(map(Observation, images, target_views)))


Estimator = Callable[[Tensor, Tensor], tuple[Signal, Tensor]]


def _estimator(
    denoiser: Denoiser, forward: ForwardModel, context: Sequence[Observation], view: View, batch: int,
    guidance_scale: float,
) -> Estimator:
    """From noisy images and timesteps to the conditional signal and the guided clean estimate."""
    if guidance_scale == 1:
        return _Estimates(denoiser, forward, denoiser.encode(context, view), view)
    if isinstance(denoiser, PairedDenoiser):
        return _paired_estimator(denoiser, forward, context, view, guidance_scale)
    hidden = torch.ones(batch, dtype=torch.bool, device=context[0].image.device)
    conditional = _Estimates(denoiser, forward, denoiser.encode(context, view), view)
    unconditional = _Estimates(denoiser, forward, denoiser.encode(context, view, drop=hidden), view)

    def guided(noisy: Tensor, timesteps: Tensor) -> tuple[Signal, Tensor]:
        signal, clean = conditional(noisy, timesteps)
        _, blind = unconditional(noisy, timesteps)
        return signal, blind + guidance_scale * (clean - blind)

    return guided


def _paired_estimator(
    denoiser: PairedDenoiser, forward: ForwardModel, context: Sequence[Observation], view: View,
    guidance_scale: float,
) -> Estimator:
    estimates = _Estimates(denoiser, forward, *denoiser.encode_pair(context, view))

    def guided(noisy: Tensor, timesteps: Tensor) -> tuple[Signal, Tensor]:
        twice = torch.cat([noisy, noisy]), torch.cat([timesteps, timesteps])
        signal, both = estimates(*twice)
        clean, blind = both.chunk(2)
        return denoiser.first_of_pair(signal), blind + guidance_scale * (clean - blind)

    return guided


class _Estimates:
    """Signals and their renderings, step by step; each may start from the one before."""

    def __init__(self, denoiser: Denoiser, forward: ForwardModel, encoded: EncodedContext, view: View):
        self.denoiser, self.forward, self.encoded, self.view = denoiser, forward, encoded, view

    def __call__(self, noisy: Tensor, timesteps: Tensor) -> tuple[Signal, Tensor]:
        signal = self.denoiser.denoise(noisy, timesteps, self.encoded, self.view)
        if isinstance(self.denoiser, SelfConditionedDenoiser):
            self.encoded = self.denoiser.with_estimate(self.encoded, signal)
        return signal, self.forward.render(signal, self.view)


def _step(scheduler, clean: Tensor, step: Tensor, noisy: Tensor, step_generators) -> Tensor:
    options = {} if step_generators is None else {"generator": list(step_generators)}
    return scheduler.step(clean, step, noisy, **options).prev_sample
