"""The denoiser of GAN inversion: a known patch and a noisy target patch -> a w+ code of the generator.

Patches are laid out in their places on an empty image with a mask, so the network sees where they lie. A
convolutional encoder reads that image, and tokens, one for each style of the generator, gather what they need
from it by attention. The target is read together with the deterministic branch's whole image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from scenediff.forward import EncodedContext, Observation
from scenediff.networks.unet import GroupNorm, Stage, timestep_embedding
from scenediff.renderers.stylegan2 import GeneratorForward, PatchView, crop, paste

FINEST = 32  # pixels of a side of the finest feature maps
INPUTS = 4 + 4 + 3  # the context and its mask, the noisy target and its mask, the deterministic image


@dataclass(frozen=True)
class LatentConfig:
    """Sizes of the network.

    Attributes:
        channels: width of each level of the encoder, from fine to coarse.
        blocks: residual blocks of a level.
        token_layers: attention layers among styles and features.
        heads: of each attention layer.
        embedding: width of the conditioning vector.
    """

    channels: tuple[int, ...] = (64, 128, 192)
    blocks: int = 2
    token_layers: int = 2
    heads: int = 6
    embedding: int = 128


class LatentDenoiser(nn.Module):
    """Denoiser (see `scenediff.forward`) whose signals are w+ codes and whose views `PatchView`s."""

    def __init__(self, config: LatentConfig, renderer: GeneratorForward):
        super().__init__()
        self.config, self.renderer = config, renderer
        self.detail = max(1, renderer.size // FINEST)  # pixels of a side that one feature begins with
        styles, width = renderer.generator.config, config.channels[-1]
        side = renderer.size // self.detail // 2 ** (len(config.channels) - 1)
        self.stem = nn.Conv2d(INPUTS * self.detail**2, config.channels[0], 3, padding=1)
        self.time = nn.Sequential(
            nn.Linear(config.embedding, config.embedding),
            nn.SiLU(),
            nn.Linear(config.embedding, config.embedding),
        )
        self.roles = nn.Embedding(2, config.embedding)  # 0 deterministic, 1 sampled
        before = (config.channels[0], *config.channels)
        self.stages = nn.ModuleList(
            Stage([inputs, *[outputs] * (config.blocks - 1)], outputs, config.embedding, attention=False)
            for inputs, outputs in zip(before, config.channels, strict=False)
        )
        self.norm = GroupNorm(16, width)
        self.places = nn.Parameter(torch.randn(side * side, width) * 0.02)
        self.queries = nn.Parameter(torch.randn(styles.num_latents, width) * 0.02)
        self.query_time = nn.Linear(config.embedding, width)
        self.layers = nn.ModuleList(TokenLayer(width, config.heads) for _ in range(config.token_layers))
        self.token_norm = nn.LayerNorm(width)
        self.head = nn.Parameter(torch.zeros(styles.num_latents, width, styles.style_dim))
        self.offset = nn.Parameter(torch.zeros(styles.num_latents, styles.style_dim))

    def encode(
        self, context: Sequence[Observation], target_view: PatchView, drop: Tensor | None = None
    ) -> EncodedContext:
        """Lays the context out and guesses the whole image from it alone."""
        canvas = self.lay_out(context, drop)
        nothing = canvas.new_zeros(len(canvas), INPUTS - 4, *canvas.shape[2:])
        start = torch.zeros(len(canvas), dtype=torch.long, device=canvas.device)
        guess = self.read(torch.cat([canvas, nothing], dim=1), start, role=0)
        image = self.renderer.generator(guess)
        return EncodedContext(guess, crop(image, target_view), (canvas, image))

    def denoise(
        self, noisy: Tensor, timesteps: Tensor, context: EncodedContext, target_view: PatchView
    ) -> Tensor:
        """The w+ (batch, num_latents, style_dim) whose image at the target view is the clean estimate."""
        canvas, image = context.extras
        target = paste(noisy, target_view, self.renderer.size)
        known = [canvas, target.to(canvas.dtype), image.detach().to(canvas.dtype)]
        return self.read(torch.cat(known, dim=1), timesteps, role=1)

    def lay_out(self, context: Sequence[Observation], drop: Tensor | None = None) -> Tensor:
        """(batch, 4, size, size) the context's patches in their places, later ones on top, and their mask."""
        canvas: Tensor | None = None
        for observation in context:
            laid = paste(observation.image, observation.view, self.renderer.size)
            canvas = laid if canvas is None else torch.where(laid[:, 3:] > 0, laid, canvas)
        if canvas is None:
            raise ValueError("context must hold at least one observation, got none")
        return canvas if drop is None else canvas * ~drop[:, None, None, None]

    def read(self, images: Tensor, timesteps: Tensor, role: int) -> Tensor:
        """w+ of what is known (batch, 11, size, size)."""
        embedding = self.time(timestep_embedding(timesteps, self.config.embedding))
        embedding = embedding + self.roles.weight[role]
        x = functional.pixel_unshuffle(images, self.detail).contiguous(memory_format=torch.channels_last)
        x = self.stem(x)
        for level, stage in enumerate(self.stages):
            x = stage(functional.avg_pool2d(x, 2) if level else x, embedding)[-1]
        features = self.norm(x, activation=True).flatten(2).transpose(1, 2) + self.places
        queries = self.queries + self.query_time(embedding)[:, None]
        tokens = torch.cat([queries.to(features.dtype), features], dim=1)
        for layer in self.layers:
            tokens = layer(tokens)
        styles = self.token_norm(tokens[:, : len(self.queries)])
        change = torch.einsum("blc,lcd->bld", styles, self.head.to(styles.dtype))
        return self.renderer.generator.latent_avg + self.offset + change.float()


class TokenLayer(nn.Module):
    """Self-attention and two linear layers, each with a residual (pre-norm)."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.projection = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, tokens: Tensor) -> Tensor:
        qkv = self.qkv(self.norm1(tokens)).unflatten(2, (3, self.heads, -1))
        q, k, v = (part.transpose(1, 2) for part in qkv.unbind(2))  # each (batch, heads, tokens, channels)
        attended = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        tokens = tokens + self.projection(attended)
        return tokens + self.mlp(self.norm2(tokens))
