"""The parts of a densely integrated field as kernels for a Hopper GPU, in half precision, without gradients.

`embed`: what goes into a point network's first block. `PackedBlocks.run`: everything behind it, with states
that stay on the multiprocessor (`point_network.cu`). `integrate`: what a ray's samples add up to. All agree
with `volume_field.py` to the precision of bfloat16.
"""

from __future__ import annotations

import ctypes
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from scenediff.renderers.cuda_source import CompileError, Kernel
from scenediff.renderers.fused_field import _sine_of_half_turns, triton

if triton is not None:
    from triton import language as tl

logger = logging.getLogger(__name__)

WIDTH = 512
TILE, THREADS = 128, 384  # points and threads of a block, see point_network.cu
STAGES, SLAB, CLUSTER = 6, (128, 64), 2
SHARED_MEMORY = STAGES * SLAB[0] * SLAB[1] * 2 + TILE * WIDTH * 2 + 16 * STAGES + 1024
STATE, DENSITY, OUTPUTS = 0, 1, 2  # what a run may give
ENCODED = 64  # columns of an encoded position, zeros included
RAW = 3
INTEGRATE_WARPS = 4
EMBED_POINTS, EMBED_CHANNELS = 32, 64  # of a block at a time; with more, registers spill


class Arguments(ctypes.Structure):
    """Those of the kernel in point_network.cu."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("input", "told", "weights", "biases", "output")),
        *((name, ctypes.c_longlong) for name in ("stream", "told_step")),
        *((name, ctypes.c_int) for name in ("elements", "points", "view_blocks", "joint_blocks", "wanted")),
        ("share", ctypes.c_float),
        *((name, ctypes.c_int) for name in ("samples", "row", "first", "columns")),
    )


@cache
def runs_on(device: torch.device) -> bool:
    """Whether the kernels can be had on a device."""
    if triton is None or device.type != "cuda" or torch.cuda.get_device_capability(device)[0] != 9:
        return False
    try:
        with torch.cuda.device(device):
            _kernel(device)
    except (CompileError, OSError, RuntimeError) as error:
        logger.warning("falling back to plain PyTorch for dense fields: %s", error)
        return False
    return True


@cache
def _kernel(device: torch.device) -> Kernel:
    return Kernel("point_network.cu", "point_network", SHARED_MEMORY, [f"CLUSTER={CLUSTER}"])


def product_channels() -> Tensor:
    """(512,) the channel in memory of each column of the kernel's products."""
    column = torch.arange(WIDTH)
    group, i, h, q, e = column // 32, column // 16 % 2, column // 8 % 2, column // 2 % 4, column % 2
    return 32 * group + 8 * q + 4 * i + 2 * h + e


@cache
def _orders(device: torch.device) -> tuple[Tensor, Tensor]:
    """`product_channels`, and the order of a slab's 16-byte parts in memory."""
    row, part = torch.arange(SLAB[0])[:, None], torch.arange(SLAB[1] // 8)
    swizzled = row * (SLAB[1] // 8) + (part ^ (row % 8))
    return product_channels().to(device), swizzled.flatten().to(device)


@dataclass(frozen=True)
class PackedBlocks:
    """Consecutive residual blocks, and perhaps the layer behind them, as the kernel reads them.

    Attributes:
        weights: (elements, slabs, bytes / 2) bfloat16. biases: (elements, rows, 512) float32.
        view_blocks, joint_blocks: those before and behind the place where other views' states are added.
        wanted: one of STATE, DENSITY, OUTPUTS.
    """

    weights: Tensor
    biases: Tensor
    view_blocks: int
    joint_blocks: int
    wanted: int

    def run(
        self, states: Tensor, told: Tensor | None, share: float, output: Tensor, *,
        samples: int = 1, first: int = 0,
    ) -> None:
        """Writes to `output` what becomes of states; for STATE they may be the same tensor.

        Args:
            states: (elements, points, 512) bfloat16, contiguous.
            told: the same, added behind the view blocks, which the sum is then multiplied by `share`.
            output: STATE: as states. DENSITY: (elements, points) float32. OUTPUTS: (elements, rays, row,
                columns) float32; `samples` consecutive points lie on a ray and go to its row from `first` on.
        """
        elements, points = states.shape[:2]
        row = output.shape[2] if self.wanted == OUTPUTS else samples
        given = Arguments(
            states.data_ptr(), None if told is None else told.data_ptr(), self.weights.data_ptr(),
            self.biases.data_ptr(), output.data_ptr(), 2 * self.weights[0].numel(),
            0 if told is None else told.stride(0) // 8, elements, points, self.view_blocks,
            self.joint_blocks, self.wanted, share, samples, row, first,
            output.shape[-1] if self.wanted == OUTPUTS else 1,
        )
        if points:
            blocks = torch.cuda.get_device_properties(states.device).multi_processor_count
            _kernel(states.device).launch(blocks // CLUSTER * CLUSTER, THREADS, given)


@dataclass(frozen=True)
class CutNetwork:
    """A point network's weights in the kernel's order, before noise levels scale and shift them.

    Attributes:
        first: (blocks, 4, 8, 128, 64) float32, the slabs of the blocks' first layers.
        second: the same of their second ones, bfloat16.
        first_bias, second_bias: (blocks, 512).
        view_blocks: how many blocks come before other views' states are added.
        output: (1, 8, 128, 64) bfloat16, of the last layer; rows that it lacks are 0.
        output_bias: (outputs,).
        density: (512,) the last layer's row of the density.
    """

    first: Tensor
    second: Tensor
    first_bias: Tensor
    second_bias: Tensor
    view_blocks: int
    output: Tensor
    output_bias: Tensor
    density: Tensor

    def pack(self, modulation: Sequence[tuple[Tensor, Tensor]], wanted: int) -> PackedBlocks:
        """All blocks at one noise level for each element; only the view blocks where their state is wanted.

        Args:
            modulation: for each block scale and shift, (elements, 1, 512).
            wanted: one of STATE, DENSITY, OUTPUTS.
        """
        count = self.view_blocks if wanted == STATE else len(self.first)
        scale, shift = (torch.cat(parts, 1).float() for parts in zip(*modulation[:count], strict=True))
        factor, elements = 1 + scale, len(scale)  # (elements, blocks, 512)
        last = self.output if wanted == OUTPUTS else self.output[:0]
        ends = 2 * count * self.first[0].numel()
        weights = self.second.new_empty(elements, ends + last.numel())
        slabs = weights[:, :ends].unflatten(1, (count, 2, *self.first.shape[1:]))
        rows = factor.unflatten(2, (-1, 1, SLAB[0], 1))
        slabs[:, :, 0].copy_(self.first[:count] * rows)
        slabs[:, :, 1].copy_(self.second[:count])
        weights[:, ends:].copy_(last.flatten())
        biases = scale.new_zeros(elements, 2 * count + 2, WIDTH)
        biases[:, 0:-2:2].copy_(self.first_bias[:count] * factor + shift)
        biases[:, 1:-2:2].copy_(self.second_bias[:count])
        if wanted == DENSITY:
            biases[:, -2].copy_(self.density)
            biases[:, -1, :1].copy_(self.output_bias[3:4])
        if wanted == OUTPUTS:
            biases[:, -2, : len(self.output_bias)].copy_(self.output_bias)
        return PackedBlocks(weights, biases, self.view_blocks, count - self.view_blocks, wanted)


def cut_network(
    first: Sequence[tuple[Tensor, Tensor]], second: Sequence[tuple[Tensor, Tensor]],
    output: tuple[Tensor, Tensor], view_blocks: int,
) -> CutNetwork:
    """Cuts weights into slabs.

    Args:
        first, second: weight (512, 512) and bias of each block's layers.
        output: those of the last layer; at most 128 outputs, the first three colour, the fourth the density.
    """
    channels, _ = _orders(output[0].device)
    weight, bias = (torch.stack(parts).float() for parts in zip(*first, strict=True))
    weight2, bias2 = (torch.stack(parts).float() for parts in zip(*second, strict=True))
    last = output[0].float()[:, channels]
    padded = functional.pad(last, (0, 0, 0, SLAB[0] - len(last)))
    return CutNetwork(
        cut(weight[..., channels]), cut(weight2[:, channels].bfloat16()), bias, bias2[:, channels],
        view_blocks, cut(padded.bfloat16()), output[1].float(), last[3],
    )


def cut(weight: Tensor) -> Tensor:
    """(..., outputs / 128, 8, 128, 64) the slabs of weights (..., outputs, 512), each row swizzled."""
    slabs = weight.unflatten(-1, (-1, SLAB[1])).unflatten(-3, (-1, SLAB[0])).transpose(-3, -2)
    parts = slabs.unflatten(-1, (-1, 8)).flatten(-3, -2)
    swizzled = parts.index_select(-2, _orders(weight.device)[1])
    return swizzled.unflatten(-2, (SLAB[0], -1)).flatten(-2)


def pack_camera(world_to_cam: Tensor, intrinsics: Tensor) -> Tensor:
    """(batch, 21) rotation and translation, row by row, then the intrinsics."""
    return torch.cat([world_to_cam[:, :3].flatten(1), intrinsics.flatten(1)], dim=1).float().contiguous()


@cache
def _encoding_table(octaves: int, frequency: float, device: torch.device) -> Tensor:
    """(2, 64): of each column of an encoded position, half turns for each unit of length, and phase."""
    table = torch.zeros(2, ENCODED)
    for octave in range(octaves):
        first = RAW + 2 * RAW * octave
        table[0, first : first + 2 * RAW] = frequency * 2.0**octave / math.pi
        table[1, first + RAW : first + 2 * RAW] = 0.5
    return table.to(device)


def pack_encoder(weight: Tensor) -> Tensor:
    """(64, width) bfloat16 of the layer (width, columns) behind `encode_position`.

    Coordinates come twice: rounded, and what rounding took from them.
    """
    packed = weight.new_zeros(ENCODED, len(weight))
    columns = weight.shape[1]
    packed[:columns], packed[columns : columns + RAW] = weight.t(), weight.t()[:RAW]
    return packed.bfloat16()


@dataclass(frozen=True)
class Eye:
    """How a network looks into a view.

    Attributes:
        camera: `pack_camera`. rows: (batch, height, width, channels) its map, bfloat16.
        weight, bias: `pack_encoder`, (channels,) float32. octaves, frequency: of the encoding.
        own: whether the rays are those through the map's pixels, in their order.
    """

    camera: Tensor
    rows: Tensor
    weight: Tensor
    bias: Tensor
    octaves: int
    frequency: float
    own: bool


def embed(eye: Eye, origins: Tensor, directions: Tensor, distances: Tensor, first_ray: int = 0) -> Tensor:
    """(batch, rays samples, channels) bfloat16: encoded positions through their layer, plus features.

    Args:
        origins: (batch, 1, 3). directions: (batch, rays, 3). distances: (batch, rays, samples).
        first_ray: which of all rays `directions` begins with.
    """
    batch, rays, samples = distances.shape
    channels, points = eye.rows.shape[-1], rays * samples
    states = torch.empty(batch, points, channels, dtype=eye.rows.dtype, device=eye.rows.device)
    if batch * points:
        table = _encoding_table(eye.octaves, eye.frequency, eye.rows.device)
        _embed[triton.cdiv(points, EMBED_POINTS), batch](
            origins.contiguous(), directions.contiguous(), distances.contiguous(),
            eye.camera, table, eye.rows,
            eye.weight, eye.bias, states, rays, samples, first_ray, *eye.rows.shape[1:3],
            USED=RAW * (2 * eye.octaves + 1), CHANNELS=channels, PART=EMBED_CHANNELS, OWN=eye.own,
            BLOCK=EMBED_POINTS, num_warps=8,
        )
    return states


def integrate(
    outputs: Tensor, distances: Tensor, background: Sequence[float]
) -> tuple[Tensor, Tensor, Tensor]:
    """Image in [-1, 1] with features (batch, rays, columns - 1), distance and opacity (batch, rays).

    Args:
        outputs: (batch, rays, samples, columns) of the last layer: colour logits, density, features.
        distances: (batch, rays, samples) positive, in any order.
    """
    batch, rays, samples, columns = outputs.shape
    values = outputs.new_empty(batch, rays, columns - 1)
    distance, opacity = outputs.new_empty(batch, rays), outputs.new_empty(batch, rays)
    if batch * rays:
        _integrate[(batch * rays,)](
            outputs, distances.contiguous(), values, distance, opacity, *background, SAMPLES=samples,
            WIDE=triton.next_power_of_2(samples), COLUMNS=columns, num_warps=INTEGRATE_WARPS,
        )
    return values, distance, opacity


if triton is not None:

    @triton.jit
    def _dot3(base, x, y, z):
        return x * tl.load(base) + y * tl.load(base + 1) + z * tl.load(base + 2)

    @triton.jit
    def _local(origins, directions, distances, camera, b, point, keep, rays, samples):
        """Points in a camera's frame, and their rays."""
        ray = point // samples
        t = tl.load(distances + b * rays * samples + point, mask=keep, other=0.0)
        direction = directions + (b * rays + ray) * 3
        x = tl.load(origins + b * 3) + tl.load(direction, mask=keep, other=0.0) * t
        y = tl.load(origins + b * 3 + 1) + tl.load(direction + 1, mask=keep, other=0.0) * t
        z = tl.load(origins + b * 3 + 2) + tl.load(direction + 2, mask=keep, other=0.0) * t
        u = _dot3(camera, x, y, z) + tl.load(camera + 3)
        v = _dot3(camera + 4, x, y, z) + tl.load(camera + 7)
        w = _dot3(camera + 8, x, y, z) + tl.load(camera + 11)
        return u, v, w, ray

    @triton.jit
    def _corners(camera, x, y, z, height, width):
        """Indices of the four pixels around the images of points, and the fractions between them."""
        depth = _dot3(camera + 18, x, y, z) + 1e-9
        u = _dot3(camera + 12, x, y, z) / depth * (width - 1)
        v = _dot3(camera + 15, x, y, z) / depth * (height - 1)
        u = tl.minimum(tl.maximum(u, 0.0), width - 1.0)
        v = tl.minimum(tl.maximum(v, 0.0), height - 1.0)
        left = tl.floor(u).to(tl.int32)
        top = tl.floor(v).to(tl.int32)
        right = tl.minimum(left + 1, width - 1)
        below = tl.minimum(top + 1, height - 1) * width
        above = top * width
        return above + left, above + right, below + left, below + right, u - left, v - top

    @triton.jit
    def _encoded(table, x, y, z, USED: tl.constexpr, DTYPE: tl.constexpr):
        """(points, 64) encoded positions; their coordinates once more in what rounding took from them."""
        column = tl.arange(0, 64)[None, :]
        axis = column % 3
        value = tl.where(axis == 0, x[:, None], tl.where(axis == 1, y[:, None], z[:, None]))
        wave = _sine_of_half_turns(value * tl.load(table + column) + tl.load(table + 64 + column))
        rest = value - value.to(DTYPE).to(tl.float32)
        rest = tl.where(column < USED + 3, rest, 0.0)
        return tl.where(column < 3, value, tl.where(column < USED, wave, rest)).to(DTYPE)

    @triton.jit
    def _embed(
        origins, directions, distances, cameras, table, rows, weight, bias, states, rays, samples, first_ray,
        height, width,
        USED: tl.constexpr, CHANNELS: tl.constexpr, PART: tl.constexpr, OWN: tl.constexpr,
        BLOCK: tl.constexpr,
    ):
        DTYPE: tl.constexpr = rows.dtype.element_ty
        b = tl.program_id(1).to(tl.int64)
        point = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        keep = point < rays * samples
        camera = cameras + b * 21
        x, y, z, ray = _local(origins, directions, distances, camera, b, point, keep, rays, samples)
        encoded = _encoded(table, x, y, z, USED, DTYPE)
        rows += b * height * width * CHANNELS
        states += (b * rays * samples + point)[:, None] * CHANNELS
        k = tl.arange(0, 64)[:, None]
        wide = keep[:, None]
        if OWN:
            pixel = ((first_ray + ray) * CHANNELS)[:, None]
        else:
            p, q, r, s, fx, fy = _corners(camera, x, y, z, height, width)
            p = (p * CHANNELS)[:, None]
            q = (q * CHANNELS)[:, None]
            r = (r * CHANNELS)[:, None]
            s = (s * CHANNELS)[:, None]
            fx = fx[:, None]
            fy = fy[:, None]
        for start in range(0, CHANNELS, PART):
            channel = start + tl.arange(0, PART)
            layer = tl.load(weight + k * CHANNELS + channel[None, :])
            state = tl.dot(encoded, layer, input_precision="ieee") + tl.load(bias + channel)[None, :]
            at = rows + channel[None, :]
            if OWN:
                state += tl.load(at + pixel, mask=wide, other=0.0).to(tl.float32)
            else:
                a = tl.load(at + p, mask=wide, other=0.0).to(tl.float32)
                c = tl.load(at + q, mask=wide, other=0.0).to(tl.float32)
                upper = a + (c - a) * fx
                a = tl.load(at + r, mask=wide, other=0.0).to(tl.float32)
                c = tl.load(at + s, mask=wide, other=0.0).to(tl.float32)
                lower = a + (c - a) * fx
                state += upper + (lower - upper) * fy
            tl.store(states + channel[None, :], state.to(DTYPE), mask=wide)

    @triton.jit
    def _integrate(
        outputs, distances, values, distance, opacity, red, green, blue,
        SAMPLES: tl.constexpr, WIDE: tl.constexpr, COLUMNS: tl.constexpr,
    ):
        ray = tl.program_id(0).to(tl.int64)
        i = tl.arange(0, WIDE)
        keep = i < SAMPLES
        d = tl.load(distances + ray * SAMPLES + i, mask=keep, other=float("inf"))
        # distances are positive, so that their bits sort as they do; equal ones keep their order
        key = tl.sort((d.to(tl.int32, bitcast=True).to(tl.int64) << 32) | i)
        d = (key >> 32).to(tl.int32).to(tl.float32, bitcast=True)
        sample = ray * SAMPLES + (key & 0xFFFF)
        density = tl.load(outputs + sample * COLUMNS + 3, mask=keep, other=0.0)
        step = tl.gather(d, tl.minimum(i + 1, SAMPLES - 1), 0) - d
        last = d - tl.gather(d, tl.maximum(i - 1, 0), 0)
        step = tl.where(keep, tl.where(i == SAMPLES - 1, last, step), 0.0)
        passed = tl.exp(-tl.maximum(density, 0.0) * step)
        logs = tl.log(passed + 1e-10)
        weight = (1.0 - passed) * tl.exp(tl.cumsum(logs, 0) - logs)
        covered = tl.sum(weight, 0)
        tl.store(opacity + ray, covered)
        tl.store(distance + ray, tl.sum(weight * tl.where(keep, d, 0.0), 0))
        for start in tl.static_range(0, COLUMNS, 32):
            column = start + tl.arange(0, 32)
            inside = keep[:, None] & (column < COLUMNS)[None, :]
            at = sample[:, None] * COLUMNS + column[None, :]
            value = tl.load(outputs + at, mask=inside, other=0.0)
            value = tl.where((column < 3)[None, :], tl.sigmoid(value), value)
            total = tl.sum(value * weight[:, None], 0)
            beyond = tl.where(column == 0, red, tl.where(column == 1, green, blue))
            total = tl.where(column < 3, 2.0 * (total + (1.0 - covered) * beyond) - 1.0, total)
            place = tl.where(column < 3, column, column - 1)
            tl.store(
                values + ray * (COLUMNS - 1) + place, total, mask=(column < COLUMNS) & (column != 3)
            )


def look_into(
    world_to_cam: Tensor, intrinsics: Tensor, features: Tensor, position: Any, octaves: int, frequency: float,
    *, own: bool,
) -> Eye:
    """An `Eye` of a map (batch, channels, height, width) and the layer of positions."""
    rows = features.permute(0, 2, 3, 1).to(torch.bfloat16).contiguous()
    return Eye(
        pack_camera(world_to_cam, intrinsics), rows, pack_encoder(position.weight), position.bias.float(),
        octaves, frequency, own,
    )
