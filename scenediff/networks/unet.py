"""A U-Net with an embedding in each block, attention at coarse levels (Ho et al. 2020, arXiv:2006.11239)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from scenediff.networks.fused_norm import group_norm_act


def timestep_embedding(timesteps: Tensor, channels: int) -> Tensor:
    """(batch, channels) sines and cosines of (batch,) timesteps (Vaswani et al. 2017, arXiv:1706.03762)."""
    half = channels // 2
    rates = torch.exp(-math.log(10_000) * torch.arange(half, device=timesteps.device) / half)
    angles = timesteps.float()[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def embedding_layers(channels: int) -> nn.Sequential:
    """What a network makes of its timestep embedding."""
    return nn.Sequential(nn.Linear(channels, channels), nn.SiLU(), nn.Linear(channels, channels))


class GroupNorm(nn.GroupNorm):
    """Group normalisation, modulation and activation in one (see `group_norm_act`); half precision stays."""

    def forward(
        self, x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None, *, activation: bool = False
    ) -> Tensor:
        return group_norm_act(
            x, self.num_groups, self.weight, self.bias, self.eps, scale, shift, activation=activation
        )


def zero_conv(inputs: int, outputs: int, kernel_size: int) -> nn.Conv2d:
    """A convolution that starts at zero, so that a residual branch that it ends starts as nothing."""
    conv = nn.Conv2d(inputs, outputs, kernel_size, padding=kernel_size // 2)
    for parameter in conv.parameters():
        nn.init.zeros_(parameter)
    return conv


class ResBlock(nn.Module):
    """Two convolutions around a residual; the embedding scales and shifts between them."""

    def __init__(self, inputs: int, outputs: int, embedding: int):
        super().__init__()
        self.norm1 = GroupNorm(min(32, inputs // 4), inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.modulation = nn.Linear(embedding, 2 * outputs)
        self.norm2 = GroupNorm(min(32, outputs // 4), outputs)
        self.conv2 = zero_conv(outputs, outputs, 3)
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        scale, shift = self.modulation(embedding).chunk(2, dim=1)
        h = self.conv1(self.norm1(x, activation=True))
        return self.skip(x) + self.conv2(self.norm2(h, scale, shift, activation=True))


class SelfAttention(nn.Module):
    """Attention among all positions of a coarse map, with a residual."""

    def __init__(self, channels: int, head_channels: int = 32):
        super().__init__()
        self.heads = channels // head_channels
        self.norm = GroupNorm(32, channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.output = zero_conv(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        qkv = self.qkv(self.norm(x)).permute(0, 2, 3, 1)  # what follows are views of maps with channels last
        qkv = qkv.reshape(batch, height * width, 3, self.heads, -1)
        q, k, v = (part.transpose(1, 2) for part in qkv.unbind(2))  # each (batch, heads, positions, channels)
        attended = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        attended = attended.reshape(batch, height, width, channels).permute(0, 3, 1, 2)
        return x + self.output(attended)


class TransformerBlock(nn.Module):
    """Attention, then a network at each position, modulated (Peebles & Xie 2022, arXiv:2212.09748).

    Both are residuals that start as nothing: put into a trained network, a block changes nothing at first.
    """

    def __init__(self, channels: int, embedding: int, expansion: int = 4):
        super().__init__()
        self.attention = SelfAttention(channels)
        self.norm = GroupNorm(32, channels)
        self.modulation = nn.Linear(embedding, 2 * channels)
        self.inner = nn.Conv2d(channels, expansion * channels, 1)
        self.output = zero_conv(expansion * channels, channels, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        x = self.attention(x)
        scale, shift = self.modulation(embedding).chunk(2, dim=1)
        return x + self.output(functional.silu(self.inner(self.norm(x, scale, shift))))


class Stage(nn.Module):
    """Residual blocks of one resolution, each followed by attention where wanted."""

    def __init__(self, inputs: Sequence[int], outputs: int, embedding: int, *, attention: bool):
        super().__init__()
        self.blocks = nn.ModuleList([ResBlock(channels, outputs, embedding) for channels in inputs])
        self.attentions = nn.ModuleList(
            [SelfAttention(outputs) if attention else nn.Identity() for _ in inputs]
        )

    def forward(
        self, x: Tensor, embedding: Tensor, *, added: Tensor | None = None, skips: list[Tensor] | None = None
    ) -> list[Tensor]:
        """The state after each block.

        Args:
            added: joins the state after the first convolutions.
            skips: states of the way down; one is taken from the end, as further channels, before each block.
        """
        states = []
        for index, (block, attention) in enumerate(zip(self.blocks, self.attentions, strict=True)):
            x = block(x if skips is None else torch.cat([x, skips.pop()], dim=1), embedding)
            if index == 0 and added is not None:
                x = x + added
            x = attention(x)
            states.append(x)
        return states


class UNet(nn.Module):
    """(batch, channels[0], h, w) -> the same; sides must be divisible by 2 ** (levels - 1).

    Args:
        channels: width of each level, from fine to coarse.
        blocks: residual blocks of each level on the way down, and up.
        attention_levels: how many of the coarsest levels attend.
        embedding: channels of the conditioning vector.
        transformers: transformer blocks in the middle, where a position is a large part of the image.
    """

    def __init__(
        self, channels: Sequence[int], blocks: int, attention_levels: int, embedding: int,
        transformers: int = 0,
    ):
        super().__init__()
        self.channels = tuple(channels)
        levels = len(channels)
        attends = [level >= levels - attention_levels for level in range(levels)]
        before = [channels[0], *channels[:-1]]
        self.down = nn.ModuleList(
            Stage([before[i], *[channels[i]] * (blocks - 1)], channels[i], embedding, attention=attends[i])
            for i in range(levels)
        )
        self.middle = Stage([channels[-1]], channels[-1], embedding, attention=True)
        self.transformers = nn.ModuleList(
            [TransformerBlock(channels[-1], embedding) for _ in range(transformers)]
        )
        after = [*channels[1:], channels[-1]]
        self.up = nn.ModuleList(
            Stage([after[i] + channels[i], *[2 * channels[i]] * (blocks - 1)], channels[i], embedding,
                  attention=attends[i])
            for i in range(levels)
        )

    def _apply(self, *arguments, **options) -> UNet:
        super()._apply(*arguments, **options)
        for parameter in self.parameters():
            if parameter.dim() == 4:  # like the maps, or each use would convert it
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
        return self

    def forward(
        self, x: Tensor, embedding: Tensor, injected: Sequence[Tensor | None] | None = None
    ) -> Tensor:
        """`injected[i]`, where given, is added to the state at the start of level i (fine to coarse)."""
        x = x.contiguous(memory_format=torch.channels_last)  # all that follows keeps it so, and is faster
        skips: list[list[Tensor]] = []
        for level, stage in enumerate(self.down):
            if level:
                x = functional.avg_pool2d(x, 2)
            skips.append(stage(x, embedding, added=None if injected is None else injected[level]))
            x = skips[-1][-1]
        x = self.middle(x, embedding)[-1]
        for block in self.transformers:
            x = block(x, embedding)
        for level in reversed(range(len(self.up))):
            x = self.up[level](x, embedding, skips=skips[level])[-1]
            if level:
                x = functional.interpolate(x, scale_factor=2.0, mode="nearest")
        return x
