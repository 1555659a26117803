"""Group normalisation, modulation and SiLU of convolutional maps as one operation.

`group_norm_act_reference` says what is computed. On a CUDA device maps lie with their channels last, as
convolutions want them, and Triton kernels read them twice and write once, forward and backward:

    moments of blocks of positions -> one affine map y = a (x - mean) + b for each (element, channel) -> apply
    sums of blocks of positions -> all small gradients -> apply

What the kernels exchange is float32, sums come in a fixed order, only x and the affine maps are kept.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

try:
    import triton
    from triton import language as tl
except ImportError:  # Triton has no wheels for some platforms; CUDA tensors then use the reference as well
    triton = None


def group_norm_act(
    x: Tensor, num_groups: int, weight: Tensor, bias: Tensor, eps: float = 1e-5,
    scale: Tensor | None = None, shift: Tensor | None = None, *, activation: bool = True,
) -> Tensor:
    """silu((1 + scale) * group_norm(x) + shift); without modulation or activation where not wanted.

    Args:
        x: (batch, channels, height, width); on CUDA devices best with its channels last in memory.
        num_groups: a divisor of the channels; statistics are in float32.
        weight, bias: (channels,).
        eps: added to the variance.
        scale, shift: (batch, channels), both or neither.
        activation: end with SiLU.

    Returns:
        a tensor like x; with its channels last in memory on CUDA devices.
    """
    if x.dim() != 4 or x.shape[1] % num_groups:
        raise ValueError(f"x must be (batch, a multiple of {num_groups} channels, height, width), "
                         f"got {tuple(x.shape)}")
    if (scale is None) != (shift is None):
        raise ValueError("scale and shift must be given together")
    if x.is_cuda and triton is not None and x.dtype != torch.float64 and x.numel():
        return _GroupNormAct.apply(x, weight, bias, scale, shift, num_groups, eps, activation)
    return group_norm_act_reference(x, num_groups, weight, bias, eps, scale, shift, activation=activation)


def group_norm_act_reference(
    x: Tensor, num_groups: int, weight: Tensor, bias: Tensor, eps: float = 1e-5,
    scale: Tensor | None = None, shift: Tensor | None = None, *, activation: bool = True,
) -> Tensor:
    """The same by plain operations: any device."""
    with torch.autocast(x.device.type, enabled=False):  # autocast would widen x
        x = functional.group_norm(x, num_groups, weight.to(x.dtype), bias.to(x.dtype), eps)
    if scale is not None and shift is not None:
        x = x * (1 + scale[..., None, None].to(x.dtype)) + shift[..., None, None].to(x.dtype)
    return functional.silu(x) if activation else x


if triton is not None:

    @triton.jit
    def _tile(positions, channels, ROWS: tl.constexpr, LANES: tl.constexpr):
        """This program's channels; start and offsets in (batch, positions, channels); which of them exist."""
        channel = tl.program_id(0) * LANES + tl.arange(0, LANES)
        position = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
        start = tl.program_id(2).to(tl.int64) * positions * channels
        offset = position[:, None] * channels + channel[None, :]
        return channel, start, offset, (position < positions)[:, None] & (channel < channels)[None, :]

    @triton.jit
    def _load_row(rows_ptr, row, channel, channels):
        """A row of this program's element of (batch, rows, channels), with an axis of positions before it."""
        return tl.load(rows_ptr + row * channels + channel, mask=channel < channels, other=0.0)[None, :]

    @triton.jit
    def _store_partial(partial_ptr, first, second, channel, channels):
        """Writes two sums over this program's positions into (batch, blocks, 2, channels)."""
        block = tl.program_id(2) * tl.num_programs(1) + tl.program_id(1)
        target = partial_ptr + block * 2 * channels + channel
        tl.store(target, first, mask=channel < channels)
        tl.store(target + channels, second, mask=channel < channels)

    @triton.jit
    def _load_partial(partial_ptr, block, blocks, channel, lane_keep, channels):
        """Both sums of blocks of positions, (blocks, channels) of this program's element and group."""
        offset = (tl.program_id(1) * blocks + block)[:, None] * 2 * channels + channel[None, :]
        keep = (block < blocks)[:, None] & lane_keep[None, :]
        first = tl.load(partial_ptr + offset, mask=keep, other=0.0)
        return first, tl.load(partial_ptr + offset + channels, mask=keep, other=0.0)

    @triton.jit
    def _load_modulated(
        weight_ptr, bias_ptr, scale_ptr, shift_ptr, scale_stride, shift_stride, channel, keep,
        MODULATED: tl.constexpr,
    ):
        """Weight, bias, 1 + scale and shift of this program's element and group."""
        weight = tl.load(weight_ptr + channel, mask=keep, other=0.0).to(tl.float32)
        bias = tl.load(bias_ptr + channel, mask=keep, other=0.0).to(tl.float32)
        factor = tl.full(channel.shape, 1.0, tl.float32)
        shift = tl.zeros(channel.shape, tl.float32)
        if MODULATED:
            scale_ptr += tl.program_id(1) * scale_stride
            shift_ptr += tl.program_id(1) * shift_stride
            factor += tl.load(scale_ptr + channel, mask=keep, other=0.0).to(tl.float32)
            shift += tl.load(shift_ptr + channel, mask=keep, other=0.0).to(tl.float32)
        return weight, bias, factor, shift

    @triton.jit
    def _moments_kernel(x_ptr, partial_ptr, positions, channels, ROWS: tl.constexpr, LANES: tl.constexpr):
        """Mean and sum of squared deviations from it, of each channel in a block of positions."""
        channel, start, offset, keep = _tile(positions, channels, ROWS, LANES)
        x = tl.load(x_ptr + start + offset, mask=keep, other=0.0).to(tl.float32)
        mean = tl.sum(x, axis=0) / tl.minimum(positions - tl.program_id(1) * ROWS, ROWS)
        deviation = tl.where(keep, x - mean[None, :], 0.0)
        _store_partial(partial_ptr, mean, tl.sum(deviation * deviation, axis=0), channel, channels)

    @triton.jit
    def _affine_kernel(
        weight_ptr, bias_ptr, scale_ptr, shift_ptr, scale_stride, shift_stride, partial_ptr, affine_ptr,
        eps, rows, positions, channels, group_channels, blocks,
        BLOCKS: tl.constexpr, LANES: tl.constexpr, MODULATED: tl.constexpr,
    ):
        """a, b, mean and 1 / standard deviation of each channel of a group, rows of (batch, 4, channels)."""
        lane = tl.arange(0, LANES)
        keep = lane < group_channels
        channel = tl.program_id(0) * group_channels + lane
        weight, bias, factor, shift = _load_modulated(
            weight_ptr, bias_ptr, scale_ptr, shift_ptr, scale_stride, shift_stride, channel, keep, MODULATED
        )
        total = positions * group_channels
        mean = 0.0
        variance = 0.0
        for start in range(0, blocks, BLOCKS):
            block = start + tl.arange(0, BLOCKS)
            means, _ = _load_partial(partial_ptr, block, blocks, channel, keep, channels)
            counts = tl.maximum(tl.minimum(positions - block * rows, rows), 0)[:, None]
            mean += tl.sum(tl.sum(means * counts, axis=1), axis=0) / total
        for start in range(0, blocks, BLOCKS):
            block = start + tl.arange(0, BLOCKS)
            means, squares = _load_partial(partial_ptr, block, blocks, channel, keep, channels)
            counts = tl.maximum(tl.minimum(positions - block * rows, rows), 0)[:, None]
            deviation = tl.where(keep[None, :], means - mean, 0.0)
            squares += counts * deviation * deviation
            variance += tl.sum(tl.sum(squares, axis=1), axis=0) / total
        rstd = 1 / tl.sqrt(variance + eps)
        target = affine_ptr + tl.program_id(1) * 4 * channels + channel
        tl.store(target, rstd * weight * factor, mask=keep)
        tl.store(target + channels, bias * factor + shift, mask=keep)
        tl.store(target + 2 * channels, mean, mask=keep)
        tl.store(target + 3 * channels, rstd, mask=keep)

    @triton.jit
    def _apply_kernel(
        x_ptr, affine_ptr, out_ptr, positions, channels,
        ROWS: tl.constexpr, LANES: tl.constexpr, ACTIVATION: tl.constexpr,
    ):
        channel, start, offset, keep = _tile(positions, channels, ROWS, LANES)
        x = tl.load(x_ptr + start + offset, mask=keep, other=0.0).to(tl.float32)
        rows = affine_ptr + tl.program_id(2) * 4 * channels
        z = (x - _load_row(rows, 2, channel, channels)) * _load_row(rows, 0, channel, channels)
        z += _load_row(rows, 1, channel, channels)
        if ACTIVATION:
            z *= tl.sigmoid(z)
        tl.store(out_ptr + start + offset, z.to(out_ptr.dtype.element_ty), mask=keep)

    @triton.jit
    def _centre_and_gradient(
        x_ptr, grad_ptr, rows_ptr, start, offset, keep, channel, channels, ACTIVATION: tl.constexpr
    ):
        """x - mean, and the gradient before the activation."""
        x = tl.load(x_ptr + start + offset, mask=keep, other=0.0).to(tl.float32)
        grad = tl.load(grad_ptr + start + offset, mask=keep, other=0.0).to(tl.float32)
        centred = x - _load_row(rows_ptr, 2, channel, channels)
        if ACTIVATION:
            z = centred * _load_row(rows_ptr, 0, channel, channels)
            z += _load_row(rows_ptr, 1, channel, channels)
            sigmoid = tl.sigmoid(z)
            grad *= sigmoid * (1 + z * (1 - sigmoid))
        return centred, grad

    @triton.jit
    def _grad_sums_kernel(
        x_ptr, grad_ptr, affine_ptr, partial_ptr, positions, channels,
        ROWS: tl.constexpr, LANES: tl.constexpr, ACTIVATION: tl.constexpr,
    ):
        """Sums of the gradient before the activation, and of it times the normalised x, over positions."""
        channel, start, offset, keep = _tile(positions, channels, ROWS, LANES)
        rows = affine_ptr + tl.program_id(2) * 4 * channels
        centred, grad = _centre_and_gradient(
            x_ptr, grad_ptr, rows, start, offset, keep, channel, channels, ACTIVATION
        )
        product = grad * (centred * _load_row(rows, 3, channel, channels))
        _store_partial(partial_ptr, tl.sum(grad, axis=0), tl.sum(product, axis=0), channel, channels)

    @triton.jit
    def _grad_terms_kernel(
        weight_ptr, bias_ptr, scale_ptr, shift_ptr, scale_stride, shift_stride, partial_ptr, affine_ptr,
        terms_ptr, grad_scale_ptr, grad_shift_ptr,
        positions, channels, group_channels, blocks,
        BLOCKS: tl.constexpr, LANES: tl.constexpr, MODULATED: tl.constexpr,
    ):
        """Gradients of scale and shift, and four rows of (batch, 4, channels): what the statistics add to x's
        gradient, in itself and for each unit of x - mean; this element's shares of weight's and bias'."""
        lane = tl.arange(0, LANES)
        keep = lane < group_channels
        channel = tl.program_id(0) * group_channels + lane
        weight, bias, factor, _ = _load_modulated(
            weight_ptr, bias_ptr, scale_ptr, shift_ptr, scale_stride, shift_stride, channel, keep, MODULATED
        )
        plain = tl.zeros((LANES,), tl.float32)
        product = tl.zeros((LANES,), tl.float32)
        for start in range(0, blocks, BLOCKS):
            block = start + tl.arange(0, BLOCKS)
            first, second = _load_partial(partial_ptr, block, blocks, channel, keep, channels)
            plain += tl.sum(first, axis=0)
            product += tl.sum(second, axis=0)
        element = tl.program_id(1)
        rstd = tl.load(affine_ptr + element * 4 * channels + 3 * channels + channel, mask=keep, other=0.0)
        rate = rstd / (positions * group_channels)
        target = terms_ptr + element * 4 * channels + channel
        tl.store(target, -rate * tl.sum(weight * factor * plain, axis=0), mask=keep)
        tl.store(target + channels, -rate * rstd * tl.sum(weight * factor * product, axis=0), mask=keep)
        tl.store(target + 2 * channels, factor * product, mask=keep)
        tl.store(target + 3 * channels, factor * plain, mask=keep)
        if MODULATED:
            modulation = element * channels + channel
            grad_scale = weight * product + bias * plain
            tl.store(grad_scale_ptr + modulation, grad_scale.to(grad_scale_ptr.dtype.element_ty), mask=keep)
            tl.store(grad_shift_ptr + modulation, plain.to(grad_shift_ptr.dtype.element_ty), mask=keep)

    @triton.jit
    def _grad_apply_kernel(
        x_ptr, grad_ptr, affine_ptr, terms_ptr, out_ptr, positions, channels,
        ROWS: tl.constexpr, LANES: tl.constexpr, ACTIVATION: tl.constexpr,
    ):
        channel, start, offset, keep = _tile(positions, channels, ROWS, LANES)
        rows = affine_ptr + tl.program_id(2) * 4 * channels
        terms = terms_ptr + tl.program_id(2) * 4 * channels
        centred, grad = _centre_and_gradient(
            x_ptr, grad_ptr, rows, start, offset, keep, channel, channels, ACTIVATION
        )
        grad = grad * _load_row(rows, 0, channel, channels) + _load_row(terms, 0, channel, channels)
        grad += centred * _load_row(terms, 1, channel, channels)
        tl.store(out_ptr + start + offset, grad.to(out_ptr.dtype.element_ty), mask=keep)


class _Launch(NamedTuple):
    """Programs of a kernel, and the arguments that follow its tensors."""

    grid: tuple[int, ...]
    sizes: tuple[int, ...]
    options: dict[str, Any]


def _launches(x: Tensor, num_groups: int, modulated: bool) -> tuple[_Launch, _Launch]:
    """For kernels with a program for each block of positions and channels, and for each group."""
    batch, channels, height, width = x.shape
    positions, group_channels = height * width, channels // num_groups
    lanes = min(64, triton.next_power_of_2(channels))  # in half precision, a line of the cache
    rows = min(8192 // lanes, triton.next_power_of_2(positions))
    blocks = triton.cdiv(positions, rows)
    tiles = _Launch(
        (triton.cdiv(channels, lanes), blocks, batch), (positions, channels),
        {"ROWS": rows, "LANES": lanes, "num_warps": 8},
    )
    lanes = triton.next_power_of_2(group_channels)
    at_once = min(max(1, 1024 // lanes), triton.next_power_of_2(blocks))
    groups = _Launch(
        (num_groups, batch), (positions, channels, group_channels, blocks),
        {"BLOCKS": at_once, "LANES": lanes, "MODULATED": modulated, "num_warps": 1},
    )
    return tiles, groups


class _GroupNormAct(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx, x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor | None, shift: Tensor | None,
        num_groups: int, eps: float, activation: bool,
    ) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        tiles, groups = _launches(x, num_groups, scale is not None)
        channels, blocks, batch = x.shape[1], tiles.grid[1], len(x)
        partial = torch.empty(batch, blocks, 2, channels, dtype=torch.float32, device=x.device)
        affine = torch.empty(batch, 4, channels, dtype=torch.float32, device=x.device)
        out = torch.empty_like(x)
        _moments_kernel[tiles.grid](x, partial, *tiles.sizes, **tiles.options)
        _affine_kernel[groups.grid](
            *_parameters(weight, bias, scale, shift), partial, affine, eps, tiles.options["ROWS"],
            *groups.sizes, **groups.options,
        )
        _apply_kernel[tiles.grid](x, affine, out, *tiles.sizes, **tiles.options, ACTIVATION=activation)
        ctx.save_for_backward(x, weight, bias, scale, shift, affine)
        ctx.num_groups, ctx.activation = num_groups, activation
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, scale, shift, affine = ctx.saved_tensors
        grad_out = grad_out.contiguous(memory_format=torch.channels_last)
        tiles, groups = _launches(x, ctx.num_groups, scale is not None)
        channels, blocks, batch = x.shape[1], tiles.grid[1], len(x)
        partial = torch.empty(batch, blocks, 2, channels, dtype=torch.float32, device=x.device)
        terms, grad_x = torch.empty_like(affine), torch.empty_like(x)
        grad_scale, grad_shift = (
            None if part is None else torch.empty_like(part, memory_format=torch.contiguous_format)
            for part in (scale, shift)
        )
        _grad_sums_kernel[tiles.grid](
            x, grad_out, affine, partial, *tiles.sizes, **tiles.options, ACTIVATION=ctx.activation
        )
        _grad_terms_kernel[groups.grid](
            *_parameters(weight, bias, scale, shift), partial, affine, terms,
            *(affine if part is None else part for part in (grad_scale, grad_shift)),
            *groups.sizes, **groups.options,
        )
        _grad_apply_kernel[tiles.grid](
            x, grad_out, affine, terms, grad_x, *tiles.sizes, **tiles.options, ACTIVATION=ctx.activation
        )
        grad_weight, grad_bias = terms[:, 2:].sum(0).to(weight.dtype)
        return grad_x, grad_weight, grad_bias, grad_scale, grad_shift, None, None, None


def _parameters(
    weight: Tensor, bias: Tensor, scale: Tensor | None, shift: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, int, int]:
    """What the groups' kernels begin with; without modulation they read no scale and no shift."""
    if scale is None or shift is None:
        return weight, bias, weight, bias, 0, 0
    scale, shift = (part if part.stride(1) == 1 else part.contiguous() for part in (scale, shift))
    return weight, bias, scale, shift, scale.stride(0), shift.stride(0)
