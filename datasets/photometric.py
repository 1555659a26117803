"""What a phone camera makes of clean renders: tone shared by a scene's views, sensor effects of each view.

Renders are perfect photographs: fixed exposure, neutral white balance, no noise. `photograph` turns groups of
them into what one person's phone might have recorded. One hand-held camera keeps its tone from frame to
frame, so exposure, white balance, tone curve, colour and vignetting are drawn once for a group. Blur, noise,
exposure drift, sharpening and compression are drawn for every view, and only for the views that ask for them.

Everything is batched, in float32, without gradients and without waiting for the device; every random number
comes from the caller's generator.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

LUMA = (0.299, 0.587, 0.114)
RGB_TO_YCC = (LUMA, (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))
YCC_TO_RGB = ((1.0, 0.0, 1.402), (1.0, -0.344136, -0.714136), (1.0, 1.772, 0.0))
GREY_AXIS = ((0.0, -1.0, 1.0), (1.0, 0.0, -1.0), (-1.0, 1.0, 0.0))  # cross product with (1, 1, 1)

# Quantisation tables of the JPEG standard (ITU-T T.81, annex K), quality 50, in grey levels of 255.
LUMA_TABLE = (
    (16, 11, 10, 16, 24, 40, 51, 61), (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56), (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77), (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101), (72, 92, 95, 98, 112, 100, 103, 99),
)
CHROMA_TABLE = (
    (17, 18, 24, 47, 99, 99, 99, 99), (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99), (47, 66, 99, 99, 99, 99, 99, 99),
    *((99,) * 8 for _ in range(4)),
)


def photograph(
    images: Tensor,
    sensor_views: Sequence[int] | None = None,
    generator: torch.Generator | None = None,
    strength: float = 1.0,
) -> Tensor:
    """Renders as a phone camera might have recorded them.

    Args:
        images: (batch, views, 3, height, width) sRGB renders in [-1, 1]; an element's views share a scene.
        sensor_views: views that get blur, noise, exposure drift, sharpening and compression; all if None. The
            others get the group's tone only, so that targets stay clean: `photograph(images, [0])`.
        generator: source of all random numbers, on the device of `images`.
        strength: 0 (identity) to 1; scales the size and the probability of every effect.

    Returns:
        float32 images of the same shape in [-1, 1], without gradient.
    """
    if images.ndim != 5 or images.shape[2] != 3:
        raise ValueError(f"images must be (batch, views, 3, height, width), got {tuple(images.shape)}")
    if not 0 <= strength <= 1:
        raise ValueError(f"strength must lie in [0, 1], got {strength}")
    batch, views = images.shape[:2]
    chosen = list(range(views)) if sensor_views is None else sorted(set(sensor_views))
    if any(not 0 <= view < views for view in chosen):
        raise ValueError(f"sensor_views must lie in [0, {views}), got {list(sensor_views or ())}")
    draw = _Draw(batch, images.device, generator, strength)
    with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
        light = srgb_to_linear(((images.float() + 1) / 2).clamp(0, 1))
        light = _expose(_vignette(light, draw), draw)
        light = _on_views(light, chosen, lambda part: _record(part, draw))
        colour = _tone(linear_to_srgb(_local_tone(light, draw)), draw)
        colour = _on_views(colour, chosen, lambda part: _process(part, draw))
        return colour * 2 - 1


def srgb_to_linear(colour: Tensor) -> Tensor:
    """Linear light from sRGB values, both in [0, 1]."""
    return torch.where(colour <= 0.04045, colour / 12.92, ((colour + 0.055) / 1.055).pow(2.4))


def linear_to_srgb(light: Tensor) -> Tensor:
    """sRGB values in [0, 1] from linear light; what is brighter than 1 is clipped."""
    light = light.clamp(0, 1)
    return torch.where(light <= 0.0031308, light * 12.92, 1.055 * light.pow(1 / 2.4) - 0.055)


def mean_of_neighbours(images: Tensor) -> Tensor:
    """Images (batch, channels, height, width), each pixel the mean of 3 x 3; the outermost are repeated."""
    return F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, stride=1)


@dataclass(frozen=True)
class _Draw:
    """Random parameters for a batch, shaped to broadcast against (batch, views, channels, height, width)."""

    batch: int
    device: torch.device
    generator: torch.Generator | None
    strength: float

    def uniform(self, low: float, high: float, *, views: int = 1, channels: int = 1) -> Tensor:
        """(batch, views, channels, 1, 1) uniform numbers, scaled by the strength."""
        shape = (self.batch, views, channels, 1, 1)
        value = torch.rand(shape, generator=self.generator, device=self.device)
        return (low + (high - low) * value) * self.strength

    def sometimes(self, chance: float, *, views: int = 1) -> Tensor:
        """(batch, views, 1, 1, 1): 1 with the given chance (times the strength), else 0."""
        shape = (self.batch, views, 1, 1, 1)
        number = torch.rand(shape, generator=self.generator, device=self.device)
        return (number < chance * self.strength).float()

    def normal(self, shape: Sequence[int]) -> Tensor:
        """Standard normal numbers of any shape, not scaled."""
        return torch.randn(tuple(shape), generator=self.generator, device=self.device)


def _on_views(images: Tensor, views: list[int], change: Callable[[Tensor], Tensor]) -> Tensor:
    """Applies `change` to the chosen views only."""
    if len(views) in (0, images.shape[1]):
        return change(images) if views else images
    parts = list(images.split(1, dim=1))
    changed = change(torch.cat([parts[view] for view in views], dim=1)).split(1, dim=1)
    for view, part in zip(views, changed, strict=True):
        parts[view] = part
    return torch.cat(parts, dim=1)


# ---- the group's tone ----------------------------------------------------------------------------


def _vignette(light: Tensor, draw: _Draw) -> Tensor:
    """Corners up to 0.8 EV darker in a third of the groups; equal in every view's frame."""
    height, width = light.shape[-2:]
    y = torch.linspace(-1, 1, height, device=light.device)
    x = torch.linspace(-1, 1, width, device=light.device)
    radius = (y[:, None].square() + x.square()) / 2
    return light * torch.exp2(-draw.uniform(0, 0.8) * draw.sometimes(0.35) * radius)


def _expose(light: Tensor, draw: _Draw) -> Tensor:
    """Exposure within 1.2 EV, white balance, and a shoulder: highlights roll off instead of clipping."""
    gain = torch.exp2(draw.uniform(-1.2, 1.2))
    warmth, tint = draw.uniform(-0.25, 0.25), draw.uniform(-0.08, 0.08)
    balance = torch.exp(torch.cat([warmth, tint, -warmth], dim=2))
    luma = _constant(LUMA, light.device).view(3, 1, 1)
    light = light * (balance / (balance * luma).sum(2, keepdim=True))
    shoulder = draw.uniform(0, 1) * (gain - 1).clamp(min=0)  # 1 maps white to white, 0 clips
    return gain * light / (1 + shoulder * light)


def _local_tone(light: Tensor, draw: _Draw) -> Tensor:
    """Dark regions brightened, bright ones darkened: luminance on an 8x8 grid, compressed around its mean."""
    amount = draw.uniform(0, 0.35) * draw.sometimes(0.4)
    luminance = light.mean(2).clamp(min=0)
    coarse = F.adaptive_avg_pool2d(luminance, 8).clamp(min=0.02).log()
    coarse = mean_of_neighbours(coarse)
    base = F.interpolate(coarse, light.shape[-2:], mode="bilinear", align_corners=False)
    excess = base - coarse.mean((1, 2, 3))[:, None, None, None]
    return light * torch.exp(-amount * excess[:, :, None])


def _tone(colour: Tensor, draw: _Draw) -> Tensor:
    """Saturation, a small hue rotation, channel gains, gamma, S-curve, lifted blacks and lowered whites."""
    colour = torch.einsum("bij,bvjhw->bvihw", _colour_matrix(draw), colour).clamp(0, 1)
    colour = colour.pow(torch.exp(draw.uniform(-0.25, 0.25)))
    s_curve = colour.square() * (3 - 2 * colour)
    colour = colour + draw.uniform(-0.35, 0.7) * (s_curve - colour)
    black, white = draw.uniform(0, 0.08) * draw.sometimes(0.4), draw.uniform(0, 0.08) * draw.sometimes(0.3)
    return black + (1 - black - white) * colour


def _colour_matrix(draw: _Draw) -> Tensor:
    """(batch, 3, 3): rotation about the grey axis by 5 degrees at most, saturation 0.6-1.4, channel gains."""
    grey = torch.full((3, 3), 1 / 3, device=draw.device)
    plane = torch.eye(3, device=draw.device) - grey
    cross = _constant(GREY_AXIS, draw.device) / math.sqrt(3)
    angle = draw.uniform(-math.radians(5), math.radians(5))[:, 0, 0]
    saturation = 1 + draw.uniform(-0.4, 0.4)[:, 0, 0]
    gains = torch.exp(draw.uniform(-0.04, 0.04, channels=3))[:, 0, :, 0]
    return gains * (grey + saturation * (angle.cos() * plane + angle.sin() * cross))


# ---- the sensor and processing of one view -------------------------------------------------------


def _record(light: Tensor, draw: _Draw) -> Tensor:
    """Exposure drift within 0.1 EV, blur by lens and hand, shot and read noise: all in linear light."""
    views = light.shape[1]
    light = light * torch.exp2(draw.uniform(-0.1, 0.1, views=views))
    light = _blur(light, draw)
    noisy = draw.sometimes(0.5, views=views)
    shot = noisy * draw.uniform(0, 0.04, views=views)
    read = noisy * draw.uniform(0, 0.006, views=views)
    deviation = (read.square() + shot.square() * light).sqrt()
    return (light + deviation * _sensor_noise(light, draw)).clamp(min=0)


def _sensor_noise(light: Tensor, draw: _Draw) -> Tensor:
    """Unit-variance noise like `light`, neighbours correlated as demosaicing leaves them."""
    batch, views, channels, height, width = light.shape
    white = draw.normal((batch, views * channels, height + 2, width + 2))
    share = draw.uniform(0, 3)[..., 0]
    mixed = white[..., 1:-1, 1:-1] + share * F.avg_pool2d(white, 3, stride=1)
    return (mixed / (1 + 2 * share / 9 + share.square() / 9).sqrt()).reshape(light.shape)


def _blur(light: Tensor, draw: _Draw) -> Tensor:
    """One Gaussian a view: defocus (sigma up to 0.7 px of a 64 px image), longer along the hand's motion."""
    _, views, _, height, width = light.shape
    scale = min(height, width) / 64
    defocus = scale * draw.uniform(0, 0.7, views=views) * draw.sometimes(0.6, views=views)
    motion = scale * draw.uniform(0, 0.8, views=views) * draw.sometimes(0.3, views=views)
    angle = draw.uniform(0, math.pi, views=views)
    reach = min(math.ceil(2.5 * scale), height - 1, width - 1)
    offset = torch.arange(-reach, reach + 1, device=light.device, dtype=torch.float32)
    y, x = offset[:, None], offset[None, :]
    along, across = x * angle.cos() + y * angle.sin(), y * angle.cos() - x * angle.sin()
    narrow = 2 * defocus.square() + 1e-4  # far below a pixel, the kernel is a delta
    kernel = torch.exp(-along.square() / (narrow + 2 * motion.square()) - across.square() / narrow)
    kernel = (kernel / kernel.sum((-2, -1), keepdim=True)).expand(-1, -1, 3, -1, -1)
    padded = F.pad(light.flatten(0, 2)[None], (reach,) * 4, mode="replicate")
    kernel = kernel.reshape(-1, 1, 2 * reach + 1, 2 * reach + 1)
    return F.conv2d(padded, kernel, groups=len(kernel)).view(light.shape)


def _process(colour: Tensor, draw: _Draw) -> Tensor:
    """Lost resolution, sharpening halos and compression of each view, in sRGB."""
    views = colour.shape[1]
    coarse = draw.uniform(0, 0.7, views=views) * draw.sometimes(0.2, views=views)
    colour = torch.lerp(colour, _half_resolution(colour), coarse)
    halo = draw.uniform(0, 0.8, views=views) * draw.sometimes(0.5, views=views)
    around = mean_of_neighbours(colour.flatten(0, 1))
    colour = colour + halo * (colour - around.view(colour.shape))
    colour = colour.clamp(0, 1)
    # Quality 95 to 60, each equally likely in the logarithm of the tables' scale
    table_scale = 0.1 * torch.exp(draw.uniform(0, math.log(8), views=views))
    compressed = draw.sometimes(0.25, views=views)
    return torch.where(compressed > 0, _jpeg(colour, table_scale), colour)


def _half_resolution(colour: Tensor) -> Tensor:
    flat = colour.flatten(0, 1)
    half = F.interpolate(flat, scale_factor=0.5, mode="area", recompute_scale_factor=False)
    return F.interpolate(half, flat.shape[-2:], mode="bilinear", align_corners=False).view(colour.shape)


def _jpeg(colour: Tensor, table_scale: Tensor) -> Tensor:
    """8x8 block transforms rounded to JPEG's tables times `table_scale` (batch, views, 1, 1, 1); clamped."""
    height, width = colour.shape[-2:]
    ycc = torch.einsum("ij,bvjhw->bvihw", _constant(RGB_TO_YCC, colour.device), colour).flatten(0, 1)
    ycc = F.pad(ycc, (0, -width % 8, 0, -height % 8), mode="replicate")
    blocks = ycc.unflatten(3, (-1, 8)).unflatten(2, (-1, 8)).transpose(3, 4)  # (N, 3, rows, columns, 8, 8)
    basis = _dct_basis(colour.device)
    tables = _constant((LUMA_TABLE, CHROMA_TABLE, CHROMA_TABLE), colour.device) / 255
    step = table_scale.view(-1, 1, 1, 1, 1, 1) * tables[:, None, None]
    coefficients = (basis @ blocks @ basis.T / step).round() * step
    ycc = (basis.T @ coefficients @ basis).transpose(3, 4).flatten(4, 5).flatten(2, 3)[..., :height, :width]
    rgb = torch.einsum("ij,njhw->nihw", _constant(YCC_TO_RGB, colour.device), ycc)
    return rgb.view(colour.shape).clamp(0, 1)


def _dct_basis(device: torch.device) -> Tensor:
    """(8, 8) orthonormal DCT-II: coefficients = basis @ block @ basis.T."""
    n = torch.arange(8, device=device, dtype=torch.float32)
    basis = torch.cos(math.pi / 8 * (n + 0.5) * n[:, None]) / 2
    return torch.where(n[:, None] == 0, math.sqrt(1 / 8), basis)


@cache
def _constant(values: tuple, device: torch.device) -> Tensor:
    """A small table, copied to the device once: every copy would make the host wait."""
    return torch.tensor(values, dtype=torch.float32, device=device)
