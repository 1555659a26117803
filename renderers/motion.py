"""The forward model of motion: a photo whose every pixel may go to several places, seen after it has moved.

A signal that is one motion field could not show what the first denoising steps need, the mean of the possible
targets: a thing that goes left or right is, on average, half here and half there. So the signal gives each
pixel of the photo a distribution over displacements; it shows all of them at once, blended by softmax as in
`warp.splat`, and as the noise goes it settles on one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from scenediff.renderers.warp import backward_warp, splat

LOGIT_BOUND = 15.0  # exp of it is far from overflow, and of its negative far from zero


@dataclass(frozen=True)
class MotionSignal:
    """Where a photo's pixels may go.

    Attributes:
        photo: (batch, 3, height, width) in [-1, 1].
        logits: (batch, (2 radius + 1)^2, height, width): of each pixel's displacements, row by row (see
            `displacements`). Their softmax is the pixel's distribution; their size is also its importance:
            of two pixels that reach one place, the one with the larger logit there covers the other.
    """

    photo: Tensor
    logits: Tensor

    @property
    def radius(self) -> int:
        """Longest displacement along an axis, pixels."""
        return (round(self.logits.shape[1] ** 0.5) - 1) // 2


def displacements(radius: int, device: torch.device | str = "cpu") -> Tensor:
    """((2 radius + 1)^2, 2) float32 (x, y) of every displacement from the context to the target."""
    side = torch.arange(-radius, radius + 1, device=device, dtype=torch.float32)
    y, x = torch.meshgrid(side, side, indexing="ij")
    return torch.stack([x.flatten(), y.flatten()], dim=1)


@dataclass(frozen=True)
class MotionField:
    """The mean of a motion signal, on both pixel grids.

    Attributes:
        flow: (batch, 2, height, width) from the target's pixels to the photo, see `warp`.
        motion: (batch, 2, height, width) from the photo's pixels to the target.
        visible: (batch, 1, height, width) in [0, 1], how much of a target pixel arrives from the photo: near
            0 where the target shows what the photo hid.
        importance: (batch, 1, height, width) of the photo's pixels.
    """

    flow: Tensor
    motion: Tensor
    visible: Tensor
    importance: Tensor

    def part(self, index: int) -> MotionField:
        """One element of the batch, as a batch of one."""
        return MotionField(*(tensor[index : index + 1] for tensor in vars(self).values()))

    @staticmethod
    def cat(fields: Sequence[MotionField]) -> MotionField:
        """Several batches in one."""
        parts = zip(*(vars(field).values() for field in fields), strict=True)
        return MotionField(*(torch.cat(tensors) for tensors in parts))


class MotionRenderer:
    """Forward model (see `scenediff.forward`) whose signals are `MotionSignal`s.

    Its views are moments: 1.0 is the target, 0.0 the photo, numbers between lie on the way.
    """

    def render(self, signal: MotionSignal, view: float = 1.0) -> Tensor:
        """The photo at a moment: (batch, 3, height, width) in [-1, 1]."""
        if view == 1.0:
            weights = shares(signal.logits)
            carried = torch.cat([signal.photo, torch.ones_like(signal.photo[:, :1])], dim=1)
            arrived = gather_arrivals(weights, carried)
            return arrived[:, :3] / arrived[:, 3:]
        return play(signal.photo, mean_field(signal), view)


def shares(logits: Tensor) -> Tensor:
    """exp of the smoothly bounded logits, float32."""
    return (LOGIT_BOUND * torch.tanh(logits.float() / LOGIT_BOUND)).exp()


def gather_arrivals(weights: Tensor, values: Tensor) -> Tensor:
    """Sums what arrives at each place: sum over s of weights[s](p - s) values(p - s).

    Args:
        weights: (batch, (2 radius + 1)^2, height, width) of the context's pixels and their displacements.
        values: (batch, channels, height, width) of the context's pixels.

    Returns:
        (batch, channels, height, width). What leaves the frame is lost.
    """
    if weights.is_cuda:
        height, width = weights.shape[-2:]
        side = _side(weights)
        columns = (weights[:, None] * values[:, :, None]).flatten(1, 2).flatten(2)
        return functional.fold(columns, (height, width), side, padding=side // 2)
    arrived: Tensor = _GatherArrivals.apply(weights, values)
    return arrived


class _GatherArrivals(torch.autograd.Function):
    """Without the columns of `fold`, one displacement after the other: on a CPU, several times as fast."""

    @staticmethod
    def forward(ctx: Any, weights: Tensor, values: Tensor) -> Tensor:
        ctx.save_for_backward(weights, values)
        radius = _side(weights) // 2
        padded = functional.pad(torch.zeros_like(values), (radius,) * 4)
        for index, place in enumerate(_places(padded, weights)):
            place.addcmul_(weights[:, index : index + 1], values)
        height, width = values.shape[-2:]
        return padded[..., radius : radius + height, radius : radius + width].contiguous()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None]:
        weights, values = ctx.saved_tensors
        padded = functional.pad(gradients[0], (_side(weights) // 2,) * 4)
        to_weights, to_values = (
            torch.zeros_like(tensor) if needed else None
            for tensor, needed in zip((weights, values), ctx.needs_input_grad, strict=True)
        )
        for index, place in enumerate(_places(padded, weights)):
            if to_weights is not None:
                torch.sum(place * values, 1, out=to_weights[:, index])
            if to_values is not None:
                to_values.addcmul_(weights[:, index : index + 1], place)
        return to_weights, to_values


def _places(padded: Tensor, weights: Tensor) -> Iterator[Tensor]:
    """Views of where the pixels of a padded image go with each displacement."""
    height, width = weights.shape[-2:]
    for index in range(weights.shape[1]):
        row, column = divmod(index, _side(weights))
        yield padded[..., row : row + height, column : column + width]


def _side(weights: Tensor) -> int:
    return round(weights.shape[1] ** 0.5)


def mean_field(signal: MotionSignal) -> MotionField:
    """The mean displacement of every pixel of the target and of the photo."""
    steps = displacements(signal.radius, signal.logits.device)
    weights = shares(signal.logits)
    total = weights.sum(1, keepdim=True)
    chances = weights / total
    motion = torch.stack([(chances * steps[:, axis, None, None]).sum(1) for axis in (0, 1)], dim=1)
    ones = torch.ones_like(total)
    arrived = torch.cat(
        [gather_arrivals(weights * steps[:, axis, None, None], ones) for axis in (0, 1)]
        + [gather_arrivals(weights, ones)], dim=1,
    )  # fmt: skip
    visible = gather_arrivals(chances, ones).clamp(0, 1)
    return MotionField(-arrived[:, :2] / arrived[:, 2:], motion, visible, total.log())


def mean_length(signal: MotionSignal) -> Tensor:
    """(batch, 1, height, width) mean length of each photo pixel's displacements, pixels."""
    weights = shares(signal.logits)
    lengths = displacements(signal.radius, weights.device).norm(dim=1)[:, None, None]
    return (weights * lengths).sum(1, keepdim=True) / weights.sum(1, keepdim=True)


def play(photo: Tensor, field: MotionField, moment: float) -> Tensor:
    """The photo part of the way along its motion: (batch, 3, height, width).

    Pixels are splatted, moving ones before resting ones; holes show what the target has there.
    """
    importance = field.importance + field.motion.norm(dim=1, keepdim=True)
    moved, arrived = splat(photo, field.motion * moment, importance)
    end, _ = backward_warp(photo, field.flow)
    cover = arrived.clamp(0, 1)
    return moved * cover + end * (1 - cover)


def resized_field(field: MotionField, size: tuple[int, int]) -> MotionField:
    """A field in the pixels of another (height, width)."""
    height, width = field.flow.shape[-2:]
    scale = field.flow.new_tensor([size[1] / width, size[0] / height])[:, None, None]

    def resized(values: Tensor) -> Tensor:
        return functional.interpolate(values, size, mode="bilinear", align_corners=False)

    return MotionField(
        resized(field.flow) * scale, resized(field.motion) * scale, resized(field.visible),
        resized(field.importance),
    )  # fmt: skip
