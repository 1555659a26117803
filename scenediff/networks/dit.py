"""The encoder of the full-size model: a diffusion transformer between two convolutional ends.

DiT (Peebles & Xie 2023, arXiv:2212.09748) with adaLN-Zero blocks reads an image, clean or noisy, and gives a
feature map of the image's own resolution: a stem halves the resolution, patches halve it again, the head
upsamples and looks at the image once more (Tewari et al. 2023, arXiv:2306.11719, Supplement).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

TIME_FREQUENCIES = 128
POSE_ENTRIES, POSE_OCTAVES = 12, 6
IMAGE_CHANNELS = 3
MULTIPLE = 2  # by which the stem divides the resolution


@dataclass(frozen=True)
class DitConfig:
    """Sizes of the encoder; the defaults are DiT-XL/2.

    Attributes:
        width, depth, heads: of the transformer.
        patch: side of a token, in pixels of the stem's output.
        channels: of the feature maps.
        stem: channels of the first convolution and of the skip connection.
        target_inputs: channels that the noisy target is read with.
        absolute_poses: whether a view's absolute pose conditions the transformer.
    """

    width: int = 1152
    depth: int = 28
    heads: int = 16
    patch: int = 2
    channels: int = 512
    stem: int = 64
    target_inputs: int = 71
    absolute_poses: bool = False

    def __post_init__(self) -> None:
        if self.width % self.heads or self.width % 4:
            raise ValueError(f"width must be a multiple of heads ({self.heads}) and of 4, got {self.width}")


class DitEncoder(nn.Module):
    """Reads views of a scene; one network for clean contexts and noisy targets, with a stem for each."""

    def __init__(self, config: DitConfig):
        super().__init__()
        self.config = config
        width, stem = config.width, config.stem
        self.context_stem = nn.Conv2d(IMAGE_CHANNELS, stem, 7, stride=MULTIPLE, padding=3, bias=False)
        self.target_stem = nn.Conv2d(config.target_inputs, stem, 7, stride=MULTIPLE, padding=3, bias=False)
        self.patches = nn.Conv2d(stem, width, config.patch, stride=config.patch)
        self.time = nn.Sequential(
            nn.Linear(2 * TIME_FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width)
        )
        self.label = nn.Parameter(torch.zeros(width))  # added to every timestep's embedding
        if config.absolute_poses:
            entries = POSE_ENTRIES * (2 * POSE_OCTAVES + 1)
            self.pose = nn.Sequential(nn.Linear(entries, width), nn.ReLU(), nn.Linear(width, width))
            self.fuse = nn.Sequential(
                nn.Linear(2 * width, 2 * width), nn.ReLU(), nn.Linear(2 * width, width)
            )
        self.blocks = nn.ModuleList(DitBlock(width, config.heads) for _ in range(config.depth))
        self.final = FinalLayer(width, config.patch**2 * config.channels)
        self.skip = nn.Conv2d(IMAGE_CHANNELS, stem, 7, padding=3)
        self.head = nn.Conv2d(config.channels + stem, config.channels, 3, padding=1)

    def context(self, image: Tensor, pose: Tensor | None = None) -> Tensor:
        """Features of clean images; arguments and result as for `target`, at timestep 0."""
        timesteps = torch.zeros(len(image), device=image.device)
        return self._read(image, self.context_stem, timesteps, pose)

    def target(self, inputs: Tensor, timesteps: Tensor, pose: Tensor | None = None) -> Tensor:
        """Features of noisy images.

        Args:
            inputs: (batch, target_inputs, height, width), the image first; sides are multiples of 2 patch.
            timesteps: (batch,) noise levels.
            pose: (batch, 4, 4) absolute camera-to-world matrices, for a model that wants them.

        Returns:
            (batch, channels, height, width).
        """
        return self._read(inputs, self.target_stem, timesteps, pose)

    def _read(self, inputs: Tensor, stem: nn.Module, timesteps: Tensor, pose: Tensor | None) -> Tensor:
        size = (inputs.shape[-2], inputs.shape[-1])
        multiple = MULTIPLE * self.config.patch
        if size[0] % multiple or size[1] % multiple:
            raise ValueError(f"height and width must be multiples of {multiple}, got {size[0]}x{size[1]}")
        grid = self.patches(functional.relu(stem(inputs)))
        rows, columns = grid.shape[-2:]
        tokens = grid.flatten(2).transpose(1, 2)
        tokens = tokens + position_table(rows, columns, self.config.width, inputs.device)
        condition = functional.silu(self._condition(timesteps, pose))
        for block in self.blocks:
            tokens = block(tokens, condition)
        maps = unpatchify(self.final(tokens, condition), rows, columns, self.config.patch)
        maps = functional.interpolate(maps, size=size, mode="bilinear", align_corners=False)
        return self.head(torch.cat([maps, self.skip(inputs[:, :IMAGE_CHANNELS])], dim=1))

    def _condition(self, timesteps: Tensor, pose: Tensor | None) -> Tensor:
        condition = self.time(timestep_waves(timesteps)) + self.label
        if not self.config.absolute_poses:
            return condition
        if pose is None:
            raise ValueError("this model wants the absolute pose of every view, got None")
        return self.fuse(torch.cat([condition, self.pose(pose_waves(pose))], dim=-1))


class DitBlock(nn.Module):
    """Attention, then a perceptron; both shifted, scaled and gated by the condition (adaLN-Zero)."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.modulation = nn.Linear(width, 6 * width)
        self.qkv = nn.Linear(width, 3 * width)
        self.projection = nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"), nn.Linear(4 * width, width)
        )

    def forward(self, tokens: Tensor, condition: Tensor) -> Tensor:
        """(batch, tokens, width) from the same and (batch, width), already through its SiLU."""
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = self.modulation(condition)[:, None].chunk(6, -1)
        tokens = tokens + gate * self._attend(modulated(tokens, shift, scale))
        return tokens + mlp_gate * self.mlp(modulated(tokens, mlp_shift, mlp_scale))

    def _attend(self, tokens: Tensor) -> Tensor:
        query, key, value = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.qkv(tokens).chunk(3, -1)
        )
        attended = functional.scaled_dot_product_attention(query, key, value)
        return self.projection(attended.transpose(1, 2).flatten(2))


class FinalLayer(nn.Module):
    """From tokens to the pixels of their patches."""

    def __init__(self, width: int, outputs: int):
        super().__init__()
        self.modulation = nn.Linear(width, 2 * width)
        self.linear = nn.Linear(width, outputs)

    def forward(self, tokens: Tensor, condition: Tensor) -> Tensor:
        """(batch, tokens, outputs); arguments as for `DitBlock`."""
        shift, scale = self.modulation(condition)[:, None].chunk(2, -1)
        return self.linear(modulated(tokens, shift, scale))


def modulated(tokens: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Normalised tokens, then scaled by 1 + scale and shifted."""
    return functional.layer_norm(tokens, tokens.shape[-1:], eps=1e-6) * (1 + scale) + shift


def unpatchify(tokens: Tensor, rows: int, columns: int, patch: int) -> Tensor:
    """(batch, channels, rows patch, columns patch) of tokens that hold (patch, patch, channels) each."""
    maps = tokens.unflatten(1, (rows, columns)).unflatten(-1, (patch, patch, -1))
    return maps.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)


def position_table(rows: int, columns: int, width: int, device: torch.device) -> Tensor:
    """(rows columns, width) sines and cosines of each token's column, then of its row; row-major."""
    quarter = width // 4
    exponents = torch.arange(quarter, dtype=torch.float64, device=device) / quarter
    frequencies = 10000.0**-exponents

    def waves(count: int) -> Tensor:
        angles = torch.arange(count, dtype=torch.float64, device=device)[:, None] * frequencies
        return torch.cat([angles.sin(), angles.cos()], dim=-1).float()

    column = waves(columns)[None].expand(rows, -1, -1)
    row = waves(rows)[:, None].expand(-1, columns, -1)
    return torch.cat([column, row], dim=-1).flatten(0, 1)


def timestep_waves(timesteps: Tensor) -> Tensor:
    """(batch, 256) cosines, then sines, of timesteps."""
    index = torch.arange(TIME_FREQUENCIES, dtype=torch.float32, device=timesteps.device)
    angles = timesteps.float()[:, None] * torch.exp(-math.log(10000.0) * index / TIME_FREQUENCIES)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def pose_waves(pose: Tensor) -> Tensor:
    """(batch, 156) sines, cosines and plain values of the first 12 entries of (batch, 4, 4) matrices."""
    entries = pose.flatten(1)[:, :POSE_ENTRIES]
    octaves = 2.0 ** torch.arange(POSE_OCTAVES, dtype=torch.float32, device=pose.device)
    angles = (entries[..., None] * octaves).flatten(1)
    return torch.cat([angles.sin(), angles.cos(), entries], dim=-1)
