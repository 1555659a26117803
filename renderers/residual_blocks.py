"""Residual blocks on many points for training on a GPU: little memory, few passes over it.

Of every block only what its first ReLU lets pass is kept; the backward pass computes the hidden layer
again, one of seven matrix products. The scale and shift of an element's noise level are folded into its
weights beforehand, so that the only elementwise work left is that of the two ReLUs and of the sum. What is
elementwise is summed over points for the biases' gradients in the same pass.
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

ROWS, PROGRAMS = 16, 528  # points of a pass of the kernels below, and passes at a time
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
        return _ResidualBlocks.apply(*(part.to(dtype).contiguous() for part in given))


class _ResidualBlocks(torch.autograd.Function):
    """Arguments: state (batch, points, width); first weights (batch, blocks, width, width), biases (batch,
    blocks, width); second weights (blocks, width, width), biases (blocks, width)."""

    @staticmethod
    def forward(
        ctx: Any, state: Tensor, first: Tensor, bias: Tensor, second: Tensor, second_bias: Tensor
    ) -> Tensor:
        result, passed = torch.empty_like(state), [torch.empty_like(state) for _ in second]
        change = torch.empty_like(state[0])
        for element, total in enumerate(result):
            before = state[element]
            torch.clamp(before, min=0, out=passed[0][element])
            for k in range(len(second)):
                hidden = _hidden(passed[k][element], first[element, k], bias[element, k])
                torch.addmm(second_bias[k], hidden, second[k].t(), out=change)
                _add_and_clip(before, change, total, passed[k + 1][element] if k + 1 < len(second) else None)
                before = total
        ctx.save_for_backward(first, bias, second, *passed)
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        first, bias, second, *passed = ctx.saved_tensors
        gradient = gradient.clone(memory_format=torch.contiguous_format)
        grads = [torch.zeros_like(part, dtype=torch.float32) for part in (first, bias, second, second[:, 0])]
        for element, g in enumerate(gradient):
            total = g.sum(0, dtype=torch.float32)
            for k in reversed(range(len(second))):
                active = passed[k][element]
                hidden = _hidden(active, first[element, k], bias[element, k])
                grads[2][k] += _outer(g, hidden)
                grads[3][k] += total
                inner = g @ second[k]
                grads[1][element, k] = _keep_where_positive(inner, hidden)
                del hidden
                grads[0][element, k] = _outer(inner, active)
                total = _keep_where_positive(inner @ first[element, k], active, g)
        dtypes = (first.dtype, bias.dtype, second.dtype, second.dtype)
        return gradient, *(part.to(dtype) for part, dtype in zip(grads, dtypes, strict=True))


def _hidden(active: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """relu(active weight^T + bias), the ReLU by the matrix product's own epilogue."""
    return torch._addmm_activation(bias, active, weight.t())


def _outer(left: Tensor, right: Tensor) -> Tensor:
    """(columns of left, columns of right) sum over points of their products, float32."""
    parts = math.gcd(len(left), PARTS)
    left, right = (each.unflatten(0, (parts, -1)) for each in (left, right))
    return torch.bmm(left.mT, right).sum(0, dtype=torch.float32)


def _add_and_clip(before: Tensor, change: Tensor, total: Tensor, clipped: Tensor | None) -> None:
    """total = before + change, clipped = relu(total) where wanted."""
    if not _has_kernels(total):
        torch.add(before, change, out=total)
        if clipped is not None:
            torch.clamp(total, min=0, out=clipped)
        return
    count = total.numel()
    _add_clip[(triton.cdiv(count, 4096),)](
        before, change, total, total if clipped is None else clipped, count, CLIP=clipped is not None,
        BLOCK=4096, num_warps=8,
    )


def _keep_where_positive(change: Tensor, sign: Tensor, total: Tensor | None = None) -> Tensor:
    """Sets `change` to 0 where `sign` is not positive, or adds what is left to `total`; (columns,) its sum.

    Returns:
        float32 sums over points of `change`, or of the new `total`.
    """
    into = change if total is None else total
    if not _has_kernels(change) or change.shape[1] & (change.shape[1] - 1):
        kept = change * (sign > 0)
        into.copy_(kept if total is None else total + kept)
        return into.sum(0, dtype=torch.float32)
    rows, width = change.shape
    programs = min(PROGRAMS, triton.cdiv(rows, ROWS))
    sums = change.new_empty(programs, width, dtype=torch.float32)
    _gate[(programs,)](
        change, sign, into, sums, rows, ADD=total is not None, WIDTH=width, ROWS=ROWS, num_warps=8
    )
    return sums.sum(0)


def _has_kernels(x: Tensor) -> bool:
    return triton is not None and x.is_cuda


if triton is not None:

    @triton.jit
    def _add_clip(before, change, total, clipped, count, CLIP: tl.constexpr, BLOCK: tl.constexpr):
        i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        keep = i < count
        after = tl.load(before + i, mask=keep, other=0.0).to(tl.float32)
        after += tl.load(change + i, mask=keep, other=0.0).to(tl.float32)
        tl.store(total + i, after.to(total.dtype.element_ty), mask=keep)
        if CLIP:
            tl.store(clipped + i, tl.maximum(after, 0.0).to(clipped.dtype.element_ty), mask=keep)

    @triton.jit
    def _gate(change, sign, into, sums, rows, ADD: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr):
        column = tl.arange(0, WIDTH)
        total = tl.zeros([WIDTH], dtype=tl.float32)
        for start in range(tl.program_id(0) * ROWS, rows, tl.num_programs(0) * ROWS):
            row = start + tl.arange(0, ROWS)
            at = row.to(tl.int64)[:, None] * WIDTH + column[None, :]
            keep = (row < rows)[:, None]
            value = tl.load(change + at, mask=keep, other=0.0).to(tl.float32)
            value = tl.where(tl.load(sign + at, mask=keep, other=0.0) > 0, value, 0.0)
            if ADD:
                value += tl.load(into + at, mask=keep, other=0.0).to(tl.float32)
            tl.store(into + at, value.to(into.dtype.element_ty), mask=keep)
            total += tl.sum(value, 0)
        tl.store(sums + tl.program_id(0) * WIDTH + column, total)
