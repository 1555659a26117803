"""Two tiny applications run through the unchanged core: it must draw from posteriors known in closed form.

With the exact denoiser of a linear-Gaussian model a deterministic sampler is a linear map of its noise, so
the mean and the covariance of what it draws are read off the map, without the error of finitely many samples.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from toy_models import (
    COVARIANCE,
    PATTERN,
    ROWS,
    ExactLinearDenoiser,
    ExactShiftDenoiser,
    gaussian_posterior,
    linear_batch,
    linear_forward_model,
    new_linear_step,
    new_shift_step,
    shift_batch,
    shift_forward_model,
    train_toy,
    training_scheduler,
)

from scenediff.forward import Denoiser, ForwardModel, Observation
from scenediff.sampling import make_scheduler, sample, sample_in_turn
from scenediff.training import TrainConfig

CONTEXT_VALUE = 0.3
TRAINING = TrainConfig(
    minutes=1.0,
    max_steps=1200,
    batch_size=256,
    learning_rate=3e-3,
    warmup_steps=50,
    weight_decay=0.0,
    ema_decay=0.99,
    mixed_precision="no",
    log_every=500,
)


def exact_linear() -> ExactLinearDenoiser:
    return ExactLinearDenoiser(
        linear_forward_model(), training_scheduler().alphas_cumprod.double(), COVARIANCE
    )


def linear_context(batch: int, dtype: torch.dtype = torch.float64) -> list[Observation]:
    return [Observation(torch.full((batch, 1, 1), CONTEXT_VALUE, dtype=dtype), "context")]


def true_target() -> tuple[Tensor, Tensor]:
    """Mean and covariance of the target observation given the context."""
    value = torch.full((1, 1), CONTEXT_VALUE, dtype=torch.float64)
    mean, covariance = gaussian_posterior(COVARIANCE, ROWS["context"], value)
    return ROWS["target"] @ mean[0], ROWS["target"] @ covariance @ ROWS["target"].T


def drawn_target(scheduler: str, steps: int) -> tuple[Tensor, Tensor]:
    """Mean and covariance of a deterministic sampler's draws, from its responses to zero and unit noise."""
    noise = torch.cat([torch.zeros(1, 2), torch.eye(2)]).double()[:, None]
    denoiser = exact_linear()
    _, image = sample(
        denoiser,
        denoiser.forward_model,
        make_scheduler(scheduler, training_scheduler()),
        linear_context(3),
        "target",
        noise,
        steps=steps,
    )
    response = image[1:, 0] - image[0, 0]
    return image[0, 0], response.T @ response


def test_the_toys_speak_the_core_protocols() -> None:
    assert isinstance(exact_linear(), Denoiser)
    assert isinstance(linear_forward_model(), ForwardModel)


# --- the linear application ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scheduler", "steps", "tolerance"),
    [
        ("ddim", 500, 0.02),
        ("ddim", 300, 0.03),
        ("ddim", 60, 0.12),
        ("dpmsolver++", 200, 0.005),
        ("dpmsolver++", 60, 0.02),
    ],
)  # errors of first order halve with twice the steps, of second order quarter; 300 and 60 don't divide 1000
def test_the_deterministic_samplers_draw_the_posterior(scheduler: str, steps: int, tolerance: float) -> None:
    mean, covariance = drawn_target(scheduler, steps)
    true_mean, true_covariance = true_target()
    assert torch.allclose(mean, true_mean, atol=1e-4)  # any number of steps keeps the mean of a linear model
    assert (covariance - true_covariance).abs().max() < tolerance * true_covariance.abs().max()


@pytest.mark.parametrize(("scheduler", "order"), [("ddim", 1), ("dpmsolver++", 2)])
def test_the_samplers_converge_at_their_order(scheduler: str, order: int) -> None:
    _, truth = true_target()
    coarse, fine = ((drawn_target(scheduler, steps)[1] - truth).abs().max() for steps in (25, 100))
    assert coarse / fine > 0.7 * 4**order  # four times the steps, less what is left at coarse steps


def test_ddpm_draws_the_posterior() -> None:
    count, denoiser = 4000, exact_linear()
    noise = torch.randn(count, 1, 2, dtype=torch.float64)
    _, image = sample(
        denoiser,
        denoiser.forward_model,
        make_scheduler("ddpm", training_scheduler()),
        linear_context(count),
        "target",
        noise,
        steps=1000,
    )
    true_mean, true_covariance = true_target()
    spread = true_covariance.diagonal().sqrt()
    assert ((image[:, 0].mean(0) - true_mean).abs() < 4 * spread / count**0.5).all()
    # 4 standard errors of a variance are 4 sqrt(2 / 4000) = 0.09
    assert (torch.cov(image[:, 0].T) - true_covariance).abs().max() < 0.09 * true_covariance.abs().max()


def test_target_views_in_turn_draw_the_whole_signal() -> None:
    """Context and two targets determine the signal, so signals must be spread as their posterior."""
    noises = [
        torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64)[:, None, None],
        torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)[:, None, None],
    ]
    denoiser = exact_linear()
    drawn = sample_in_turn(
        denoiser,
        denoiser.forward_model,
        make_scheduler("dpmsolver++", training_scheduler()),
        linear_context(3),
        ["first", "second"],
        noises,
        steps=200,
    )
    value = torch.full((1, 1), CONTEXT_VALUE, dtype=torch.float64)
    mean, covariance = gaussian_posterior(COVARIANCE, ROWS["context"], value)
    response = drawn.signal[1:] - drawn.signal[0]
    assert torch.allclose(drawn.signal[0], mean[0], atol=1e-4)
    # 2e-4 of signal variance is left at the last step's noise level
    assert (response.T @ response - covariance).abs().max() < 0.01 * covariance.abs().max()
    assert denoiser.encoded == [(("context",), "first"), (("context", "first"), "second")]
    assert torch.allclose(
        denoiser.forward_model.render(drawn.signal, "first"), drawn.observations[0].image, atol=1e-6
    )


def test_a_trained_network_draws_the_posterior(tmp_path: Path) -> None:
    """Measured: means off by at most 0.09 standard deviations, covariances by 0.21 of the largest.

    Without the context the mean would be off by 1.3; without the noise the covariance by 1.
    """
    step = new_linear_step()
    train_toy(step, linear_batch, TRAINING, tmp_path)
    true_mean, true_covariance = true_target()
    assert true_mean[0] > 1.3 * true_covariance[0, 0].sqrt()
    count = 3000
    for name in ("ddim", "ddpm", "dpmsolver++"):
        _, image = sample(
            step.denoiser,
            step.forward_model,
            make_scheduler(name, training_scheduler()),
            linear_context(count, torch.float32),
            "target",
            torch.randn(count, 1, 2),
            steps=100,
        )
        image = image[:, 0].double()
        assert ((image.mean(0) - true_mean).abs() < 0.2 * true_covariance.diagonal().sqrt()).all(), name
        error = (torch.cov(image.T) - true_covariance).abs().max()
        assert error < 0.3 * true_covariance.abs().max(), name
    # The deterministic branch learns the posterior mean, and without the context the prior's, which is zero
    encoded = step.denoiser.encode(linear_context(1, torch.float32), "target")
    dropped = step.denoiser.encode(linear_context(1, torch.float32), "target", drop=torch.tensor([True]))
    assert torch.allclose(encoded.image[0, 0].double(), true_mean, atol=0.05)
    assert dropped.image.abs().max() < 0.05


# --- the shift application -----------------------------------------------------------------------


def alike(shift: int) -> list[int]:
    """The shifts whose context window looks like that of `shift`."""
    windows = shift_forward_model().matrices["context"].T
    return [other for other in range(len(PATTERN)) if torch.equal(windows[other], windows[shift])]


def shift_context(count: int) -> list[Observation]:
    window = shift_forward_model().matrices["context"][:, 0]
    return [Observation(window.expand(count, 1, -1), "context")]


def test_samples_of_the_shift_are_modes_with_equal_shares() -> None:
    modes, count = alike(0), 600
    assert len(modes) == 3
    denoiser = ExactShiftDenoiser(shift_forward_model(), training_scheduler().alphas_cumprod)
    belief, image = sample(
        denoiser,
        denoiser.forward_model,
        make_scheduler("ddim", training_scheduler()),
        shift_context(count),
        "target",
        torch.randn(count, 1, 5),
        steps=50,
    )
    windows = denoiser.forward_model.matrices["target"].T[modes]
    nearest = (image - windows).abs().amax(-1)  # (count, modes)
    assert (nearest.min(-1).values < 0.05).float().mean() > 0.99
    shares = nearest.argmin(-1).bincount(minlength=3) / count
    assert (shares - 1 / 3).abs().max() < 4 * (2 / 9 / count) ** 0.5  # four standard errors
    # every sample also renders the unseen view of its own mode
    novel = denoiser.forward_model.matrices["novel"].T[modes][nearest.argmin(-1)]
    assert (denoiser.forward_model.render(belief, "novel")[:, 0] - novel).abs().mean() < 0.01


def test_the_deterministic_branch_averages_the_modes() -> None:
    denoiser = ExactShiftDenoiser(shift_forward_model(), training_scheduler().alphas_cumprod)
    encoded = denoiser.encode(shift_context(1), "target")
    windows = denoiser.forward_model.matrices["target"].T[alike(0)]
    assert torch.allclose(encoded.image[0, 0], windows.mean(0), atol=1e-5)
    assert (encoded.image - windows).abs().amax(-1).min() > 0.5  # it looks like none of them


def test_a_trained_network_draws_modes(tmp_path: Path) -> None:
    step = new_shift_step()
    train_toy(step, shift_batch, replace(TRAINING, max_steps=500), tmp_path)
    modes, count = alike(0), 300
    belief, image = sample(
        step.denoiser,
        step.forward_model,
        make_scheduler("ddim", training_scheduler()),
        shift_context(count),
        "target",
        torch.randn(count, 1, 5),
        steps=50,
    )
    windows = step.forward_model.matrices["target"].T[modes]
    nearest = (image - windows).abs().amax(-1)
    assert (nearest.min(-1).values < 0.2).float().mean() > 0.97
    assert (
        nearest.argmin(-1).bincount(minlength=3) > count / 6
    ).all()  # each mode has at least half its share
    encoded = step.denoiser.encode(shift_context(1), "target")
    assert (encoded.image[0, 0] - windows.mean(0)).abs().max() < 0.15
    assert (belief.max(-1).values > 0.9).float().mean() > 0.97
