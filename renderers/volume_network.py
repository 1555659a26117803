"""The point networks of the densely integrated field: what views with feature maps say of world points.

As in pixelNeRF (Yu et al. 2021, arXiv:2012.02190) a world point is projected into every view, each view's
feature there and the point's position in that view's frame go through residual blocks, the views' states are
averaged, more blocks turn the average into density, colour and features. The blocks are modulated by the
noise level of the view's image (Tewari et al. 2023, arXiv:2306.11719, Supplement). Whatever is linear in a
feature map is applied to the map before it is sampled, which changes nothing but the rounding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from scenediff.renderers import residual_blocks
from scenediff.renderers.bilinear import sample_map

STANDARD_RGB = 3


@dataclass(frozen=True)
class VolumeConfig:
    """Sizes of the field and of its sampling.

    Attributes:
        width: of the point networks.
        map_channels: of the feature maps.
        view_blocks, joint_blocks: residual blocks before and after the views are averaged.
        octaves: of the positional encoding. frequency: its lowest one.
        feature_channels: features that are rendered beside the colour.
        near, far: where rays begin and end, in the world's unit.
        background: red, green, blue in [0, 1].
        coarse, fine: samples on a ray of the sampled signal; those of the second pass come on top.
        context_samples: samples on a ray of the deterministic signal.
        skip: see `VolumeFieldRenderer.faster`; changes the result unless it is 0.
    """

    width: int = 512
    map_channels: int = 512
    view_blocks: int = 3
    joint_blocks: int = 2
    octaves: int = 6
    frequency: float = 1.5
    feature_channels: int = 64
    near: float = 0.7
    far: float = 10.0
    background: tuple[float, float, float] = (0.0, 0.0, 0.0)
    coarse: int = 64
    fine: int = 64
    context_samples: int = 32
    skip: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.near < self.far:
            raise ValueError(f"near and far must satisfy 0 <= near < far, got {self.near} and {self.far}")
        if self.coarse < 3 or self.context_samples < 2 or self.fine < 0:
            counts = f"{self.coarse}, {self.context_samples} and {self.fine}"
            raise ValueError(f"coarse, context_samples, fine must be at least 3, 2 and 0, got {counts}")
        if not 0 <= self.skip < 1:
            raise ValueError(f"skip must lie in [0, 1), got {self.skip}")


Modulation = list[tuple[Tensor, Tensor]]  # scale and shift of each block, (batch, 1, width)


class ModulatedBlock(nn.Module):
    """A residual block of two linear layers; between them the noise level scales and shifts."""

    def __init__(self, width: int):
        super().__init__()
        self.first, self.second = nn.Linear(width, width), nn.Linear(width, width)
        self.modulation = nn.Linear(4 * width, 2 * width)

    def forward(self, state: Tensor, scale_shift: tuple[Tensor, Tensor]) -> Tensor:
        """(batch, points, width) from the same and two of (batch, 1, width), see `modulate`."""
        scale, shift = scale_shift
        inner = self.first(functional.relu(state)) * (1 + scale) + shift
        return state + self.second(functional.relu(inner))

    def modulate(self, time: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and shift, (batch, 1, width) each, of embedded timesteps (batch, 4 width)."""
        scale, shift = self.modulation(functional.silu(time))[:, None].chunk(2, dim=-1)
        return scale, shift


class PointNetwork(nn.Module):
    """From positions and features in each view to density, colour and features of world points."""

    def __init__(self, config: VolumeConfig):
        super().__init__()
        self.config = config
        width = config.width
        self.position = nn.Linear(STANDARD_RGB * (2 * config.octaves + 1), width)
        self.feature = nn.Linear(config.map_channels, width, bias=False)  # applied to maps, not to points
        self.time = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, 4 * width))
        blocks = config.view_blocks + config.joint_blocks
        self.blocks = nn.ModuleList([ModulatedBlock(width) for _ in range(blocks)])
        self.output = nn.Linear(width, STANDARD_RGB + 1 + config.feature_channels)
        self.kernels = True
        self.kept_cut: tuple[tuple, Any] | None = None  # the weights' versions and `fused_volume.kept_cut`

    def train(self, mode: bool = True) -> PointNetwork:
        """Drops what was kept: fused optimizers write weights without counting it, see `weights_now`."""
        self.kept_cut = None
        return super().train(mode)

    def modulations(self, timesteps: Tensor) -> Modulation:
        """The scales and shifts of all blocks at (batch,) timesteps."""
        time = self.time(sine_waves(timesteps, self.config.width))
        return [cast(ModulatedBlock, block).modulate(time) for block in self.blocks]

    def describe(self, local: Tensor, seen: Tensor, modulation: Modulation) -> Tensor:
        """What one view says of points (batch, points, 3) of its frame; `seen`: (batch, points, width)."""
        state = self.position(encode_position(local, self.config)) + seen
        return self._through(state, slice(self.config.view_blocks), modulation)

    def conclude(self, state: Tensor, modulation: Modulation) -> Tensor:
        """The views' average state, through the remaining blocks."""
        behind = slice(self.config.view_blocks, None)
        return functional.relu(self._through(state, behind, modulation))

    def _through(self, state: Tensor, which: slice, modulation: Modulation) -> Tensor:
        blocks = [cast(ModulatedBlock, block) for block in self.blocks[which]]
        if blocks and self.kernels and residual_blocks.pays(state):
            first, second = layers_of(blocks)
            dtype = torch.get_autocast_dtype(state.device.type)
            return residual_blocks.residual_blocks(state, first, second, modulation[which], dtype)
        for block, scale_shift in zip(blocks, modulation[which], strict=True):
            state = block(state, scale_shift)
        return state

    def density(self, state: Tensor) -> Tensor:
        """(batch, points) of concluded states, at least 0."""
        row = slice(STANDARD_RGB, STANDARD_RGB + 1)
        output = functional.linear(state, self.output.weight[row], self.output.bias[row])
        return functional.relu(output.float())[..., 0]

    def decode(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """Density (batch, points), and colour in [0, 1] with features (batch, points, 3 + channels)."""
        output = self.output(state).float()
        colour, density, features = output.split([STANDARD_RGB, 1, self.config.feature_channels], dim=-1)
        return functional.relu(density)[..., 0], torch.cat([colour.sigmoid(), features], dim=-1)


@dataclass(frozen=True)
class PreparedView:
    """A view as one point network looks into it."""

    world_to_cam: Tensor
    intrinsics: Tensor
    map: Tensor
    modulation: Modulation


Layers = list[tuple[Tensor, Tensor]]  # weight and bias of each


def layers_of(blocks: Sequence[ModulatedBlock]) -> tuple[Layers, Layers]:
    """The first layers of blocks, and their second ones."""
    first, second = [block.first for block in blocks], [block.second for block in blocks]
    return [(layer.weight, layer.bias) for layer in first], [(layer.weight, layer.bias) for layer in second]


def split_modulation(modulation: Modulation, parts: int) -> list[Modulation]:
    """That of each part of a batch."""
    split = [zip(scale.chunk(parts), shift.chunk(parts), strict=True) for scale, shift in modulation]
    return [list(part) for part in zip(*split, strict=True)]


def weights_now(network: nn.Module) -> tuple[tuple[int, int], ...]:
    """Where a network's weights lie and how often each was written: equal as long as none has changed.

    Writing through `.data`, as fused optimizers do, is not counted. So nothing is kept while training.
    """
    return tuple((weight.data_ptr(), weight._version) for weight in network.parameters())


def look(network: PointNetwork, view: PreparedView, points: Tensor) -> Tensor:
    """(batch, points, width): what a view says of world points (batch, points, 3)."""
    with torch.autocast(points.device.type, enabled=False):
        local = points @ view.world_to_cam[:, :3, :3].transpose(1, 2) + view.world_to_cam[:, None, :3, 3]
        image = local @ view.intrinsics.transpose(1, 2)
        position = image[..., :2] / (image[..., 2:] + 1e-9)
        sides = constants([view.map.shape[-1], view.map.shape[-2]], position)
        edges = (2 * (position * (sides - 1)) + 1) / sides - 1  # from pixel centres at 0 and 1
        seen = sample_map(view.map, edges)
    return network.describe(local, seen, view.modulation)


def constants(values: Sequence[float], like: Tensor) -> Tensor:
    """(values,) filled in on the device: copied from the CPU, they could not be part of a CUDA graph."""
    return torch.cat([like.new_full((1,), value) for value in values])


def look_all(network: PointNetwork, views: Sequence[PreparedView], points: Tensor) -> Tensor:
    """(batch, points, width): the sum of what views say of world points."""
    total = look(network, views[0], points)
    for view in views[1:]:
        total = total + look(network, view, points)
    return total


def conclude(
    network: PointNetwork, views: Sequence[PreparedView], points: Tensor, told: Tensor | None
) -> Tensor:
    """(batch, points, width): what a field that is made of views says of world points (batch, points, 3).

    `told`: what all views but the last say of them, as `look_all` does, where that is known already.
    """
    total = look_all(network, views, points) if told is None else told + look(network, views[-1], points)
    return network.conclude(total / len(views), views[-1].modulation)


def encode_position(local: Tensor, config: VolumeConfig) -> Tensor:
    """(..., 3 + 6 octaves): coordinates, then for each octave all sines, then all cosines."""
    frequencies = config.frequency * 2.0 ** torch.arange(config.octaves, device=local.device)
    frequencies = frequencies.to(local.dtype).repeat_interleave(2)[:, None]
    phases = constants([0.0, math.pi / 2], local).repeat(config.octaves)[:, None]
    waves = torch.addcmul(phases, local[..., None, :], frequencies).sin()
    return torch.cat([local, waves.flatten(-2)], dim=-1)


def sine_waves(timesteps: Tensor, width: int) -> Tensor:
    """(batch, width) sines, then cosines, of timesteps at frequencies from 1 to 1/10000."""
    count = width // 2
    index = torch.arange(count, dtype=torch.float32, device=timesteps.device)
    angles = timesteps.float()[:, None] * torch.exp(-math.log(10000.0) * index / (count - 1))
    return torch.cat([angles.sin(), angles.cos()], dim=-1)
