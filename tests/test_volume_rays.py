"""Rays of the densely integrated field: integrals in closed form, sampling by slow references."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from scenediff.renderers.volume_rays import absorption, compact, fine_distances, spread, worth_decoding


def test_constant_density_absorbs_exponentially() -> None:
    distances = torch.linspace(1, 3, 201, dtype=torch.float64)
    weights = absorption(torch.full((201,), 0.7, dtype=torch.float64), distances)
    length = distances - 1 + 0.01  # the last step counts twice
    assert torch.allclose(weights.cumsum(0), 1 - torch.exp(-0.7 * length), atol=1e-6)


def test_an_opaque_sample_hides_what_is_behind() -> None:
    weights = absorption(torch.tensor([0.0, 1e4, 5.0, 5.0]), torch.tensor([1.0, 2.0, 3.0, 4.0]))
    assert torch.allclose(weights, torch.tensor([0.0, 1.0, 0.0, 0.0]), atol=1e-6)


def test_gradients_of_absorption_by_finite_differences() -> None:
    density, distances = random_ray()
    density[0, 0, 3] = 1e4  # nothing passes
    density.requires_grad_()
    assert torch.autograd.gradcheck(lambda given: absorption(given, distances.sort(-1)[0]), density)


def test_fine_samples_follow_the_weights() -> None:
    """Share of the samples in each bin between middles: its inner weight's share, to 4 standard errors."""
    distances = torch.linspace(0, 9, 10)
    weights = torch.tensor([9.0, 1.0, 0.0, 2.0, 0.0, 0.0, 4.0, 1.0, 0.0, 9.0])
    uniform = torch.rand(20_000)
    found = fine_distances(distances, weights, uniform)
    assert found.min() >= 0.5
    assert found.max() <= 8.5
    inner = weights[1:-1] / weights[1:-1].sum()
    share = torch.histc(found, 8, 0.5, 8.5) / len(found)
    assert torch.allclose(share, inner, atol=4 * (0.25 / 20_000) ** 0.5)
    inside = found[(found > 6.0) & (found < 6.5)]
    assert float(inside.mean()) == pytest.approx(6.25, abs=0.02)  # uniform within a bin


def test_fine_samples_by_a_slow_reference() -> None:
    distances, weights, uniform = torch.linspace(1, 3, 7), torch.rand(4, 7), torch.rand(4, 5)
    found = fine_distances(distances.expand(4, 7), weights, uniform)
    middles = (distances[1:] + distances[:-1]) / 2
    for ray in range(4):
        mass = weights[ray, 1:-1] + 1e-5
        cdf = [0.0, *(mass / mass.sum()).cumsum(0).tolist()]
        for k, u in enumerate(uniform[ray].tolist()):
            bin = max(i for i in range(5) if cdf[i] < u)
            expected = middles[bin] + (u - cdf[bin]) / (cdf[bin + 1] - cdf[bin]) * 2 / 6
            assert float(found[ray, k]) == pytest.approx(float(expected), abs=1e-5)


def random_ray(samples: int = 9) -> tuple[torch.Tensor, torch.Tensor]:
    """Density and distances in no order, in double precision."""
    return 4 * torch.rand(2, 3, samples).double(), 0.5 + 2.5 * torch.rand(2, 3, samples).double()


def test_distortion_is_the_double_sum() -> None:
    """Of intervals of constant weight density: the integral of |x - y| w(x) w(y), pair by pair."""
    torch.manual_seed(0)
    density, distances = random_ray()
    found = spread(density, distances, near=0.5, far=3.0)
    assert found.shape == (2, 3)
    for batch in range(2):
        for ray in range(3):
            ordered, order = distances[batch, ray].sort()
            weights = absorption(density[batch, ray][order], ordered).tolist()
            starts = ((ordered - 0.5) / 2.5).tolist()
            lengths = [b - a for a, b in pairwise(starts)]
            lengths.append(lengths[-1])
            middles = [start + length / 2 for start, length in zip(starts, lengths, strict=True)]
            expected = sum(
                a * b * abs(x - y)
                for a, x in zip(weights, middles, strict=True)
                for b, y in zip(weights, middles, strict=True)
            )
            expected += sum(w**2 * length for w, length in zip(weights, lengths, strict=True)) / 3
            assert float(found[batch, ray]) == pytest.approx(expected, abs=1e-5)


def test_distortion_in_closed_form() -> None:
    """Two opaque halves at 1 and 3 of [0, 4], each half a unit long: 2 * 1/4 * 1/2 and 2 * 1/4 * 1/8 / 3."""
    distances = torch.tensor([1.0, 1.5, 3.0, 3.5])
    density = torch.tensor([math.log(2.0) / 0.5, 0.0, 1e4, 0.0])
    assert float(spread(density, distances, 0.0, 4.0)) == pytest.approx(0.25 + 0.125 / 6, abs=1e-5)
    wall = torch.tensor([0.0, 0.0, 1e4, 0.0])
    length = 0.5 / 4
    assert float(spread(wall, distances, 0.0, 4.0)) == pytest.approx(length / 3, abs=1e-5)


def test_gradients_of_distortion_are_those_of_finite_differences() -> None:
    torch.manual_seed(1)
    density, distances = random_ray(6)
    density.requires_grad_()
    spread(density, distances, 0.5, 3.0).sum().backward()
    assert density.grad is not None
    step = 1e-2  # the sums are in float32, whose rounding is 1e-7 / step; curvature is step^2
    for sample in range(6):
        shift = torch.zeros(6).double()
        shift[sample] = step
        up, down = (
            spread(density.detach() + sign * shift, distances, 0.5, 3.0) for sign in (1, -1)
        )
        assert torch.allclose((up - down) / (2 * step), density.grad[..., sample].float(), atol=1e-4)
    assert density.grad.abs().max() > 0.01


def test_samples_beside_weights_are_worth_decoding() -> None:
    """Only the step behind the sample at 4 has weight: it and those beside it count, from 3 to before 6."""
    even = torch.arange(10.0).expand(2, 3, 10)
    weights = torch.zeros(2, 3, 10)
    weights[0, 1, 4] = 0.3
    asked = torch.tensor([2.9, 3.0, 3.5, 4.0, 4.5, 5.0, 5.9, 6.0, 0.0, 9.0]).expand(2, 3, 10)
    found = worth_decoding(weights, even, asked, 0.2)
    assert found[0, 1].tolist() == [False, True, True, True, True, True, True, False, False, False]
    assert found.sum() == 6
    assert worth_decoding(weights, even, asked, 0.4).sum() == 0


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_what_is_wanted_comes_to_the_front_and_back(share: float) -> None:
    torch.manual_seed(2)
    wanted = torch.rand(3, 20) < share
    wanted[1, 5:] = False
    values = torch.rand(3, 20)
    chosen, place = compact(wanted)
    assert chosen.shape == (3, max(1, int(wanted.sum(1).max())))
    for element in range(3):
        mine = values[element][wanted[element]]
        assert torch.equal(values[element][chosen[element]][: len(mine)], mine)
    again = values.gather(1, chosen).gather(1, place)
    assert torch.equal(again[wanted], values[wanted])
