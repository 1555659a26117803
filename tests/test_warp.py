"""Warps: exact where positions are whole, PyTorch's own sampling and slow loops elsewhere, gradients."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from scenediff.renderers.warp import backward_warp, pixel_grid, splat

SIZE = (7, 10)  # not square, sides neither powers of two nor alike


def random_image(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(*shape, dtype=dtype) * 2 - 1


def constant(x: float, y: float, size: tuple[int, int] = SIZE, batch: int = 1) -> Tensor:
    """(batch, 2, height, width), the same everywhere."""
    return torch.tensor([x, y]).view(1, 2, 1, 1).expand(batch, 2, *size).contiguous()


def off_lattice(batch: int, size: tuple[int, int], reach: float) -> Tensor:
    """Float64 fields whose positions stay 0.1 px away from whole ones, where the slope jumps."""
    whole = torch.randint(-int(reach), int(reach) + 1, (batch, 2, *size))
    return (whole + 0.1 + 0.8 * torch.rand(batch, 2, *size)).double()


def test_the_grid_counts_x_and_y() -> None:
    grid = pixel_grid((2, 3))
    assert grid[0].tolist() == [[0, 1, 2], [0, 1, 2]]
    assert grid[1].tolist() == [[0, 0, 0], [1, 1, 1]]


# --- backwards -----------------------------------------------------------------------------------


def test_no_flow_changes_no_bit() -> None:
    image = random_image(2, 3, *SIZE)
    warped, valid = backward_warp(image, torch.zeros(2, 2, *SIZE))
    assert torch.equal(warped, image)
    assert valid.shape == (2, 1, *SIZE)
    assert valid.dtype == torch.bool
    assert valid.all()


@pytest.mark.parametrize(("x", "y"), [(1, 0), (0, 1), (-3, 2), (4, -5), (-9, -6)])
def test_flows_of_whole_pixels_are_exact(x: int, y: int) -> None:
    """target(p) = context(p + flow): with x = 1 everything comes from the right."""
    image = random_image(1, 3, *SIZE)
    warped, valid = backward_warp(image, constant(x, y))
    for row in range(SIZE[0]):
        for column in range(SIZE[1]):
            inside = 0 <= row + y < SIZE[0] and 0 <= column + x < SIZE[1]
            assert bool(valid[0, 0, row, column]) == inside
            near = (min(max(row + y, 0), SIZE[0] - 1), min(max(column + x, 0), SIZE[1] - 1))
            assert torch.equal(warped[0, :, row, column], image[0, :, near[0], near[1]])


def test_fractions_agree_with_grid_sample() -> None:
    """Everywhere, also outside: `grid_sample`'s border padding."""
    image, flow = random_image(3, 2, *SIZE), 4 * random_image(3, 2, *SIZE)
    position = pixel_grid(SIZE) + flow
    sides = torch.tensor([SIZE[1] - 1.0, SIZE[0] - 1.0])
    shares = position.movedim(1, -1) / sides * 2 - 1
    wanted = functional.grid_sample(image, shares, "bilinear", "border", align_corners=True)
    warped, valid = backward_warp(image, flow)
    assert 0.2 < valid.float().mean() < 0.9  # both cases occur
    assert torch.allclose(warped, wanted, atol=2e-5)  # grid_sample rounds positions of some pixels to 1e-6


def test_fractions_agree_with_a_loop() -> None:
    image, flow = random_image(1, 2, *SIZE), 3 * random_image(1, 2, *SIZE)
    warped, valid = backward_warp(image, flow)
    for row in range(SIZE[0]):
        for column in range(SIZE[1]):
            x, y = column + float(flow[0, 0, row, column]), row + float(flow[0, 1, row, column])
            inside = 0 <= x <= SIZE[1] - 1 and 0 <= y <= SIZE[0] - 1
            assert bool(valid[0, 0, row, column]) == inside
            if inside:
                wanted = sum(
                    max(0.0, 1 - abs(x - i)) * max(0.0, 1 - abs(y - j)) * image[0, :, j, i]
                    for j in range(SIZE[0]) for i in range(SIZE[1])
                )  # fmt: skip
                assert torch.allclose(warped[0, :, row, column], wanted, atol=2e-6)


def test_the_border_itself_is_valid() -> None:
    """Half a pixel beyond the outermost centres is not, though it still lies in the picture."""
    for axis, last in enumerate((SIZE[1] - 1, SIZE[0] - 1)):
        flow = torch.zeros(1, 2, *SIZE)
        edges = torch.tensor([0.0, -1e-3, last, last + 1e-3])
        flow[0, axis, 0, :4] = edges - pixel_grid(SIZE)[axis, 0, :4]
        _, valid = backward_warp(random_image(1, 1, *SIZE), flow)
        assert valid[0, 0, 0, :4].tolist() == [True, False, True, False]


def test_a_flow_may_have_another_size_than_the_image() -> None:
    image = random_image(2, 3, *SIZE)
    warped, valid = backward_warp(image, constant(2, 1, size=(4, 5), batch=2))
    assert torch.equal(warped, image[:, :, 1:5, 2:7])
    assert valid.shape == (2, 1, 4, 5)


def test_an_image_of_one_pixel() -> None:
    image = random_image(1, 3, 1, 1)
    warped, valid = backward_warp(image, constant(0.4, 0.0, size=(1, 1)))
    assert torch.equal(warped, image)
    assert not valid.any()


@given(
    slopes=st.tuples(*[st.floats(-3, 3) for _ in range(3)]),
    shift=st.tuples(st.floats(-4, 4), st.floats(-3, 3)),
    size=st.tuples(st.integers(2, 9), st.integers(2, 9)),
)
@settings(max_examples=60, deadline=None)
def test_linear_ramps_are_exact(slopes, shift, size) -> None:
    """Bilinear sampling of a + b x + c y is a + b x + c y at any position inside."""
    grid = pixel_grid(size).double()
    ramp = (slopes[0] + slopes[1] * grid[0] + slopes[2] * grid[1])[None, None]
    flow = constant(*shift, size=size).double()
    warped, valid = backward_warp(ramp, flow)
    wanted = ramp + slopes[1] * flow[:, :1] + slopes[2] * flow[:, 1:]
    assert torch.allclose(warped[valid], wanted[valid], atol=1e-10)  # float64


def test_backward_gradients() -> None:
    image = random_image(1, 2, 4, 5, dtype=torch.float64).requires_grad_()
    flow = off_lattice(1, (4, 5), 1).requires_grad_()
    assert torch.autograd.gradcheck(lambda *both: backward_warp(*both)[0], (image, flow))


# --- forwards ------------------------------------------------------------------------------------


def loop_splat(values: Tensor, motion: Tensor, importance: Tensor) -> tuple[Tensor, Tensor]:
    """Pixel after pixel, place after place, as the formula has it; float64, batch 1."""
    height, width = values.shape[-2:]
    blended, weights = torch.zeros_like(values), torch.zeros_like(importance)
    arrived = torch.zeros_like(importance)
    for row in range(height):
        for column in range(width):
            x = column + float(motion[0, 0, row, column])
            y = row + float(motion[0, 1, row, column])
            weight = math.exp(float(importance[0, 0, row, column]))
            for j in range(height):
                for i in range(width):
                    share = max(0.0, 1 - abs(x - i)) * max(0.0, 1 - abs(y - j))
                    blended[0, :, j, i] += share * weight * values[0, :, row, column]
                    weights[0, 0, j, i] += share * weight
                    arrived[0, 0, j, i] += share
    return torch.where(weights > 0, blended / weights, 0.0), arrived


def test_splat_agrees_with_a_loop() -> None:
    values = random_image(1, 2, *SIZE, dtype=torch.float64)
    motion = 3 * random_image(1, 2, *SIZE, dtype=torch.float64)
    importance = 2 * random_image(1, 1, *SIZE, dtype=torch.float64)
    wanted, wanted_arrived = loop_splat(values, motion, importance)
    moved, arrived = splat(values, motion, importance)
    assert (wanted_arrived == 0).any()  # holes
    assert (wanted_arrived > 1.5).any()  # and places where several meet
    assert torch.allclose(moved, wanted, atol=1e-10)
    assert torch.allclose(arrived, wanted_arrived, atol=1e-12)


def test_no_motion_keeps_the_image() -> None:
    values = random_image(2, 3, *SIZE)
    moved, arrived = splat(values, torch.zeros(2, 2, *SIZE), torch.zeros(2, 1, *SIZE))
    assert torch.equal(moved, values)
    assert torch.equal(arrived, torch.ones(2, 1, *SIZE))


def test_motions_of_whole_pixels_are_exact() -> None:
    """Two to the right, one up: what leaves the frame is lost, what nothing reaches is a hole of zeros."""
    values = random_image(1, 3, *SIZE)
    moved, arrived = splat(values, constant(2, -1), torch.full((1, 1, *SIZE), 3.0))
    assert torch.equal(moved[:, :, :-1, 2:], values[:, :, 1:, :-2])
    covered = torch.zeros(1, 1, *SIZE)
    covered[:, :, :-1, 2:] = 1
    assert torch.equal(arrived, covered)
    assert not (moved * (1 - covered)).any()


def test_the_weights_add_up_to_the_pixels_that_stay_inside() -> None:
    values, importance = torch.ones(1, 1, 20, 30), torch.randn(1, 1, 20, 30)
    motion = torch.zeros(1, 2, 20, 30)
    motion[:, :, 5:15, 5:25] = 4 * random_image(1, 2, 10, 20)  # too short to leave
    _, arrived = splat(values, motion, importance)
    assert float(arrived.sum()) == pytest.approx(600, rel=1e-6)
    motion[:, :, 0] = -100.0
    _, arrived = splat(values, motion, importance)
    assert float(arrived.sum()) == pytest.approx(570, rel=1e-6)


@pytest.mark.parametrize("difference", [0.0, 1.5, 30.0, 300.0])
def test_what_meets_is_blended_by_softmax(difference: float) -> None:
    """A white pixel at 1 and a black one at 5 meet at 3."""
    values, importance = torch.zeros(1, 1, 1, 7), torch.zeros(1, 1, 1, 7)
    motion = torch.zeros(1, 2, 1, 7)
    values[..., 1], importance[..., 1] = 1.0, difference
    values[..., 5] = -1.0
    motion[0, 0, 0, 1], motion[0, 0, 0, 5], motion[0, 0, 0, 3] = 2.0, -2.0, 50.0
    moved, arrived = splat(values, motion, importance)
    assert arrived[0, 0, 0].tolist() == [1, 0, 1, 2, 1, 0, 1]
    assert float(moved[0, 0, 0, 3]) == pytest.approx(math.tanh(difference / 2), abs=1e-6)


def test_a_pixel_alone_keeps_its_colour_however_unimportant() -> None:
    values = torch.full((1, 1, 1, 4), 0.7)
    importance = torch.tensor([0.0, -50.0, -200.0, 500.0]).view(1, 1, 1, 4)
    moved, arrived = splat(values, torch.zeros(1, 2, 1, 4), importance)
    assert torch.allclose(moved, values)
    assert (arrived == 1).all()


def test_importance_counts_only_as_a_difference() -> None:
    values, motion = random_image(1, 3, *SIZE), 3 * random_image(1, 2, *SIZE)
    importance = random_image(1, 1, *SIZE)
    moved, _ = splat(values, motion, importance)
    more, _ = splat(values, motion, importance + 1000.0)  # exp(1000) has no number
    assert torch.allclose(moved, more, atol=1e-3)  # at 1000, float32 has steps of 6e-5


def test_splat_gradients() -> None:
    values = random_image(1, 2, 4, 5, dtype=torch.float64).requires_grad_()
    motion = off_lattice(1, (4, 5), 1).requires_grad_()
    importance = random_image(1, 1, 4, 5, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(splat, (values, motion, importance))


def test_holes_have_finite_gradients() -> None:
    values, motion = random_image(1, 1, *SIZE).requires_grad_(), constant(4.5, 0.0).requires_grad_()
    importance = torch.zeros(1, 1, *SIZE, requires_grad=True)
    moved, arrived = splat(values, motion, importance)
    assert (arrived == 0).any()
    moved.sum().backward()
    for tensor in (values, motion, importance):
        assert tensor.grad.isfinite().all()
    assert values.grad.any()


def test_there_and_back() -> None:
    """Splatted by a motion and looked up by the opposite flow, whole pixels are where they were."""
    values = random_image(1, 3, *SIZE)
    moved, _ = splat(values, constant(3, 2), torch.zeros(1, 1, *SIZE))
    back, valid = backward_warp(moved, constant(3, 2))
    assert torch.equal(back[valid.expand_as(back)], values[valid.expand_as(back)])
    assert valid.sum() == (SIZE[0] - 2) * (SIZE[1] - 3)


# --- wrong shapes --------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 2, *SIZE), (2, 3, *SIZE), (2, *SIZE), (2, 2, 7)])
def test_wrong_fields_are_refused(shape: tuple[int, ...]) -> None:
    image, importance = random_image(2, 3, *SIZE), torch.zeros(2, 1, *SIZE)
    with pytest.raises(ValueError, match=r"flow must be \(2, 2, height, width\)"):
        backward_warp(image, torch.zeros(shape))
    with pytest.raises(ValueError, match=r"motion must be \(2, 2, height, width\)"):
        splat(image, torch.zeros(shape), importance)


def test_wrong_images_and_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"flow must be .* for an image \(3, 7, 10\)"):
        backward_warp(random_image(3, *SIZE), torch.zeros(3, 2, *SIZE))
    with pytest.raises(ValueError, match="motion must be"):
        splat(random_image(1, 3, *SIZE), torch.zeros(1, 2, 6, 10), torch.zeros(1, 1, *SIZE))
    with pytest.raises(ValueError, match=r"importance must be \(1, 1, 7, 10\), got \(1, 2, 7, 10\)"):
        splat(random_image(1, 3, *SIZE), torch.zeros(1, 2, *SIZE), torch.zeros(1, 2, *SIZE))
