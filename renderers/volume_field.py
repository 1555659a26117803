"""The forward model of the full-size model: a radiance field of pixel-aligned features, integrated densely.

As in pixelNeRF (Yu et al. 2021, arXiv:2012.02190) a world point is projected into every view, each view's
feature there and the point's position in that view's frame go through residual blocks, the views' states are
averaged, more blocks turn the average into density, colour and features. The blocks are modulated by the
noise level of the view's image (Tewari et al. 2023, arXiv:2306.11719, Supplement). Rays are integrated over
evenly spaced samples, then over further ones where the first found something (NeRF, arXiv:2003.08934).

Whatever is linear in a feature map is applied to the map before it is sampled, and what the contexts say at
points that stay the same over all denoising steps can be remembered (`VolumeFieldRenderer.remember`); both
change nothing but the rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from scenediff.renderers import residual_blocks
from scenediff.renderers.bilinear import sample_map
from scenediff.renderers.cameras import PinholeView

if TYPE_CHECKING:
    from scenediff.renderers.fused_volume import FusedMarch

STANDARD_RGB = 3
EMPTY_MASS = 1e-5  # added to every bin's weight; a bin with less takes no part in the inversion


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

    def __post_init__(self) -> None:
        if not 0 <= self.near < self.far:
            raise ValueError(f"near and far must satisfy 0 <= near < far, got {self.near} and {self.far}")
        if self.coarse < 3 or self.context_samples < 2 or self.fine < 0:
            counts = f"{self.coarse}, {self.context_samples} and {self.fine}"
            raise ValueError(f"coarse, context_samples, fine must be at least 3, 2 and 0, got {counts}")


@dataclass(frozen=True)
class VolumeView:
    """One view that a field is made of; all tensors share the batch.

    Attributes:
        cam_to_world: (batch, 4, 4), OpenCV's camera axes. intrinsics: (batch, 3, 3), see `PinholeView`.
        timesteps: (batch,) noise level of the image that the maps were read from.
        maps: (batch, width, height, width) the feature map through the first layer of each point network
            that decodes the signal, with channels last in memory.
    """

    cam_to_world: Tensor
    intrinsics: Tensor
    timesteps: Tensor
    maps: tuple[Tensor, ...]


@dataclass(frozen=True)
class Remembered:
    """What a signal's context views say at the evenly spaced samples of one view's rays.

    Attributes:
        view: the view; it is recognised by identity.
        states: for each point network (batch, rays, samples, width), summed over the context views.
    """

    view: PinholeView
    states: tuple[Tensor, ...]


@dataclass(frozen=True)
class VolumeSignal:
    """A radiance field: the views that it is made of.

    Attributes:
        views: contexts first; in a sampled signal the denoised target is the last one.
        sampled: whether the networks of the sampled signal decode it, or that of the deterministic branch.
        remembered: what need not be computed again when one particular view is rendered.
    """

    views: tuple[VolumeView, ...]
    sampled: bool
    remembered: Remembered | None = None


@dataclass(frozen=True)
class VolumeRendering:
    """Integrals along rays, as the network reads them.

    Attributes:
        image: (batch, 3, height, width) in [-1, 1], in front of the background.
        distance: (batch, 1, height, width) sum of weights times distance along the ray.
        opacity: (batch, 1, height, width) sum of the weights.
        features: (batch, channels, height, width), in front of nothing.
    """

    image: Tensor
    distance: Tensor
    opacity: Tensor
    features: Tensor


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
        self.kernels = False

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
            first, second = ([(layer.weight, layer.bias) for layer in part] for part in (
                [block.first for block in blocks], [block.second for block in blocks],
            ))
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


def fixed_uniform(shape: tuple[int, int, int], device: torch.device) -> Tensor:
    """(batch, rays, samples) uniform numbers that are the same in every call and for every batch element.

    Frames are then the same whatever was rendered before, at which batch size, and on which device.
    """
    return _fixed_numbers(shape[1], shape[2], device).expand(shape)


@lru_cache(maxsize=4)  # drawn on the CPU, they would keep a GPU waiting in every step
def _fixed_numbers(rays: int, samples: int, device: torch.device) -> Tensor:
    return torch.rand(rays, samples, generator=torch.Generator().manual_seed(0)).to(device)


def fresh_uniform(shape: tuple[int, int, int], device: torch.device) -> Tensor:
    """(batch, rays, samples) new uniform numbers."""
    return torch.rand(shape, device=device)


class VolumeFieldRenderer(nn.Module):
    """ForwardModel of `VolumeSignal`s and `PinholeView`s.

    Attributes:
        uniform: makes the numbers that place the fine samples from a shape and a device; None for
            `fixed_uniform`, in training `fresh_uniform`.
        chunk_rays: rays computed at a time when no gradient is wanted; None for all.
        kernels: whether hand-written kernels may compute on a GPU; see `use_kernels`.
    """

    def __init__(self, config: VolumeConfig | None = None):
        super().__init__()
        self.config = config or VolumeConfig()
        self.coarse = PointNetwork(self.config)
        self.fine = PointNetwork(self.config)
        self.deterministic = PointNetwork(self.config)
        self.uniform: Callable[[tuple[int, int, int], torch.device], Tensor] | None = None
        self.chunk_rays: int | None = None
        self.kernels = False

    def use_kernels(self, wanted: bool = True) -> VolumeFieldRenderer:
        """Lets hand-written kernels compute on a GPU in bfloat16: `fused_volume`, `residual_blocks`.

        Off by default: they are checked against plain PyTorch by interpreters and emulation, but have not
        run on a GPU yet.
        """
        self.kernels = wanted
        for network in (self.coarse, self.fine, self.deterministic):
            network.kernels = wanted
        return self

    def networks(self, sampled: bool) -> tuple[PointNetwork, ...]:
        """The point networks that decode a signal: of the first samples, and if there are, of all."""
        if not sampled:
            return (self.deterministic,)
        return (self.coarse, self.fine) if self.config.fine else (self.coarse,)

    def view(self, features: Tensor, view: PinholeView, timesteps: Tensor, *, sampled: bool) -> VolumeView:
        """A view of a signal from its feature map (batch, map_channels, height, width)."""
        maps = tuple(
            functional.conv2d(features, network.feature.weight[..., None, None]).contiguous(
                memory_format=torch.channels_last
            )
            for network in self.networks(sampled)
        )
        return VolumeView(view.cam_to_world, view.intrinsics, timesteps, maps)

    def render(self, signal: VolumeSignal, view: PinholeView) -> Tensor:
        """(batch, 3, height, width) in [-1, 1]; (batch, 3, rays, 1) for a view of chosen pixels."""
        return self.render_all(signal, view, features=False).image

    def render_all(
        self, signal: VolumeSignal, view: PinholeView, *, features: bool = True
    ) -> VolumeRendering:
        """Everything that a view shows of a signal; without `features`, they may be missing (0 channels)."""
        with torch.autocast(view.cam_to_world.device.type, enabled=False):
            origins, directions = pinhole_rays(view)
        remembered = signal.remembered
        states = remembered.states if remembered is not None and remembered.view is view else ()
        prepared = self._prepare(signal)
        batch, rays = directions.shape[:2]
        uniform = self._numbers(signal, batch, rays, directions.device)
        at_a_time = batch * rays if self.chunk_rays is None or torch.is_grad_enabled() else self.chunk_rays
        per_chunk = max(1, at_a_time // max(1, batch))
        with torch.no_grad():
            fused = self._fused(signal, view, prepared, features)
        even = self._distances(signal, directions)
        parts = []
        for start in range(0, rays, per_chunk):
            chunk = slice(start, start + per_chunk)
            known = tuple(state[:, chunk] for state in states)
            numbers = None if uniform is None else uniform[:, chunk]
            part = directions[:, chunk]
            samples = even.expand(*part.shape[:2], -1)
            if fused is not None and not torch.is_grad_enabled():
                parts.append(fused.march(origins, part, samples, numbers, known, start))
                continue
            place = None if fused is None else partial(fused.density, origins, part, samples, first_ray=start)
            parts.append(self._march(signal, prepared, origins, part, samples, numbers, known, place))
        size = view.size if view.pixels is None else (rays, 1)
        return self._assemble(parts, size)

    def at_points(
        self, signal: VolumeSignal, points: Tensor, network: int = 0
    ) -> tuple[Tensor, Tensor]:
        """Density (batch, points), colour and features (batch, points, 3 + channels) at world points.

        Args:
            points: (batch, points, 3). network: 0 for that of the first samples, 1 for that of all.
        """
        views = self._prepare(signal)[network]
        decoder = self.networks(signal.sampled)[network]
        total = look_all(decoder, views, points)
        return decoder.decode(decoder.conclude(total / len(views), views[-1].modulation))

    @torch.no_grad()
    def remember(self, signal: VolumeSignal, view: PinholeView) -> VolumeSignal:
        """The signal of context views, with their part of what `view` will show; for use in denoising."""
        with torch.autocast(view.cam_to_world.device.type, enabled=False):
            origins, directions = pinhole_rays(view)
            even = self._distances(signal, directions)
            points = along(origins, directions, even)
        fused = self._fused(signal, view, self._prepare(signal), True)
        if fused is not None:
            samples = even.expand(*directions.shape[:2], -1)
            return replace(signal, remembered=Remembered(view, fused.describe(origins, directions, samples)))
        shape = points.shape[:3]
        states = tuple(
            look_all(network, views, points.flatten(1, 2)).unflatten(1, shape[1:])
            for network, views in zip(self.networks(signal.sampled), self._prepare(signal), strict=True)
        )
        return replace(signal, remembered=Remembered(view, states))

    def remembered_bytes(self, view: PinholeView, element_size: int = 4) -> int:
        """Memory that `remember` takes for a view."""
        rays = view.size[0] * view.size[1] if view.pixels is None else view.pixels.shape[1]
        points = len(view) * rays * self.config.coarse
        return len(self.networks(sampled=True)) * points * self.config.width * element_size

    def _fused(
        self, signal: VolumeSignal, view: PinholeView, prepared: list[list[PreparedView]], features: bool
    ) -> FusedMarch | None:
        """The kernels that take over, where there are any."""
        from scenediff.renderers import fused_volume

        if not fused_volume.fits(self, view.cam_to_world.device):
            return None
        return fused_volume.FusedMarch(self, signal, view, prepared, features)

    def _prepare(self, signal: VolumeSignal) -> list[list[PreparedView]]:
        """For each network, the signal's views."""
        with torch.autocast(signal.views[0].cam_to_world.device.type, enabled=False):
            inverses = [torch.linalg.inv_ex(view.cam_to_world.float())[0] for view in signal.views]
            return [
                [
                    PreparedView(
                        inverse, view.intrinsics, view.maps[index], network.modulations(view.timesteps)
                    )
                    for inverse, view in zip(inverses, signal.views, strict=True)
                ]
                for index, network in enumerate(self.networks(signal.sampled))
            ]

    def _distances(self, signal: VolumeSignal, like: Tensor) -> Tensor:
        """(samples,) evenly spaced distances along every ray."""
        count = self.config.coarse if signal.sampled else self.config.context_samples
        near, far = self.config.near, self.config.far
        return near + (far - near) * torch.linspace(0, 1, count, dtype=like.dtype, device=like.device)

    def _numbers(self, signal: VolumeSignal, batch: int, rays: int, device: torch.device) -> Tensor | None:
        if not (signal.sampled and self.config.fine):
            return None
        default = fresh_uniform if self.training else fixed_uniform
        return (self.uniform or default)((batch, rays, self.config.fine), device)

    def _march(
        self,
        signal: VolumeSignal,
        prepared: list[list[PreparedView]],
        origins: Tensor,
        directions: Tensor,
        even: Tensor,
        uniform: Tensor | None,
        known: tuple[Tensor, ...],
        place: Callable[[], Tensor] | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Values (batch, rays, 3 + features), distance and opacity (batch, rays) of rays.

        `place` finds the density at the even samples, where that is done faster elsewhere.
        """
        networks = self.networks(signal.sampled)

        def concluded(index: int, distances: Tensor, told: Tensor | None) -> Tensor:
            """(batch, rays, samples, width)"""
            with torch.autocast(distances.device.type, enabled=False):
                points = along(origins, directions, distances).flatten(1, 2)
            network, views = networks[index], prepared[index]
            if told is None:
                total = look_all(network, views, points)
            else:
                total = told.flatten(1, 2) + look(network, views[-1], points)
            state = network.conclude(total / len(views), views[-1].modulation)
            return state.unflatten(1, distances.shape[1:])

        told = known[0] if known else None
        if uniform is None:
            return self._integrate(*networks[0].decode(concluded(0, even, told)), even)
        with torch.no_grad():  # no gradient passes through the samples' places
            density = networks[0].density(concluded(0, even, told)) if place is None else place()
            extra = fine_distances(even, absorption(density, even), uniform)
        if known:
            state = torch.cat([concluded(1, even, known[1]), concluded(1, extra, None)], dim=2)
        else:
            state = concluded(1, torch.cat([even, extra], dim=-1), None)
        return self._integrate(*networks[1].decode(state), torch.cat([even, extra], dim=-1))

    def _integrate(self, density: Tensor, values: Tensor, distances: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Integrals along rays of samples in any order, in float32."""
        ordered, order = distances.sort(dim=-1, stable=True)
        weights = absorption(density.gather(-1, order), ordered)
        distance, opacity = (weights * ordered).sum(-1), weights.sum(-1)
        weights = torch.zeros_like(weights).scatter(-1, order, weights)  # back to the order of the values
        with torch.autocast(values.device.type, enabled=False):
            total = (weights[..., None, :] @ values)[..., 0, :]
        background = total.new_tensor(self.config.background)
        colour = total[..., :STANDARD_RGB] + (1 - opacity)[..., None] * background
        return torch.cat([2 * colour - 1, total[..., STANDARD_RGB:]], dim=-1), distance, opacity

    def _assemble(self, parts: list[tuple[Tensor, Tensor, Tensor]], size: tuple[int, int]) -> VolumeRendering:
        values, distance, opacity = (torch.cat(group, dim=1) for group in zip(*parts, strict=True))
        image = values.transpose(1, 2).unflatten(-1, size)
        return VolumeRendering(
            image[:, :STANDARD_RGB], distance[:, None].unflatten(-1, size),
            opacity[:, None].unflatten(-1, size), image[:, STANDARD_RGB:],
        )


def pinhole_rays(view: PinholeView) -> tuple[Tensor, Tensor]:
    """World origins (batch, 1, 3) and unit directions (batch, rays, 3) of a view's rays, row-major."""
    height, width = view.size
    like = view.intrinsics
    v, u = (torch.linspace(0, 1, side, dtype=like.dtype, device=like.device) for side in (height, width))
    if view.pixels is None:
        plane = torch.stack([u.expand(height, width), v[:, None].expand(height, width)], dim=-1)
        plane = plane.flatten(0, 1)[None]
    else:
        plane = torch.stack([u[view.pixels[..., 1]], v[view.pixels[..., 0]]], dim=-1)
    plane = torch.cat([plane, torch.ones_like(plane[..., :1])], dim=-1)
    local = plane @ torch.linalg.inv_ex(like)[0].transpose(1, 2)
    directions = functional.normalize(local, dim=-1) @ view.cam_to_world[:, :3, :3].transpose(1, 2)
    return view.cam_to_world[:, None, :3, 3], directions


def along(origins: Tensor, directions: Tensor, distances: Tensor) -> Tensor:
    """(batch, rays, samples, 3) world points at distances ([batch, rays,] samples) along rays."""
    return origins[:, :, None] + directions[:, :, None] * distances[..., None]


def look(network: PointNetwork, view: PreparedView, points: Tensor) -> Tensor:
    """(batch, points, width): what a view says of world points (batch, points, 3)."""
    with torch.autocast(points.device.type, enabled=False):
        local = points @ view.world_to_cam[:, :3, :3].transpose(1, 2) + view.world_to_cam[:, None, :3, 3]
        image = local @ view.intrinsics.transpose(1, 2)
        position = image[..., :2] / (image[..., 2:] + 1e-9)
        sides = position.new_tensor([view.map.shape[-1], view.map.shape[-2]])
        edges = (2 * (position * (sides - 1)) + 1) / sides - 1  # from pixel centres at 0 and 1
        seen = sample_map(view.map, edges)
    return network.describe(local, seen, view.modulation)


def look_all(network: PointNetwork, views: Sequence[PreparedView], points: Tensor) -> Tensor:
    """(batch, points, width): the sum of what views say of world points."""
    total = look(network, views[0], points)
    for view in views[1:]:
        total = total + look(network, view, points)
    return total


def encode_position(local: Tensor, config: VolumeConfig) -> Tensor:
    """(..., 3 + 6 octaves): coordinates, then for each octave all sines, then all cosines."""
    frequencies = config.frequency * 2.0 ** torch.arange(config.octaves, device=local.device)
    frequencies = frequencies.to(local.dtype).repeat_interleave(2)[:, None]
    phases = local.new_tensor([0.0, math.pi / 2]).repeat(config.octaves)[:, None]
    waves = torch.addcmul(phases, local[..., None, :], frequencies).sin()
    return torch.cat([local, waves.flatten(-2)], dim=-1)


def sine_waves(timesteps: Tensor, width: int) -> Tensor:
    """(batch, width) sines, then cosines, of timesteps at frequencies from 1 to 1/10000."""
    count = width // 2
    index = torch.arange(count, dtype=torch.float32, device=timesteps.device)
    angles = timesteps.float()[:, None] * torch.exp(-math.log(10000.0) * index / (count - 1))
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def absorption(density: Tensor, distances: Tensor) -> Tensor:
    """(..., samples) share of each ray that ends in each sample; distances increase."""
    step = distances.diff(dim=-1)
    alpha = 1 - torch.exp(-density * torch.cat([step, step[..., -1:]], dim=-1))
    passed = (1 - alpha + 1e-10).cumprod(dim=-1)
    return alpha * torch.cat([torch.ones_like(passed[..., :1]), passed[..., :-1]], dim=-1)


def fine_distances(distances: Tensor, weights: Tensor, uniform: Tensor) -> Tensor:
    """Further distances where the weights are, by inverting their distribution function.

    Args:
        distances: (..., samples) increasing. weights: the same. uniform: (..., fine) in [0, 1).

    Returns:
        (..., fine), in the order of `uniform`.
    """
    middles = (distances[..., 1:] + distances[..., :-1]) / 2
    mass = weights[..., 1:-1] + EMPTY_MASS
    cdf = functional.pad((mass / mass.sum(-1, keepdim=True)).cumsum(-1), (1, 0))
    above = torch.searchsorted(cdf, uniform.contiguous())
    below, above = (above - 1).clamp(min=0), above.clamp(max=cdf.shape[-1] - 1)
    low, high = cdf.gather(-1, below), cdf.gather(-1, above)
    share = torch.where(high - low < EMPTY_MASS, 1.0, high - low)
    start, end = middles.gather(-1, below), middles.gather(-1, above)
    return start + (uniform - low) / share * (end - start)


def map_volume(signal: VolumeSignal, function: Callable[[Tensor], Tensor]) -> VolumeSignal:
    """The signal with a function of the batch applied to every tensor; what it remembers is forgotten."""
    views = tuple(
        VolumeView(
            function(view.cam_to_world), function(view.intrinsics), function(view.timesteps),
            tuple(function(part) for part in view.maps),
        )
        for view in signal.views
    )
    return VolumeSignal(views, signal.sampled)
