"""The point network on a GPU in two kernels: what a view says of points, and the head over all views.

`PixelField` and the look-ups in front of it move each point's features through memory some fifty times. Here
a block of points stays in registers from its positions to its state in a view, and from there to density,
colour and features; the backward kernels compute the forward again instead of reading it. Values and
gradients are those of `PixelFieldRenderer.decode` (the reference in the tests), at the precision of the
feature maps.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from scenediff.renderers.bilinear import scatter_map

try:
    import triton
    from triton import language as tl
except ImportError:  # no wheels for some platforms: `fits` is False there, and plain PyTorch runs
    triton = None

MAX_VIEWS = 3
POINTS = 64  # of a block: the least that fills a matrix unit, the most whose states fit into registers
WARPS = 4
BACKWARD_WARPS = 8  # of the view's backward kernel: with 4, Triton 3.6 reads beyond its shared memory

HALF_TURNS = tuple(2.0 ** (octave - 2) for octave in range(5))  # of the waves, for each unit of log depth
STEPS = (1.5, 6.0, 24.0, 60.0)
BUMPS = (3.0, 10.0, 30.0, 80.0)
# widths of layers are multiples of 8: matrix units want rows aligned to 16 bytes
GEOMETRY, GEOMETRY_TILE, GATES = 24, 32, 8
ROW = 5  # of a point in a view: its gate, its colour's gate, its colour


def fits(maps: Sequence[Tensor], channels: int, outputs: int) -> bool:
    """Whether the kernels decode points of views with these feature maps: half precision on a CUDA device."""
    return (
        triton is not None
        and all(features.is_cuda and features.dtype == torch.bfloat16 for features in maps)
        and 1 <= len(maps) <= MAX_VIEWS
        and channels in (16, 32, 64, 128)
        and outputs <= channels
    )


def decode_points(
    points: Tensor,
    features: Sequence[Tensor],
    log_depths: Sequence[Tensor],
    images: Sequence[Tensor],
    cameras: Sequence[Tensor],
    weights: Sequence[Tensor],
) -> tuple[Tensor, Tensor]:
    """Density logits (batch, points) and values (batch, points, outputs - 2), colour first, in float32.

    Args:
        points: (batch, points, 3) world positions.
        features: of each view (batch, channels, height, width), bfloat16 or float32.
        log_depths: (batch, 1, height, width) of each view, as large as its features.
        images: (batch, 3, any height, any width) of each view.
        cameras: `pack_camera` of each view.
        weights: of the geometry, two view layers, gates, hidden and output layers: weight, bias of each.
    """
    flat = torch.cat([weight.float().flatten() for weight in weights])
    points = points.contiguous()
    views = [
        part
        for camera, *maps in zip(cameras, features, log_depths, images, strict=True)
        for part in _ReadView.apply(points, camera, flat, *maps)
    ]
    return _Decode.apply(flat, len(weights[-1]), *views)


def pack_camera(
    rotation: Tensor, translation: Tensor, focal_length: Tensor, principal_point: Tensor, present: Tensor,
    size: tuple[int, int],
) -> Tensor:
    """(batch, 17) rotation, translation, focal length and principal point of the image grid, present.

    The grid runs from -1 to 1 over the image, x right and y down; the cameras are PyTorch3D's in NDC.
    """
    height, width = size
    short = min(height, width)
    stretch = (-short / width, -short / height)
    parts = [rotation.flatten(1), translation]
    parts += [focal_length[:, i, None] * stretch[i] for i in (0, 1)]
    parts += [principal_point[:, i, None] * stretch[i] for i in (0, 1)]
    return torch.cat([*parts, present[:, None]], dim=1).float().contiguous()


@cache
def _geometry_table(device: torch.device) -> Tensor:
    """(2, 32): factor and phase of each geometry channel that is a function of one number."""
    factors = [rate for rate in HALF_TURNS for _ in range(2)] + [0.0] * 4 + [*STEPS, *BUMPS] + [0.0] * 10
    phases = [phase for _ in HALF_TURNS for phase in (0.0, 0.5)] + [0.0] * 22
    return torch.tensor([factors, phases], device=device)


class _ReadView(torch.autograd.Function):
    """What one view says of points: state (batch, points, channels) and `ROW` numbers of each point."""

    @staticmethod
    def forward(
        ctx: Any, points: Tensor, camera: Tensor, flat: Tensor, features: Tensor, log_depth: Tensor,
        image: Tensor,
    ) -> tuple[Tensor, Tensor]:
        maps = [_rows(image_map) for image_map in (features, log_depth, image)]
        batch, count = points.shape[:2]
        state = torch.empty(batch, count, features.shape[1], dtype=features.dtype, device=points.device)
        row = torch.empty(batch, count, ROW, device=points.device)
        if batch * count:
            _read_view[triton.cdiv(count, POINTS), batch](
                points, camera, flat, _geometry_table(points.device), *maps, state, row, count,
                *features.shape[2:], *image.shape[2:], **_constants(state), num_warps=WARPS,
            )
        ctx.save_for_backward(points, camera, flat, state, *maps)
        ctx.image_wanted = image.requires_grad
        return state, row

    @staticmethod
    def backward(ctx: Any, grad_state: Tensor, grad_row: Tensor) -> tuple[Tensor | None, ...]:
        points, camera, flat, state, *maps = ctx.saved_tensors
        grad_state, grad_row = grad_state.contiguous(), grad_row.contiguous()
        batch, count, channels = state.shape
        inputs = state.new_empty(batch, count, 2 * channels + GEOMETRY_TILE)
        outputs = state.new_empty(batch, count, 3 * channels)
        gates = state.new_zeros(batch, count, GATES)
        grid, depth = points.new_empty(batch, count, 2), points.new_empty(batch, count, 1)
        if batch * count:
            _read_view_backward[triton.cdiv(count, POINTS), batch](
                points, camera, flat, _geometry_table(points.device), *maps[:2], grad_state,
                grad_row, inputs, outputs, gates, grid, depth, count, *maps[0].shape[1:3],
                **_constants(state), num_warps=BACKWARD_WARPS, num_stages=1,
            )
        shapes = [(one.shape[0], one.shape[3], *one.shape[1:3]) for one in maps]
        grad_features = scatter_map(outputs[..., 2 * channels :], grid, shapes[0]).to(state.dtype)
        grad_depth = scatter_map(depth, grid, shapes[1])
        grad_image = scatter_map(grad_row[..., 2:], grid, shapes[2]) if ctx.image_wanted else None
        grad_flat = torch.zeros_like(flat)
        _fill_gradient(grad_flat, inputs, outputs, functional.relu(state), gates)
        return None, None, grad_flat, grad_features, grad_depth, grad_image


class _Decode(torch.autograd.Function):
    """Averages views and runs the head: density logits (batch, points), values (batch, points, channels)."""

    @staticmethod
    def forward(ctx: Any, flat: Tensor, outputs: int, *views: Tensor) -> tuple[Tensor, Tensor]:
        batch, count = views[0].shape[:2]
        logits = torch.empty(batch, count, device=flat.device)
        values = torch.empty(batch, count, outputs - 2, device=flat.device)
        if batch * count:
            _decode[(triton.cdiv(batch * count, POINTS),)](
                flat, *_padded(views), logits, values, batch * count, VIEWS=len(views) // 2,
                **_head_constants(views[0], outputs), num_warps=WARPS,
            )
        ctx.save_for_backward(flat, *views)
        ctx.outputs = outputs
        return logits, values

    @staticmethod
    def backward(ctx: Any, grad_logits: Tensor, grad_values: Tensor) -> tuple[Tensor | None, ...]:
        flat, *views = ctx.saved_tensors
        grads = [torch.empty_like(view) for view in views]
        batch, count, channels = views[0].shape
        inputs = views[0].new_empty(batch, count, 2 * channels + GATES)
        wide = _wide(ctx.outputs)
        outputs = views[0].new_empty(batch, count, channels + wide)
        if batch * count:
            _decode_backward[(triton.cdiv(batch * count, POINTS),)](
                flat, *_padded(views), grad_logits.contiguous(), grad_values.contiguous(),
                *_padded(grads), inputs, outputs, batch * count, VIEWS=len(views) // 2,
                **_head_constants(views[0], ctx.outputs), num_warps=WARPS, num_stages=1,
            )
        grad_flat = torch.zeros_like(flat)
        products = _products(inputs, outputs)
        bias = products[2 * channels]
        head = [
            products[:channels, :channels].t(), bias[:channels],
            products[channels : 2 * channels, channels : channels + ctx.outputs].t(),
            bias[channels : channels + ctx.outputs],
        ]
        grad_flat[-sum(part.numel() for part in head) :] = torch.cat([part.flatten() for part in head])
        return grad_flat, None, *grads


def _fill_gradient(
    grad_flat: Tensor, inputs: Tensor, outputs: Tensor, active: Tensor, gates: Tensor
) -> None:
    """Writes the gradients of the layers that read a view, from what went into and came back from each."""
    channels = active.shape[-1]
    products = _products(inputs, outputs)  # (inputs of all layers, outputs of all): the diagonal counts
    bias = products[2 * channels + GEOMETRY]
    gate_products = _products(active, gates)
    parts = [
        products[2 * channels : 2 * channels + GEOMETRY, 2 * channels :].t(), bias[2 * channels :],
        products[channels : 2 * channels, channels : 2 * channels].t(), bias[channels : 2 * channels],
        products[:channels, :channels].t(), bias[:channels],
        gate_products.t(), gates.float().sum((0, 1)),
    ]
    grad_flat[: sum(part.numel() for part in parts)] = torch.cat([part.flatten() for part in parts])


def _products(left: Tensor, right: Tensor) -> Tensor:
    """(channels of left, channels of right) sums over points; for each batch element, then over them."""
    return torch.bmm(left.transpose(1, 2), right).float().sum(0)


def _rows(image_map: Tensor) -> Tensor:
    """(batch, height, width, channels) in memory, of (batch, channels, height, width)."""
    return image_map.permute(0, 2, 3, 1).contiguous()


def _padded(views: Sequence[Tensor]) -> list[Tensor]:
    """(state, row) of each view, and the first view's in place of those that aren't there."""
    return [*views, *list(views[:2]) * (MAX_VIEWS - len(views) // 2)]


def _constants(state: Tensor) -> dict[str, Any]:
    half = state.dtype == torch.bfloat16
    return {
        "CHANNELS": state.shape[-1], "BLOCK": POINTS, "DTYPE": tl.bfloat16 if half else tl.float32,
        "PRECISION": "tf32" if half else "ieee",
    }


def _head_constants(state: Tensor, outputs: int) -> dict[str, Any]:
    return {**_constants(state), "OUTPUTS": outputs, "WIDE": _wide(outputs)}


def _wide(outputs: int) -> int:
    return max(16, triton.next_power_of_2(outputs))


if triton is not None:

    @triton.jit
    def _position(points, point, keep):
        x = tl.load(points + 3 * point, mask=keep, other=0.0)
        y = tl.load(points + 3 * point + 1, mask=keep, other=0.0)
        z = tl.load(points + 3 * point + 2, mask=keep, other=1.0)
        return x, y, z

    @triton.jit
    def _project(camera, x, y, z):
        """Position in the image grid, depth, and 1 where the view contains the point."""
        u = x * tl.load(camera) + y * tl.load(camera + 3) + z * tl.load(camera + 6) + tl.load(camera + 9)
        v = x * tl.load(camera + 1) + y * tl.load(camera + 4) + z * tl.load(camera + 7) + tl.load(camera + 10)
        w = x * tl.load(camera + 2) + y * tl.load(camera + 5) + z * tl.load(camera + 8) + tl.load(camera + 11)
        scale = 1.0 / tl.maximum(w, 1e-3)
        gx = u * scale * tl.load(camera + 12) + tl.load(camera + 14)
        gy = v * scale * tl.load(camera + 13) + tl.load(camera + 15)
        inside = (tl.abs(gx) <= 1.0) & (tl.abs(gy) <= 1.0) & (w > 1e-2)
        return gx, gy, w, tl.where(inside, tl.load(camera + 16), 0.0)

    @triton.jit
    def _corners(gx, gy, height, width):
        """Indices of the four pixels around positions, and the fractions between them."""
        x = (gx + 1.0) * width * 0.5 - 0.5
        y = (gy + 1.0) * height * 0.5 - 0.5
        x = tl.minimum(tl.maximum(x, 0.0), width - 1.0)
        y = tl.minimum(tl.maximum(y, 0.0), height - 1.0)
        left = tl.floor(x).to(tl.int32)
        top = tl.floor(y).to(tl.int32)
        right = tl.minimum(left + 1, width - 1)
        below = tl.minimum(top + 1, height - 1) * width
        above = top * width
        return above + left, above + right, below + left, below + right, x - left, y - top

    @triton.jit
    def _look_up(base, gx, gy, height, width, STRIDE: tl.constexpr):
        """One channel of a map at positions."""
        a, b, c, d, fx, fy = _corners(gx, gy, height, width)
        upper = tl.load(base + a * STRIDE) * (1 - fx) + tl.load(base + b * STRIDE) * fx
        lower = tl.load(base + c * STRIDE) * (1 - fx) + tl.load(base + d * STRIDE) * fx
        return upper * (1 - fy) + lower * fy

    @triton.jit
    def _look_up_rows(base, gx, gy, height, width, channel, keep, STRIDE: tl.constexpr):
        """Channels of a map at positions, in float32."""
        a, b, c, d, fx, fy = _corners(gx, gy, height, width)
        fx = fx[:, None]
        fy = fy[:, None]
        base = base + channel[None, :]
        p = tl.load(base + (a * STRIDE)[:, None], mask=keep, other=0.0).to(tl.float32)
        q = tl.load(base + (b * STRIDE)[:, None], mask=keep, other=0.0).to(tl.float32)
        upper = p + (q - p) * fx
        p = tl.load(base + (c * STRIDE)[:, None], mask=keep, other=0.0).to(tl.float32)
        q = tl.load(base + (d * STRIDE)[:, None], mask=keep, other=0.0).to(tl.float32)
        lower = p + (q - p) * fx
        return upper + (lower - upper) * fy

    @triton.jit
    def _sine_of_half_turns(t):
        """sin(pi t) by its series: the library's sine keeps a table in memory for large arguments."""
        nearest = tl.floor(t + 0.5)
        u = (t - nearest) * 3.14159265358979
        q = u * u
        series = 1.0 - q * (1 / 110.0)
        series = 1.0 - q * (1 / 72.0) * series
        series = 1.0 - q * (1 / 42.0) * series
        series = 1.0 - q * (1 / 20.0) * series
        series = 1.0 - q * (1 / 6.0) * series
        odd = nearest - 2.0 * tl.floor(nearest * 0.5)
        return u * series * (1.0 - 2.0 * odd)

    @triton.jit
    def _encode(table, gx, gy, valid, log_depth, offset):
        """(points, 32) `encode_geometry`, 24 channels of it used, and its derivative by the offset."""
        k = tl.arange(0, 32)[None, :]
        factor = tl.load(table + k)
        phase = tl.load(table + 32 + k)
        wave = _sine_of_half_turns(log_depth[:, None] * factor + phase)
        scaled = offset[:, None] * factor
        step = 2.0 * tl.sigmoid(2.0 * scaled) - 1.0
        bump = tl.exp(-scaled * scaled)
        px = tl.minimum(tl.maximum(gx, -2.0), 2.0)
        py = tl.minimum(tl.maximum(gy, -2.0), 2.0)
        plain = tl.where(k == 10, px[:, None], 0.0)
        plain = tl.where(k == 11, py[:, None], plain)
        plain = tl.where(k == 12, (px * px + py * py)[:, None], plain)
        plain = tl.where(k == 13, valid[:, None], plain)
        plain = tl.where(k == 22, log_depth[:, None], plain)
        plain = tl.where(k == 23, offset[:, None], plain)
        is_step = (k >= 14) & (k < 18)
        is_bump = (k >= 18) & (k < 22)
        value = tl.where(k < 10, wave, tl.where(is_step, step, tl.where(is_bump, bump, plain)))
        slope = tl.where(is_step, factor * (1.0 - step * step), 0.0)
        slope = tl.where(is_bump, -2.0 * factor * scaled * bump, slope)
        slope = tl.where(k == 23, 1.0, slope)
        return value, slope

    @triton.jit
    def _weight(base, INPUTS: tl.constexpr, outputs: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
        """(ROWS, COLUMNS) of a linear layer's weight, inputs first, zeros beyond its sizes."""
        i = tl.arange(0, ROWS)[:, None]
        o = tl.arange(0, COLUMNS)[None, :]
        return tl.load(base + o * INPUTS + i, mask=(i < INPUTS) & (o < outputs), other=0.0)

    @triton.jit
    def _linear(x, weight, bias, DTYPE: tl.constexpr, PRECISION: tl.constexpr):
        return tl.dot(x.to(DTYPE), weight.to(DTYPE), input_precision=PRECISION) + bias[None, :]

    @triton.jit
    def _view_states(
        parameters, table, camera, features, depths, height, width, x, y, z, keep,
        CHANNELS: tl.constexpr, DTYPE: tl.constexpr, PRECISION: tl.constexpr,
    ):
        """What a view says of points: position, validity, encoded geometry, states after each layer."""
        GEOMETRY: tl.constexpr = 24
        channel = tl.arange(0, CHANNELS)
        gx, gy, depth, valid = _project(camera, x, y, z)
        log_depth = tl.log(tl.maximum(depth, 1e-2))
        raw = log_depth - _look_up(depths, gx, gy, height, width, 1)
        offset = tl.minimum(tl.maximum(raw, -4.0), 4.0)
        geometry, slope = _encode(table, gx, gy, valid, log_depth, offset)
        slope = tl.where((tl.abs(raw) < 4.0)[:, None], slope, 0.0)
        weight = _weight(parameters, GEOMETRY, CHANNELS, 32, CHANNELS)
        parameters += GEOMETRY * CHANNELS
        s0 = _look_up_rows(features, gx, gy, height, width, channel, keep[:, None], CHANNELS)
        s0 += _linear(geometry, weight, tl.load(parameters + channel), DTYPE, PRECISION)
        parameters += CHANNELS
        weight = _weight(parameters, CHANNELS, CHANNELS, CHANNELS, CHANNELS)
        parameters += CHANNELS * CHANNELS
        s1 = s0 + _linear(tl.maximum(s0, 0.0), weight, tl.load(parameters + channel), DTYPE, PRECISION)
        parameters += CHANNELS
        weight = _weight(parameters, CHANNELS, CHANNELS, CHANNELS, CHANNELS)
        parameters += CHANNELS * CHANNELS
        s2 = s1 + _linear(tl.maximum(s1, 0.0), weight, tl.load(parameters + channel), DTYPE, PRECISION)
        return gx, gy, valid, geometry, slope, s0, s1, s2

    @triton.jit
    def _gates(gate_parameters, s2, valid, CHANNELS: tl.constexpr):
        """Weights of a view and of its colour, and whether the gradient passes their clamps."""
        channel = tl.arange(0, CHANNELS)
        active = tl.maximum(s2, 0.0)
        bias = gate_parameters + 8 * CHANNELS
        g0 = tl.sum(active * tl.load(gate_parameters + channel)[None, :], 1) + tl.load(bias)
        g1 = tl.sum(active * tl.load(gate_parameters + CHANNELS + channel)[None, :], 1) + tl.load(bias + 1)
        gate = tl.exp(tl.minimum(tl.maximum(g0, -8.0), 8.0)) * valid
        colour_gate = tl.exp(tl.minimum(tl.maximum(g1, -8.0), 8.0)) * valid
        return gate, colour_gate, tl.abs(g0) < 8.0, tl.abs(g1) < 8.0

    @triton.jit
    def _column(tile, k, index):
        return tl.sum(tl.where(k[None, :] == index, tile, 0.0), 1)

    @triton.jit
    def _read_view(
        points, camera, parameters, table, features, depths, image, states, rows, count, height, width,
        image_height, image_width,
        CHANNELS: tl.constexpr, BLOCK: tl.constexpr, DTYPE: tl.constexpr, PRECISION: tl.constexpr,
    ):
        GEOMETRY: tl.constexpr = 24
        b = tl.program_id(1).to(tl.int64)
        point = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        keep = point < count
        x, y, z = _position(points + b * count * 3, point, keep)
        channel = tl.arange(0, CHANNELS)
        gx, gy, valid, _, _, _, _, s2 = _view_states(
            parameters, table, camera + b * 17, features + b * height * width * CHANNELS,
            depths + b * height * width, height, width, x, y, z, keep, CHANNELS, DTYPE, PRECISION,
        )
        gates_at: tl.constexpr = CHANNELS * (GEOMETRY + 1) + 2 * CHANNELS * (CHANNELS + 1)
        gate, colour_gate, _, _ = _gates(parameters + gates_at, s2, valid, CHANNELS)
        tl.store(
            states + (b * count + point)[:, None] * CHANNELS + channel[None, :], s2.to(DTYPE),
            mask=keep[:, None],
        )
        row = rows + (b * count + point) * 5
        tl.store(row, gate, mask=keep)
        tl.store(row + 1, colour_gate, mask=keep)
        image += b * image_height * image_width * 3
        for c in tl.static_range(3):
            shown = _look_up(image + c, gx, gy, image_height, image_width, 3)
            tl.store(row + 2 + c, shown, mask=keep)

    @triton.jit
    def _read_view_backward(
        points, camera, parameters, table, features, depths, grad_states, grad_rows,
        inputs, outputs, gates, grid, grad_depths, count, height, width,
        CHANNELS: tl.constexpr, BLOCK: tl.constexpr, DTYPE: tl.constexpr, PRECISION: tl.constexpr,
    ):
        GEOMETRY: tl.constexpr = 24
        w1_at: tl.constexpr = CHANNELS * (GEOMETRY + 1)
        w2_at: tl.constexpr = w1_at + CHANNELS * (CHANNELS + 1)
        gates_at: tl.constexpr = w2_at + CHANNELS * (CHANNELS + 1)
        b = tl.program_id(1).to(tl.int64)
        channel = tl.arange(0, CHANNELS)
        point = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        keep = point < count
        x, y, z = _position(points + b * count * 3, point, keep)
        gx, gy, valid, geometry, slope, s0, s1, s2 = _view_states(
            parameters, table, camera + b * 17, features + b * height * width * CHANNELS,
            depths + b * height * width, height, width, x, y, z, keep, CHANNELS, DTYPE, PRECISION,
        )
        point = b * count + point
        tl.store(grid + point * 2, gx, mask=keep)
        tl.store(grid + point * 2 + 1, gy, mask=keep)
        gate, colour_gate, free, colour_free = _gates(parameters + gates_at, s2, valid, CHANNELS)
        g_gate = tl.load(grad_rows + point * 5, mask=keep, other=0.0) * tl.where(free, gate, 0.0)
        g_colour_gate = tl.load(grad_rows + point * 5 + 1, mask=keep, other=0.0)
        g_colour_gate *= tl.where(colour_free, colour_gate, 0.0)
        tl.store(gates + point * 8, g_gate.to(DTYPE), mask=keep)
        tl.store(gates + point * 8 + 1, g_colour_gate.to(DTYPE), mask=keep)
        wide = keep[:, None]
        v0 = tl.load(parameters + gates_at + channel)[None, :]
        v1 = tl.load(parameters + gates_at + CHANNELS + channel)[None, :]
        g = tl.load(grad_states + point[:, None] * CHANNELS + channel[None, :], mask=wide, other=0.0)
        g = g.to(tl.float32)
        g += tl.where(s2 > 0.0, g_gate[:, None] * v0 + g_colour_gate[:, None] * v1, 0.0)
        # what went into each layer (and 1, for the biases), and the gradients of what came out
        k = tl.arange(0, 32)[None, :]
        inputs += point[:, None] * (2 * CHANNELS + 32)
        tl.store(
            inputs + 2 * CHANNELS + k, tl.where(k == GEOMETRY, 1.0, geometry).to(DTYPE), mask=wide
        )
        inputs += channel[None, :]
        outputs += point[:, None] * (3 * CHANNELS) + channel[None, :]
        low = g.to(DTYPE)
        tl.store(inputs, tl.maximum(s1, 0.0).to(DTYPE), mask=wide)
        tl.store(outputs, low, mask=wide)
        g = _back_through(parameters + w2_at, s1, g, low, CHANNELS, DTYPE, PRECISION)
        low = g.to(DTYPE)
        tl.store(inputs + CHANNELS, tl.maximum(s0, 0.0).to(DTYPE), mask=wide)
        tl.store(outputs + CHANNELS, low, mask=wide)
        g = _back_through(parameters + w1_at, s0, g, low, CHANNELS, DTYPE, PRECISION)
        low = g.to(DTYPE)
        tl.store(outputs + 2 * CHANNELS, low, mask=wide)
        weight = _weight(parameters, GEOMETRY, CHANNELS, 32, CHANNELS).to(DTYPE)
        g_geometry = tl.dot(low, tl.trans(weight), input_precision=PRECISION)
        tl.store(grad_depths + point, -tl.sum(g_geometry * slope, 1), mask=keep)

    @triton.jit
    def _back_through(
        parameters, before, g, low, CHANNELS: tl.constexpr, DTYPE: tl.constexpr, PRECISION: tl.constexpr
    ):
        """The gradient in front of x + W relu(x) + bias, `low` being its end in the working precision."""
        weight = _weight(parameters, CHANNELS, CHANNELS, CHANNELS, CHANNELS).to(DTYPE)
        back = tl.dot(low, tl.trans(weight), input_precision=PRECISION)
        return g + tl.where(before > 0.0, back, 0.0)

    @triton.jit
    def _mix(
        state0, state1, state2, row0, row1, row2, point, keep,
        VIEWS: tl.constexpr, CHANNELS: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr,
    ):
        """States averaged over views, the sums of gates, and the views' gated colours in their columns."""
        channel = tl.arange(0, CHANNELS)
        j = tl.arange(0, WIDE)
        coloured = keep[:, None] & ((j >= 1) & (j < 4))[None, :]
        mixed = tl.zeros((BLOCK, CHANNELS), tl.float32)
        colours = tl.zeros((BLOCK, WIDE), tl.float32)
        total = tl.zeros((BLOCK,), tl.float32) + 1e-4
        colour_total = tl.zeros((BLOCK,), tl.float32)
        for view in tl.static_range(VIEWS):
            states, rows = _choose(view, state0, state1, state2, row0, row1, row2)
            gate = tl.load(rows + point * 5, mask=keep, other=0.0)
            colour_gate = tl.load(rows + point * 5 + 1, mask=keep, other=0.0)
            state = tl.load(
                states + point[:, None] * CHANNELS + channel[None, :], mask=keep[:, None], other=0.0
            )
            shown = tl.load(rows + point[:, None] * 5 + (1 + j)[None, :], mask=coloured, other=0.0)
            mixed += gate[:, None] * state.to(tl.float32)
            colours += colour_gate[:, None] * shown
            total += gate
            colour_total += colour_gate
        return mixed / total[:, None], total, colours, colour_total

    @triton.jit
    def _choose(VIEW: tl.constexpr, a0, a1, a2, b0, b1, b2):
        if VIEW == 0:
            return a0, b0
        elif VIEW == 1:
            return a1, b1
        else:
            return a2, b2

    @triton.jit
    def _head(
        parameters, mixed, colours, colour_total,
        CHANNELS: tl.constexpr, OUTPUTS: tl.constexpr, WIDE: tl.constexpr, DTYPE: tl.constexpr,
        PRECISION: tl.constexpr,
    ):
        """Hidden state, outputs, and the blended colours in their columns."""
        channel = tl.arange(0, CHANNELS)
        j = tl.arange(0, WIDE)
        weight = _weight(parameters, CHANNELS, CHANNELS, CHANNELS, CHANNELS)
        parameters += CHANNELS * CHANNELS
        hidden = mixed + _linear(
            tl.maximum(mixed, 0.0), weight, tl.load(parameters + channel), DTYPE, PRECISION
        )
        parameters += CHANNELS
        weight = _weight(parameters, CHANNELS, OUTPUTS, CHANNELS, WIDE)
        parameters += CHANNELS * OUTPUTS
        bias = tl.load(parameters + j, mask=j < OUTPUTS, other=0.0)
        output = _linear(tl.maximum(hidden, 0.0), weight, bias, DTYPE, PRECISION)
        own = tl.exp(tl.minimum(tl.maximum(_column(output, j, 4), -8.0), 8.0))
        own_colour = 2.0 * tl.sigmoid(2.0 * output) - 1.0
        share = own + colour_total
        blended = (own[:, None] * own_colour + colours) / share[:, None]
        return hidden, output, own, own_colour, share, blended

    @triton.jit
    def _decode(
        parameters, state0, row0, state1, row1, state2, row2, logits, values, count,
        VIEWS: tl.constexpr, CHANNELS: tl.constexpr, OUTPUTS: tl.constexpr, WIDE: tl.constexpr,
        BLOCK: tl.constexpr, DTYPE: tl.constexpr, PRECISION: tl.constexpr,
    ):
        GEOMETRY: tl.constexpr = 24
        head_at: tl.constexpr = CHANNELS * (GEOMETRY + 1) + 2 * CHANNELS * (CHANNELS + 1) + 8 * (CHANNELS + 1)
        point = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        keep = point < count
        mixed, _, colours, colour_total = _mix(
            state0, state1, state2, row0, row1, row2, point, keep, VIEWS, CHANNELS, WIDE, BLOCK
        )
        _, output, _, _, _, blended = _head(
            parameters + head_at, mixed, colours, colour_total, CHANNELS, OUTPUTS, WIDE, DTYPE, PRECISION
        )
        j = tl.arange(0, WIDE)
        tl.store(logits + point, _column(output, j, 0), mask=keep)
        is_colour = (j >= 1) & (j < 4)
        stored = is_colour | ((j >= 5) & (j < OUTPUTS))
        place = values + point[:, None] * (OUTPUTS - 2) + tl.where(is_colour, j - 1, j - 2)[None, :]
        value = tl.where(is_colour[None, :], blended, output)
        tl.store(place, value, mask=keep[:, None] & stored[None, :])

    @triton.jit
    def _decode_backward(
        parameters, state0, row0, state1, row1, state2, row2, grad_logits, grad_values,
        grad_state0, grad_row0, grad_state1, grad_row1, grad_state2, grad_row2, inputs, outputs, count,
        VIEWS: tl.constexpr, CHANNELS: tl.constexpr, OUTPUTS: tl.constexpr, WIDE: tl.constexpr,
        BLOCK: tl.constexpr, DTYPE: tl.constexpr, PRECISION: tl.constexpr,
    ):
        GEOMETRY: tl.constexpr = 24
        hidden_at: tl.constexpr = (
            CHANNELS * (GEOMETRY + 1) + 2 * CHANNELS * (CHANNELS + 1) + 8 * (CHANNELS + 1)
        )
        output_at: tl.constexpr = hidden_at + CHANNELS * (CHANNELS + 1)
        channel = tl.arange(0, CHANNELS)[None, :]
        j = tl.arange(0, WIDE)
        is_colour = ((j >= 1) & (j < 4))[None, :]
        stored = ((j >= 1) & (j < 4)) | ((j >= 5) & (j < OUTPUTS))
        place = tl.where((j >= 1) & (j < 4), j - 1, j - 2)[None, :]
        point = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        keep = point < count
        wide = keep[:, None]
        mixed, total, colours, colour_total = _mix(
            state0, state1, state2, row0, row1, row2, point, keep, VIEWS, CHANNELS, WIDE, BLOCK
        )
        hidden, output, own, own_colour, share, blended = _head(
            parameters + hidden_at, mixed, colours, colour_total, CHANNELS, OUTPUTS, WIDE, DTYPE, PRECISION
        )
        g = tl.load(
            grad_values + point[:, None] * (OUTPUTS - 2) + place, mask=wide & stored[None, :], other=0.0
        )
        g_logit = tl.load(grad_logits + point, mask=keep, other=0.0)
        g_colour = tl.where(is_colour, g, 0.0) / share[:, None]
        g_own = tl.sum(g_colour * (own_colour - blended), 1) * own
        g_own = tl.where(tl.abs(_column(output, j, 4)) < 8.0, g_own, 0.0)
        g_colour_total = -tl.sum(g_colour * blended, 1)
        g = tl.where(is_colour, g_colour * own[:, None] * (1.0 - own_colour * own_colour), g)
        g = tl.where(j[None, :] == 0, g_logit[:, None], g)
        g = tl.where(j[None, :] == 4, g_own[:, None], g)
        low = g.to(DTYPE)
        # what went into each layer (and 1, for the biases), and the gradients of what came out
        row = inputs + point[:, None] * (2 * CHANNELS + 8)
        tl.store(row + channel, tl.maximum(mixed, 0.0).to(DTYPE), mask=wide)
        tl.store(row + CHANNELS + channel, tl.maximum(hidden, 0.0).to(DTYPE), mask=wide)
        one = tl.arange(0, 8)[None, :]
        tl.store(row + 2 * CHANNELS + one, tl.where(one == 0, 1.0, 0.0).to(DTYPE), mask=wide)
        row = outputs + point[:, None] * (CHANNELS + WIDE)
        tl.store(row + CHANNELS + j[None, :], low, mask=wide)
        weight = _weight(parameters + output_at, CHANNELS, OUTPUTS, CHANNELS, WIDE).to(DTYPE)
        back = tl.dot(low, tl.trans(weight), input_precision=PRECISION)
        g_hidden = tl.where(hidden > 0.0, back, 0.0)
        low = g_hidden.to(DTYPE)
        tl.store(row + channel, low, mask=wide)
        g_mixed = _back_through(parameters + hidden_at, mixed, g_hidden, low, CHANNELS, DTYPE, PRECISION)
        g_mixed = g_mixed / total[:, None]
        g_total = -tl.sum(g_mixed * mixed, 1)
        at = point[:, None] * CHANNELS + channel
        pixel = point[:, None] * 5 + (1 + j)[None, :]
        coloured = wide & is_colour
        for view in tl.static_range(VIEWS):
            states, rows = _choose(view, state0, state1, state2, row0, row1, row2)
            grad_states, grad_rows = _choose(
                view, grad_state0, grad_state1, grad_state2, grad_row0, grad_row1, grad_row2
            )
            state = tl.load(states + at, mask=wide, other=0.0).to(tl.float32)
            gate = tl.load(rows + point * 5, mask=keep, other=0.0)
            colour_gate = tl.load(rows + point * 5 + 1, mask=keep, other=0.0)
            shown = tl.load(rows + pixel, mask=coloured, other=0.0)
            tl.store(grad_states + at, (gate[:, None] * g_mixed).to(DTYPE), mask=wide)
            tl.store(grad_rows + point * 5, tl.sum(g_mixed * state, 1) + g_total, mask=keep)
            g_colour_gate = tl.sum(g_colour * shown, 1) + g_colour_total
            tl.store(grad_rows + point * 5 + 1, g_colour_gate, mask=keep)
            tl.store(grad_rows + pixel, colour_gate[:, None] * g_colour, mask=coloured)
