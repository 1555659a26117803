"""StyleGAN2's residual discriminator (Karras et al. 2020, arXiv:1912.04958, Sec. 4.1)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from scenediff.renderers.stylegan2 import SLOPE, SQRT2, EqualLinear, blur

GROUP = 4  # images that share a standard deviation


class EqualConv(nn.Module):
    """A convolution whose weights are scaled when used; with `downsample`, to half the size after a blur."""

    def __init__(
        self, inputs: int, outputs: int, kernel_size: int, *, downsample: bool = False, bias: bool = True
    ):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, kernel_size, kernel_size))
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None
        self.scale = 1 / math.sqrt(inputs * kernel_size**2)
        self.downsample, self.kernel_size = downsample, kernel_size

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight * self.scale
        if self.downsample:
            x = blur(x, padding=self.kernel_size // 2 + 1)
            return functional.conv2d(x, weight, self.bias, stride=2)
        return functional.conv2d(x, weight, self.bias, padding=self.kernel_size // 2)


class DownBlock(nn.Module):
    """Two convolutions and a shortcut, to half the size."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.conv1 = EqualConv(inputs, inputs, 3)
        self.conv2 = EqualConv(inputs, outputs, 3, downsample=True)
        self.skip = EqualConv(inputs, outputs, 1, downsample=True, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = functional.leaky_relu(self.conv1(x), SLOPE) * SQRT2
        y = functional.leaky_relu(self.conv2(y), SLOPE)  # sqrt(2) for the activation, 1/sqrt(2) for the sum
        return y + self.skip(x) / SQRT2


class Discriminator(nn.Module):
    """Images (batch, 3, size, size) in [-1, 1] to logits (batch,): high for real ones.

    Args:
        channels: of each resolution, from 4 up to the images'.
    """

    def __init__(self, channels: Sequence[int]):
        super().__init__()
        fine_first = list(reversed(channels))
        last = fine_first[-1]
        self.stem = EqualConv(3, fine_first[0], 1)
        self.blocks = nn.ModuleList(
            DownBlock(inputs, outputs) for inputs, outputs in pairwise(fine_first)
        )
        self.conv = EqualConv(last + 1, last, 3)
        self.linear = EqualLinear(last * 16, last)
        self.output = EqualLinear(last, 1)

    def forward(self, images: Tensor) -> Tensor:
        x = functional.leaky_relu(self.stem(images.contiguous(memory_format=torch.channels_last)), SLOPE)
        x = x * SQRT2
        for block in self.blocks:
            x = block(x)
        x = functional.leaky_relu(self.conv(with_deviation(x)), SLOPE) * SQRT2
        x = functional.leaky_relu(self.linear(x.flatten(1)), SLOPE) * SQRT2
        return self.output(x)[:, 0].float()


def with_deviation(x: Tensor) -> Tensor:
    """One more channel: the mean standard deviation within groups of images (arXiv:1710.10196, Sec. 3)."""
    batch, channels, height, width = x.shape
    group = math.gcd(batch, GROUP)
    grouped = x.float().reshape(group, batch // group, channels, height, width)
    deviation = (grouped.var(0, correction=0) + 1e-8).sqrt().mean((1, 2, 3))  # (batch // group,)
    share = deviation.repeat(group)[:, None, None, None].expand(-1, 1, height, width)
    return torch.cat([x, share.to(x.dtype)], dim=1)
