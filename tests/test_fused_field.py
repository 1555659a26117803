"""The fused kernels against the plain PyTorch field: interpreted on the CPU, and as they are on a GPU."""

from __future__ import annotations

import pytest
import torch
from interpreted import check_interpreted
from pytorch3d.renderer import RayBundle
from torch import Tensor, nn

from scenediff.renderers import fused_field, fused_rays
from scenediff.renderers.cameras import perspective_cameras
from scenediff.renderers.pixel_field import (
    DENSITY_SCALE,
    FieldConfig,
    FieldSignal,
    FieldView,
    PixelFieldRenderer,
    _look_up,
    composite,
    map_signal,
)

MAPS = ((8, 8), (6, 10), (8, 6))
IMAGES = ((16, 16), (6, 10), (12, 9))


def some_field(views: int, channels: int, count: int) -> tuple[PixelFieldRenderer, FieldSignal, Tensor]:
    """A field of random views, one of them absent, and points before, behind and beside them."""
    torch.manual_seed(views)
    renderer = PixelFieldRenderer(FieldConfig(channels=channels, feature_channels=5)).eval()
    for parameter in renderer.parameters():
        nn.init.normal_(parameter, std=1.2 / channels**0.5)
    parts = []
    for view in range(views):
        rotation = torch.linalg.qr(torch.eye(3) + 0.1 * torch.randn(2, 3, 3))[0]
        rotation = rotation * torch.sign(torch.diagonal(rotation, dim1=1, dim2=2))[:, None]
        cameras = perspective_cameras(
            rotation, 0.2 * torch.randn(2, 3), torch.rand(2) + 1.5, 0.1 * torch.randn(2, 2)
        )
        features, image = torch.randn(2, channels, *MAPS[view]), torch.randn(2, 3, *IMAGES[view])
        log_depth = 0.3 * torch.randn(2, 1, *MAPS[view]) + 0.8
        present = torch.tensor([1.0, float(view != 1)])
        parts.append(FieldView(cameras, features, log_depth, image, present, IMAGES[view]))
    points = torch.randn(2, count, 3) * torch.tensor([1.0, 1.0, 2.0]) + torch.tensor([0.0, 0.0, 2.0])
    return renderer, FieldSignal(tuple(parts)), points


def fused_decode(renderer: PixelFieldRenderer, signal: FieldSignal, points: Tensor) -> tuple[Tensor, Tensor]:
    views = signal.views
    return fused_field.decode_points(
        points, [view.features for view in views], [view.log_depth for view in views],
        [view.image for view in views], packed(signal), renderer.field.weights(),
    )


def packed(signal: FieldSignal) -> list[Tensor]:
    return [view.packed_camera for view in signal.views]


def gradients(results: tuple[Tensor, ...], leaves: list[Tensor]) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(5)
    weights = [torch.randn(part.shape, generator=generator).to(part.device) for part in results]
    total = sum((part * weight).sum() for part, weight in zip(results, weights, strict=True))
    return torch.autograd.grad(total, leaves)


def worst(first: tuple[Tensor, ...], second: tuple[Tensor, ...]) -> float:
    """Largest norm of a difference, over the norm of the first."""
    return max(
        float((a.detach().float() - b.detach().float()).norm() / (a.detach().float().norm() + 1e-9))
        for a, b in zip(first, second, strict=True)
    )


def check_decoding(
    device: str, dtype: torch.dtype, tolerance: float, channels: int, count: int, beside_plain: bool = False
) -> None:
    """Values and gradients of the fused kernels against plain PyTorch in float64.

    Args:
        tolerance: largest relative error of a tensor's norm.
        beside_plain: let it be twice the error of plain PyTorch in the same precision, if that is more.
    """
    for views in (1, 2, 3):
        renderer, signal, points = some_field(views, channels, count)
        reference, exact = renderer.double(), map_signal(signal, lambda part: part.double())
        leaves = [part for view in exact.views for part in (view.features, view.log_depth, view.image)]
        leaves = [leaf.requires_grad_() for leaf in leaves] + list(reference.parameters())
        expected = reference.decode(exact, points.double())
        expected_gradients = gradients(expected, leaves)
        renderer, signal, points = some_field(views, channels, count)
        renderer, points = renderer.to(device), points.to(device)
        signal = map_signal(signal, lambda part: part.to(device))
        signal = FieldSignal(
            tuple(
                FieldView(
                    view.cameras, view.features.to(dtype).requires_grad_(), view.log_depth.requires_grad_(),
                    view.image.requires_grad_(), view.present, view.size,
                )
                for view in signal.views
            )
        )
        leaves = [part for view in signal.views for part in (view.features, view.log_depth, view.image)]
        got = fused_decode(renderer, signal, points)
        got_gradients = gradients(got, leaves + list(renderer.parameters()))
        truth = [part.to(device) for part in (*expected, *expected_gradients)]
        allowed = [tolerance] * len(truth)
        if beside_plain:
            with torch.autocast(device, dtype):
                plain = renderer.field([_look_up(view, points) for view in signal.views])
            plain = (*plain, *gradients(plain, leaves + list(renderer.parameters())))
            errors = [worst((one,), (other,)) for one, other in zip(truth, plain, strict=True)]
            allowed = [max(tolerance, 2 * error) for error in errors]
        errors = [worst((one,), (other,)) for one, other in zip(truth, (*got, *got_gradients), strict=True)]
        assert all(error < limit for error, limit in zip(errors, allowed, strict=True)), (errors, allowed)


def check_rays(device: str, tolerance: float) -> None:
    torch.manual_seed(0)
    logits, log_depth = 2 * torch.randn(2, 21, 20) - 2, torch.rand(2, 21, 20).sort(-1).values * 3
    values = torch.randn(2, 21, 20, 14)
    both = []
    for function, dtype, where in (
        (composite, torch.float64, "cpu"),
        (lambda *parts: fused_rays.composite_rays(*parts, DENSITY_SCALE), torch.float32, device),
    ):
        logit, value = (part.to(where, dtype).requires_grad_() for part in (logits, values))
        result = function(logit, log_depth.to(where, dtype), value)
        both.append([part.cpu() for part in (*result, *gradients(result, [logit, value]))])
    assert worst(*both) < tolerance
    for views in (1, 2, 3):
        renderer, signal, _ = some_field(views, 16, 1)
        config = renderer.config
        origins = 0.2 * torch.randn(2, 21, 3)
        directions = torch.cat([0.4 * torch.randn(2, 21, 2), torch.ones(2, 21, 1)], dim=-1)
        expected = renderer.place_samples(signal, RayBundle(origins, directions, None, None))
        signal = map_signal(signal, lambda part: part.to(device))
        middles = (torch.arange(config.samples, device=device) + 0.5) / config.samples
        got = fused_rays.place_on_rays(
            origins.to(device), directions.to(device), packed(signal),
            [view.log_depth for view in signal.views], middles.expand(2, 21, -1), bins=config.proposal_bins,
            near=config.near, far=config.far, uniform_share=config.uniform_share,
        )
        # a quantile beside a bin's edge moves steeply where the density is low
        assert (got.cpu() - expected).abs().max() < 1e-3
        assert (got.cpu() - expected).abs().median() < 1e-5


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_kernels_on_a_gpu() -> None:
    # bfloat16 has 8 bits, and rounding compounds over five layers
    check_decoding("cuda", torch.bfloat16, tolerance=0.04, channels=64, count=1000, beside_plain=True)
    check_rays("cuda", tolerance=1e-5)


@pytest.mark.skipif(fused_field.triton is None, reason="needs Triton")
def test_interpreted_kernels() -> None:
    """In a process of its own, as Triton decides when it is imported."""
    code = (
        "import torch, test_fused_field as t; "
        "t.fused_field.POINTS = 16; "  # several blocks, the last one partly filled
        "t.check_decoding('cpu', torch.float32, 5e-5, 16, 37); t.check_rays('cpu', 1e-5); print('agreed')"
    )
    check_interpreted(code)
