"""The denoiser of the scene application: photos and a noisy target view -> a pixel-aligned radiance field.

One U-Net reads every view. A context view gives its features and log depth; the target view is read together
with the deterministic render (colour, depth, features) at its camera, which tells the network what the
context already explains (Tewari et al. 2023, arXiv:2306.11719, Sec. 4.1), and gives features, log depth and a
direct estimate of its clean image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from scenediff.forward import EncodedContext, Observation
from scenediff.networks.backbone import STAGE_CHANNELS, ImageNetFeatures
from scenediff.networks.super_resolution import SuperResolution
from scenediff.networks.unet import GroupNorm, UNet, embedding_layers, timestep_embedding
from scenediff.renderers.cameras import CameraView, resized
from scenediff.renderers.pixel_field import (
    FieldConfig,
    FieldSignal,
    FieldView,
    PixelFieldRenderer,
    Rendering,
)
from scenediff.renderers.rays import camera_rays
from scenediff.renderers.seen import seen_before

TYPICAL_DEPTH = 2.2  # metres: where the predicted depth starts before training
TYPICAL_DOUBT, DOUBTS = 0.1, (0.01, 0.5)  # of a photo's log scale: before training, and its range
SIDES = 8  # sides of the maps are multiples of it, for the U-Net's levels
RIM = 2  # outermost pixels of the target's features, which the convolutions' zero padding spoils


@dataclass(frozen=True)
class DenoiserConfig:
    """Sizes of the network.

    Attributes:
        channels: width of each U-Net level.
        blocks: residual blocks of a level, each way.
        attention_levels: coarsest levels with attention.
        embedding: width of the conditioning vector.
        detail: the photo is read at this multiple of the diffusion's resolution.
        keep: samples keep what the context saw: where the target view meets a surface that it saw, within
            this difference of log depth of the deterministic render, the target's depth is that surface's and
            its image estimate shows the context's pixel. 0 leaves all to the noise, as in training.
        transformers: transformer blocks at the coarsest level.
        tells_doubt: whether the network also says how far off a photo's overall scale may be.
        super_resolution: width of the network that enlarges sampled views; 0 for none.
    """

    channels: tuple[int, ...] = (64, 128, 192, 256)
    blocks: int = 2
    attention_levels: int = 2
    embedding: int = 128
    detail: int = 2
    keep: float = 0.2
    transformers: int = 0
    tells_doubt: bool = False
    super_resolution: int = 0


@dataclass(frozen=True)
class Guess(Rendering):
    """The deterministic render at the target view.

    Attributes:
        seen: (batch, 1, height, width) in [0, 1], how surely the context saw what it shows.
        kept: (batch, 3, height, width) the context's pixels there.
        surface: (batch, 1, height, width) the log depth there.
    """

    seen: Tensor
    kept: Tensor
    surface: Tensor


@dataclass(frozen=True)
class ReadPhoto(Observation):
    """An observation whose reading is known, for contexts that are used several times.

    Attributes:
        reading: what `PixelDenoiser.read_photo` made of it, at the size that it will be wanted.
    """

    reading: FieldView


class PixelDenoiser(nn.Module):
    """Denoiser (see `scenediff.forward`) whose signals are `FieldSignal`s and whose views `CameraView`s."""

    def __init__(self, config: DenoiserConfig, renderer: PixelFieldRenderer):
        super().__init__()
        self.config, self.renderer = config, renderer
        width, field = config.channels[0], renderer.config
        self.backbone = ImageNetFeatures()
        self.injections = nn.ModuleList(
            nn.Conv2d(inputs, outputs, 1)
            for inputs, outputs in zip(STAGE_CHANNELS, config.channels[1:], strict=False)
        )
        self.context_stem = nn.Conv2d(3 * (1 + config.detail**2) + 3, width, 3, padding=1)
        self.target_stem = nn.Conv2d(target_channels(field), width, 3, padding=1)
        self.embedding = embedding_layers(config.embedding)
        self.roles = nn.Embedding(2, config.embedding)  # 0 context, 1 target
        self.unet = UNet(
            config.channels, config.blocks, config.attention_levels, config.embedding, config.transformers
        )
        self.norm = GroupNorm(16, width)
        if config.tells_doubt:
            self.doubt = nn.Linear(width, 1)
            nn.init.zeros_(self.doubt.weight)
            nn.init.constant_(self.doubt.bias, math.log(TYPICAL_DOUBT))
        self.head = nn.Conv2d(width, field.channels + 1 + 3, 3, padding=1)
        if config.super_resolution:  # of no use to the diffusion's objective, so that leaves it as it is
            self.super_resolution = SuperResolution(config.super_resolution).requires_grad_(False)

    def encode(
        self, context: Sequence[Observation], target_view: CameraView, drop: Tensor | None = None
    ) -> EncodedContext:
        """Reads the context views and renders the deterministic field at the target view."""
        views = tuple(
            observation.reading if isinstance(observation, ReadPhoto) and drop is None
            else self.read_photo(observation, min(target_view.size), drop)
            for observation in context
        )  # fmt: skip
        signal = FieldSignal(views)
        rendering = self.renderer.render_all(signal, target_view)
        return EncodedContext(signal, rendering.image, self._guess(rendering, signal, target_view))

    @torch.no_grad()
    def _guess(self, rendering: Rendering, signal: FieldSignal, target_view: CameraView) -> Guess:
        """The rendering with what samples are to keep of it: nothing while the network trains."""
        if not self._keeps():
            nothing = torch.zeros_like(rendering.opacity, dtype=torch.float32)
            return Guess(**vars(rendering), seen=nothing, kept=rendering.image, surface=nothing)
        seen = seen_before(signal.views, target_view, rendering.depth, self.config.keep)
        share = seen.share * rendering.opacity.float().clamp(0, 1)
        return Guess(**vars(rendering), seen=share, kept=seen.image, surface=seen.log_depth)

    def _keeps(self) -> bool:
        return bool(self.config.keep) and not self.training

    def denoise(
        self, noisy: Tensor, timesteps: Tensor, context: EncodedContext, target_view: CameraView
    ) -> FieldSignal:
        """The context's field joined by the target view's own maps, in which what the context saw is kept."""
        guess: Guess = context.extras
        stem = self.target_stem(target_inputs(noisy, guess, target_view))
        features, log_depth, image = self._split(self._read(stem, timesteps, role=1))
        if self._keeps():
            log_depth = torch.lerp(log_depth, guess.surface, guess.seen)
            image = torch.lerp(image, guess.kept.float(), guess.seen)
        present = torch.ones_like(image[:, 0, 0, 0])
        view = FieldView(target_view.cameras, without_rim(features), log_depth, image, present)
        return FieldSignal((*context.signal.views, view))

    def finished(self, signal: FieldSignal, observation: Observation) -> ReadPhoto:
        """A sampled view with what the signal holds of it; read anew, its depths might have another scale."""
        return ReadPhoto(observation.image, observation.view, signal.views[-1])

    @torch.no_grad()
    def enlarged(self, signal: FieldSignal) -> FieldSignal:
        """A photo's field with the images of its sampled views enlarged, if the model has learned to."""
        if not self.config.super_resolution:
            return signal
        photo, *sampled = signal.views
        larger = (replace(view, image=self.super_resolution(view.image)) for view in sampled)
        return FieldSignal((photo, *larger))

    def read_photo(
        self, observation: Observation, short_side: int, drop: Tensor | None = None
    ) -> FieldView:
        """Features and depth of a context view.

        Args:
            short_side: of the feature map, pixels.
            drop: (batch,) bool, elements that are hidden.
        """
        image, cameras = observation.image, observation.view.cameras
        present = torch.ones_like(image[:, 0, 0, 0])
        if drop is not None:
            present = present * (~drop)
        photo_size = (image.shape[-2], image.shape[-1])
        size = map_size(photo_size, short_side)
        detail = self.config.detail
        fine = resize(image, (size[0] * detail, size[1] * detail)) * present[:, None, None, None]
        coarse = functional.avg_pool2d(fine, detail)
        rays = camera_rays(CameraView(resized(cameras, photo_size, size), size))
        stem = self.context_stem(torch.cat([coarse, functional.pixel_unshuffle(fine, detail), rays], dim=1))
        injected = [
            layer(feature) * present[:, None, None, None]
            for layer, feature in zip(self.injections, self.backbone(fine), strict=False)
        ]
        timesteps = torch.zeros(len(image), device=image.device)
        state = self._read(stem, timesteps, role=0, injected=[None, *injected])
        features, log_depth, _ = self._split(state)
        return FieldView(cameras, features, log_depth, image, present, doubt=self._doubt(state))

    def _read(self, stem: Tensor, timesteps: Tensor, role: int, injected: list | None = None) -> Tensor:
        embedding = timestep_embedding(timesteps, self.config.embedding) + self.roles.weight[role]
        embedding = functional.silu(self.embedding(embedding))
        return self.norm(self.unet(stem, embedding, injected), activation=True)

    def _doubt(self, state: Tensor) -> Tensor | None:
        """(batch,) expected error of the photo's overall log depth, where the network tells it."""
        if not self.config.tells_doubt:
            return None
        low, high = map(math.log, DOUBTS)
        return self.doubt(state.mean((2, 3)))[:, 0].float().clamp(low, high).exp()

    def _split(self, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        maps = self.head(state)
        features, depth, image = maps.split([maps.shape[1] - 4, 1, 3], dim=1)
        near, far = math.log(self.renderer.config.near), math.log(self.renderer.config.far)
        log_depth = (depth.float() + math.log(TYPICAL_DEPTH)).clamp(near, far)
        return features, log_depth, image.float()


def target_channels(field: FieldConfig) -> int:
    """How many channels `target_inputs` has."""
    return 3 + 3 + 2 + field.feature_channels + 3


def target_inputs(noisy: Tensor, guess: Rendering, target_view: CameraView) -> Tensor:
    """(batch, channels, height, width): the noisy target, the deterministic render there and the rays."""
    parts = [noisy, guess.image, guess.depth.log(), guess.opacity, guess.features, camera_rays(target_view)]
    return torch.cat(parts, dim=1)


def rescaled(view: FieldView, factor: Tensor) -> FieldView:
    """A view whose surfaces are all further away by a factor (batch,)."""
    return replace(view, log_depth=view.log_depth + factor.log()[:, None, None, None])


def without_rim(maps: Tensor, rim: int = RIM) -> Tensor:
    """The outermost pixels show what those `rim` further in do: there fields put things too near."""
    inner = maps[..., rim:-rim, rim:-rim]
    return functional.pad(inner, (rim,) * 4, mode="replicate")


def map_size(size: tuple[int, int], short_side: int, multiple: int = SIDES) -> tuple[int, int]:
    """Size of the feature map of an image: the given short side, the long one in proportion, in multiples."""
    scale = short_side / min(size)
    height, width = (max(multiple, round(side * scale / multiple) * multiple) for side in size)
    return height, width


def resize(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Antialiased resizing; exact where the size already fits."""
    if image.shape[-2:] == size:
        return image
    return functional.interpolate(image, size=size, mode="bilinear", antialias=True, align_corners=False)
