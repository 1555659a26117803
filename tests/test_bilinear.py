"""Bilinear look-ups against a naive loop; the Triton kernels on a GPU, and interpreted on the CPU."""

from __future__ import annotations

import pytest
import torch
from interpreted import check_interpreted
from torch import Tensor

from scenediff.renderers.bilinear import RUN_CHANNELS, gather_reference, sample_map


def naive_lookup(image_map: Tensor, grid: Tensor) -> Tensor:
    """Point after point: pixel centres at half-integers, the border's pixels go on for ever."""
    batch, channels, height, width = image_map.shape
    out = torch.zeros(batch, grid.shape[1], channels, dtype=image_map.dtype)
    for b in range(batch):
        for p, (x, y) in enumerate(grid[b].tolist()):
            column = min(max((x + 1) / 2 * width - 0.5, 0), width - 1)
            row = min(max((y + 1) / 2 * height - 0.5, 0), height - 1)
            for i in range(height):
                for j in range(width):
                    share = max(0, 1 - abs(row - i)) * max(0, 1 - abs(column - j))
                    out[b, p] += share * image_map[b, :, i, j]
    return out


def example(channels: int = 5, device: str = "cpu") -> tuple[Tensor, Tensor]:
    """A map, and points of which a third lie outside or exactly on its edges and pixel centres."""
    image_map = torch.randn(2, channels, 4, 7, device=device)
    special = torch.tensor(
        [[-1.0, -1.0], [1.0, 1.0], [2 / 7, 0.25], [0.0, 0.0], [6 / 7, -0.75], [40.0, -40.0]]
    )
    grid = torch.cat([special.expand(2, -1, -1), torch.rand(2, 31, 2) * 2.6 - 1.3], dim=1)
    return image_map, grid.to(device)


def test_look_ups_agree_with_a_loop() -> None:
    image_map, grid = example()
    found = sample_map(image_map, grid)
    assert found.shape == (2, 37, 5)
    assert torch.allclose(found, naive_lookup(image_map, grid), atol=1e-5)
    assert torch.allclose(found[:, 2], image_map[:, :, 2, 4], atol=1e-5)  # the centre of row 2, column 4


def test_no_points_and_half_precision() -> None:
    image_map, grid = example()
    assert sample_map(image_map, grid[:, :0]).shape == (2, 0, 5)
    assert sample_map(image_map.bfloat16(), grid).dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        assert sample_map(image_map, grid).dtype == torch.float32


def test_gradients_reach_map_and_points() -> None:
    image_map, _ = example(2)
    inner = (torch.rand(2, 5, 2) * 1.4 - 0.7).double().requires_grad_()
    assert torch.autograd.gradcheck(sample_map, (image_map.double().requires_grad_(), inner))


def check_kernels(apply, device: str) -> None:
    """Values and gradients of the Triton kernels against `gather_reference`, with odd numbers of channels."""
    for channels in (1, 3, 5, 20, RUN_CHANNELS + 3):
        image_map, grid = example(channels, device)
        grid = grid.repeat_interleave(3, dim=1)  # runs of points between the same pixels
        grid = grid + 0.01 * torch.rand(2, 111, 2, device=device)
        image_map.requires_grad_()
        fast, slow = apply(image_map, grid), gather_reference(image_map, grid)
        assert torch.allclose(fast, slow, atol=1e-5), channels
        direction = torch.randn_like(fast)
        gradients = [torch.autograd.grad((out * direction).sum(), image_map)[0] for out in (fast, slow)]
        assert torch.allclose(*gradients, atol=1e-5), channels


@pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs a CUDA device; the kernels are also tested interpreted"
)
def test_kernels_on_the_gpu() -> None:
    check_kernels(sample_map, "cuda")
    image_map, grid = example(20, "cuda")
    half = sample_map(image_map.bfloat16(), grid)
    assert half.dtype == torch.bfloat16
    assert torch.allclose(half.float(), gather_reference(image_map, grid), atol=0.05)  # bfloat16 has 8 bits
    wanted = grid.clone().requires_grad_()
    assert sample_map(image_map, wanted).requires_grad  # points with gradients take the slow way
    assert sample_map(image_map, grid[:, :0]).shape == (2, 0, 20)


def test_kernels_interpreted_on_the_cpu() -> None:
    """Triton decides when it is imported whether to interpret, hence the process of its own."""
    pytest.importorskip("triton", reason="Triton has no wheels for this platform")
    code = (
        "from test_bilinear import check_kernels; from scenediff.renderers.bilinear import _GatherBilinear;"
        "import torch; torch.manual_seed(0); check_kernels(_GatherBilinear.apply, 'cpu'); print('agreed')"
    )
    check_interpreted(code)
