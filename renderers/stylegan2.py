"""StyleGAN2's generator and the forward model of GAN inversion: a latent code shown through a patch.

The generator (Karras et al. 2020, arXiv:1912.04958) has the names and shapes of the widely used PyTorch
checkpoint layout, so that published files load by name (`from_public`). Weights are not multiplied by styles:
inputs are scaled, convolved with shared weights, and the outputs demodulated, which is the same (Sec. 2.2)
and needs no grouped convolutions.

Latents: z (batch, style_dim) is standard normal; w (batch, style_dim) is what the mapping network makes of
it; w+ (batch, num_latents, style_dim) holds one w for each layer that takes a style.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

SQRT2 = math.sqrt(2)
SLOPE = 0.2  # of leaky ReLUs
MAPPING_RATE = 0.01  # learning-rate multiplier of the mapping network
BLUR = (1.0, 3.0, 3.0, 1.0)  # the layout's resampling filter, the only one supported


class GeneratorError(ValueError):
    """Weights that are not a generator's, or a generator that doesn't fit; one line."""


@dataclass(frozen=True)
class GeneratorConfig:
    """Sizes of a generator.

    Attributes:
        size: pixels of a side of the images, a power of two of at least 8.
        style_dim: channels of z and w.
        mapping_layers: of the mapping network.
        channels: of each resolution from 4 on.
    """

    size: int = 64
    style_dim: int = 192
    mapping_layers: int = 4
    channels: tuple[int, ...] = (192, 192, 192, 96, 48)

    def __post_init__(self) -> None:
        if self.size < 8 or self.size & (self.size - 1):
            raise GeneratorError(f"size must be a power of two of at least 8, got {self.size}")
        if len(self.channels) != self.size.bit_length() - 2:
            wanted = self.size.bit_length() - 2
            raise GeneratorError(f"channels must name {wanted} resolutions, got {len(self.channels)}")

    @property
    def num_latents(self) -> int:
        """Layers that take a style of their own."""
        return 2 * len(self.channels)


class EqualLinear(nn.Module):
    """A linear layer whose weights are scaled when used, so that all learn alike (arXiv:1710.10196, 4.1)."""

    def __init__(self, inputs: int, outputs: int, bias: float = 0.0, rate: float = 1.0):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) / rate)
        self.bias = nn.Parameter(torch.full((outputs,), bias))
        self.scale, self.rate = rate / math.sqrt(inputs), rate

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight * self.scale, self.bias * self.rate)


class MappingLayer(EqualLinear):
    """One layer of the mapping network."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.leaky_relu(super().forward(x), SLOPE) * SQRT2


class PixelNorm(nn.Module):
    """Scales vectors to a mean square of 1."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(1, keepdim=True) + 1e-8)


class ModulatedConv(nn.Module):
    """A convolution whose input channels are scaled by a style, and its outputs back to unit variance.

    Args:
        demodulate: scale back. upsample: to twice the size, through the blur.
    """

    def __init__(
        self, inputs: int, outputs: int, kernel_size: int, style_dim: int, *, demodulate: bool = True,
        upsample: bool = False,
    ):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(1, outputs, inputs, kernel_size, kernel_size))
        self.modulation = EqualLinear(style_dim, inputs, bias=1.0)
        self.scale = 1 / math.sqrt(inputs * kernel_size**2)
        self.demodulate, self.upsample, self.padding = demodulate, upsample, kernel_size // 2

    def forward(self, x: Tensor, style: Tensor) -> tuple[Tensor, Tensor | None]:
        """The output before demodulation, and the factors (batch, channels, 1, 1) that are still missing."""
        scales = self.modulation(style)
        weight = self.weight[0] * self.scale
        x = x * scales[:, :, None, None].to(x.dtype)
        if self.upsample:
            y = blur(functional.conv_transpose2d(x, weight.transpose(0, 1), stride=2)) * 4
        else:
            y = functional.conv2d(x, weight, padding=self.padding)
        return y, demodulation(weight, scales) if self.demodulate else None


def demodulation(weight: Tensor, scales: Tensor) -> Tensor:
    """(batch, outputs, 1, 1) inverse norms of the kernels scaled by (batch, inputs), in full precision."""
    with torch.autocast(scales.device.type, enabled=False):
        squares = scales.float().square() @ weight.float().square().sum((2, 3)).T
        return torch.rsqrt(squares + 1e-8)[:, :, None, None]


def blur(x: Tensor, padding: int = 1) -> Tensor:
    """The image smoothed by the filter (1, 3, 3, 1), after `padding` zeros were put around it.

    By default what follows an upsampling convolution: (2 n + 1) pixels of a side become 2 n. The filter is
    three averages of neighbours; pooling is fast everywhere, at any precision.
    """
    # padded apart: on CUDA, avg_pool2d's own padding shifts the gradients of channels-last images by as many
    # pixels (https://github.com/pytorch/pytorch/issues/188344), and adversarial training then diverges
    x = functional.pad(x, (padding,) * 4)
    for _ in range(3):
        x = functional.avg_pool2d(x, 2, stride=1)
    return x


def upsample_image(x: Tensor) -> Tensor:
    """Twice the size by the filter (1, 3, 3, 1): bilinear, with zeros around the image."""
    padded = functional.pad(x, (1, 1, 1, 1))
    return functional.interpolate(padded, scale_factor=2.0, mode="bilinear")[..., 2:-2, 2:-2]


class NoiseStrength(nn.Module):
    """How much noise a layer adds."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))


class ChannelBias(nn.Module):
    """One bias for each channel."""

    def __init__(self, channels: int):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels))


class StyledConv(nn.Module):
    """A modulated 3x3 convolution, noise, a bias and a leaky ReLU."""

    def __init__(self, inputs: int, outputs: int, style_dim: int, *, upsample: bool = False):
        super().__init__()
        self.conv = ModulatedConv(inputs, outputs, 3, style_dim, upsample=upsample)
        self.noise, self.activate = NoiseStrength(), ChannelBias(outputs)

    def forward(self, x: Tensor, style: Tensor, noise: Tensor) -> Tensor:
        x, factors = self.conv(x, style)
        added = noise * self.noise.weight + self.activate.bias[:, None, None]
        added = added.to(x.dtype, memory_format=torch.channels_last)  # the first addend decides the sum's
        x = torch.addcmul(added, x, factors.to(x.dtype))
        return functional.leaky_relu(x, SLOPE) * SQRT2


class ToRGB(nn.Module):
    """Adds a layer's share to the image, in full precision."""

    def __init__(self, inputs: int, style_dim: int):
        super().__init__()
        self.conv = ModulatedConv(inputs, 3, 1, style_dim, demodulate=False)
        self.bias = nn.Parameter(torch.zeros(1, 3, 1, 1))

    def forward(self, x: Tensor, style: Tensor, image: Tensor | None) -> Tensor:
        share = self.conv(x, style)[0].float() + self.bias
        return share if image is None else share + upsample_image(image)


class ConstantInput(nn.Module):
    """The learned 4x4 map that every image begins with."""

    def __init__(self, channels: int):
        super().__init__()
        self.input = nn.Parameter(torch.randn(1, channels, 4, 4))


class StoredNoise(nn.Module):
    """One fixed noise map for each layer: noise_0 (1, 1, 4, 4), noise_1 (1, 1, 8, 8), ..."""

    def __init__(self, resolutions: Sequence[int]):
        super().__init__()
        for index, side in enumerate(resolutions):
            self.register_buffer(f"noise_{index}", torch.randn(1, 1, side, side))

    def maps(self) -> list[Tensor]:
        """The maps, coarse to fine."""
        return list(self.buffers())


class Generator(nn.Module):
    """z, w or w+ to images (batch, 3, size, size), about [-1, 1] but not clamped.

    Attributes:
        latent_avg: (style_dim,) mean of w, for truncation and as a start for inversion.
    """

    latent_avg: Tensor

    def __init__(self, config: GeneratorConfig):
        super().__init__()
        self.config = config
        channels, dim = config.channels, config.style_dim
        layers = [MappingLayer(dim, dim, rate=MAPPING_RATE) for _ in range(config.mapping_layers)]
        self.style = nn.Sequential(PixelNorm(), *layers)
        self.input = ConstantInput(channels[0])
        self.conv1 = StyledConv(channels[0], channels[0], dim)
        self.to_rgb1 = ToRGB(channels[0], dim)
        self.convs, self.to_rgbs = nn.ModuleList(), nn.ModuleList()
        for inputs, outputs in pairwise(channels):
            self.convs.append(StyledConv(inputs, outputs, dim, upsample=True))
            self.convs.append(StyledConv(outputs, outputs, dim))
            self.to_rgbs.append(ToRGB(outputs, dim))
        resolutions = [4 * 2 ** ((index + 1) // 2) for index in range(2 * len(channels) - 1)]
        self.noises = StoredNoise(resolutions)
        self.register_buffer("latent_avg", torch.zeros(dim))

    def map(self, z: Tensor) -> Tensor:
        """w (batch, style_dim) of z."""
        return self.style(z)

    def truncated(self, w: Tensor, truncation: float) -> Tensor:
        """w moved towards its mean: 1 keeps it, 0 gives the mean."""
        return torch.lerp(self.latent_avg.to(w), w, truncation)

    def to_w_plus(self, w: Tensor, other: Tensor | None = None, mix_at: int | None = None) -> Tensor:
        """w+ of one w for all layers, or with the layers from `mix_at` on taken from another."""
        layers = self.config.num_latents
        if other is None:
            return w[:, None].expand(-1, layers, -1)
        if mix_at is None or not 0 < mix_at < layers:
            raise ValueError(f"mix_at must lie in [1, {layers - 1}], got {mix_at}")
        before, after = w[:, None].expand(-1, mix_at, -1), other[:, None].expand(-1, layers - mix_at, -1)
        return torch.cat([before, after], dim=1)

    def random_noise(self, batch: int) -> list[Tensor]:
        """Fresh noise maps (batch, 1, side, side) for each layer, from the device's default generator."""
        return [torch.randn(batch, *stored.shape[1:], device=stored.device) for stored in self.noises.maps()]

    def forward(self, w_plus: Tensor, noise: Sequence[Tensor] | None = None) -> Tensor:
        """Images of w+.

        Args:
            w_plus: (batch, num_latents, style_dim).
            noise: one map for each layer, see `random_noise`; the stored ones by default.
        """
        wanted = (self.config.num_latents, self.config.style_dim)
        if w_plus.ndim != 3 or tuple(w_plus.shape[1:]) != wanted:
            raise ValueError(f"w_plus must be (batch, {wanted[0]}, {wanted[1]}), got {tuple(w_plus.shape)}")
        maps = self.noises.maps() if noise is None else noise
        x = self.input.input.expand(len(w_plus), -1, -1, -1)
        x = x.contiguous(memory_format=torch.channels_last)  # all that follows keeps it so: twice as fast
        x = self.conv1(x, w_plus[:, 0], maps[0])
        image = self.to_rgb1(x, w_plus[:, 1], None)
        for level, to_rgb in enumerate(self.to_rgbs):
            first = 2 * level + 1
            x = self.convs[2 * level](x, w_plus[:, first], maps[first])
            x = self.convs[2 * level + 1](x, w_plus[:, first + 1], maps[first + 1])
            image = to_rgb(x, w_plus[:, first + 2], image)
        return image

    @torch.no_grad()
    def estimate_mean(self, count: int = 8192, seed: int = 0) -> None:
        """Sets `latent_avg` to the mean w of `count` draws."""
        draws = torch.randn(count, self.config.style_dim, generator=torch.Generator().manual_seed(seed))
        self.latent_avg.copy_(self.map(draws.to(self.latent_avg)).mean(0))


# --- the forward model ---------------------------------------------------------------------------


@dataclass(frozen=True)
class PatchView:
    """Where patches lie in their images.

    Attributes:
        top, left: (batch,) int64, the row and the column of each patch's first pixel.
        size: (height, width) of all patches, pixels.
    """

    top: Tensor
    left: Tensor
    size: tuple[int, int]

    def __len__(self) -> int:
        return len(self.top)

    def to(self, device: torch.device | str) -> PatchView:
        """On another device."""
        return PatchView(self.top.to(device), self.left.to(device), self.size)

    def part(self, chosen: slice) -> PatchView:
        """Some of the patches."""
        return PatchView(self.top[chosen], self.left[chosen], self.size)

    def repeated(self, count: int) -> PatchView:
        """Each patch `count` times, one after the other."""
        return PatchView(self.top.repeat_interleave(count), self.left.repeat_interleave(count), self.size)


def patch_view(
    top: int, left: int, size: tuple[int, int], batch: int = 1, device: torch.device | str = "cpu"
) -> PatchView:
    """The same place for each element of a batch."""
    rows, columns = (torch.full((batch,), value, device=device) for value in (top, left))
    return PatchView(rows, columns, size)


def whole_image(size: int, batch: int, device: torch.device | str = "cpu") -> PatchView:
    """The view of everything."""
    return patch_view(0, 0, (size, size), batch, device)


def check_patch(view: PatchView, image_size: int) -> None:
    """Raises ValueError unless the patches lie within square images; waits for the device."""
    height, width = view.size
    if not (0 < height <= image_size and 0 < width <= image_size):
        raise ValueError(
            f"a patch must be at most the generator's {image_size}x{image_size} pixels, got {width}x{height}"
        )
    for name, start, length in (("top", view.top, height), ("left", view.left, width)):
        low, high = int(start.min()), int(start.max())
        if low < 0 or high + length > image_size:
            allowed = f"[0, {image_size - length}] for {length} pixels of {image_size}"
            raise ValueError(f"{name} must lie in {allowed}, got {low if low < 0 else high}")


def crop(images: Tensor, view: PatchView) -> Tensor:
    """(batch, channels, *view.size) patches of images; differentiable in the images."""
    batch, channels, height, width = images.shape
    if view.size == (height, width):
        return images
    rows, columns = patch_pixels(view)
    rows = rows[:, None, :, None].expand(batch, channels, -1, width)
    columns = columns[:, None, None].expand(batch, channels, view.size[0], -1)
    return images.gather(2, rows).gather(3, columns)


def paste(patches: Tensor, view: PatchView, size: int) -> Tensor:
    """(batch, channels + 1, size, size): patches in their places, zeros elsewhere, and a mask of 1 and 0.

    The transpose of `crop`, without gradients for the view.
    """
    batch, channels, height, width = patches.shape
    known = functional.pad(patches, (0, 0, 0, 0, 0, 1), value=1.0)
    if (height, width) == (size, size):
        return known
    rows, columns = patch_pixels(view)
    wide = known.new_zeros(batch, channels + 1, height, size)
    wide = wide.scatter(3, columns[:, None, None].expand(known.shape), known)
    tall = known.new_zeros(batch, channels + 1, size, size)
    return tall.scatter(2, rows[:, None, :, None].expand(wide.shape), wide)


def patch_pixels(view: PatchView) -> tuple[Tensor, Tensor]:
    """Rows (batch, height) and columns (batch, width) of the patches' pixels."""
    rows, columns = (
        start[:, None] + torch.arange(length, device=start.device)
        for start, length in zip((view.top, view.left), view.size, strict=True)
    )
    return rows, columns


@dataclass(frozen=True)
class LatentCode:
    """A signal: codes with what the generator makes of them, so that several views render it once.

    Attributes:
        w_plus: (batch, num_latents, style_dim).
        image: (batch, 3, size, size) with the stored noise, not clamped.
    """

    w_plus: Tensor
    image: Tensor

    def detach(self) -> LatentCode:
        """Without gradients."""
        return LatentCode(self.w_plus.detach(), self.image.detach())

    def repeated(self, batch: int) -> LatentCode:
        """Each element as often, one after the other, as makes that batch."""
        return LatentCode(repeated(self.w_plus, batch), repeated(self.image, batch))


def repeated(x: Tensor, batch: int) -> Tensor:
    """(batch, ...): each element of `x` as often, one after the other."""
    return x if len(x) == batch else x.repeat_interleave(batch // len(x), 0)


class GeneratorForward(nn.Module):
    """The forward model (see `scenediff.forward`): signals are `LatentCode`s, views `PatchView`s.

    It is not trained.
    """

    def __init__(self, generator: Generator):
        super().__init__()
        self.generator = generator.requires_grad_(False)

    @property
    def size(self) -> int:
        """Pixels of a side of the whole image."""
        return self.generator.config.size

    def code(self, w_plus: Tensor) -> LatentCode:
        """The signal of codes (batch, num_latents, style_dim)."""
        return LatentCode(w_plus, self.generator(w_plus))

    def render(self, signal: LatentCode, view: PatchView) -> Tensor:
        """The patches of a signal's images."""
        return crop(signal.image, view)


# --- the public checkpoint layout ----------------------------------------------------------------


def infer_config(weights: Mapping[str, Tensor]) -> GeneratorConfig:
    """The sizes of the generator that has these weights.

    Raises:
        GeneratorError: they are no generator's.
    """
    try:
        upsampling = [name for name in weights if name.startswith("to_rgbs.") and name.endswith(".bias")]
        style_dim = weights["style.1.weight"].shape[0]
        layers = sum(name.startswith("style.") and name.endswith(".weight") for name in weights)
        channels = [weights["conv1.conv.weight"].shape[1]]
        for level in range(len([name for name in upsampling if name.count(".") == 2])):
            channels.append(weights[f"convs.{2 * level}.conv.weight"].shape[1])
    except (KeyError, IndexError) as error:
        raise GeneratorError(f"no StyleGAN2 generator: {error} is missing or has another shape") from error
    return GeneratorConfig(4 * 2 ** (len(channels) - 1), style_dim, layers, tuple(channels))


def from_public(archive: Mapping[str, Any]) -> Generator:
    """A generator from a checkpoint {"g_ema": weights, "latent_avg": mean of w}, or from the weights alone.

    Where the mean is not given, it is estimated.

    Raises:
        GeneratorError: the weights are missing, incomplete, of other shapes, or hold NaN or infinity.
    """
    weights = archive.get("g_ema", archive)
    if not isinstance(weights, Mapping) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise GeneratorError('holds no generator: expected {"g_ema": tensors by name, ...}')
    weights = {name: value.float() for name, value in weights.items()}
    _check_filters(weights)
    weights = {name: value for name, value in weights.items() if not name.endswith(".kernel")}
    generator = Generator(infer_config(weights))
    mean = weights.pop("latent_avg", None) if "latent_avg" in weights else archive.get("latent_avg")
    if isinstance(mean, Tensor):
        weights["latent_avg"] = mean.float().flatten()
    check_weights(weights, generator, optional=("latent_avg",))
    generator.load_state_dict(weights, strict=False)
    if not isinstance(mean, Tensor):
        generator.estimate_mean()
    return generator.eval()


def to_public(generator: Generator) -> dict[str, Tensor]:
    """A generator's weights under the layout's names, its fixed filters included."""
    weights = {name: value for name, value in generator.state_dict().items() if name != "latent_avg"}
    row = torch.tensor(BLUR)
    kernel = torch.outer(row, row) / row.sum() ** 2 * 4
    for level in range(len(generator.to_rgbs)):
        weights[f"convs.{2 * level}.conv.blur.kernel"] = kernel.clone()
        weights[f"to_rgbs.{level}.upsample.kernel"] = kernel.clone()
    return weights


def check_weights(weights: Mapping[str, Tensor], module: nn.Module, optional: Sequence[str] = ()) -> None:
    """Raises GeneratorError unless the weights are finite and a module's, by names and shapes."""
    wanted = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in weights.items()}
    wrong = [name for name in (*wanted, *found) if wanted.get(name) != found.get(name)]
    wrong = [name for name in wrong if not (name in optional and name not in found)]
    if wrong:
        should, got = wanted.get(wrong[0], "absent"), found.get(wrong[0], "nothing")
        raise GeneratorError(f"{wrong[0]} should be {should}, got {got}")
    check_finite(weights)


def check_finite(weights: Mapping[str, Tensor]) -> None:
    """Raises GeneratorError for NaN or infinity."""
    for name, value in weights.items():
        if not value.isfinite().all():
            raise GeneratorError(f"{name} has values that are not finite (NaN or infinity)")


def _check_filters(weights: Mapping[str, Tensor]) -> None:
    row = torch.tensor(BLUR)
    usual = torch.outer(row, row) / row.sum() ** 2 * 4
    for name, kernel in weights.items():
        if name.endswith(".kernel") and (kernel.shape != usual.shape or not torch.allclose(kernel, usual)):
            raise GeneratorError(f"{name} is not the usual filter (1, 3, 3, 1), which alone is supported")
