"""The denoiser of the full-size model: posed images and a noisy target -> a densely integrated field.

One transformer reads every view. The target is read together with the deterministic branch's rendering
(colour, depth, features) at its camera (Tewari et al. 2023, arXiv:2306.11719, Sec. 4.1 and Supplement).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from scenediff.forward import EncodedContext, Observation
from scenediff.networks.dit import DitConfig, DitEncoder
from scenediff.renderers.cameras import PinholeView
from scenediff.renderers.volume_field import VolumeFieldRenderer, VolumeSignal, map_volume


class DitDenoiser(nn.Module):
    """Denoiser (see `scenediff.forward`) whose signals are `VolumeSignal`s and whose views `PinholeView`s.

    Attributes:
        memory: bytes that may be spent on what the contexts say at the target's samples, so that it is
            computed once and not in every step; 0 to compute it in every step.
    """

    def __init__(self, config: DitConfig, renderer: VolumeFieldRenderer):
        super().__init__()
        maps, rendered = renderer.config.map_channels, renderer.config.feature_channels
        if config.channels != maps:
            raise ValueError(f"the encoder's channels must be the field's {maps}, got {config.channels}")
        if config.target_inputs != 7 + rendered:
            raise ValueError(f"target_inputs must be {7 + rendered}, got {config.target_inputs}")
        self.config, self.renderer = config, renderer
        self.encoder = DitEncoder(config)
        self.memory = 2**30

    def encode(
        self, context: Sequence[Observation], target_view: PinholeView, drop: Tensor | None = None
    ) -> EncodedContext:
        """Reads the context views and renders the deterministic field at the target view."""
        features = self.read(context, drop)
        guess = self.signal(features, context, sampled=False)
        known = self.signal(features, context, sampled=True)
        rendering = self.renderer.render_all(guess, target_view)
        maps = torch.cat([rendering.image, rendering.distance, rendering.features], dim=1)
        if not torch.is_grad_enabled() and self.renderer.remembered_bytes(target_view) <= self.memory:
            known = self.renderer.remember(known, target_view)
        return EncodedContext(guess, rendering.image, (maps, known))

    def read(self, context: Sequence[Observation], drop: Tensor | None = None) -> tuple[Tensor, ...]:
        """The feature map (batch, channels, height, width) of each context view."""
        images = torch.cat([_shown(observation, drop) for observation in context])
        return self.encoder.context(images, _poses(context, self.config)).chunk(len(context))

    def signal(
        self, features: Sequence[Tensor], context: Sequence[Observation], *, sampled: bool
    ) -> VolumeSignal:
        """The context views' part of the sampled signal, or the deterministic one, which has no other."""
        level = torch.zeros(len(features[0]), device=features[0].device)
        views = tuple(
            self.renderer.view(maps, seen.view, level, sampled=sampled)
            for maps, seen in zip(features, context, strict=True)
        )
        return VolumeSignal(views, sampled)

    def denoise(
        self, noisy: Tensor, timesteps: Tensor, context: EncodedContext, target_view: PinholeView
    ) -> VolumeSignal:
        """The contexts' field joined by the target view's own features."""
        maps, known = context.extras
        features = self.encoder.target(torch.cat([noisy, maps], dim=1), timesteps, target_view.pose)
        view = self.renderer.view(features, target_view, timesteps, sampled=True)
        return replace(known, views=(*known.views, view))

    def encode_pair(
        self, context: Sequence[Observation], target_view: PinholeView
    ) -> tuple[EncodedContext, PinholeView]:
        """Two batches in one, with the context and without it, and the view of both."""
        both = [
            Observation(observation.image.repeat(2, 1, 1, 1), observation.view.repeated(2))
            for observation in context
        ]
        view = target_view.repeated(2)
        drop = torch.arange(len(view), device=view.cam_to_world.device) >= len(target_view)
        return self.encode(both, view, drop), view

    def first_of_pair(self, signal: VolumeSignal) -> VolumeSignal:
        """The half of a signal's batch that knows its context."""
        return map_volume(signal, lambda tensor: tensor[: len(tensor) // 2])


def _shown(observation: Observation, drop: Tensor | None) -> Tensor:
    """The image, zeros where its context is hidden."""
    return observation.image if drop is None else observation.image * ~drop[:, None, None, None]


def _poses(context: Sequence[Observation], config: DitConfig) -> Tensor | None:
    if not config.absolute_poses:
        return None
    poses = [observation.view.pose for observation in context]
    if any(pose is None for pose in poses):
        raise ValueError("this model wants the absolute pose of every context view, got None")
    return torch.cat(poses)
