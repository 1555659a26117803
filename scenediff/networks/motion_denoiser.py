"""The denoiser of the motion application: a photo and a noisy later frame -> where the photo's pixels go.

The noisy frame enters as evidence: for each pixel of the photo and each displacement, how much more likely
the noisy frame is if the pixel has moved there than if nothing has moved. A sum of it over a thing's pixels
is all that Bayes' rule needs, so the network reads it at every scale of its U-Net.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from scenediff.forward import EncodedContext, Observation
from scenediff.networks.unet import GroupNorm, UNet, embedding_layers, timestep_embedding
from scenediff.renderers.motion import MotionRenderer, MotionSignal, displacements

EVIDENCE_BOUND = 4.0  # of a pixel's log likelihood ratio: beyond it, nothing is left to doubt
RESTING_LOGIT = 7.0  # before training, pixels rather stay than go


@dataclass(frozen=True)
class MotionConfig:
    """Sizes of the network.

    Attributes:
        channels: width of each U-Net level.
        blocks: residual blocks of a level, each way.
        attention_levels: coarsest levels with attention.
        embedding: width of the conditioning vector.
        radius: longest displacement along an axis, pixels.
    """

    channels: tuple[int, ...] = (32, 64, 96, 128)
    blocks: int = 1
    attention_levels: int = 0
    embedding: int = 96
    radius: int = 6


class MotionDenoiser(nn.Module):
    """Denoiser (see `scenediff.forward`) whose signals are `MotionSignal`s and whose views are moments.

    Args:
        config: sizes.
        alphas_cumprod: (levels,) of the noise schedule, with which the evidence is weighed.
    """

    alphas_cumprod: Tensor

    def __init__(self, config: MotionConfig, alphas_cumprod: Tensor):
        super().__init__()
        self.config, self.renderer = config, MotionRenderer()
        # one level more, of noise alone: there the noisy frame tells nothing
        levels = torch.cat([alphas_cumprod.float(), torch.zeros(1)])
        self.register_buffer("alphas_cumprod", levels, persistent=False)
        count, width = (2 * config.radius + 1) ** 2, config.channels[0]
        self.stem = nn.Conv2d(3 + 3 + 3 + 1, width, 3, padding=1)
        self.evidence_stems = nn.ModuleList(nn.Conv2d(count, channels, 1) for channels in config.channels)
        self.embedding = embedding_layers(config.embedding)
        self.unet = UNet(config.channels, config.blocks, config.attention_levels, config.embedding)
        self.norm = GroupNorm(16, width)
        self.head = nn.Conv2d(width, count, 1)
        self.trust = nn.Linear(config.embedding, 1)  # of a pixel's own evidence, by noise level
        self._rest_first()

    def _rest_first(self) -> None:
        resting = displacements(self.config.radius).abs().sum(1) == 0
        self.head.bias = nn.Parameter(RESTING_LOGIT * resting.float())
        nn.init.zeros_(self.trust.weight)
        nn.init.zeros_(self.trust.bias)
        with torch.no_grad():
            self.head.weight.mul_(0.1)

    def encode(
        self, context: Sequence[Observation], target_view: float, drop: Tensor | None = None
    ) -> EncodedContext:
        """The deterministic branch: the motion as it looks when the later frame is noise alone.

        Args:
            context: one observation, the photo at moment 0.
            drop: (batch,) bool; the photo of these is hidden from the network, not from the forward model.
        """
        if len(context) != 1:
            raise ValueError(f"motion starts from one photo, got {len(context)} observations")
        photo = context[0].image
        seen = photo if drop is None else photo * (~drop)[:, None, None, None]
        nothing = torch.full_like(photo[:, 0, 0, 0], len(self.alphas_cumprod) - 1, dtype=torch.long)
        signal = MotionSignal(photo, self._logits(torch.zeros_like(photo), nothing, seen))
        return EncodedContext(signal, self.renderer.render(signal, target_view), (photo, seen))

    def denoise(
        self, noisy: Tensor, timesteps: Tensor, context: EncodedContext, target_view: float
    ) -> MotionSignal:
        """The photo's motion, given a noisy frame of the target's moment."""
        photo, seen = context.extras
        return MotionSignal(photo, self._logits(noisy, timesteps, seen))

    def _logits(self, noisy: Tensor, timesteps: Tensor, photo: Tensor) -> Tensor:
        alpha = self.alphas_cumprod[timesteps][:, None, None, None]
        likeness = noisy * photo * alpha.sqrt()
        stem = self.stem(torch.cat([photo, noisy, likeness, torch.ones_like(photo[:, :1])], dim=1))
        evidence = motion_evidence(photo, noisy, alpha, self.config.radius)
        injected, pooled = [], evidence
        for level, layer in enumerate(self.evidence_stems):
            pooled = functional.avg_pool2d(pooled, 2) * 2 if level else evidence  # white noise keeps its size
            injected.append(layer(pooled))
        embedding = functional.silu(self.embedding(timestep_embedding(timesteps, self.config.embedding)))
        features = self.norm(self.unet(stem, embedding, injected), activation=True)
        with torch.autocast(features.device.type, enabled=False):  # shares of possible motions need digits
            logits = self.head(features.float())
            trust = self.trust(embedding.float())[..., None, None]
            return torch.addcmul(logits, trust, evidence)


def motion_evidence(photo: Tensor, noisy: Tensor, alpha: Tensor, radius: int) -> Tensor:
    """Log likelihood ratio of a pixel's having moved, per pixel of the photo and displacement s.

    log N(noisy(q + s); sqrt(alpha) photo(q), 1 - alpha)
    - log N(noisy(q + s); sqrt(alpha) photo(q + s), 1 - alpha),
    smoothly bounded; 0 for s = 0 and for displacements out of the frame.

    Args:
        photo, noisy: (batch, channels, height, width).
        alpha: (batch, 1, 1, 1), cumulative product of the noise schedule, the signal's share of the power.
        radius: longest displacement along an axis, pixels.

    Returns:
        (batch, (2 radius + 1)^2, height, width), displacements row by row.
    """
    height, width = photo.shape[-2:]
    gain = alpha.sqrt() / (1 - alpha)
    power = 0.5 * alpha / (1 - alpha) * photo.square().sum(1, keepdim=True)
    rest = power - gain * (noisy * photo).sum(1, keepdim=True)  # minus the log likelihood of standing still
    side = 2 * radius + 1

    def windows(image: Tensor) -> Tensor:  # a view; [:, :, i, j, y, x] is the pixel (i, j) - radius further
        padded = functional.pad(image, (radius,) * 4)
        return padded.unfold(2, height, 1).unfold(3, width, 1)

    displaced = windows(gain * noisy)
    ratio = displaced[:, 0] * photo[:, 0, None, None]
    for channel in range(1, photo.shape[1]):  # in place, as these are the largest tensors of all
        ratio.addcmul_(displaced[:, channel], photo[:, channel, None, None])
    ratio += windows(rest)[:, 0]
    ratio -= power[:, :, None]
    ratio *= windows(torch.ones_like(power[:1]))[:, 0]
    ratio = ratio.div_(EVIDENCE_BOUND).tanh_().mul_(EVIDENCE_BOUND)
    return ratio.reshape(len(photo), side * side, height, width)
