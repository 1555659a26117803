"""Two tiny applications of the core whose posteriors are known: linear views and a shifted pattern.

Linear: the signal is a Gaussian vector, a view is a matrix, an observation is the matrix times the vector.
Shift: the signal is a belief over the circular shifts of a known pattern, a view is a window of positions. A
belief (and not one shift) is the signal because the best estimate of a noisy window averages the shifts that
it could be. Each has an exact denoiser in closed form and a small one to train.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from unittest import mock

import torch
from accelerate.state import AcceleratorState
from diffusers import DDPMScheduler
from torch import Tensor, nn
from torch.nn import functional

from scenediff.forward import EncodedContext, Observation
from scenediff.losses import LossWeights, TrainingBatch
from scenediff.networks.unet import timestep_embedding
from scenediff.training import TrainConfig, TrainingStep, train


def training_scheduler() -> DDPMScheduler:
    return DDPMScheduler(
        num_train_timesteps=1000,
        beta_schedule="squaredcos_cap_v2",
        prediction_type="sample",
        clip_sample=False,
    )


class ToyForwardModel(nn.Module):
    """Renders (batch, dimensions) signals through a matrix for each view: (batch, 1, rows)."""

    def __init__(self, matrices: dict[str, Tensor]):
        super().__init__()
        self.matrices = matrices

    def render(self, signal: Tensor, view: str) -> Tensor:
        return (signal @ self.matrices[view].T)[:, None]


class ToyDenoiser(nn.Module):
    """What all denoisers here share: the deterministic branch is the estimate without a target."""

    def __init__(self, forward_model: ToyForwardModel, alphas_cumprod: Tensor):
        super().__init__()
        self.forward_model, self.alphas_cumprod = forward_model, alphas_cumprod
        self.encoded: list[
            tuple[tuple[str, ...], str]
        ] = []  # views of every call of `encode`: context, target

    def estimate(self, known: list[tuple[Tensor, str, Tensor]], drop: Tensor) -> Tensor:
        """The mean signal given (image, view, alpha) observations, of which alpha < 1 is noisy."""
        raise NotImplementedError

    def encode(
        self, context: Sequence[Observation], target_view: str, drop: Tensor | None = None
    ) -> EncodedContext:
        self.encoded.append((tuple(observation.view for observation in context), target_view))
        batch = len(context[0].image)
        drop = torch.zeros(batch, dtype=torch.bool) if drop is None else drop
        known = [(observation.image[:, 0], observation.view, torch.ones(batch)) for observation in context]
        signal = self.estimate(known, drop)
        return EncodedContext(signal, self.forward_model.render(signal, target_view), (known, drop))

    def denoise(self, noisy: Tensor, timesteps: Tensor, context: EncodedContext, target_view: str) -> Tensor:
        known, drop = context.extras
        alpha = self.alphas_cumprod.to(noisy.dtype)[timesteps]
        return self.estimate([*known, (noisy[:, 0], target_view, alpha)], drop)


class ExactLinearDenoiser(ToyDenoiser):
    """E[x | observations] of x ~ N(0, covariance); one noise level and one drop for the whole batch."""

    def __init__(self, forward_model: ToyForwardModel, alphas_cumprod: Tensor, covariance: Tensor):
        super().__init__(forward_model, alphas_cumprod)
        self.covariance = covariance

    def estimate(self, known: list[tuple[Tensor, str, Tensor]], drop: Tensor) -> Tensor:
        assert drop.all() or not drop.any()
        used = [item for item in known if not drop[0] or item[2][0] < 1]
        if not used:
            return torch.zeros(len(drop), len(self.covariance), dtype=self.covariance.dtype)
        mean, _ = gaussian_posterior(
            self.covariance,
            torch.cat([alpha[0].sqrt() * self.forward_model.matrices[view] for _, view, alpha in used]),
            torch.cat([image for image, _, _ in used], dim=1),
            torch.cat([(1 - alpha[0]).expand(image.shape[1]) for image, _, alpha in used]),
        )
        return mean


class HalfwayDenoiser:
    """Self-conditioned: moves half the way from its estimate of the step before to another denoiser's."""

    def __init__(self, inner: ToyDenoiser):
        self.inner, self.forward_model = inner, inner.forward_model
        self.starts: list[Tensor] = []  # where every call of `denoise` began

    def encode(
        self, context: Sequence[Observation], target_view: str, drop: Tensor | None = None
    ) -> EncodedContext:
        encoded = self.inner.encode(context, target_view, drop)
        return replace(encoded, extras=(encoded, encoded.signal.detach()))

    def denoise(self, noisy: Tensor, timesteps: Tensor, context: EncodedContext, target_view: str) -> Tensor:
        encoded, start = context.extras
        self.starts.append(start)
        return (start + self.inner.denoise(noisy, timesteps, encoded, target_view)) / 2

    def with_estimate(self, context: EncodedContext, signal: Tensor) -> EncodedContext:
        return replace(context, extras=(context.extras[0], signal.detach()))


class ExactShiftDenoiser(ToyDenoiser):
    """P(shift | observations), from equal shares; noise-free observations must match within a whisker."""

    def estimate(self, known: list[tuple[Tensor, str, Tensor]], drop: Tensor) -> Tensor:
        shifts = next(iter(self.forward_model.matrices.values())).shape[1]
        logits = torch.zeros(len(drop), shifts)
        for image, view, alpha in known:
            windows = self.forward_model.matrices[view].T  # (shifts, rows)
            distance = (image[:, None] - alpha.sqrt()[:, None, None] * windows).square().sum(-1)
            hidden = drop & (alpha == 1)
            logits = logits - torch.where(
                hidden[:, None], 0, distance / (2 * (1 - alpha[:, None]).clamp(min=1e-3))
            )
        return logits.softmax(-1)


class TrainedDenoiser(ToyDenoiser):
    """A small network of one context image and the noisy target; knows nothing of the matrices."""

    def __init__(
        self,
        forward_model: ToyForwardModel,
        alphas_cumprod: Tensor,
        signal_size: int,
        context_size: int,
        target_size: int,
        *,
        width: int = 96,
        head: Callable[[Tensor], Tensor] = nn.Identity(),  # noqa: B008
    ):
        super().__init__(forward_model, alphas_cumprod)
        self.signal_size, self.target_size, self.head = signal_size, target_size, head
        inputs = context_size + 1 + target_size + 32
        self.network = nn.Sequential(
            nn.Linear(inputs, width),
            nn.SiLU(),
            nn.Linear(width, width),
            nn.SiLU(),
            nn.Linear(width, signal_size),
        )

    def estimate(self, known: list[tuple[Tensor, str, Tensor]], drop: Tensor) -> Tensor:
        context, noisy = known[0][0], known[1] if len(known) > 1 else None
        alpha = torch.zeros(len(drop)) if noisy is None else noisy[2]
        target = torch.zeros(len(drop), self.target_size) if noisy is None else noisy[0]
        kept = (~drop).float()[:, None]
        angle = torch.atan2(
            alpha.sqrt(), (1 - alpha).sqrt()
        )  # the noise level, evenly spread over [0, pi / 2]
        inputs = [context * kept, kept, target, timestep_embedding(100 * angle, 32)]
        return self.head(self.network(torch.cat(inputs, dim=1)))


def gaussian_posterior(
    covariance: Tensor, matrix: Tensor, values: Tensor, noise: Tensor | float = 0.0
) -> tuple[Tensor, Tensor]:
    """Mean (batch, d) and covariance (d, d) of x ~ N(0, covariance), given matrix x + noise = values."""
    innovation = matrix @ covariance @ matrix.T + torch.diag(torch.ones(len(matrix)).to(covariance) * noise)
    gain = torch.linalg.solve(innovation, matrix @ covariance).T  # (d, rows)
    return values @ gain.T, covariance - gain @ matrix @ covariance


# --- the linear application: three dimensions, one row a view ------------------------------------

COVARIANCE = torch.tensor([[0.10, 0.06, -0.02], [0.06, 0.08, 0.01], [-0.02, 0.01, 0.06]], dtype=torch.float64)
ROWS = {
    "context": torch.tensor([[1.0, 0.0, 0.3]], dtype=torch.float64),
    "target": torch.tensor([[0.2, 1.0, -0.4], [0.0, 0.5, 1.0]], dtype=torch.float64),
    "first": torch.tensor([[0.0, 1.0, 0.5]], dtype=torch.float64),
    "second": torch.tensor([[0.5, -0.5, 1.0]], dtype=torch.float64),
    "novel": torch.eye(3, dtype=torch.float64),
}


def linear_forward_model(dtype: torch.dtype = torch.float64) -> ToyForwardModel:
    return ToyForwardModel({name: rows.to(dtype) for name, rows in ROWS.items()})


def linear_batch(count: int, generator: torch.Generator) -> TrainingBatch:
    root = torch.linalg.cholesky(COVARIANCE).float()
    signal = torch.randn(count, 3, generator=generator) @ root.T
    forward_model = linear_forward_model(torch.float32)
    context, target, novel = (
        Observation(forward_model.render(signal, name), name) for name in ("context", "target", "novel")
    )
    return TrainingBatch([context], target, novel=novel)


# --- the shift application: a pattern of which three shifts look alike through the context's window ---

PATTERN = torch.tensor([1, 1, -1, -1, 1, 1, -1, 1, 1, 1, -1, -1, -1, -1, 1, -1], dtype=torch.float32) * 0.8
WINDOWS = {"context": (0, 1, 2), "target": (3, 4, 5, 6, 7), "novel": (9, 10, 11, 12)}


def shift_forward_model() -> ToyForwardModel:
    count = len(PATTERN)
    return ToyForwardModel(
        {
            name: torch.stack([PATTERN[(torch.arange(count) + position) % count] for position in window])
            for name, window in WINDOWS.items()
        }
    )


def shift_batch(count: int, generator: torch.Generator) -> TrainingBatch:
    belief = functional.one_hot(
        torch.randint(len(PATTERN), (count,), generator=generator), len(PATTERN)
    ).float()
    forward_model = shift_forward_model()
    context, target, novel = (Observation(forward_model.render(belief, name), name) for name in WINDOWS)
    return TrainingBatch([context], target, novel=novel)


# --- training ------------------------------------------------------------------------------------


def new_linear_step(weights: LossWeights | None = None) -> TrainingStep:
    scheduler, forward_model = training_scheduler(), linear_forward_model(torch.float32)
    denoiser = TrainedDenoiser(forward_model, scheduler.alphas_cumprod, 3, context_size=1, target_size=2)
    return TrainingStep(denoiser, forward_model, scheduler, weights or LossWeights())


def new_shift_step() -> TrainingStep:
    scheduler, forward_model = training_scheduler(), shift_forward_model()
    denoiser = TrainedDenoiser(
        forward_model,
        scheduler.alphas_cumprod,
        len(PATTERN),
        len(WINDOWS["context"]),
        len(WINDOWS["target"]),
        head=lambda logits: logits.softmax(-1),
    )
    return TrainingStep(denoiser, forward_model, scheduler, LossWeights())


def train_toy(
    step: TrainingStep,
    batches: Callable[[int, torch.Generator], TrainingBatch],
    config: TrainConfig,
    output: Path,
    **options,
) -> dict[str, float]:
    """The training loop on the CPU; accelerate's state, one for a process, starts anew for every run."""
    AcceleratorState._reset_state(reset_partial_state=True)
    with mock.patch.dict(os.environ, {"ACCELERATE_USE_CPU": "true"}):
        return train(step, lambda generator: batches(config.batch_size, generator), config, output, **options)
