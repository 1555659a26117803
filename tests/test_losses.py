"""The training objective against its formula."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from toy_models import HalfwayDenoiser, linear_batch, new_linear_step, training_scheduler

from scenediff.forward import Observation
from scenediff.losses import (
    LossWeights,
    TrainingBatch,
    forward_model_loss,
    random_drop,
    snr_weight,
    squared_error,
)
from scenediff.training import TrainingStep

COUNT = 16


@pytest.fixture
def step() -> TrainingStep:
    return new_linear_step()


@pytest.fixture
def batch() -> TrainingBatch:
    return linear_batch(COUNT, torch.Generator().manual_seed(3))


def terms_of(step: TrainingStep | SimpleNamespace, batch: TrainingBatch, **options) -> dict[str, Tensor]:
    source = torch.Generator().manual_seed(4)
    timesteps = torch.randint(1000, (COUNT,), generator=source)
    noise = torch.randn(batch.target.image.shape, generator=source)
    return forward_model_loss(
        step.denoiser, step.forward_model, step.scheduler, batch, timesteps, noise, **options
    )


def test_noise_levels_weigh_floor_plus_capped_snr() -> None:
    alphas = torch.tensor([0.999, 0.9, 0.5, 0.1, 0.0])
    weights = LossWeights(snr_floor=0.5, snr_cap=4.0)
    # SNR = alpha / (1 - alpha): 999, 9, 1, 1/9, 0
    assert torch.allclose(
        snr_weight(alphas, torch.tensor([4, 3, 2, 1, 0]), weights),
        torch.tensor([0.5, 0.5 + 1 / 9, 1.5, 4.5, 4.5]),
    )
    uncapped = snr_weight(alphas, torch.tensor([1]), LossWeights(snr_floor=0.0, snr_cap=100.0))
    assert torch.allclose(uncapped, torch.tensor([9.0]))
    real = snr_weight(training_scheduler().alphas_cumprod, torch.arange(1000), weights)
    assert (real.diff() <= 0).all()
    assert real[0] == 4.5
    assert 0.5 <= real[-1] < 0.501


def test_squared_errors_stay_apart_and_in_float32() -> None:
    estimate = torch.tensor([[[1.0, 3.0]], [[0.0, 0.0]]], dtype=torch.bfloat16)
    error = squared_error(estimate, torch.zeros(2, 1, 2))
    assert error.dtype == torch.float32
    assert error.tolist() == [5.0, 0.0]


@torch.no_grad()
def test_terms_follow_the_formula(step: TrainingStep, batch: TrainingBatch) -> None:
    weights = LossWeights(target=2.0, novel=3.0, deterministic=5.0, snr_floor=0.1, snr_cap=2.0)
    terms = terms_of(step, batch, weights=weights)
    source = torch.Generator().manual_seed(4)
    timesteps = torch.randint(1000, (COUNT,), generator=source)
    noise = torch.randn(batch.target.image.shape, generator=source)
    expected = dict.fromkeys(("target", "deterministic", "novel"), 0.0)
    for index in range(COUNT):  # one by one, as the slow reference
        alpha = step.scheduler.alphas_cumprod[timesteps[index]]
        one = slice(index, index + 1)
        noisy = alpha.sqrt() * batch.target.image[one] + (1 - alpha).sqrt() * noise[one]
        encoded = step.denoiser.encode([Observation(batch.context[0].image[one], "context")], "target")
        signal = step.denoiser.denoise(noisy, timesteps[one], encoded, "target")
        snr = min(float(alpha / (1 - alpha)), 2.0)
        error = (step.forward_model.render(signal, "target") - batch.target.image[one]).square().mean()
        expected["target"] += 2.0 * (0.1 + snr) * float(error) / COUNT
        error = (step.forward_model.render(signal, "novel") - batch.novel.image[one]).square().mean()
        expected["novel"] += 3.0 * float(error) / COUNT
        expected["deterministic"] += (
            5.0 * float((encoded.image - batch.target.image[one]).square().mean()) / COUNT
        )
    assert {name: float(value) for name, value in terms.items()} == pytest.approx(expected, rel=1e-5)


def test_a_self_conditioned_denoiser_is_scored_twice(step: TrainingStep, batch: TrainingBatch) -> None:
    """At a sixth of the levels earlier from its context alone, then from that; the terms are the means."""
    halfway = HalfwayDenoiser(step.denoiser)
    parts = SimpleNamespace(denoiser=halfway, forward_model=step.forward_model, scheduler=step.scheduler)
    found = terms_of(parts, batch)
    source = torch.Generator().manual_seed(4)
    timesteps = torch.randint(1000, (COUNT,), generator=source)
    noise = torch.randn(batch.target.image.shape, generator=source)
    encoded = halfway.encode(batch.context, "target")
    expected, start = {"target": 0.0, "novel": 0.0}, encoded.signal
    for level in ((timesteps + 166).clamp(max=999), timesteps):
        noisy = step.scheduler.add_noise(batch.target.image, noise, level)
        start = (start.detach() + step.denoiser.denoise(noisy, level, encoded.extras[0], "target")) / 2
        weight = snr_weight(step.scheduler.alphas_cumprod, level, LossWeights())
        error = squared_error(step.forward_model.render(start, "target"), batch.target.image)
        expected["target"] += (weight * error).mean() / 2
        shown = step.forward_model.render(start, "novel")
        expected["novel"] += squared_error(shown, batch.novel.image).mean() / 2
    assert all(torch.allclose(found[name], value) for name, value in expected.items())
    found["target"].backward()
    assert all(parameter.grad is not None for parameter in step.denoiser.network.parameters())


def test_without_a_novel_view_there_is_no_novel_term(step: TrainingStep, batch: TrainingBatch) -> None:
    with_novel = terms_of(step, batch)
    without = terms_of(step, replace(batch, novel=None))
    assert set(without) == {"target", "deterministic"}
    assert without["target"] == with_novel["target"]


@torch.no_grad()
def test_only_the_scored_part_of_the_target_counts(step: TrainingStep, batch: TrainingBatch) -> None:
    """`first` shows another row of the signal, so the score must be that row's error."""
    matrix = step.forward_model.matrices["first"].T
    truth = torch.full((COUNT, 1, 1), 0.7)
    scored = terms_of(
        step, replace(batch, scored_target=Observation(truth, "first")), weights=LossWeights(snr_cap=0.0)
    )
    whole = terms_of(step, batch, weights=LossWeights(snr_cap=0.0))
    seen: list[Tensor] = []
    terms_of(step, batch, regularizers=[lambda signal, *_: seen.append(signal) or {}])
    assert float(scored["target"]) == pytest.approx(
        0.5 * float(((seen[0] @ matrix) - 0.7).square().mean()), rel=1e-5
    )
    assert scored["deterministic"] == whole["deterministic"]
    assert scored["target"] != whole["target"]


def test_regularizers_get_signal_context_batch_and_level_weights(
    step: TrainingStep, batch: TrainingBatch
) -> None:
    def regularizer(signal, encoded, got, level_weight):
        assert signal.shape == encoded.signal.shape == (COUNT, 3)
        assert got is batch
        assert level_weight.shape == (COUNT,)
        assert level_weight.min() >= 0.5
        return {"size": 0.25 * signal.square().mean()}

    terms = terms_of(step, batch, regularizers=[regularizer])
    assert set(terms) == {"target", "deterministic", "novel", "size"}
    assert terms["size"] > 0


class Gain(nn.Module):
    """A forward model with a parameter of its own."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner, self.gain = inner, nn.Parameter(torch.tensor(1.0))

    def render(self, signal: Tensor, view: str) -> Tensor:
        return self.gain * self.inner.render(signal, view)


@pytest.mark.parametrize("term", ["target", "novel", "deterministic"])
def test_gradients_reach_denoiser_and_forward_model(
    step: TrainingStep, batch: TrainingBatch, term: str
) -> None:
    forward_model = Gain(step.forward_model)
    step.denoiser.forward_model = forward_model  # renders the deterministic branch
    step.forward_model = forward_model
    terms_of(step, batch)[term].backward()
    assert forward_model.gain.grad.abs() > 0
    for name, parameter in step.denoiser.network.named_parameters():
        assert parameter.grad.abs().max() > 0, name


def test_dropped_elements_are_scored_without_their_context(step: TrainingStep, batch: TrainingBatch) -> None:
    drop = torch.arange(COUNT) % 2 == 0
    scrambled = replace(
        batch, context=[Observation(torch.where(drop[:, None, None], 9.0, batch.context[0].image), "context")]
    )
    kept, changed = (terms_of(step, each, drop=drop) for each in (batch, scrambled))
    assert all(torch.equal(kept[name], changed[name]) for name in kept)
    undropped = terms_of(step, scrambled)
    assert not torch.equal(undropped["deterministic"], kept["deterministic"])


def test_context_drops_at_the_given_rate() -> None:
    source = torch.Generator().manual_seed(0)
    assert random_drop(20_000, 0.1, source, torch.device("cpu")).float().mean() == pytest.approx(
        0.1, abs=0.0085
    )
    assert not random_drop(100, 0.0, source, torch.device("cpu")).any()
    assert random_drop(100, 1.0, source, torch.device("cpu")).all()
