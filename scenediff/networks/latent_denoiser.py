"""The denoiser of GAN inversion: a known patch and a noisy target patch -> a w+ code of the generator.

Patches are laid out in their places on an empty image with a mask, so the network sees where they lie. A
convolutional encoder reads that image, and tokens, one for each style of the generator, gather what they need
from it by attention. The network corrects a code whose image it sees (Alaluf et al. 2021, arXiv:2104.02699,
Sec. 3): the deterministic branch the mean code, a denoising step that guess or the code of the step before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from scenediff.forward import EncodedContext, Observation
from scenediff.networks.unet import GroupNorm, Stage, embedding_layers, timestep_embedding
from scenediff.renderers.stylegan2 import GeneratorForward, LatentCode, PatchView, paste, repeated

FINEST = 32  # pixels of a side of the finest feature maps
INPUTS = 4 + 4 + 3 + 3  # context and mask, noisy target and mask, the code's image, what it lacks


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
    """Self-conditioned denoiser (see `scenediff.forward`): signals are `LatentCode`s, views `PatchView`s."""

    def __init__(self, config: LatentConfig, renderer: GeneratorForward):
        super().__init__()
        self.config, self.renderer = config, renderer
        self.detail = max(1, renderer.size // FINEST)  # pixels of a side that one feature begins with
        styles, width = renderer.generator.config, config.channels[-1]
        side = renderer.size // self.detail // 2 ** (len(config.channels) - 1)
        self.stem = nn.Conv2d(INPUTS * self.detail**2, config.channels[0], 3, padding=1)
        self.time = embedding_layers(config.embedding)
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
        self.query_code = nn.Linear(styles.style_dim, width)
        self.layers = nn.ModuleList(TokenLayer(width, config.heads) for _ in range(config.token_layers))
        self.token_norm = nn.LayerNorm(width)
        self.head = nn.Parameter(torch.zeros(styles.num_latents, width, styles.style_dim))

    def encode(
        self, context: Sequence[Observation], target_view: PatchView, drop: Tensor | None = None
    ) -> EncodedContext:
        """Lays the context out and guesses the whole image from it alone.

        The context may hold fewer elements than the target, each then stands for as many consecutive ones.
        """
        canvas = self.lay_out(context, drop)
        nothing = canvas.new_zeros(canvas.shape)
        start = torch.zeros(len(canvas), dtype=torch.long, device=canvas.device)
        guess = self.corrected(self._mean_code(len(canvas)), canvas, nothing, start, role=0)
        image = self.renderer.render(guess.repeated(len(target_view)), target_view)
        start_code = guess.detach()
        return EncodedContext(guess, image, (canvas, start_code, start_code))

    def with_estimate(self, context: EncodedContext, signal: LatentCode) -> EncodedContext:
        """The context, with the code that the next step starts from.

        A code that began with the guess is corrected once, as in training, then the guess is again: longer
        chains of corrections drift away (after ten of them the patch was lost).
        """
        canvas, guess, code = context.extras
        return replace(context, extras=(canvas, guess, signal.detach() if code is guess else guess))

    def denoise(
        self, noisy: Tensor, timesteps: Tensor, context: EncodedContext, target_view: PatchView
    ) -> LatentCode:
        """The code whose image at the target view is the clean estimate."""
        canvas, _, code = context.extras
        canvas, code = repeated(canvas, len(noisy)), code.repeated(len(noisy))
        target = paste(noisy, target_view, self.renderer.size)
        return self.corrected(code, canvas, target.to(canvas.dtype), timesteps, role=1)

    def lay_out(self, context: Sequence[Observation], drop: Tensor | None = None) -> Tensor:
        """(batch, 4, size, size) the context's patches in their places, later ones on top, and their mask."""
        canvas: Tensor | None = None
        for observation in context:
            laid = paste(observation.image, observation.view, self.renderer.size)
            canvas = laid if canvas is None else torch.where(laid[:, 3:] > 0, laid, canvas)
        if canvas is None:
            raise ValueError("context must hold at least one observation, got none")
        return canvas if drop is None else repeated(canvas, len(drop)) * ~drop[:, None, None, None]

    def corrected(
        self, code: LatentCode, canvas: Tensor, target: Tensor, timesteps: Tensor, role: int
    ) -> LatentCode:
        """The code that fits what is known better.

        Args:
            code: to begin with.
            canvas, target: (batch, 4, size, size) the context and the noisy target, laid out.
            role: 0 to guess from the context alone, 1 to sample.
        """
        image = code.image.to(canvas.dtype)
        lacking = (canvas[:, :3] - image) * canvas[:, 3:]
        change = self.read(torch.cat([canvas, target, image, lacking], dim=1), code.w_plus, timesteps, role)
        return self.renderer.code(code.w_plus + change)

    def _mean_code(self, batch: int) -> LatentCode:
        generator = self.renderer.generator
        mean = self.renderer.code(generator.to_w_plus(generator.latent_avg[None]))
        return LatentCode(*(part.expand(batch, *part.shape[1:]) for part in (mean.w_plus, mean.image)))

    def read(self, images: Tensor, w_plus: Tensor, timesteps: Tensor, role: int) -> Tensor:
        """The change of w+ (batch, num_latents, style_dim) that images (batch, 14, size, size) ask for."""
        embedding = self.time(timestep_embedding(timesteps, self.config.embedding))
        embedding = embedding + self.roles.weight[role]
        x = functional.pixel_unshuffle(images, self.detail).contiguous(memory_format=torch.channels_last)
        x = self.stem(x)
        for level, stage in enumerate(self.stages):
            x = stage(functional.avg_pool2d(x, 2) if level else x, embedding)[-1]
        features = self.norm(x, activation=True).flatten(2).transpose(1, 2) + self.places
        place = self.query_code(w_plus - self.renderer.generator.latent_avg)
        queries = self.queries + self.query_time(embedding)[:, None] + place
        tokens = torch.cat([queries.to(features.dtype), features], dim=1)
        for layer in self.layers:
            tokens = layer(tokens)
        styles = self.token_norm(tokens[:, : len(self.queries)])
        return torch.einsum("blc,lcd->bld", styles, self.head.to(styles.dtype)).float()


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
