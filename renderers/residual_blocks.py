"""Residual blocks on many points for training on a GPU: little memory, few passes over it.

Of every block only its input is kept; the backward pass computes the hidden layer again, one of seven matrix
products. The scale and shift of an element's noise level are folded into its weights beforehand, so that the
only elementwise work left is that of the two ReLUs and of the sum.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

try:
    import triton
    from triton import language as tl
except ImportError:  # no wheels for some platforms: plain PyTorch then
    triton = None

PARTS = 16  # of a sum over points, so that the matrix units of all multiprocessors take part


def pays(state: Tensor) -> bool:
    """Whether blocks are better computed here: half precision on a CUDA device."""
    return state.is_cuda and torch.is_autocast_enabled("cuda") and state.shape[1] > 0


def residual_blocks(
    state: Tensor,
    first: Sequence[tuple[Tensor, Tensor]],
    second: Sequence[tuple[Tensor, Tensor]],
    scale_shift: Sequence[tuple[Tensor, Tensor]],
    dtype: torch.dtype,
) -> Tensor:
    """(batch, points, width) of `dtype` from the same: for each block x + second(relu(m(first(relu(x))))).

    Args:
        first, second: weight and bias of each block's layers. scale_shift: of each block's m, y (1 + scale) +
            shift; (batch, 1, width) each.
    """
    with torch.autocast(state.device.type, enabled=False):
        scale, shift = (torch.cat(parts, 1).float() for parts in zip(*scale_shift, strict=True))
        weight, bias = (torch.stack(parts) for parts in zip(*first, strict=True))
        weight, bias = weight * (1 + scale)[..., None], bias * (1 + scale) + shift
        weight2, bias2 = (torch.stack(parts) for parts in zip(*second, strict=True))
        given = (state, weight, bias, weight2, bias2)
        return _ResidualBlocks.apply(*(part.to(dtype) for part in given))


class _ResidualBlocks(torch.autograd.Function):
    """Arguments: state (batch, points, width); first weights (batch, blocks, width, width), biases (batch,
    blocks, width); second weights (blocks, width, width), biases (blocks, width)."""

    @staticmethod
    def forward(
        ctx: Any, state: Tensor, first: Tensor, bias: Tensor, second: Tensor, second_bias: Tensor
    ) -> Tensor:
        states = [state.contiguous()]
        for k in range(len(second)):
            following = torch.empty_like(states[-1])
            for element, x in enumerate(states[-1]):
                hidden = _hidden(x, first[element, k], bias[element, k])
                torch.addmm(second_bias[k], hidden, second[k].t(), out=following[element])
                following[element].add_(x)
            states.append(following)
        ctx.save_for_backward(first, bias, second, *states[:-1])
        return states[-1]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        first, bias, second, *states = ctx.saved_tensors
        gradient = gradient.clone(memory_format=torch.contiguous_format)
        grads = [torch.zeros_like(part, dtype=torch.float32) for part in (first, bias, second, second[:, 0])]
        for k in reversed(range(len(second))):
            for element, (x, g) in enumerate(zip(states[k], gradient, strict=True)):
                active = x.relu()
                hidden = _hidden(x, first[element, k], bias[element, k], active)
                grads[2][k] += _outer(g, hidden)
                grads[3][k] += g.sum(0, dtype=torch.float32)
                inner = torch.ops.aten.threshold_backward(g @ second[k], hidden, 0)
                del hidden
                grads[0][element, k] = _outer(inner, active)
                grads[1][element, k] = inner.sum(0, dtype=torch.float32)
                _add_where_positive(g, inner @ first[element, k], x)
        dtypes = (first.dtype, bias.dtype, second.dtype, second.dtype)
        return gradient, *(part.to(dtype) for part, dtype in zip(grads, dtypes, strict=True))


def _hidden(x: Tensor, weight: Tensor, bias: Tensor, active: Tensor | None = None) -> Tensor:
    """relu(relu(x) weight^T + bias), the second ReLU by the matrix product's own epilogue."""
    return torch._addmm_activation(bias, x.relu() if active is None else active, weight.t())


def _outer(left: Tensor, right: Tensor) -> Tensor:
    """(columns of left, columns of right) sum over points of their products, float32."""
    parts = math.gcd(len(left), PARTS)
    left, right = (each.unflatten(0, (parts, -1)) for each in (left, right))
    return torch.bmm(left.mT, right).sum(0, dtype=torch.float32)


def _add_where_positive(total: Tensor, change: Tensor, sign: Tensor) -> None:
    """total += change, where `sign` is positive."""
    if triton is None or not total.is_cuda:
        total += change * (sign > 0)
        return
    count = total.numel()
    _add_where[(triton.cdiv(count, 4096),)](total, change, sign, count, BLOCK=4096, num_warps=8)


if triton is not None:

    @triton.jit
    def _add_where(total, change, sign, count, BLOCK: tl.constexpr):
        i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        keep = i < count
        before = tl.load(total + i, mask=keep, other=0.0).to(tl.float32)
        added = tl.load(change + i, mask=keep, other=0.0).to(tl.float32)
        positive = tl.load(sign + i, mask=keep, other=0.0) > 0
        after = before + tl.where(positive, added, 0.0)
        tl.store(total + i, after.to(total.dtype.element_ty), mask=keep)
