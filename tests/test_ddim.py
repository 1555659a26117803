"""The published sampler: its schedule and times by hand, its steps against diffusers' of the same order."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers import DDPMScheduler

from scenediff.ddim import EvenDDIM, cosine_alphas
from scenediff.pipeline import DEFAULT_SCHEDULE
from scenediff.sampling import DynamicThreshold, make_scheduler


def test_the_schedule_is_the_cosine_one() -> None:
    alphas = cosine_alphas()
    assert alphas.dtype == torch.float32
    start = math.cos(0.008 / 1.008 * math.pi / 2) ** 2
    for step in (0, 10, 500, 900):
        angle = ((step + 1) / 1000 + 0.008) / 1.008 * math.pi / 2
        assert float(alphas[step]) == pytest.approx(math.cos(angle) ** 2 / start, rel=1e-6)
    assert float(alphas[-1] / alphas[-2]) == pytest.approx(1e-3, rel=1e-4)  # beta is clipped


@pytest.mark.parametrize(
    ("steps", "times"), [(1, [999]), (5, [999, 799, 599, 399, 199]), (7, [999, 856, 713, 570, 427, 284, 141])]
)
def test_times_are_even_and_rounded_down(steps: int, times: list[int]) -> None:
    scheduler = EvenDDIM()
    scheduler.set_timesteps(steps)
    assert scheduler.timesteps.tolist() == times


def test_fifty_steps_are_the_published_ones() -> None:
    scheduler = EvenDDIM()
    scheduler.set_timesteps(50)
    assert scheduler.timesteps.tolist() == list(range(999, 0, -20))


@pytest.mark.parametrize("steps", [1, 5, 50])
def test_steps_are_those_of_first_order(steps: int) -> None:
    """DPM-Solver++ of first order is DDIM; it takes the same times where their number divides 1000."""
    reference = make_scheduler("ddim", DDPMScheduler(**DEFAULT_SCHEDULE))
    own = EvenDDIM()
    for scheduler in (own, reference):
        scheduler.set_timesteps(steps)
    noisy = expected = torch.randn(2, 3, 4, 4)
    for time, same in zip(own.timesteps, reference.timesteps, strict=True):
        assert int(time) == int(same)
        clean = torch.tanh(noisy)
        noisy = own.step(clean, time, noisy).prev_sample
        expected = reference.step(clean, same, expected).prev_sample
        assert torch.allclose(noisy, expected, atol=1e-4)
    assert torch.equal(noisy, clean)


@pytest.mark.parametrize("steps", [0, 1001])
def test_impossible_numbers_of_steps_are_refused(steps: int) -> None:
    with pytest.raises(ValueError, match=rf"steps must lie in \[1, 1000\], got {steps}"):
        EvenDDIM().set_timesteps(steps)


def test_dynamic_thresholds_scale_only_what_is_too_large() -> None:
    quiet, loud = torch.linspace(-0.9, 0.9, 101), torch.linspace(-4, 4, 101)
    found = DynamicThreshold(0.95)(torch.stack([quiet, loud])[:, None, None])
    assert torch.equal(found[0, 0, 0], quiet)
    size = float(loud.abs().sort().values[95])  # the 95th of 0 to 100
    assert torch.allclose(found[1, 0, 0], (loud / size).clamp(-1, 1))
