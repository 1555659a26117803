"""The optimizer of matrices: against singular value decompositions, on problems with known answers."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from scenediff.muon import TYPICAL_STEP, Muon, orthogonalised


def with_singular_values(values: Tensor, rows: int, columns: int, seed: int) -> tuple[Tensor, Tensor]:
    """A matrix (1, rows, columns) and the nearest one whose singular values are all 1."""
    generator = torch.Generator().manual_seed(seed)
    left, _ = torch.linalg.qr(torch.randn(rows, len(values), generator=generator, dtype=torch.float64))
    right, _ = torch.linalg.qr(torch.randn(columns, len(values), generator=generator, dtype=torch.float64))
    return ((left * values) @ right.mT).float()[None], (left @ right.mT).float()[None]


@pytest.mark.parametrize(("rows", "columns"), [(12, 12), (8, 40), (40, 8)])
def test_singular_values_become_equal_and_vectors_stay(rows: int, columns: int) -> None:
    values = torch.logspace(0, -1.5, min(rows, columns), dtype=torch.float64)
    matrix, polar = with_singular_values(values, rows, columns, seed=0)
    made = orthogonalised(7e-5 * matrix)  # whatever the size of gradients
    found = torch.linalg.svdvals(made[0])
    assert found.min() > 0.6  # the quintic settles in (0.68, 1.21), from 0.03 upwards after five rounds
    assert found.max() < 1.25
    # the polar factor's vectors: the product with its transpose is symmetric and positive, to float32
    product = made[0] @ polar[0].mT
    torch.testing.assert_close(product, product.mT, atol=1e-4, rtol=0)
    assert torch.linalg.eigvalsh(product).min() > -1e-4


def test_a_batch_is_treated_matrix_by_matrix() -> None:
    matrices = torch.randn(3, 6, 10, generator=torch.Generator().manual_seed(1))
    one_by_one = torch.cat([orthogonalised(matrix[None]) for matrix in matrices])
    torch.testing.assert_close(orthogonalised(matrices), one_by_one)


def test_no_gradient_gives_no_step() -> None:
    assert torch.equal(orthogonalised(torch.zeros(1, 4, 5)), torch.zeros(1, 4, 5))
    parameter = nn.Parameter(torch.ones(3, 3))
    Muon([parameter]).step()
    assert torch.equal(parameter.detach(), torch.ones(3, 3))


def test_first_steps_by_hand() -> None:
    """Nesterov's momentum, weight decay and the size of AdamW's steps, on two convolutions of one shape."""
    generator = torch.Generator().manual_seed(2)
    convolutions = [nn.Conv2d(4, 6, 3, bias=False) for _ in range(2)]
    parameters = [conv.weight for conv in convolutions]
    parameters[1].data = parameters[1].data.contiguous(memory_format=torch.channels_last)
    expected = [parameter.detach().clone() for parameter in parameters]
    momenta = [torch.zeros(6, 36) for _ in parameters]
    optimizer = Muon(parameters, lr=0.01, momentum=0.9, weight_decay=0.1)
    for _ in range(3):
        for index, parameter in enumerate(parameters):
            parameter.grad = torch.randn(parameter.shape, generator=generator)
            flat = parameter.grad.flatten(1)
            momenta[index] = 0.9 * momenta[index] + 0.1 * flat
            ahead = 0.9 * momenta[index] + 0.1 * flat
            step = orthogonalised(ahead[None])[0].view(parameter.shape)
            expected[index] = expected[index] * (1 - 0.01 * 0.1) - 0.01 * TYPICAL_STEP * 6 * step
        optimizer.step()
    for parameter, wanted in zip(parameters, expected, strict=True):
        torch.testing.assert_close(parameter.detach(), wanted)
    assert parameters[1].is_contiguous(memory_format=torch.channels_last)


def test_steps_are_about_as_large_as_adamws() -> None:
    parameter = nn.Parameter(torch.zeros(32, 16, 3, 3))
    parameter.grad = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3))
    Muon([parameter], lr=1.0, weight_decay=0.0).step()
    rms = parameter.detach().square().mean().sqrt()
    # 0.2 for singular values of 1, which end between 0.68 and 1.21
    assert float(rms) == pytest.approx(TYPICAL_STEP, rel=0.3)


def test_rare_directions_are_learned_as_fast_as_common_ones() -> None:
    """Regression whose inputs' deviations span a factor of 100: the gradient hardly shows the rare ones."""
    generator = torch.Generator().manual_seed(4)
    deviations = torch.logspace(0, -2, 16)
    goal = torch.randn(8, 16, generator=generator)

    def missing(optimizer_of) -> Tensor:
        layer = nn.Linear(16, 8, bias=False)
        nn.init.zeros_(layer.weight)
        optimizer = optimizer_of([layer.weight])
        for step in range(300):
            for group in optimizer.param_groups:
                group["lr"] = 0.1 * (1 - step / 300)
            optimizer.zero_grad()
            (((layer.weight - goal) * deviations).square().sum() / 2).backward()
            optimizer.step()
        return (layer.weight.detach() - goal).square().mean().sqrt()

    plain = missing(lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.95))
    assert missing(lambda parameters: Muon(parameters, weight_decay=0.0)) < 0.5 * plain  # 0.3 here


def test_state_is_kept_and_restored() -> None:
    generator = torch.Generator().manual_seed(5)
    gradients = [torch.randn(5, 7, generator=generator) for _ in range(4)]

    def train(parameter: nn.Parameter, optimizer: Muon, steps: list[Tensor]) -> Tensor:
        for gradient in steps:
            parameter.grad = gradient
            optimizer.step()
        return parameter.detach()

    whole = nn.Parameter(torch.zeros(5, 7))
    through = train(whole, Muon([whole]), gradients)
    half = nn.Parameter(torch.zeros(5, 7))
    first = Muon([half])
    train(half, first, gradients[:2])
    rest = nn.Parameter(half.detach().clone())
    second = Muon([rest])
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    torch.testing.assert_close(train(rest, second, gradients[2:]), through)


def test_vectors_are_refused() -> None:
    with pytest.raises(ValueError, match=r"matrices are wanted, got parameters of shapes \[\(3,\)\]"):
        Muon([nn.Parameter(torch.zeros(3))])
