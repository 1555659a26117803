"""Bilinear look-ups of image-aligned features at scattered points, the renderer's memory-bound inner step.

`torch.nn.functional.grid_sample` is the reference. What runs reads the map with its channels last, so that a
point's channels are neighbours in memory, and returns them so: on the CPU as a weighted bag of the four
pixels' embeddings (three times as fast, and what follows is spared strided reads), on a CUDA device by a
Triton kernel, which keeps bfloat16 maps in bfloat16 under autocast and scatters gradients in float32. All
have the same values and gradients with respect to the map.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

try:
    import triton
    from triton import language as tl
except ImportError:  # Triton has no wheels for some platforms; CUDA tensors then use grid_sample as well
    triton = None


FEW_CHANNELS = 8  # below, grid_sample is as fast
RUN, RUN_CHANNELS = 64, 32  # points whose gradients one program adds up, and from how many channels it does


def sample_map(image_map: Tensor, grid: Tensor) -> Tensor:
    """Looks a map up at points; coordinates outside are clamped to the border's pixel centres.

    Args:
        image_map: (batch, channels, height, width).
        grid: (batch, points, 2) x, y in [-1, 1] from the image's left/top to its right/bottom EDGE; gradients
            with respect to it are only kept if it requires them, at grid_sample's speed.

    Returns:
        (batch, points, channels), of the map's dtype, a point's channels side by side in memory.
    """
    if image_map.is_cuda and triton is not None and not grid.requires_grad and grid.shape[1]:
        return _GatherBilinear.apply(image_map, grid)
    if not image_map.is_cuda and image_map.shape[1] >= FEW_CHANNELS and grid.shape[1] and len(grid):
        return _gather_rows(image_map, grid)
    return gather_reference(image_map, grid)


def _gather_rows(image_map: Tensor, grid: Tensor) -> Tensor:
    batch, channels, height, width = image_map.shape
    rows = image_map.permute(0, 2, 3, 1).reshape(-1, channels)  # a view of maps with their channels last
    x = ((grid[..., 0] + 1) * (width / 2) - 0.5).clamp(0, width - 1)
    y = ((grid[..., 1] + 1) * (height / 2) - 0.5).clamp(0, height - 1)
    left, top = x.detach().floor(), y.detach().floor()
    fx, fy = x - left, y - top
    first = torch.arange(batch, device=grid.device)[:, None] * (height * width)
    left, top = left.long(), first + top.long() * width
    right, bottom = (left + 1).clamp(max=width - 1), (top + width).clamp(max=first + (height - 1) * width)
    index = torch.stack([top + left, top + right, bottom + left, bottom + right], dim=-1)
    weight = torch.stack([(1 - fx) * (1 - fy), fx * (1 - fy), (1 - fx) * fy, fx * fy], dim=-1)
    values = functional.embedding_bag(
        index.flatten(0, 1), rows, per_sample_weights=weight.flatten(0, 1).to(rows.dtype), mode="sum"
    )
    return values.unflatten(0, (batch, -1))


def gather_reference(image_map: Tensor, grid: Tensor) -> Tensor:
    """The same by `grid_sample`: any device, differentiable in the grid too."""
    with torch.autocast(image_map.device.type, enabled=False):
        values = functional.grid_sample(
            image_map, grid[:, None].to(image_map.dtype),
            mode="bilinear", padding_mode="border", align_corners=False,
        )
    return values[:, :, 0].transpose(1, 2)


if triton is not None:

    @triton.jit
    def _corners(grid_ptr, point, mask, height, width):
        """Offsets of the four pixels around each point and the point's fractions between them."""
        x = (tl.load(grid_ptr + 2 * point, mask=mask, other=0.0) + 1) * width * 0.5 - 0.5
        y = (tl.load(grid_ptr + 2 * point + 1, mask=mask, other=0.0) + 1) * height * 0.5 - 0.5
        x = tl.minimum(tl.maximum(x, 0.0), width - 1.0)
        y = tl.minimum(tl.maximum(y, 0.0), height - 1.0)
        left = tl.floor(x).to(tl.int32)
        top = tl.floor(y).to(tl.int32)
        right = tl.minimum(left + 1, width - 1)
        bottom = tl.minimum(top + 1, height - 1)
        return left, right, top, bottom, x - left, y - top

    @triton.jit
    def _gather_kernel(
        map_ptr, grid_ptr, out_ptr, points, height, width, channels, BLOCK: tl.constexpr, WIDTH: tl.constexpr
    ):
        batch = tl.program_id(1).to(tl.int64)
        point = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        mask = point < points
        left, right, top, bottom, fx, fy = _corners(grid_ptr + batch * points * 2, point, mask, height, width)
        channel = tl.arange(0, WIDTH)
        keep = mask[:, None] & (channel < channels)[None, :]
        base = map_ptr + batch * height * width * channels + channel[None, :]
        a = tl.load(base + ((top * width + left) * channels)[:, None], mask=keep, other=0.0)
        b = tl.load(base + ((top * width + right) * channels)[:, None], mask=keep, other=0.0)
        c = tl.load(base + ((bottom * width + left) * channels)[:, None], mask=keep, other=0.0)
        d = tl.load(base + ((bottom * width + right) * channels)[:, None], mask=keep, other=0.0)
        a, b, c, d = a.to(tl.float32), b.to(tl.float32), c.to(tl.float32), d.to(tl.float32)
        upper = a + (b - a) * fx[:, None]
        lower = c + (d - c) * fx[:, None]
        value = upper + (lower - upper) * fy[:, None]
        out = out_ptr + batch * points * channels + point[:, None] * channels + channel[None, :]
        tl.store(out, value.to(out_ptr.dtype.element_ty), mask=keep)

    @triton.jit
    def _add_corners(base, a, b, c, d, left, top, height, width, channels, lanes):
        """Adds to the four pixels around positions what is not 0: many points lie outside of the view."""
        right = tl.minimum(left + 1, width - 1)
        bottom = tl.minimum(top + 1, height - 1)
        tl.atomic_add(base + (top * width + left) * channels, a, mask=lanes & (a != 0.0), sem="relaxed")
        tl.atomic_add(base + (top * width + right) * channels, b, mask=lanes & (b != 0.0), sem="relaxed")
        tl.atomic_add(base + (bottom * width + left) * channels, c, mask=lanes & (c != 0.0), sem="relaxed")
        tl.atomic_add(base + (bottom * width + right) * channels, d, mask=lanes & (d != 0.0), sem="relaxed")

    @triton.jit
    def _scatter_kernel(
        grad_out_ptr, grid_ptr, grad_map_ptr, points, row, height, width, channels,
        BLOCK: tl.constexpr, WIDTH: tl.constexpr,
    ):
        batch = tl.program_id(1).to(tl.int64)
        point = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        mask = point < points
        left, _, top, _, fx, fy = _corners(grid_ptr + batch * points * 2, point, mask, height, width)
        channel = tl.arange(0, WIDTH)
        keep = mask[:, None] & (channel < channels)[None, :]
        out = grad_out_ptr + (batch * points + point)[:, None] * row + channel[None, :]
        grad = tl.load(out, mask=keep, other=0.0).to(tl.float32)
        base = grad_map_ptr + batch * height * width * channels + channel[None, :]
        gx, gy = fx[:, None], fy[:, None]
        _add_corners(
            base, grad * (1 - gx) * (1 - gy), grad * gx * (1 - gy), grad * (1 - gx) * gy, grad * gx * gy,
            left[:, None], top[:, None], height, width, channels, keep,
        )

    @triton.jit
    def _scatter_runs_kernel(
        grad_out_ptr, grid_ptr, grad_map_ptr, points, row, height, width, channels,
        RUN: tl.constexpr, WIDTH: tl.constexpr,
    ):
        """Point after point: along a ray many lie between the same pixels, which are then added to once."""
        batch = tl.program_id(1).to(tl.int64)
        channel = tl.arange(0, WIDTH)
        lanes = channel < channels
        base = grad_map_ptr + batch * height * width * channels + channel
        nothing = tl.zeros([WIDTH], dtype=tl.float32)
        a, b, c, d = nothing, nothing, nothing, nothing
        at_left = 0
        at_top = 0
        start = tl.program_id(0) * RUN
        for point in range(start, tl.minimum(start + RUN, points)):
            left, _, top, _, fx, fy = _corners(
                grid_ptr + batch * points * 2, point, point < points, height, width
            )
            if (left != at_left) | (top != at_top):
                _add_corners(base, a, b, c, d, at_left, at_top, height, width, channels, lanes)
                a, b, c, d = nothing, nothing, nothing, nothing
                at_left = left
                at_top = top
            out = grad_out_ptr + (batch * points + point) * row + channel
            grad = tl.load(out, mask=lanes, other=0.0).to(tl.float32)
            a += grad * ((1 - fx) * (1 - fy))
            b += grad * (fx * (1 - fy))
            c += grad * ((1 - fx) * fy)
            d += grad * (fx * fy)
        _add_corners(base, a, b, c, d, at_left, at_top, height, width, channels, lanes)


class _GatherBilinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, image_map: Tensor, grid: Tensor) -> Tensor:
        batch, channels, height, width = image_map.shape
        points = grid.shape[1]
        last = image_map.permute(0, 2, 3, 1).contiguous()
        grid = grid.float().contiguous()
        out = torch.empty(batch, points, channels, dtype=image_map.dtype, device=image_map.device)
        launch, block, lanes = _launch(batch, points, channels)
        _gather_kernel[launch](last, grid, out, points, height, width, channels, BLOCK=block, WIDTH=lanes)
        ctx.save_for_backward(grid)
        ctx.map_shape, ctx.map_dtype = image_map.shape, image_map.dtype
        return out

    @staticmethod
    def backward(ctx, grad_out: Tensor) -> tuple[Tensor, None]:
        (grid,) = ctx.saved_tensors
        return scatter_map(grad_out.contiguous(), grid, ctx.map_shape).to(ctx.map_dtype), None


def scatter_map(values: Tensor, grid: Tensor, shape: Sequence[int]) -> Tensor:
    """The transpose of `sample_map`, on a CUDA device: values added to the four pixels around each point.

    Args:
        values: (batch, points, channels), a point's channels side by side in memory.
        grid: (batch, points, 2) float32 positions as for `sample_map`.
        shape: (batch, channels, height, width) of the map.

    Returns:
        float32 of that shape, its channels last in memory.
    """
    batch, channels, height, width = shape
    points = grid.shape[1]
    result = torch.zeros(batch, height, width, channels, dtype=torch.float32, device=grid.device)
    launch, block, lanes = _launch(batch, points, channels)
    arguments = values, grid, result, points, values.stride(1), height, width, channels
    if batch * points and channels >= RUN_CHANNELS:
        _scatter_runs_kernel[(triton.cdiv(points, RUN), batch)](
            *arguments, RUN=RUN, WIDTH=lanes, num_warps=max(1, min(4, lanes // 64))
        )
    elif batch * points:
        _scatter_kernel[launch](*arguments, BLOCK=block, WIDTH=lanes)
    return result.permute(0, 3, 1, 2)


def _launch(batch: int, points: int, channels: int) -> tuple[tuple[int, int], int, int]:
    lanes = triton.next_power_of_2(channels)
    block = max(16, min(512, 4096 // lanes))
    return (triton.cdiv(points, block), batch), block, lanes
