"""DDIM (Song et al. 2020, arXiv:2010.02502) without noise, as the full-size models were published with.

Times are evenly spaced from the last training step to -1, the clean image, and rounded down; the schedule is
the cosine one (Nichol & Dhariwal 2021, arXiv:2102.09672), multiplied up in double precision.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

OFFSET, MAX_BETA = 0.008, 0.999


def cosine_alphas(steps: int = 1000) -> Tensor:
    """(steps,) float32 share of the clean image's variance at each step."""
    times = torch.arange(steps + 1, dtype=torch.float64) / steps
    signal = ((times + OFFSET) / (1 + OFFSET) * (math.pi / 2)).cos().square()
    betas = (1 - signal[1:] / signal[:-1]).clamp(0, MAX_BETA)
    return (1 - betas).cumprod(0).float()


@dataclass(frozen=True)
class Step:
    """What a step gives back, under diffusers' name."""

    prev_sample: Tensor


class EvenDDIM:
    """A scheduler with the part of diffusers' interface that sampling needs; predicts the clean image.

    Attributes:
        timesteps: (steps,) of the current run, falling; on the CPU, as reading them elsewhere means waiting.
    """

    init_noise_sigma = 1.0

    def __init__(self, training_steps: int = 1000):
        self.alphas_cumprod = cosine_alphas(training_steps)
        self.timesteps = torch.zeros(0, dtype=torch.long)
        self._levels: dict[int, tuple[float, float]] = {}

    def set_timesteps(self, steps: int, device: torch.device | str = "cpu") -> None:
        """Chooses the times of a run of that many steps, at most those of training; on any device."""
        last = len(self.alphas_cumprod) - 1
        if not 1 <= steps <= last + 1:
            raise ValueError(f"steps must lie in [1, {last + 1}], got {steps}")
        times = [int(time) for time in reversed(torch.linspace(-1, last, steps + 1).tolist())]
        share = [1.0 if time < 0 else float(self.alphas_cumprod[time]) for time in times]
        self._levels = {time: (share[index], share[index + 1]) for index, time in enumerate(times[:-1])}
        self.timesteps = torch.tensor(times[:-1])

    def step(self, clean: Tensor, time: Tensor, noisy: Tensor, **_: object) -> Step:
        """From a noisy image and the estimate of the clean one at `time` to the next, less noisy image."""
        here, there = self._levels[int(time)]
        if there == 1.0:
            return Step(clean)
        noise = (noisy / math.sqrt(here) - clean) / math.sqrt(1 / here - 1)
        return Step(math.sqrt(there) * clean + math.sqrt(1 - there) * noise)
