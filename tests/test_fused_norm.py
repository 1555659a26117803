"""Normalisation, modulation and activation in one against their definition: plain operations, and the Triton
kernels on a GPU and interpreted."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from interpreted import check_interpreted
from torch import Tensor

from scenediff.networks import fused_norm
from scenediff.networks.fused_norm import group_norm_act

SHAPES = [  # batch, channels, height, width, groups
    (2, 16, 8, 8, 4),
    (3, 12, 5, 7, 2),  # no powers of two
    (2, 70, 3, 5, 5),  # more channels than a program reads
    (1, 96, 17, 9, 8),  # more channels and more positions than a program reads
    (2, 6, 53, 41, 3),  # the last block of positions is nearly empty
    (2, 8, 1, 1, 1),
]


def example(shape: tuple[int, ...], *, modulated: bool, dtype: torch.dtype, device: str) -> list[Tensor]:
    """x with its channels last, far from mean 0 and deviation 1; weight, bias; perhaps scale and shift."""
    batch, channels, height, width, _ = shape
    x = (torch.randn(batch, channels, height, width) * 3 + 10).contiguous(memory_format=torch.channels_last)
    parts = [x.to(device, dtype), torch.randn(channels, device=device), torch.randn(channels, device=device)]
    if modulated:  # halves of one tensor, as they come from one layer
        parts += torch.randn(batch, 2 * channels, device=device).to(dtype).chunk(2, dim=1)
    return [part.detach().requires_grad_() for part in parts]


def definition(parts: list[Tensor], groups: int, *, activation: bool) -> Tensor:
    """In float64, step after step."""
    x, weight, bias, *modulation = (part.double() for part in parts)
    grouped = x.reshape(len(x), groups, -1)
    centred = grouped - grouped.mean(2, keepdim=True)
    normed = (centred / (centred.square().mean(2, keepdim=True) + 1e-5).sqrt()).reshape(x.shape)
    out = normed * weight[:, None, None] + bias[:, None, None]
    if modulation:
        scale, shift = (part[..., None, None] for part in modulation)
        out = out * (1 + scale) + shift
    return out / (1 + (-out).exp()) if activation else out


def check(function: Callable[..., Tensor], device: str, dtype: torch.dtype, tolerance: float) -> None:
    """Values and gradients of `function`, with the arguments of `group_norm_act`, against the definition.

    Args:
        tolerance: on the largest error, in units of the largest value of its kind.
    """
    for index, shape in enumerate(SHAPES):
        for modulated in (False, True):
            parts = example(shape, modulated=modulated, dtype=dtype, device=device)
            x, weight, bias, *modulation = parts
            activation = (index + modulated) % 2 == 0
            out = function(x, shape[4], weight, bias, 1e-5, *modulation, activation=activation)
            assert out.dtype == dtype
            assert out.is_contiguous(memory_format=torch.channels_last)
            truth = definition(parts, shape[4], activation=activation)
            direction = torch.randn(shape[:4]).to(device, dtype)
            found = (out, *torch.autograd.grad(out, parts, direction))
            wanted = (truth, *torch.autograd.grad(truth, parts, direction.double()))
            for name, value, right in zip(["out", *"xwbst"], found, wanted, strict=False):
                error = (value - right).abs().max() / right.abs().max().clamp(min=1e-2)
                assert error < tolerance, (name, shape, modulated, activation, float(error))


def test_plain_operations_agree_with_the_definition() -> None:
    check(group_norm_act, "cpu", torch.float32, 5e-5)  # the mean is 3 deviations off zero: measured 2e-5
    check(group_norm_act, "cpu", torch.bfloat16, 0.03)  # 8 bits, rounded at each step


def test_half_precision_stays_under_autocast() -> None:
    x, weight, bias, scale, shift = example(SHAPES[0], modulated=True, dtype=torch.bfloat16, device="cpu")
    with torch.autocast("cpu", torch.bfloat16):
        assert group_norm_act(x, 4, weight, bias, 1e-5, scale.float(), shift.float()).dtype == torch.bfloat16
        assert group_norm_act(x.float(), 4, weight, bias, 1e-5, scale, shift).dtype == torch.float32


def test_what_does_not_fit_is_refused() -> None:
    x, weight, bias, scale, _ = example(SHAPES[0], modulated=True, dtype=torch.float32, device="cpu")
    with pytest.raises(ValueError, match="multiple of 3 channels"):
        group_norm_act(x, 3, weight, bias)
    with pytest.raises(ValueError, match="together"):
        group_norm_act(x, 4, weight, bias, scale=scale)


def check_kernels(function: Callable[..., Tensor], device: str) -> None:
    check(function, device, torch.float32, 1e-5)
    check(function, device, torch.bfloat16, 0.01)  # they round to 8 bits once


def interpreted(
    x: Tensor, num_groups: int, weight: Tensor, bias: Tensor, eps: float,
    scale: Tensor | None = None, shift: Tensor | None = None, *, activation: bool,
) -> Tensor:
    return fused_norm._GroupNormAct.apply(x, weight, bias, scale, shift, num_groups, eps, activation)


@pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs a CUDA device; the kernels are also tested interpreted"
)
def test_kernels_on_the_gpu() -> None:
    check_kernels(group_norm_act, "cuda")
    parts = example((2, 16, 8, 8, 4), modulated=False, dtype=torch.float32, device="cuda")
    rows = parts[0].detach().contiguous()
    out, same = (group_norm_act(x, 4, *parts[1:]) for x in (parts[0], rows))
    assert torch.equal(out, same)  # whatever x's layout
    far = torch.randn(1, 4, 256, 300, device="cuda") + 1000  # many blocks; squares of x would leave no digits
    one, zero = torch.ones(4, device="cuda"), torch.zeros(4, device="cuda")
    out = group_norm_act(far, 2, one, zero, activation=False)
    assert float(out.std()) == pytest.approx(1, abs=1e-3)
    assert float(out.mean()) == pytest.approx(0, abs=1e-3)


def test_kernels_interpreted_on_the_cpu() -> None:
    """Triton decides when it is imported whether to interpret, hence the process of its own."""
    pytest.importorskip("triton", reason="Triton has no wheels for this platform")
    code = (
        "from test_fused_norm import check_kernels, interpreted;"
        "import torch; torch.manual_seed(0); check_kernels(interpreted, 'cpu'); print('agreed')"
    )
    check_interpreted(code)
