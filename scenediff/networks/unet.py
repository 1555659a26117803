"""A U-Net with an embedding in every block and self-attention at coarse levels (Ho et al. 2020, arXiv:2006.11239)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional


def timestep_embedding(timesteps: Tensor, channels: int) -> Tensor:
    """(batch, channels) sines and cosines of (batch,) timesteps, as in Vaswani et al. 2017 (arXiv:1706.03762)."""
    half = channels // 2
    rates = torch.exp(-math.log(10_000) * torch.arange(half, device=timesteps.device) / half)
    angles = timesteps.float()[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1)


class GroupNorm(nn.GroupNorm):
    """Group normalisation that keeps half precision under autocast; its statistics are in float32 all the same."""

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype not in (torch.bfloat16, torch.float16):
            return super().forward(x)
        with torch.autocast(x.device.type, enabled=False):
            return functional.group_norm(x, self.num_groups, self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps)


class ResBlock(nn.Module):
    """Two convolutions around a residual; the embedding scales and shifts between them."""

    def __init__(self, inputs: int, outputs: int, embedding: int):
        super().__init__()
        self.norm1 = GroupNorm(min(32, inputs // 4), inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.modulation = nn.Linear(embedding, 2 * outputs)
        self.norm2 = GroupNorm(min(32, outputs // 4), outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        scale, shift = self.modulation(embedding)[..., None, None].chunk(2, dim=1)
        h = self.conv1(functional.silu(self.norm1(x)))
        h = self.norm2(h) * (1 + scale) + shift
        return self.skip(x) + self.conv2(functional.silu(h))


class SelfAttention(nn.Module):
    """Attention among all positions of a coarse map, with a residual."""

    def __init__(self, channels: int, head_channels: int = 32):
        super().__init__()
        self.heads = channels // head_channels
        self.norm = GroupNorm(32, channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.output = nn.Conv2d(channels, channels, 1)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        q, k, v = (
            part.unflatten(1, (self.heads, -1)).flatten(3).transpose(2, 3)  # (batch, heads, positions, channels)
            for part in self.qkv(self.norm(x)).chunk(3, dim=1)
        )
        attended = functional.scaled_dot_product_attention(q, k, v)
        return x + self.output(attended.transpose(2, 3).flatten(1, 2).unflatten(-1, (height, width)))


class Stage(nn.Module):
    """Residual blocks of one resolution, each followed by attention where wanted."""

    def __init__(self, inputs: Sequence[int], outputs: int, embedding: int, *, attention: bool):
        super().__init__()
        self.blocks = nn.ModuleList([ResBlock(channels, outputs, embedding) for channels in inputs])
        self.attentions = nn.ModuleList(
            [SelfAttention(outputs) if attention else nn.Identity() for _ in inputs]
        )


class UNet(nn.Module):
    """(batch, channels[0], h, w) -> the same; sides must be divisible by 2 ** (levels - 1).

    Args:
        channels: width of each level, from fine to coarse.
        blocks: residual blocks of each level on the way down, and up.
        attention_levels: how many of the coarsest levels attend.
        embedding: channels of the conditioning vector.
    """

    def __init__(self, channels: Sequence[int], blocks: int, attention_levels: int, embedding: int):
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
        after = [*channels[1:], channels[-1]]
        self.up = nn.ModuleList(
            Stage([after[i] + channels[i], *[2 * channels[i]] * (blocks - 1)], channels[i], embedding,
                  attention=attends[i])
            for i in range(levels)
        )

    def forward(self, x: Tensor, embedding: Tensor, injected: Sequence[Tensor | None] | None = None) -> Tensor:
        """`injected[i]`, where given, is added to the state at the start of level i (fine to coarse)."""
        skips: list[list[Tensor]] = []
        for level, stage in enumerate(self.down):
            if level:
                x = functional.avg_pool2d(x, 2)
            extra = None if injected is None else injected[level]
            x, kept = self._descend(stage, x, embedding, extra)
            skips.append(kept)
        for block, attention in zip(self.middle.blocks, self.middle.attentions, strict=True):
            x = attention(block(x, embedding))
        for level in reversed(range(len(self.up))):
            for block, attention in zip(self.up[level].blocks, self.up[level].attentions, strict=True):
                x = attention(block(torch.cat([x, skips[level].pop()], dim=1), embedding))
            if level:
                x = functional.interpolate(x, scale_factor=2.0, mode="nearest")
        return x

    @staticmethod
    def _descend(stage: Stage, x: Tensor, embedding: Tensor, extra: Tensor | None) -> tuple[Tensor, list[Tensor]]:
        kept = []
        for index, (block, attention) in enumerate(zip(stage.blocks, stage.attentions, strict=True)):
            x = block(x, embedding)
            if index == 0 and extra is not None:
                x = x + extra
            x = attention(x)
            kept.append(x)
        return x, kept
