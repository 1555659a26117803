"""The forward model of the full-size model: a radiance field of pixel-aligned features, integrated densely.

What the contexts say at points that stay the same over all denoising steps can be remembered
(`VolumeFieldRenderer.remember`), which changes nothing but the rounding. Shortcuts that do change the result
are off by default (`VolumeFieldRenderer.faster`).
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from scenediff.renderers.cameras import PinholeView
from scenediff.renderers.rays import along
from scenediff.renderers.volume_network import (
    STANDARD_RGB,
    PointNetwork,
    PreparedView,
    VolumeConfig,
    conclude,
    look_all,
    split_modulation,
    weights_now,
)
from scenediff.renderers.volume_rays import (
    absorption,
    compact,
    fine_distances,
    fixed_uniform,
    fresh_uniform,
    integrate,
    pinhole_rays,
    spread,
    worth_decoding,
)

if TYPE_CHECKING:
    from scenediff.renderers.fused_volume import FusedMarch


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
class PreparedSignal:
    """A signal as the networks look into it.

    Attributes:
        signal: in question. weights: `weights_now` of its networks.
        views: for each network, the signal's views.
        kernels: what `fused_volume` keeps of it.
    """

    signal: VolumeSignal
    weights: tuple[tuple, ...]
    views: list[list[PreparedView]]
    kernels: dict[tuple, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class VolumeRendering:
    """Integrals along rays, as the network reads them.

    Attributes:
        image: (batch, 3, height, width) in [-1, 1], in front of the background.
        distance: (batch, 1, height, width) sum of weights times distance along the ray.
        opacity: (batch, 1, height, width) sum of the weights.
        features: (batch, channels, height, width), in front of nothing.
        distortion: (batch, 1, height, width) of the weights, see `volume_rays.spread`; None unless asked
            for.
    """

    image: Tensor
    distance: Tensor
    opacity: Tensor
    features: Tensor
    distortion: Tensor | None = None


@dataclass(frozen=True)
class RayPart:
    """Some rays of a view: origins (batch, 1, 3), directions (batch, rays, 3) and what is known of them.

    Attributes:
        even: (batch, rays, samples) evenly spaced distances.
        uniform: (batch, rays, fine) numbers that place further samples, or None.
        known: for each network (batch, rays, samples, width), see `Remembered`; or empty.
    """

    origins: Tensor
    directions: Tensor
    even: Tensor
    uniform: Tensor | None
    known: tuple[Tensor, ...]

    def points(self, distances: Tensor) -> Tensor:
        """(batch, rays x samples, 3) at distances (batch, rays, samples)."""
        with torch.autocast(distances.device.type, enabled=False):
            return along(self.origins, self.directions, distances).flatten(1, 2)


class VolumeFieldRenderer(nn.Module):
    """ForwardModel of `VolumeSignal`s and `PinholeView`s.

    Attributes:
        uniform: makes the numbers that place the fine samples from a shape and a device; None for
            `fixed_uniform`, in training `fresh_uniform`.
        chunk_rays: rays computed at a time when no gradient is wanted; None for all.
        kernels: whether hand-written kernels may compute on a GPU; set by `use_kernels`.
    """

    def __init__(self, config: VolumeConfig | None = None):
        super().__init__()
        self.config = config or VolumeConfig()
        self.coarse = PointNetwork(self.config)
        self.fine = PointNetwork(self.config)
        self.deterministic = PointNetwork(self.config)
        self.uniform: Callable[[tuple[int, int, int], torch.device], Tensor] | None = None
        self.chunk_rays: int | None = None
        self._latest: PreparedSignal | None = None
        self.use_kernels(True)

    def train(self, mode: bool = True) -> VolumeFieldRenderer:
        """Drops what was kept of the latest signal, see `volume_network.weights_now`."""
        self._latest = None
        return super().train(mode)

    def use_kernels(self, wanted: bool) -> VolumeFieldRenderer:
        """Whether hand-written kernels compute on a GPU in bfloat16: `fused_volume`, `residual_blocks`."""
        self.kernels = wanted
        for network in (self.coarse, self.fine, self.deterministic):
            network.kernels = wanted
        return self

    def faster(self, fine: int | None = None, skip: float = 0.0) -> VolumeFieldRenderer:
        """The same networks with shortcuts that change the result; itself if none is wanted.

        Args:
            fine: samples of the second pass, at least 1 and at most as many as now; None for as many.
            skip: samples, of both passes, are left out of the second one where the first pass found less
                than this share of their ray and of its weight next to them (`volume_rays.worth_decoding`):
                empty and hidden space. 0 leaves out none.
        """
        config = replace(self.config, skip=skip or self.config.skip)
        if fine is not None:
            if not 1 <= fine <= self.config.fine:
                raise ValueError(f"fine must lie in [1, {self.config.fine}], got {fine}")
            config = replace(config, fine=fine)
        if config == self.config:
            return self
        renderer = copy.copy(self)
        renderer.config = config
        return renderer

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
        self, signal: VolumeSignal, view: PinholeView, *, features: bool = True, distortion: bool = False
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
        fused_alone = not (torch.is_grad_enabled() or self.config.skip or distortion)
        even = self._distances(signal, directions)
        parts: list[tuple[Tensor, ...]] = []
        for start in range(0, rays, per_chunk):
            chunk = slice(start, start + per_chunk)
            known = tuple(state[:, chunk] for state in states)
            numbers = None if uniform is None else uniform[:, chunk]
            part = directions[:, chunk]
            samples = even.expand(*part.shape[:2], -1)
            if fused is not None and fused_alone:
                parts.append(fused.march(origins, part, samples, numbers, known, start))
                continue
            place = None if fused is None else partial(fused.density, origins, part, samples, first_ray=start)
            rays_here = RayPart(origins, part, samples, numbers, known)
            decoded, every = self._march(signal, prepared.views, rays_here, place)
            integrals: tuple[Tensor, ...] = integrate(*decoded, every, self.config.background)
            if distortion:
                integrals = (*integrals, spread(decoded[0], every, self.config.near, self.config.far))
            parts.append(integrals)
        size = view.size if view.pixels is None else (rays, 1)
        return self._assemble(parts, size)

    def at_points(
        self, signal: VolumeSignal, points: Tensor, network: int = 0
    ) -> tuple[Tensor, Tensor]:
        """Density (batch, points), colour and features (batch, points, 3 + channels) at world points.

        Args:
            points: (batch, points, 3). network: 0 for that of the first samples, 1 for that of all.
        """
        views = self._prepare(signal).views[network]
        decoder = self.networks(signal.sampled)[network]
        return decoder.decode(conclude(decoder, views, points, None))

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
            for network, views in zip(self.networks(signal.sampled), self._prepare(signal).views, strict=True)
        )
        return replace(signal, remembered=Remembered(view, states))

    def remembered_bytes(self, view: PinholeView, element_size: int = 4) -> int:
        """Memory that `remember` takes for a view."""
        rays = view.size[0] * view.size[1] if view.pixels is None else view.pixels.shape[1]
        points = len(view) * rays * self.config.coarse
        return len(self.networks(sampled=True)) * points * self.config.width * element_size

    def _fused(
        self, signal: VolumeSignal, view: PinholeView, prepared: PreparedSignal, features: bool
    ) -> FusedMarch | None:
        """The kernels that take over, where there are any."""
        from scenediff.renderers import fused_volume

        if not fused_volume.fits(self, view.cam_to_world.device):
            return None
        return fused_volume.FusedMarch(self, signal, view, prepared, features)

    def _prepare(self, signal: VolumeSignal) -> PreparedSignal:
        """Kept outside of training, as a film shows one signal in many views, and a GPU waits for this."""
        if torch.is_grad_enabled() or self.training:
            return PreparedSignal(signal, (), self._prepare_views(signal))
        weights = tuple(weights_now(network) for network in self.networks(signal.sampled))
        kept = self._latest
        if kept is None or kept.signal is not signal or kept.weights != weights:
            kept = self._latest = PreparedSignal(signal, weights, self._prepare_views(signal))
        return kept

    def _prepare_views(self, signal: VolumeSignal) -> list[list[PreparedView]]:
        """For each network, the signal's views."""
        views, every = signal.views, []
        with torch.autocast(views[0].cam_to_world.device.type, enabled=False):
            inverses = [torch.linalg.inv_ex(view.cam_to_world.float())[0] for view in views]
            timesteps = torch.cat([view.timesteps for view in views])
            for index, network in enumerate(self.networks(signal.sampled)):
                modulations = split_modulation(network.modulations(timesteps), len(views))
                every.append([
                    PreparedView(inverse, view.intrinsics, view.maps[index], modulation)
                    for inverse, view, modulation in zip(inverses, views, modulations, strict=True)
                ])
        return every

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
        rays: RayPart,
        place: Callable[[], Tensor] | None,
    ) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """Density and values of samples on rays, as `PointNetwork.decode` returns them, and their distances.

        `place` finds the density at the even samples, where that is done faster elsewhere.
        """
        networks, known, even = self.networks(signal.sampled), rays.known, rays.even

        def concluded(index: int, distances: Tensor, told: Tensor | None) -> Tensor:
            """(batch, rays, samples, width)"""
            told = None if told is None else told.flatten(1, 2)
            state = conclude(networks[index], prepared[index], rays.points(distances), told)
            return state.unflatten(1, distances.shape[1:])

        told = known[0] if known else None
        if rays.uniform is None:
            return networks[0].decode(concluded(0, even, told)), even
        with torch.no_grad():  # no gradient passes through the samples' places
            density = networks[0].density(concluded(0, even, told)) if place is None else place()
            weights = absorption(density, even)
            extra = fine_distances(even, weights, rays.uniform)
        every = torch.cat([even, extra], dim=-1)
        if self.config.skip:
            return self._decode_some(networks[1], prepared[1], rays, weights, extra), every
        if known:
            state = torch.cat([concluded(1, even, known[1]), concluded(1, extra, None)], dim=2)
        else:
            state = concluded(1, every, None)
        return networks[1].decode(state), every

    def _decode_some(
        self,
        network: PointNetwork,
        views: list[PreparedView],
        rays: RayPart,
        weights: Tensor,
        extra: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """What `_march` returns of all samples, where those that are skipped have no density."""
        parts = []
        for distances, told in ((rays.even, rays.known[1] if rays.known else None), (extra, None)):
            wanted = worth_decoding(weights, rays.even, distances, self.config.skip).flatten(1)
            chosen, place = compact(wanted)
            points = take(rays.points(distances), chosen)
            told = None if told is None else take(told.flatten(1, 2), chosen)
            density, values = network.decode(conclude(network, views, points, told))
            density = torch.where(wanted, density.gather(1, place), 0)
            shape = distances.shape[1:]
            parts.append((density.unflatten(1, shape), take(values, place).unflatten(1, shape)))
        (density, values), (further, its_values) = parts
        return torch.cat([density, further], dim=-1), torch.cat([values, its_values], dim=2)

    def _assemble(self, parts: list[tuple[Tensor, ...]], size: tuple[int, int]) -> VolumeRendering:
        values, *scalars = (torch.cat(group, dim=1) for group in zip(*parts, strict=True))
        image = values.transpose(1, 2).unflatten(-1, size)
        distance, opacity, *distortion = (part[:, None].unflatten(-1, size) for part in scalars)
        return VolumeRendering(
            image[:, :STANDARD_RGB], distance, opacity, image[:, STANDARD_RGB:], *distortion
        )


def take(values: Tensor, index: Tensor) -> Tensor:
    """(batch, chosen, channels) of (batch, points, channels) by (batch, chosen) indices."""
    return values.gather(1, index[..., None].expand(-1, -1, values.shape[-1]))


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
