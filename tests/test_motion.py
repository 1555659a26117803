"""Distributions over displacements: what they show, their means, and fields played and resized."""

from __future__ import annotations

import math
from dataclasses import fields

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from scenediff.renderers.motion import (
    LOGIT_BOUND,
    MotionField,
    MotionRenderer,
    MotionSignal,
    displacements,
    gather_arrivals,
    mean_field,
    mean_length,
    play,
    resized_field,
    shares,
)
from scenediff.renderers.warp import backward_warp

RADIUS, SIZE = 2, (6, 9)
COUNT = (2 * RADIUS + 1) ** 2
SURE = 1e4  # a logit at its bound: the others' shares are exp(-30) of it


def random_signal(batch: int = 2, radius: int = RADIUS, size: tuple[int, int] = SIZE) -> MotionSignal:
    photo = torch.rand(batch, 3, *size) * 2 - 1
    return MotionSignal(photo, 2 * torch.randn(batch, (2 * radius + 1) ** 2, *size))


def shifted_signal(x: int, y: int, size: tuple[int, int] = SIZE) -> MotionSignal:
    """All mass of every pixel on one displacement."""
    photo = torch.rand(1, 3, *size) * 2 - 1
    logits = torch.full((1, COUNT, *size), -SURE)
    logits[:, displacements(RADIUS).tolist().index([x, y])] = SURE
    return MotionSignal(photo, logits)


def random_field(batch: int = 1, size: tuple[int, int] = SIZE) -> MotionField:
    flow, motion = torch.randn(2, batch, 2, *size)
    return MotionField(flow, motion, torch.rand(batch, 1, *size), torch.randn(batch, 1, *size))


def arrivals_by_loop(weights: Tensor, values: Tensor) -> Tensor:
    """Every pixel with every displacement, one after the other."""
    steps = displacements((math.isqrt(weights.shape[1]) - 1) // 2).long().tolist()
    height, width = values.shape[-2:]
    arrived = torch.zeros_like(values)
    for index, (x, y) in enumerate(steps):
        for row in range(height):
            for column in range(width):
                if 0 <= row + y < height and 0 <= column + x < width:
                    arrived[:, :, row + y, column + x] += (
                        weights[:, index, row, column, None] * values[:, :, row, column]
                    )
    return arrived


def test_displacements_go_row_by_row_from_the_top_left() -> None:
    assert displacements(0).tolist() == [[0, 0]]
    assert displacements(1).tolist() == [
        [-1, -1], [0, -1], [1, -1], [-1, 0], [0, 0], [1, 0], [-1, 1], [0, 1], [1, 1],
    ]  # fmt: skip
    for radius in range(5):
        assert MotionSignal(torch.zeros(1), torch.zeros(1, len(displacements(radius)), 1, 1)).radius == radius


def test_shares_are_bounded_exponentials() -> None:
    logits = torch.tensor([-1e6, -0.1, 0.0, 0.1, 1e6])
    assert torch.allclose(shares(logits).log(), torch.tensor([-LOGIT_BOUND, -0.1, 0.0, 0.1, LOGIT_BOUND]),
                          atol=1e-4)  # fmt: skip
    assert shares(logits.bfloat16()).dtype == torch.float32


# --- what arrives --------------------------------------------------------------------------------


def test_arrivals_agree_with_a_loop() -> None:
    weights, values = torch.rand(2, COUNT, *SIZE).double(), torch.randn(2, 3, *SIZE).double()
    assert torch.allclose(gather_arrivals(weights, values), arrivals_by_loop(weights, values), atol=1e-12)


@pytest.mark.parametrize("radius", [0, 1, 3])
def test_arrivals_are_pytorchs_fold(radius: int) -> None:
    """Which does the same on a GPU; also where displacements are longer than the image."""
    side, size = 2 * radius + 1, (2, 7)
    weights, values = torch.rand(2, side**2, *size), torch.randn(2, 4, *size)
    columns = (weights[:, None] * values[:, :, None]).flatten(1, 2).flatten(2)
    wanted = functional.fold(columns, size, side, padding=radius)
    assert torch.allclose(gather_arrivals(weights, values), wanted, atol=1e-5)


def test_gradients_of_arrivals() -> None:
    weights = torch.rand(2, 9, 3, 4).double()
    values = torch.randn(2, 2, 3, 4).double()
    for first, second in ((True, True), (True, False), (False, True)):
        inputs = (weights.clone().requires_grad_(first), values.clone().requires_grad_(second))
        assert torch.autograd.gradcheck(gather_arrivals, inputs)


def test_render_blends_what_arrives_by_its_shares() -> None:
    signal = random_signal()
    weights = (LOGIT_BOUND * torch.tanh(signal.logits / LOGIT_BOUND)).exp().double()
    colors = arrivals_by_loop(weights, signal.photo.double())
    total = arrivals_by_loop(weights, torch.ones(2, 1, *SIZE).double())
    assert torch.allclose(MotionRenderer().render(signal).double(), colors / total, atol=1e-5)


def test_gradients_of_render_are_finite_differences() -> None:
    """In float32, as shares are: along a random direction."""
    signal, way = random_signal(1), torch.randn(1, COUNT, *SIZE)
    logits = signal.logits.requires_grad_()
    target = torch.rand(1, 3, *SIZE)

    def error(changed: Tensor) -> Tensor:
        return (MotionRenderer().render(MotionSignal(signal.photo, changed)) - target).double().square().sum()

    error(logits).backward()
    slope = float((logits.grad * way).sum())
    step = 1e-2
    with torch.no_grad():
        difference = float(error(logits + step * way) - error(logits - step * way)) / (2 * step)
    assert abs(slope) > 0.1
    assert difference == pytest.approx(slope, rel=1e-2)


# --- one displacement ----------------------------------------------------------------------------


@pytest.mark.parametrize(("x", "y"), [(0, 0), (2, 0), (0, -1), (-2, 1)])
def test_all_mass_on_one_displacement(x: int, y: int) -> None:
    signal = shifted_signal(x, y)
    rows, columns = torch.arange(SIZE[0]) - y, torch.arange(SIZE[1]) - x  # where each pixel comes from
    inside = ((rows >= 0) & (rows < SIZE[0]))[:, None] & ((columns >= 0) & (columns < SIZE[1]))
    wanted = signal.photo[:, :, rows.clamp(0, SIZE[0] - 1)][..., columns.clamp(0, SIZE[1] - 1)]
    shown = MotionRenderer().render(signal)
    assert torch.allclose(shown[..., inside], wanted[..., inside], atol=1e-5)
    field = mean_field(signal)
    step = torch.tensor([x, y]).float()
    assert torch.allclose(field.motion, step.view(1, 2, 1, 1).expand_as(field.motion), atol=1e-5)
    assert torch.allclose(field.flow[..., inside], -step[:, None].expand(2, int(inside.sum())), atol=1e-5)
    assert torch.allclose(field.visible[..., inside], torch.ones(()), atol=1e-5)
    assert (field.visible[..., ~inside] < 1e-5).all()
    assert torch.allclose(field.importance, torch.full((1, 1, *SIZE), LOGIT_BOUND), atol=1e-4)
    assert torch.allclose(mean_length(signal), torch.full((1, 1, *SIZE), math.hypot(x, y)), atol=1e-4)
    warped, _ = backward_warp(signal.photo, field.flow)
    assert torch.allclose(warped[..., inside], shown[..., inside], atol=1e-4)


def test_two_displacements_show_their_mean() -> None:
    """Equally sure to go left or right by one: half of each neighbour, no mean motion, a mean length of 1."""
    signal = shifted_signal(1, 0)
    signal.logits[:, displacements(RADIUS).tolist().index([-1, 0])] = SURE
    shown, field = MotionRenderer().render(signal), mean_field(signal)
    wanted = (signal.photo[..., :-2] + signal.photo[..., 2:]) / 2
    assert torch.allclose(shown[..., 1:-1], wanted, atol=1e-5)
    assert field.flow[..., 1:-1].abs().max() < 1e-5
    assert field.motion.abs().max() < 1e-5
    assert torch.allclose(mean_length(signal), torch.ones(1, 1, *SIZE), atol=1e-5)


def test_the_larger_logit_covers() -> None:
    """A pixel that moves onto one that rests is seen with the share of its logit."""
    for difference in (-8.0, 0.0, 8.0):
        signal = MotionSignal(torch.zeros(1, 3, 1, 3), torch.full((1, 9, 1, 3), -SURE))
        signal.photo[..., 0], signal.photo[..., 1] = 1.0, -1.0
        signal.logits[0, 4] = 2.0  # all rest
        signal.logits[0, 4, 0, 0], signal.logits[0, 5, 0, 0] = -SURE, 2.0 + difference  # but the first
        weights = shares(torch.tensor([2.0 + difference, 2.0]))
        wanted = float((weights[0] - weights[1]) / weights.sum())
        assert MotionRenderer().render(signal)[0, 0, 0, 1] == pytest.approx(wanted, abs=1e-5)


def test_means_agree_with_a_loop() -> None:
    signal = random_signal(1)
    weights, steps = shares(signal.logits).double(), displacements(RADIUS).double()
    field, ones = mean_field(signal), torch.ones(1, 1, *SIZE).double()
    total = arrivals_by_loop(weights, ones)
    for axis in (0, 1):
        coming = arrivals_by_loop(weights * steps[:, axis, None, None], ones)
        assert torch.allclose(field.flow[:, axis : axis + 1].double(), -coming / total, atol=1e-5)
        going = (weights * steps[:, axis, None, None]).sum(1, keepdim=True) / weights.sum(1, keepdim=True)
        assert torch.allclose(field.motion[:, axis : axis + 1].double(), going, atol=1e-5)
    visible = arrivals_by_loop(weights / weights.sum(1, keepdim=True), ones).clamp(max=1)
    assert (visible < 0.9).any()
    assert torch.allclose(field.visible.double(), visible, atol=1e-5)
    bounded = LOGIT_BOUND * torch.tanh(signal.logits / LOGIT_BOUND)
    assert torch.allclose(field.importance, bounded.logsumexp(1, keepdim=True), atol=1e-5)
    lengths = (weights * steps.norm(dim=1)[:, None, None]).sum(1) / weights.sum(1)
    assert torch.allclose(mean_length(signal)[:, 0].double(), lengths, atol=1e-5)


# --- moments -------------------------------------------------------------------------------------


def test_the_first_moment_is_the_photo() -> None:
    signal = random_signal()
    assert torch.allclose(MotionRenderer().render(signal, 0.0), signal.photo, atol=1e-6)


@pytest.mark.parametrize(("x", "y"), [(2, 0), (-1, 2)])
def test_the_last_moment_is_the_target(x: int, y: int) -> None:
    """Played to the end, a shift shows the same as the render where the photo is seen."""
    signal = shifted_signal(x, y)
    field, shown = mean_field(signal), MotionRenderer().render(signal)
    seen = field.visible.expand_as(shown) > 0.5
    assert seen.float().mean() > 0.4
    assert torch.allclose(play(signal.photo, field, 1.0)[seen], shown[seen], atol=1e-4)


def test_half_way_a_shift_has_gone_half_way() -> None:
    signal = shifted_signal(2, 0)
    shown = MotionRenderer().render(signal, 0.5)
    assert torch.allclose(shown[..., 1:], signal.photo[..., :-1], atol=1e-4)
    end, _ = backward_warp(signal.photo, mean_field(signal).flow)
    assert torch.allclose(shown[..., :1], end[..., :1], atol=1e-4)  # the hole shows what the target has there


def test_moving_pixels_cover_resting_ones() -> None:
    photo = torch.tensor([1.0, -1.0, 0.0]).expand(1, 3, 1, 3)
    motion = torch.zeros(1, 2, 1, 3)
    motion[0, 0, 0, 0] = 1.0
    field = MotionField(torch.zeros(1, 2, 1, 3), motion, torch.ones(1, 1, 1, 3), torch.zeros(1, 1, 1, 3))
    # softmax of importances that differ by the motion's length, 1
    assert play(photo, field, 1.0)[0, 0, 0, 1] == pytest.approx(math.tanh(0.5), abs=1e-6)


# --- batches and sizes ---------------------------------------------------------------------------


def test_parts_and_batches() -> None:
    field = random_field(3)
    parts = [field.part(index) for index in range(3)]
    again = MotionField.cat(parts)
    for entry in fields(MotionField):
        whole = getattr(field, entry.name)
        assert torch.equal(getattr(again, entry.name), whole)
        assert torch.equal(getattr(parts[1], entry.name), whole[1:2])


def test_a_batch_is_its_elements() -> None:
    signal = random_signal(2)
    both, shown = mean_field(signal), MotionRenderer().render(signal)
    for index in range(2):
        one = MotionSignal(signal.photo[index : index + 1], signal.logits[index : index + 1])
        assert torch.allclose(MotionRenderer().render(one), shown[index : index + 1], atol=1e-6)
        assert torch.allclose(mean_field(one).flow, both.part(index).flow, atol=1e-6)


def test_resized_fields_count_the_new_pixels() -> None:
    """Of a uniform field only the scale changes, of each axis its own."""
    flow = torch.tensor([3.0, -2.0]).view(1, 2, 1, 1).expand(1, 2, *SIZE)
    field = MotionField(flow, -flow, torch.full((1, 1, *SIZE), 0.3), torch.full((1, 1, *SIZE), 5.0))
    large = resized_field(field, (SIZE[0] * 2, SIZE[1] * 3))
    assert large.flow.shape == large.motion.shape == (1, 2, 12, 27)
    wanted = torch.tensor([9.0, -4.0]).view(1, 2, 1, 1).expand_as(large.flow)
    assert torch.allclose(large.flow, wanted)
    assert torch.allclose(large.motion, -wanted)
    assert torch.allclose(large.visible, torch.tensor(0.3))
    assert torch.allclose(large.importance, torch.tensor(5.0))


def test_resizing_to_the_same_size_changes_nothing() -> None:
    field = random_field()
    same = resized_field(field, SIZE)
    for entry in fields(MotionField):
        assert torch.allclose(getattr(same, entry.name), getattr(field, entry.name), atol=1e-6)


def test_resized_ramps_stay_ramps() -> None:
    """A field that grows linearly along x is the same function of the place at twice the size."""
    ramp = torch.arange(SIZE[1]).float().expand(1, 1, *SIZE)
    field = MotionField(torch.cat([ramp, 0 * ramp], 1), torch.cat([ramp, 0 * ramp], 1), ramp, ramp)
    large = resized_field(field, (SIZE[0] * 2, SIZE[1] * 2))
    place = (torch.arange(2 * SIZE[1]) + 0.5) / 2 - 0.5  # of the new pixels' centres, in the old pixels
    assert torch.allclose(large.visible[0, 0, 0, 1:-1], place[1:-1], atol=1e-5)
    assert torch.allclose(large.flow[0, 0, 0, 1:-1], 2 * place[1:-1], atol=1e-5)
