"""Where to sample rays, and what a ray's samples add up to, each in one kernel on a GPU.

The same as `PixelFieldRenderer.place_samples` and `pixel_field.composite`, which are the references in the
tests: a block of rays stays in registers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from scenediff.renderers.fused_field import MAX_VIEWS, _look_up, _project, triton

if triton is not None:
    from triton import language as tl

RAYS = 16  # of a block


@torch.no_grad()
def place_on_rays(
    origins: Tensor,
    directions: Tensor,
    cameras: Sequence[Tensor],
    log_depths: Sequence[Tensor],
    quantiles: Tensor,
    *,
    bins: int,
    near: float,
    far: float,
    uniform_share: float,
) -> Tensor:
    """(batch, rays, samples) log depths: some spread evenly, most near the depths that views predict.

    Args:
        origins, directions: (batch, rays, 3).
        cameras: `fused_field.pack_camera` of each view. log_depths: (batch, 1, height, width) of each.
        quantiles: (batch, rays, samples) in (0, 1), rising along a ray.
        bins: resolution of the density that is sampled, a power of two, between near and far, metres.
        uniform_share: of the density that is spread evenly.
    """
    batch, rays, samples = quantiles.shape
    result = torch.empty(batch, rays, samples, device=origins.device)
    maps = [one.float().contiguous() for one in log_depths]
    views = len(maps)
    fill = [0] * (MAX_VIEWS - views)
    sizes = [side for one in [*maps, *(maps[i] for i in fill)] for side in one.shape[2:]]
    if batch * rays:
        _place[triton.cdiv(rays, RAYS), batch](
            origins.contiguous(), directions.contiguous(), *cameras, *(cameras[i] for i in fill),
            *maps, *(maps[i] for i in fill), quantiles.contiguous(), result, rays,
            math.log(near), math.log(far / near) / bins, uniform_share, *sizes,
            VIEWS=views, BINS=bins, SAMPLES=samples, BLOCK=RAYS, num_warps=4,
        )
    return result


def composite_rays(
    density_logits: Tensor, log_depth: Tensor, values: Tensor, density_scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """`pixel_field.composite`; not differentiable with respect to `log_depth`."""
    return _Composite.apply(density_logits, log_depth, values, density_scale)


class _Composite(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, log_depth: Tensor, values: Tensor, scale: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        batch, rays, samples = logits.shape
        channels = values.shape[-1]
        logits, log_depth, values = (part.contiguous() for part in (logits, log_depth, values))
        image = logits.new_empty(batch, rays, channels)
        depth, opacity = logits.new_empty(batch, rays), logits.new_empty(batch, rays)
        if batch * rays:
            _composite[(triton.cdiv(batch * rays, RAYS),)](
                logits, log_depth, values, image, depth, opacity, batch * rays, scale,
                SAMPLES=samples, WIDE=triton.next_power_of_2(samples), CHANNELS=channels, BLOCK=RAYS,
                num_warps=4,
            )
        ctx.save_for_backward(logits, log_depth, values)
        ctx.scale = scale
        return image, depth, opacity

    @staticmethod
    def backward(
        ctx: Any, grad_image: Tensor, grad_depth: Tensor, grad_opacity: Tensor
    ) -> tuple[Tensor | None, ...]:
        logits, log_depth, values = ctx.saved_tensors
        batch, rays, samples = logits.shape
        channels = values.shape[-1]
        grad_logits, grad_values = torch.empty_like(logits), torch.empty_like(values)
        if batch * rays:
            _composite_backward[(triton.cdiv(batch * rays, RAYS),)](
                logits, log_depth, values, grad_image.contiguous(), grad_depth.contiguous(),
                grad_opacity.contiguous(), grad_logits, grad_values, batch * rays, ctx.scale,
                SAMPLES=samples, WIDE=triton.next_power_of_2(samples), CHANNELS=channels, BLOCK=RAYS,
                num_warps=4,
            )
        return grad_logits, None, grad_values, None


if triton is not None:

    @triton.jit
    def _choose(VIEW: tl.constexpr, a0, a1, a2, b0, b1, b2, c0, c1, c2, d0, d1, d2):
        if VIEW == 0:
            return a0, b0, c0, d0
        elif VIEW == 1:
            return a1, b1, c1, d1
        else:
            return a2, b2, c2, d2

    @triton.jit
    def _place(
        origins, directions, camera0, camera1, camera2, depths0, depths1, depths2, quantiles, result, rays,
        start, step, share, h0, w0, h1, w1, h2, w2,
        VIEWS: tl.constexpr, BINS: tl.constexpr, SAMPLES: tl.constexpr, BLOCK: tl.constexpr,
    ):
        b = tl.program_id(1).to(tl.int64)
        ray = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        keep = ray < rays
        ray = b * rays + ray
        k = tl.arange(0, BINS)[None, :]
        length = tl.exp(start + (k + 0.5) * step)
        x = tl.load(origins + 3 * ray, mask=keep, other=0.0)[:, None]
        y = tl.load(origins + 3 * ray + 1, mask=keep, other=0.0)[:, None]
        z = tl.load(origins + 3 * ray + 2, mask=keep, other=0.0)[:, None]
        x = x + length * tl.load(directions + 3 * ray, mask=keep, other=0.0)[:, None]
        y = y + length * tl.load(directions + 3 * ray + 1, mask=keep, other=0.0)[:, None]
        z = z + length * tl.load(directions + 3 * ray + 2, mask=keep, other=1.0)[:, None]
        likely = tl.zeros((BLOCK, BINS), tl.float32)
        for view in tl.static_range(VIEWS):
            camera, depths, height, width = _choose(
                view, camera0, camera1, camera2, depths0, depths1, depths2, h0, h1, h2, w0, w1, w2
            )
            gx, gy, depth, valid = _project(camera + b * 17, x, y, z)
            surface = _look_up(depths + b * height * width, gx, gy, height, width, 1)
            offset = (tl.log(tl.maximum(depth, 1e-2)) - surface) / step
            likely += valid * tl.exp(-offset * offset)
        weights = share / BINS + (1.0 - share) * likely / (tl.sum(likely, 1) + 1e-3)[:, None]
        cdf = tl.cumsum(weights, 1)
        total = tl.sum(weights, 1)
        for s in tl.static_range(SAMPLES):
            wanted = tl.load(quantiles + ray * SAMPLES + s, mask=keep, other=0.5) * total
            index = tl.minimum(tl.sum((cdf < wanted[:, None]).to(tl.int32), 1), BINS - 1)
            here = k == index[:, None]
            weight = tl.sum(tl.where(here, weights, 0.0), 1)
            end = tl.sum(tl.where(here, cdf, 0.0), 1)
            fraction = tl.minimum(tl.maximum((wanted - end + weight) / weight, 0.0), 1.0)
            tl.store(result + ray * SAMPLES + s, start + step * (index + fraction), mask=keep)

    @triton.jit
    def _ray_weights(logits, log_depth, ray, keep, scale, SAMPLES: tl.constexpr, WIDE: tl.constexpr):
        """Addresses and mask of rays' samples; logits, depths, steps, what passes each, weights."""
        s = tl.arange(0, WIDE)[None, :]
        at = ray[:, None] * SAMPLES + s
        inside = keep[:, None] & (s < SAMPLES)
        inner = keep[:, None] & (s < SAMPLES - 1)
        logit = tl.load(logits + at, mask=inside, other=0.0)
        here = tl.load(log_depth + at, mask=inside, other=0.0)
        step = scale * (tl.load(log_depth + at + 1, mask=inner, other=0.0) - here)
        step = tl.where(s < SAMPLES - 1, step, 0.0)
        softplus = tl.maximum(logit, 0.0) + tl.log(1.0 + tl.exp(-tl.abs(logit)))
        optical = tl.where(inner, softplus * step, 0.0)
        before = tl.exp(optical - tl.cumsum(optical, 1))
        after = before * tl.exp(-optical)
        weights = tl.where(s < SAMPLES - 1, before - after, before)
        return at, inside, logit, tl.exp(here), step, after, tl.where(inside, weights, 0.0)

    @triton.jit
    def _composite(
        logits, log_depth, values, image, depth, opacity, rays, scale,
        SAMPLES: tl.constexpr, WIDE: tl.constexpr, CHANNELS: tl.constexpr, BLOCK: tl.constexpr,
    ):
        ray = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        keep = ray < rays
        at, inside, _, distance, _, _, weights = _ray_weights(
            logits, log_depth, ray, keep, scale, SAMPLES, WIDE
        )
        last = tl.arange(0, WIDE)[None, :] == SAMPLES - 1
        tl.store(depth + ray, tl.sum(weights * distance, 1), mask=keep)
        tl.store(opacity + ray, 1.0 - tl.sum(tl.where(last, weights, 0.0), 1), mask=keep)
        for c in tl.static_range(CHANNELS):
            value = tl.load(values + at * CHANNELS + c, mask=inside, other=0.0)
            tl.store(image + ray * CHANNELS + c, tl.sum(weights * value, 1), mask=keep)

    @triton.jit
    def _composite_backward(
        logits, log_depth, values, grad_image, grad_depth, grad_opacity, grad_logits, grad_values, rays,
        scale,
        SAMPLES: tl.constexpr, WIDE: tl.constexpr, CHANNELS: tl.constexpr, BLOCK: tl.constexpr,
    ):
        ray = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        keep = ray < rays
        at, inside, logit, distance, step, after, weights = _ray_weights(
            logits, log_depth, ray, keep, scale, SAMPLES, WIDE
        )
        g = tl.load(grad_depth + ray, mask=keep, other=0.0)[:, None] * distance  # of each weight
        for c in tl.static_range(CHANNELS):
            gc = tl.load(grad_image + ray * CHANNELS + c, mask=keep, other=0.0)[:, None]
            value = tl.load(values + at * CHANNELS + c, mask=inside, other=0.0)
            tl.store(grad_values + at * CHANNELS + c, weights * gc, mask=inside)
            g += gc * value
        last = tl.arange(0, WIDE)[None, :] == SAMPLES - 1
        passed = tl.sum(tl.where(last, weights, 0.0), 1)
        g_passed = tl.load(grad_opacity + ray, mask=keep, other=0.0) * passed
        behind = tl.where(inside, g * weights, 0.0)
        behind = tl.sum(behind, 1)[:, None] - tl.cumsum(behind, 1)
        g_optical = g * after - behind + g_passed[:, None]
        tl.store(grad_logits + at, g_optical * step * tl.sigmoid(logit), mask=inside)
