"""Residual blocks with a backward pass of their own, against autograd through the plain ones."""

from __future__ import annotations

import pytest
import torch
from interpreted import check_interpreted
from torch import Tensor

from scenediff.renderers import residual_blocks
from scenediff.renderers.volume_field import PointNetwork, VolumeConfig


def outcome(device: str, fast: bool, dtype: torch.dtype) -> tuple[Tensor, list[Tensor]]:
    """The blocks' result, and gradients of the state, the timestep's embedding and all weights."""
    torch.manual_seed(0)
    network = PointNetwork(VolumeConfig(width=16, map_channels=4)).to(device)
    state = torch.randn(2, 24, 16).to(device).requires_grad_()
    modulation = network.modulations(torch.tensor([3.0, 400.0], device=device))
    if fast:
        layers = [[(layer.weight, layer.bias) for layer in part] for part in zip(*(
            (block.first, block.second) for block in network.blocks), strict=True)]
        result = residual_blocks.residual_blocks(state, *layers, modulation, dtype)
    else:
        result = state
        for block, scale_shift in zip(network.blocks, modulation, strict=True):
            result = block(result, scale_shift)
    weights = torch.randn(result.shape, generator=torch.Generator().manual_seed(1)).to(device)
    (result.float() * weights).sum().backward()
    grads = {name: value.grad for name, value in network.named_parameters() if value.grad is not None}
    assert any("modulation" in name for name in grads)
    assert any("time" in name for name in grads)
    return result.detach().float(), [state.grad, *grads.values()]


def relative(found: Tensor, wanted: Tensor) -> float:
    return float((found.float() - wanted).norm() / wanted.norm())


def compare(device: str, dtype: torch.dtype, tolerance: float) -> None:
    expected, expected_grads = outcome(device, False, dtype)
    found, grads = outcome(device, True, dtype)
    assert relative(found, expected) < tolerance
    assert len(grads) == len(expected_grads)
    for one, other in zip(grads, expected_grads, strict=True):
        assert relative(one, other) < tolerance


def test_values_and_gradients() -> None:
    compare("cpu", torch.float32, 1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_values_and_gradients_on_a_gpu() -> None:
    compare("cuda", torch.float32, 1e-4)
    compare("cuda", torch.bfloat16, 0.12)  # so few points in half precision: up to 0.09 by plain PyTorch, too


def test_interpreted_kernels() -> None:
    check_interpreted(
        """
import torch
import test_residual_blocks as tests
tests.residual_blocks._has_kernels = lambda x: True
tests.residual_blocks.PROGRAMS = 1  # so that a program has two passes
tests.compare("cpu", torch.float32, 1e-5)
print("agreed")
"""
    )


def test_it_is_for_half_precision_on_a_gpu() -> None:
    assert not residual_blocks.pays(torch.zeros(1, 2, 16))
