"""Trains a StyleGAN2 generator on pictures (Karras et al. 2020, arXiv:1912.04958 and arXiv:2006.06676).

Non-saturating loss, R1 and path length regularization every few steps, averaged weights, style mixing, and
augmentation that adapts to overfitting. What it writes has the widely used checkpoint layout.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from torchvision.utils import make_grid
from tqdm import tqdm

from scenediff.cuda_graphs import RecordedGradients
from scenediff.datasets.patches import to_unit
from scenediff.networks.discriminator import Discriminator
from scenediff.renderers.stylegan2 import (
    Generator,
    GeneratorConfig,
    GeneratorError,
    check_weights,
    from_public,
    infer_config,
    to_public,
)
from scenediff.tools.augment import AdaptiveAugment
from scenediff.tools.video import to_pixels
from scenediff.training import Clock, RunLog, fastest_convolutions

logger = logging.getLogger(__name__)

GENERATOR_FILE = "generator.pt"
NOT_A_RUN = "no checkpoint of an earlier run to go on from: it lacks"
GRID = 8  # images to a side of the sample grids
Gradients = Callable[..., dict[str, Tensor]]


@dataclass(frozen=True)
class GanConfig:
    """How to train a generator.

    Attributes:
        minutes: wall-clock length.
        max_steps: stops earlier than `minutes`, if positive.
        batch_size: images in a step; a multiple of 4.
        learning_rate: Adam's, of both networks.
        r1_gamma: weight of the discriminator's squared gradient at real images.
        r1_every: steps between these regularizations.
        path_weight: of the path length regularization; 0 for none.
        path_every: steps between these.
        mixing: share of images with the styles of two latents.
        average_images: half-life of the averaged weights, in images.
        augment_target: mean sign of real logits that augmentation keeps.
        mixed_precision: "bf16" or "no"; without a GPU always "no".
        cuda_graphs: record the steps once and replay them, on a GPU.
        log_every: steps between log lines.
        save_every_minutes: between checkpoints.
        seed: of everything random.
    """

    minutes: float = 20.0
    max_steps: int = 0
    batch_size: int = 64
    learning_rate: float = 0.0025
    r1_gamma: float = 1.0
    r1_every: int = 16
    path_weight: float = 2.0
    path_every: int = 8
    mixing: float = 0.5
    average_images: int = 20_000
    augment_target: float = 0.6
    mixed_precision: str = "bf16"
    cuda_graphs: bool = True
    log_every: int = 50
    save_every_minutes: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.batch_size < 4 or self.batch_size % 4:
            raise ValueError(f"batch_size must be a multiple of 4, got {self.batch_size}")


@dataclass(frozen=True)
class GeneratorRun:
    """One run.

    Attributes:
        output: folder of the checkpoint, logs and sample grids.
        init: checkpoint of an earlier run to go on from, its optimizers' state included.
        train: lengths and rates.
        generator: sizes; those of `init` come first.
    """

    output: Path
    init: dict[str, Any] | None = None
    train: GanConfig = field(default_factory=GanConfig)
    generator: GeneratorConfig = field(default_factory=GeneratorConfig)

    @property
    def sizes(self) -> GeneratorConfig:
        """Of the generator to train."""
        weights = self.generator if self.init is None else self.init.get("g_ema")
        if isinstance(weights, GeneratorConfig):
            return weights
        if not isinstance(weights, dict):
            raise GeneratorError(f"{NOT_A_RUN} 'g_ema'")
        return infer_config(weights)


def train_generator(images: Tensor, run: GeneratorRun, device: torch.device | str) -> dict[str, float]:
    """Trains, and leaves in `run.output`: generator.pt, grid_*.png, log.jsonl.

    Args:
        images: (N, 3, size, size) uint8.

    Returns:
        figures of the run.
    """
    config = run.train
    torch.manual_seed(config.seed)
    gan = Gan(run, torch.device(device))
    images = images.to(device)
    if images.shape[1:] != (3, gan.size, gan.size):
        raise ValueError(f"images must be (N, 3, {gan.size}, {gan.size}), got {tuple(images.shape)}")
    generator = torch.Generator(device).manual_seed(config.seed + gan.clock.steps)
    run.output.mkdir(parents=True, exist_ok=True)
    log = RunLog(run.output, config, Accelerator(cpu=torch.device(device).type == "cpu"))  # type: ignore[arg-type]
    gan.clock.start()
    began, saved, steps = gan.clock.seconds, gan.clock.seconds, 0
    with (
        fastest_convolutions(),
        tqdm(total=100, unit="%", desc="training") as progress,
    ):
        while (done := _share_done(gan.clock.seconds - began, steps, config)) < 1:
            chosen = torch.randint(len(images), (config.batch_size,), generator=generator, device=device)
            log.add(gan.step(images[chosen], generator), gan.clock)
            steps += 1
            progress.update(int(100 * done) - progress.n)
            if gan.clock.seconds - saved > 60 * config.save_every_minutes:
                saved = gan.clock.seconds
                gan.save(run.output)
    gan.save(run.output)
    return gan.clock.figures() | {"augment_p": round(float(gan.augment.p), 3)}


class Gan:
    """Both networks, their optimizers and one step of training them.

    Attributes:
        average: the generator with averaged weights, the one to keep.
    """

    def __init__(self, run: GeneratorRun, device: torch.device):
        self.config, self.device, self.clock = run.train, device, Clock()
        self.generator = Generator(run.sizes).to(device)
        self.discriminator = Discriminator(self.generator.config.channels).to(device)
        self.average = copy.deepcopy(self.generator).requires_grad_(False).eval()
        self.augment = AdaptiveAugment(device, self.config.augment_target)
        self.mean_length = torch.zeros((), device=device)
        self._last_r1 = torch.zeros((), device=device)
        self.g_optimizer = self._optimizer(self.generator, self.config.path_every)
        self.d_optimizer = self._optimizer(self.discriminator, self.config.r1_every)
        if run.init is not None:
            self._load(run.init)
        self._discriminate = self._recorded(self._discriminator_loss, self.discriminator)
        self._regularize = self._recorded(self._r1, self.discriminator)
        self._generate = self._recorded(self._generator_loss, self.generator)
        self._smooth = self._recorded(self._path_length, self.generator)

    @property
    def size(self) -> int:
        """Pixels of a side of the images."""
        return self.generator.config.size

    def step(self, real: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """One step of each network on real images (batch, 3, size, size) uint8."""
        config, steps = self.config, self.clock.steps
        terms = dict(self._discriminate(real, *self._draw(len(real), generator)))
        self.d_optimizer.step()
        if steps % config.r1_every == 0:
            self._last_r1 = self._regularize(real)["r1"].clone()
            self.d_optimizer.step()
        terms |= self._generate(*self._draw(len(real), generator))
        self.g_optimizer.step()
        if config.path_weight and steps % config.path_every == 0:
            self._smooth(*self._draw(len(real) // 2, generator))
            self.g_optimizer.step()
        self._update_average(len(real))
        self.clock.tick(len(real))
        return terms | {"r1": self._last_r1, "path_length": self.mean_length, "augment_p": self.augment.p}

    def save(self, folder: Path) -> None:
        """Writes the checkpoint and a grid of samples."""
        self.average.estimate_mean()
        archive = {
            "g": _on_cpu(to_public(self.generator)), "d": _on_cpu(self.discriminator.state_dict()),
            "g_ema": _on_cpu(to_public(self.average)), "latent_avg": self.average.latent_avg.cpu(),
            "g_optim": self.g_optimizer.state_dict(), "d_optim": self.d_optimizer.state_dict(),
            "augment_p": float(self.augment.p), "mean_length": float(self.mean_length),
            "clock": self.clock.state_dict(),
        }  # fmt: skip
        torch.save(archive, folder / GENERATOR_FILE)
        sample_grid(self.average).save(folder / f"grid_{self.clock.steps:07d}.png")
        logger.warning("saved at step %d, %d images", self.clock.steps, self.clock.elements)

    # --- losses: each leaves gradients and returns named terms; none waits for the device ---

    def _discriminator_loss(self, real: Tensor, z: Tensor, mixed: Tensor) -> dict[str, Tensor]:
        self.discriminator.zero_grad()
        with torch.no_grad():
            fake = self._images(z, mixed)
        real_logits = self._logits(self.augment(to_unit(real)))
        fake_logits = self._logits(self.augment(fake))
        loss = functional.softplus(-real_logits).mean() + functional.softplus(fake_logits).mean()
        loss.backward()
        self.augment.observe(real_logits.detach())
        signs = real_logits.detach().sign().mean()
        return {"discriminator": loss.detach(), "real_sign": signs}

    def _r1(self, real: Tensor) -> dict[str, Tensor]:
        """The penalty of Mescheder et al. 2018 (arXiv:1801.04406) at what the discriminator is shown."""
        self.discriminator.zero_grad()
        shown = self.augment(to_unit(real)).detach().requires_grad_()
        (slope,) = torch.autograd.grad(self.discriminator(shown).sum(), shown, create_graph=True)
        penalty = slope.square().sum((1, 2, 3)).mean()
        (penalty * (self.config.r1_gamma / 2 * self.config.r1_every)).backward()
        return {"r1": penalty.detach()}

    def _generator_loss(self, z: Tensor, mixed: Tensor) -> dict[str, Tensor]:
        self.generator.zero_grad()
        self.discriminator.requires_grad_(False)
        loss = functional.softplus(-self._logits(self.augment(self._images(z, mixed)))).mean()
        loss.backward()
        self.discriminator.requires_grad_(True)
        return {"generator": loss.detach()}

    def _path_length(self, z: Tensor, mixed: Tensor) -> dict[str, Tensor]:
        """Steps of one length in w change images alike everywhere (arXiv:1912.04958, Sec. 3.2)."""
        self.generator.zero_grad()
        w_plus = _mix(self.generator, z, mixed)
        images = self.generator(w_plus, self.generator.random_noise(len(w_plus)))
        direction = torch.randn_like(images) / self.size
        (slope,) = torch.autograd.grad((images * direction).sum(), w_plus, create_graph=True)
        lengths = slope.square().sum(2).mean(1).sqrt()
        self.mean_length.lerp_(lengths.mean().detach(), 0.01)
        penalty = (lengths - self.mean_length).square().mean()
        (penalty * (self.config.path_weight * self.config.path_every)).backward()
        return {"path": penalty.detach()}

    # --- parts ---

    def _images(self, z: Tensor, mixed: Tensor) -> Tensor:
        with self._autocast():
            noise = self.generator.random_noise(len(mixed))
            return self.generator(_mix(self.generator, z, mixed), noise).float()

    def _logits(self, images: Tensor) -> Tensor:
        with self._autocast():
            return self.discriminator(images)

    def _autocast(self) -> torch.autocast:
        half = self.device.type == "cuda" and self.config.mixed_precision == "bf16"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=half)

    def _draw(self, batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Two z (2, batch, style_dim) and which layers (batch, num_latents) take the second one's style."""
        sizes, options = self.generator.config, {"generator": generator, "device": self.device}
        z = torch.randn(2, batch, sizes.style_dim, **options)  # type: ignore[call-overload]
        cut = torch.randint(1, sizes.num_latents, (batch, 1), **options)  # type: ignore[call-overload]
        mixes = torch.rand(batch, 1, **options) < self.config.mixing  # type: ignore[call-overload]
        return z, (torch.arange(sizes.num_latents, device=self.device) >= cut) & mixes

    def _update_average(self, batch: int) -> None:
        half_life = min(self.config.average_images, max(1.0, 0.05 * self.clock.elements))
        averaged, current = (
            [parameter.detach() for parameter in network.parameters()]
            for network in (self.average, self.generator)
        )
        torch._foreach_lerp_(averaged, current, 1 - 0.5 ** (batch / half_life))

    def _optimizer(self, network: nn.Module, every: int) -> torch.optim.Adam:
        """Adam, slowed for the extra steps of regularization (arXiv:1912.04958, Appendix B)."""
        ratio = every / (every + 1)
        return torch.optim.Adam(
            network.parameters(), lr=self.config.learning_rate * ratio, betas=(0.0, 0.99**ratio), eps=1e-8,
            fused=self.device.type == "cuda",
        )

    def _recorded(self, function: Gradients, network: nn.Module) -> Gradients:
        if self.device.type == "cuda" and self.config.cuda_graphs:
            return RecordedGradients(function, list(network.parameters()))
        return function

    def _load(self, archive: dict[str, Any]) -> None:
        try:
            judge = {name: value.float() for name, value in archive["d"].items()}
            check_weights(judge, self.discriminator)
            self.discriminator.load_state_dict(judge)
            for network, name in ((self.generator, "g"), (self.average, "g_ema")):
                network.load_state_dict(from_public({"g_ema": archive[name]}).state_dict())
            if "g_optim" in archive:  # files without it are smaller, and moments are soon found again
                self.g_optimizer.load_state_dict(archive["g_optim"])
                self.d_optimizer.load_state_dict(archive["d_optim"])
            self.augment.p.fill_(archive["augment_p"])
            self.mean_length.fill_(archive["mean_length"])
            self.clock.load_state_dict(archive["clock"])
        except KeyError as error:
            raise GeneratorError(f"{NOT_A_RUN} {error}") from error


def _mix(generator: Generator, z: Tensor, mixed: Tensor) -> Tensor:
    """w+ of two z (2, batch, style_dim): the second one's where `mixed` (batch, num_latents)."""
    w = generator.map(z.flatten(0, 1)).unflatten(0, (2, -1))
    return torch.where(mixed[:, :, None], w[1][:, None], w[0][:, None])


def _share_done(seconds: float, steps: int, config: GanConfig) -> float:
    by_time = seconds / (60 * config.minutes)
    return max(by_time, steps / config.max_steps) if config.max_steps > 0 else by_time


def _on_cpu(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().cpu() for name, value in weights.items()}


@torch.no_grad()
def sample_grid(generator: Generator, seed: int = 0) -> Image.Image:
    """A square of samples, the same latents for the same seed."""
    draws = torch.Generator().manual_seed(seed)
    z = torch.randn(GRID * GRID, generator.config.style_dim, generator=draws)
    images = generator(generator.to_w_plus(generator.map(z.to(generator.latent_avg))))
    return Image.fromarray(to_pixels(make_grid(images.float().cpu(), nrow=GRID, padding=1, pad_value=1.0)))
