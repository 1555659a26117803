"""Sampled views with twice as many pixels: edges and texture that the diffusion's resolution has no room for.

Trained against a discriminator that judges patches beside what they were enlarged from, so that what it adds
is as sharp as photographs are (Ledig et al. 2017, arXiv:1609.04802; Isola et al. 2017, arXiv:1611.07004,
Sec. 2.2.2). Residual blocks without normalization (Lim et al. 2017, arXiv:1707.02921), at the small size.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import spectral_norm

from scenediff.networks.unet import zero_conv

BLOCKS = 6
SLOPE = 0.2  # of the discriminator's leaky ReLUs
FACTOR = 2


class SuperResolution(nn.Module):
    """Images (batch, 3, height, width) in [-1, 1] to ones of twice the size; at first plainly enlarged.

    Args:
        width: channels within.
    """

    def __init__(self, width: int):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.blocks = nn.Sequential(*(_Residual(width) for _ in range(BLOCKS)))
        self.head = zero_conv(width, 3 * FACTOR**2, 3)

    def forward(self, image: Tensor) -> Tensor:
        corrections = self.head(self.blocks(self.stem(image)))  # (batch, 12, height, width)
        return enlarged(image) + functional.pixel_shuffle(corrections, FACTOR)


class _Residual(nn.Module):
    """Two convolutions around a residual, which begins as nothing."""

    def __init__(self, width: int):
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = zero_conv(width, width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(functional.silu(self.conv1(x)))


class PatchDiscriminator(nn.Module):
    """Logits (batch, 1, height / 8, width / 8) of patches: high where an image looks like a true one.

    Args:
        width: channels of its first layer.
    """

    def __init__(self, width: int):
        super().__init__()
        layers: list[nn.Module] = []
        channels = 6
        for outputs in (width, 2 * width, 4 * width):
            halving = nn.Conv2d(channels, outputs, 4, stride=2, padding=1)
            layers += [spectral_norm(halving), nn.LeakyReLU(SLOPE)]
            channels = outputs
        layers += [spectral_norm(nn.Conv2d(channels, channels, 3, padding=1)), nn.LeakyReLU(SLOPE)]
        self.layers = nn.Sequential(*layers, spectral_norm(nn.Conv2d(channels, 1, 3, padding=1)))

    def forward(self, image: Tensor, small: Tensor) -> Tensor:
        """Judges images (batch, 3, height, width), enlarged from or true for ones of half the size."""
        return self.layers(torch.cat([image, enlarged(small)], dim=1))


def enlarged(image: Tensor) -> Tensor:
    """Twice the size by bilinear interpolation, as look-ups between pixels have it."""
    return functional.interpolate(image, scale_factor=float(FACTOR), mode="bilinear", align_corners=False)
