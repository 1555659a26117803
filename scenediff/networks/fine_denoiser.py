"""A trained denoiser at twice its resolution: a further level of its network that adds detail alone.

Images of twice the resolution, each block of 2 x 2 pixels replaced by its mean, hold half the noise. So a
noise schedule with a quarter of the signal-to-noise ratio shows the trained network, at every timestep, just
what it has learned to denoise (Hoogeboom et al. 2023, arXiv:2301.11093, Sec. 3.1). The further level reads
the noise that the means hide and corrects the enlarged maps; before it is trained it corrects nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from diffusers import DDPMScheduler
from torch import Tensor, nn
from torch.nn import functional

from scenediff.forward import EncodedContext, Observation
from scenediff.networks.pixel_denoiser import (
    DenoiserConfig,
    Guess,
    PixelDenoiser,
    split_maps,
    target_channels,
    target_inputs,
    without_rim,
)
from scenediff.networks.unet import GroupNorm, ResBlock, embedding_layers, timestep_embedding, zero_conv
from scenediff.renderers.cameras import CameraView
from scenediff.renderers.pixel_field import FieldSignal, PixelFieldRenderer, Rendering

BLOCKS_BEFORE, BLOCKS_AFTER = 1, 2  # residual blocks before and after the coarse network's state joins


@dataclass(frozen=True)
class FineGuess(Guess):
    """The deterministic render at the target view, and what the coarse network sees of it.

    Attributes:
        coarse: the same field at half the resolution.
    """

    coarse: Rendering


class FineLevel(nn.Module):
    """Corrections of enlarged maps (batch, outputs, height, width), of which the first ones are zero.

    Args:
        inputs: channels of what it sees at its own resolution. state: of the coarse network's last state.
        width: of its own. outputs: of the maps. embedding: of the conditioning vector.
    """

    def __init__(self, inputs: int, state: int, width: int, outputs: int, embedding: int):
        super().__init__()
        self.channels = embedding
        self.stem = nn.Conv2d(inputs, width, 3, padding=1)
        self.embedding = embedding_layers(embedding)
        self.before = nn.ModuleList([ResBlock(width, width, embedding) for _ in range(BLOCKS_BEFORE)])
        self.join = nn.Conv2d(state, width, 1)
        self.after = nn.ModuleList([ResBlock(width, width, embedding) for _ in range(BLOCKS_AFTER)])
        self.norm = GroupNorm(width // 4, width)
        self.head = zero_conv(width, outputs, 3)

    def forward(self, inputs: Tensor, state: Tensor, timesteps: Tensor) -> Tensor:
        embedding = functional.silu(self.embedding(timestep_embedding(timesteps, self.channels)))
        x = self.stem(inputs).contiguous(memory_format=torch.channels_last)
        for block in self.before:
            x = block(x, embedding)
        x = x + functional.interpolate(self.join(state), scale_factor=2.0, mode="nearest")
        for block in self.after:
            x = block(x, embedding)
        return self.head(self.norm(x, activation=True))


class FineDenoiser(PixelDenoiser):
    """The denoiser of twice the resolution; photos are read at half of it, as before.

    Args:
        config: with the width of the fine level.
        scheduler: the noise schedule of the coarse network; its own is `finer_schedule` of that.
    """

    fineness = 2
    rescale: Tensor  # (timesteps,) factor on means over blocks that makes them the coarse network's input

    def __init__(self, config: DenoiserConfig, renderer: PixelFieldRenderer, scheduler: DDPMScheduler):
        super().__init__(config, renderer)
        field = renderer.config
        self.fine = FineLevel(
            target_channels(field), config.channels[0], config.fine, self.head.out_channels, config.embedding
        )
        rescale = (scheduler.alphas_cumprod / finer_schedule(scheduler).alphas_cumprod).sqrt()
        self.register_buffer("rescale", rescale.float(), persistent=False)

    def coarse_level(self) -> PixelDenoiser:
        """The network without the fine level; its weights are these ones, no copies."""
        with torch.device("meta"):  # nothing of its own is needed
            coarse = PixelDenoiser(replace(self.config, fine=0), self.renderer)
        for name, part in self.named_children():
            if name != "fine":
                setattr(coarse, name, part)
        return coarse.train(self.training)

    def encode(
        self, context: Sequence[Observation], target_view: CameraView, drop: Tensor | None = None
    ) -> EncodedContext:
        """Reads the context views and renders the deterministic field at the target view."""
        coarse_view = halved(target_view)
        signal = self._read_context(context, min(coarse_view.size), drop)
        coarse, rendering = (self.renderer.render_all(signal, view) for view in (coarse_view, target_view))
        guess = self._guess(rendering, signal, target_view)
        return EncodedContext(signal, rendering.image, FineGuess(**vars(guess), coarse=coarse))

    def denoise(
        self, noisy: Tensor, timesteps: Tensor, context: EncodedContext, target_view: CameraView
    ) -> FieldSignal:
        """The context's field joined by the target view's own features."""
        guess: FineGuess = context.extras
        means = functional.avg_pool2d(noisy, 2) * self.rescale[timesteps][:, None, None, None]
        state = self._target_state(means, timesteps, guess.coarse, halved(target_view))
        features, log_depth, image = self._split(state)
        corrections = self.fine(target_inputs(noisy, guess, target_view), state, timesteps)
        more_features, more_depth, more_image = split_maps(corrections)
        return self._joined(
            context, target_view, keeping_means(without_rim(features)) + more_features,
            enlarged(log_depth) + more_depth.float(), keeping_means(image) + more_image.float(),
        )


def finer_schedule(scheduler: DDPMScheduler) -> DDPMScheduler:
    """The noise schedule with a quarter of the signal-to-noise ratio at each timestep."""
    alphas = scheduler.alphas_cumprod.double()
    finer = alphas / (4 - 3 * alphas)
    before = torch.cat([torch.ones_like(finer[:1]), finer[:-1]])
    return DDPMScheduler.from_config(scheduler.config, trained_betas=(1 - finer / before).tolist())


def halved(view: CameraView) -> CameraView:
    """The view in images of half the size."""
    height, width = view.size
    if height % 2 or width % 2:
        raise ValueError(f"sides must be even, got {height} x {width}")
    return CameraView(view.cameras, (height // 2, width // 2))


def enlarged(maps: Tensor) -> Tensor:
    """Maps (batch, channels, height, width) at twice the resolution, as look-ups between pixels have them."""
    return functional.interpolate(maps, scale_factor=2.0, mode="bilinear", align_corners=False)


def keeping_means(maps: Tensor) -> Tensor:
    """Enlarged maps whose means over blocks are the given ones.

    Those of plainly enlarged maps are blurred, and every denoising step would blur the sample further. It
    overshoots beside edges, so it is not for depths.
    """
    smooth = enlarged(maps)
    missing = maps - functional.avg_pool2d(smooth, 2)
    return smooth + functional.interpolate(missing, scale_factor=2.0, mode="nearest")
