"""The densely integrated field by the kernels of `point_kernels.py`: `VolumeFieldRenderer` on a GPU.

Without gradients, under autocast to bfloat16, at the published width. Same sums, another order: the scale and
shift of a noise level are folded into weights, the samples of the two passes are never sorted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from scenediff.renderers import point_kernels
from scenediff.renderers.cameras import PinholeView
from scenediff.renderers.point_kernels import DENSITY, OUTPUTS, STATE, CutNetwork, Eye, PackedBlocks
from scenediff.renderers.volume_field import (
    PreparedSignal,
    VolumeFieldRenderer,
    VolumeSignal,
    VolumeView,
)
from scenediff.renderers.volume_network import (
    STANDARD_RGB,
    ModulatedBlock,
    PointNetwork,
    PreparedView,
    layers_of,
    weights_now,
)
from scenediff.renderers.volume_rays import absorption, fine_distances

Marched = tuple[Tensor, Tensor, Tensor]


class FusedMarch:
    """Marches along rays of one view of one signal.

    Args:
        renderer, signal, view: see `VolumeFieldRenderer.render_all`.
        prepared: the signal's views; keeps what is made of them here.
        features: whether more than the colour is wanted.
    """

    def __init__(
        self,
        renderer: VolumeFieldRenderer,
        signal: VolumeSignal,
        view: PinholeView,
        prepared: PreparedSignal,
        features: bool = True,
    ):
        self.config, self.sampled = renderer.config, signal.sampled
        self.columns = STANDARD_RGB + 1 + (self.config.feature_channels if features else 0)
        self.networks, self.prepared = renderer.networks(signal.sampled), prepared.views
        self.own = [_looks_along(seen, view) for seen in signal.views]
        self.kept = prepared.kernels

    def march(
        self, origins: Tensor, directions: Tensor, even: Tensor, uniform: Tensor | None,
        known: tuple[Tensor, ...], first_ray: int,
    ) -> Marched:
        """Values (batch, rays, 3 [+ features]), distance and opacity (batch, rays) of rays.

        Args:
            even: (batch, rays, samples) evenly spaced distances. uniform: places the fine samples, or None.
            known: what earlier views say at the evenly spaced samples, for each network, or empty.
            first_ray: which of all rays of the view `directions` begins with.
        """
        rays = Rays(origins, directions, even.contiguous(), first_ray)
        told: Sequence[Tensor | None] = [part.flatten(1, 2) for part in known] or [None, None]
        background = self.config.background
        if uniform is None:
            outputs = self._outputs(0, rays, told[0])
            return point_kernels.integrate(outputs, rays.distances, background)
        density = self._density(rays, told[0])
        extra = fine_distances(even, absorption(density, even), uniform)
        every = torch.cat([even, extra], dim=-1)
        if not known:
            outputs = self._outputs(1, rays.at(every), None)
        else:
            outputs = even.new_empty(*every.shape, self.columns)
            self._outputs(1, rays, told[1], outputs)
            self._outputs(1, rays.at(extra), None, outputs, even.shape[-1])
        return point_kernels.integrate(outputs, every, background)

    def density(self, origins: Tensor, directions: Tensor, even: Tensor, *, first_ray: int) -> Tensor:
        """(batch, rays, samples) by the network of the first samples; arguments as for `march`."""
        return self._density(Rays(origins, directions, even.contiguous(), first_ray), None)

    def describe(self, origins: Tensor, directions: Tensor, even: Tensor) -> tuple[Tensor, ...]:
        """For each network (batch, rays, samples, width): the sum of what all the signal's views say."""
        rays = Rays(origins, directions, even.contiguous(), 0)
        views = len(self.prepared[0])
        told = [self._tell(index, rays, views) for index in range(len(self.networks))]
        return tuple(part.unflatten(1, even.shape[1:]) for part in told if part is not None)

    def _tell(self, index: int, rays: Rays, views: int) -> Tensor | None:
        """(batch, points, width): the sum of what the first views say."""
        told = None
        for view in range(views):
            states = rays.embed(self._eye(index, view))
            self._pack(index, view, STATE).run(states, told, 1.0, states)
            told = states
        return told

    def _density(self, rays: Rays, told: Tensor | None) -> Tensor:
        result = torch.empty_like(rays.distances)
        self._run(0, rays, told, DENSITY, result)
        return result

    def _outputs(
        self, index: int, rays: Rays, told: Tensor | None, into: Tensor | None = None, first: int = 0
    ) -> Tensor:
        """(batch, rays, samples, columns); written `into` a tensor of more samples, from `first` on."""
        if into is None:
            into = rays.distances.new_empty(*rays.distances.shape, self.columns)
        self._run(index, rays, told, OUTPUTS, into, first)
        return into

    def _run(
        self, index: int, rays: Rays, told: Tensor | None, wanted: int, result: Tensor, first: int = 0
    ) -> None:
        views = len(self.prepared[index])
        if told is None:
            told = self._tell(index, rays, views - 1)
        states = rays.embed(self._eye(index, views - 1))
        packed = self._pack(index, views - 1, wanted)
        packed.run(states, told, 1 / views, result, samples=rays.distances.shape[-1], first=first)

    def _eye(self, index: int, view: int) -> Eye:
        """How a network looks into a view; made when it is needed, as the GPU waits for the first one."""
        key = "eye", index, view, self.own[view]
        if key not in self.kept:
            self.kept[key] = _eye(self.networks[index], self.prepared[index][view], self.own[view])
        return self.kept[key]

    def _pack(self, index: int, view: int, wanted: int) -> PackedBlocks:
        """A network's blocks for one view; packed once, however many parts the rays come in."""
        key = "blocks", index, view, wanted
        if key not in self.kept:
            cut = kept_cut(self.networks[index])
            self.kept[key] = cut.pack(self.prepared[index][view].modulation, wanted)
        return self.kept[key]


class Rays:
    """Rays with samples on them: origins (batch, 1, 3), directions (batch, rays, 3), distances."""

    def __init__(self, origins: Tensor, directions: Tensor, distances: Tensor, first: int):
        self.origins, self.directions, self.distances, self.first = origins, directions, distances, first

    def at(self, distances: Tensor) -> Rays:
        """The same rays with other samples (batch, rays, samples)."""
        return Rays(self.origins, self.directions, distances.contiguous(), self.first)

    def embed(self, eye: Eye) -> Tensor:
        return point_kernels.embed(eye, self.origins, self.directions, self.distances, self.first)


def fits(renderer: VolumeFieldRenderer, device: torch.device) -> bool:
    """Whether the kernels may take a renderer's part now."""
    config = renderer.config
    return (
        renderer.kernels
        and device.type == "cuda"
        and not torch.is_grad_enabled()
        and torch.is_autocast_enabled("cuda")
        and torch.get_autocast_dtype("cuda") == torch.bfloat16
        and config.width == point_kernels.WIDTH
        and config.feature_channels + STANDARD_RGB + 1 <= point_kernels.SLAB[0]
        and STANDARD_RGB * (2 * config.octaves + 2) <= point_kernels.ENCODED
        and min(config.view_blocks, config.joint_blocks) > 0
        and point_kernels.runs_on(device)
    )


def kept_cut(network: PointNetwork) -> CutNetwork:
    """A network's cut weights; outside of training, cut again only when one of them has changed."""
    if network.training:
        return _cut(network)
    weights = weights_now(network)
    if network.kept_cut is None or network.kept_cut[0] != weights:
        network.kept_cut = weights, _cut(network)
    return network.kept_cut[1]


def _cut(network: PointNetwork) -> CutNetwork:
    first, second = layers_of([cast(ModulatedBlock, block) for block in network.blocks])
    output = network.output.weight, network.output.bias
    return point_kernels.cut_network(first, second, output, network.config.view_blocks)


def _eye(network: PointNetwork, view: PreparedView, own: bool) -> Eye:
    config = network.config
    return point_kernels.look_into(
        view.world_to_cam, view.intrinsics, view.map, network.position, config.octaves, config.frequency,
        own=own,
    )


def _looks_along(seen: VolumeView, view: PinholeView) -> bool:
    """Whether a view's rays are those through the pixels of a view that the signal is made of."""
    return (
        view.pixels is None
        and seen.cam_to_world is view.cam_to_world
        and seen.intrinsics is view.intrinsics
        and tuple(seen.maps[0].shape[2:]) == tuple(view.size)
    )
