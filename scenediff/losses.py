"""The training objective: scores renderings of the denoised signal, never the signal itself.

Tewari et al. 2023 (arXiv:2306.11719), Sec. 3.2: the network maps a noisy target observation to a signal; the
signal's rendering at the target view is the estimate of the clean target (so x0 is predicted by
construction), and its rendering at a second, novel view keeps the signal from explaining the target alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import SchedulerMixin
from torch import Tensor

from scenediff.forward import (
    Denoiser,
    EncodedContext,
    ForwardModel,
    Observation,
    SelfConditionedDenoiser,
    Signal,
)

STEPS_IN_TURN = 6  # a self-conditioned denoiser starts from its estimate this share of the levels earlier


@dataclass(frozen=True)
class TrainingBatch:
    """Observations of one batch of signals.

    Attributes:
        context: what the model sees, one or more observations.
        target: the observation to noise and to denoise.
        scored_target: the part of the target on which the rendering is scored (all of it by default).
        novel: another observation of the same signals, which the model never sees, or None.
        truth: anything that optional regularizers need.
    """

    context: Sequence[Observation]
    target: Observation
    scored_target: Observation | None = None
    novel: Observation | None = None
    truth: Any = None


@dataclass(frozen=True)
class LossWeights:
    """How the terms of the objective add up.

    Attributes:
        target: rendering of the sampled signal at the target view.
        novel: its rendering at the novel view.
        deterministic: the deterministic branch's rendering at the target view.
        snr_floor: every noise level counts at least this much; see `snr_weight`.
        snr_cap: min-SNR-gamma of Hang et al. 2023 (arXiv:2303.09556, Eq. 6, x0 prediction).
    """

    target: float = 1.0
    novel: float = 1.0
    deterministic: float = 0.7
    snr_floor: float = 0.5
    snr_cap: float = 4.0


Regularizer = Callable[[Signal, EncodedContext, TrainingBatch, Tensor], Mapping[str, Tensor]]


def snr_weight(alphas_cumprod: Tensor, timesteps: Tensor, weights: LossWeights) -> Tensor:
    """(batch,) weight of each noise level: floor + min(SNR, cap)."""
    alpha = alphas_cumprod.to(timesteps.device)[timesteps].float()
    return weights.snr_floor + (alpha / (1 - alpha)).clamp(max=weights.snr_cap)


def squared_error(estimate: Tensor, truth: Tensor) -> Tensor:
    """(batch,) mean squared error of each element, in float32."""
    return (estimate.float() - truth.float()).square().flatten(1).mean(1)


def forward_model_loss(
    denoiser: Denoiser,
    forward: ForwardModel,
    scheduler: SchedulerMixin,
    batch: TrainingBatch,
    timesteps: Tensor,
    noise: Tensor,
    *,
    drop: Tensor | None = None,
    weights: LossWeights | None = None,
    regularizers: Sequence[Regularizer] = (),
) -> dict[str, Tensor]:
    """The objective's terms, each already weighted and averaged over the batch; `sum` them to train.

    Args:
        denoiser, forward: the model.
        scheduler: a diffusers scheduler with `add_noise` and `alphas_cumprod`.
        batch: observations of the same signals.
        timesteps: (batch,) integer noise levels.
        noise: standard normal, as the target image.
        drop: (batch,) bool, elements that train without their context (classifier-free guidance).
        weights: the terms' weights.
        regularizers: functions of (signal, encoded context, batch, snr weight) that return further terms.

    A self-conditioned denoiser is scored twice: first at a noisier level of the same noise, from its context
    alone, and then from that estimate. The terms are the means of both.
    """
    weights = weights or LossWeights()
    target = batch.target
    encoded = denoiser.encode(batch.context, target.view, drop)
    terms = {"deterministic": weights.deterministic * squared_error(encoded.image, target.image).mean()}
    turns = [timesteps]
    if isinstance(denoiser, SelfConditionedDenoiser):
        levels = len(scheduler.alphas_cumprod)
        turns = [(timesteps + levels // STEPS_IN_TURN).clamp(max=levels - 1), timesteps]
    for level in turns:
        noisy = scheduler.add_noise(target.image, noise, level)
        signal = denoiser.denoise(noisy, level, encoded, target.view)
        level_weight = snr_weight(scheduler.alphas_cumprod, level, weights)
        for name, term in _signal_terms(forward, signal, batch, level_weight, weights).items():
            terms[name] = terms.get(name, 0) + term / len(turns)
        if isinstance(denoiser, SelfConditionedDenoiser) and level is not timesteps:
            encoded = denoiser.with_estimate(encoded, signal)
    for regularizer in regularizers:
        terms.update(regularizer(signal, encoded, batch, level_weight))
    return terms


def _signal_terms(
    forward: ForwardModel, signal: Signal, batch: TrainingBatch, level_weight: Tensor, weights: LossWeights
) -> dict[str, Tensor]:
    """The terms of the sampled signal: at the target view and, if there is one, at the novel view."""
    scored = batch.scored_target or batch.target
    error = squared_error(forward.render(signal, scored.view), scored.image)
    terms = {"target": weights.target * (level_weight * error).mean()}
    if batch.novel is not None:
        novel_error = squared_error(forward.render(signal, batch.novel.view), batch.novel.image)
        terms["novel"] = weights.novel * novel_error.mean()
    return terms


def random_drop(
    batch: int, probability: float, generator: torch.Generator | None, device: torch.device
) -> Tensor:
    """(batch,) bool: which elements lose their context, each with the given probability."""
    return torch.rand(batch, generator=generator, device=device) < probability
