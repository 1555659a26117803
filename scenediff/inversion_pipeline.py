"""From a small patch to full images that contain it: a generator with what inverts it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler
from torch import Tensor

from scenediff.forward import Observation
from scenediff.networks.latent_denoiser import LatentConfig, LatentDenoiser
from scenediff.pipeline import (
    DEFAULT_SCHEDULE,
    INVERSION_FORMAT,
    WEIGHTS_NAME,
    CheckpointError,
    counted,
    known_settings,
    load,
    precision_on,
    read_config,
    read_weights,
    save_model,
)
from scenediff.renderers.stylegan2 import (
    Generator,
    GeneratorConfig,
    GeneratorError,
    GeneratorForward,
    LatentCode,
    PatchView,
    check_finite,
    check_patch,
    crop,
    patch_view,
    whole_image,
)
from scenediff.sampling import draw_noise, generators, make_scheduler, sample

# The colour of a wall is the mean of thousands of pixels, so it shows through noise of fifty times its
# size: what is decided there needs several of few steps, which the linear schedule spends at such levels.
SCHEDULE = {**DEFAULT_SCHEDULE, "beta_schedule": "linear"}


@dataclass(frozen=True)
class InversionSampling:
    """How a model samples unless told otherwise.

    Attributes:
        scheduler: "ddim", "ddpm" or "dpmsolver++".
        steps: denoising steps; even, as every second one corrects what the one before it found.
        timesteps: noise levels of just so many steps; other numbers of steps are evenly spaced. Few steps had
            better end at little noise: what is sharp is decided there.
        guidance_scale: 1 for the model's own distribution.
    """

    scheduler: str = "dpmsolver++"
    steps: int = 4
    timesteps: tuple[int, ...] = (999, 700, 350, 100)
    guidance_scale: float = 1.0


@dataclass(frozen=True)
class Inversion:
    """Codes sampled for a patch.

    Attributes:
        w_plus: (batch, num_latents, style_dim) the codes.
        images: (batch, 3, size, size) their whole images, clamped to [-1, 1].
        view: where the patch lies, once for each code.
    """

    w_plus: Tensor
    images: Tensor
    view: PatchView

    @property
    def patches(self) -> Tensor:
        """(batch, 3, height, width) the patch, rendered again from each code."""
        return crop(self.images, self.view)


class InversionPipeline:
    """Samples latent codes of a generator from a patch of an image.

    Attributes:
        denoiser: the network; its `renderer` is the forward model.
        scheduler: the noise schedule that it was trained with.
        defaults: how it samples unless told otherwise.
    """

    def __init__(
        self, denoiser: LatentDenoiser, scheduler: DDPMScheduler, defaults: InversionSampling | None = None
    ):
        self.denoiser, self.scheduler = denoiser, scheduler
        self.defaults = defaults or InversionSampling()

    @property
    def renderer(self) -> GeneratorForward:
        return self.denoiser.renderer

    @property
    def generator(self) -> Generator:
        return self.renderer.generator

    @property
    def device(self) -> torch.device:
        return self.generator.latent_avg.device

    def to(self, device: torch.device | str) -> InversionPipeline:
        """Moves the model, in place."""
        self.denoiser.to(device).eval()
        return self

    def replace_generator(self, generator: Generator) -> None:
        """Takes another generator of the same sizes, such as a fine-tuned one.

        Raises:
            GeneratorError: its sizes differ.
        """
        ours, theirs = self.generator.config, generator.config
        if ours != theirs:
            raise GeneratorError(
                f"the generator has {_describe(theirs)}, but the model was trained for {_describe(ours)}"
            )
        self.generator.load_state_dict(generator.state_dict())

    def __call__(
        self,
        patch: Tensor,
        top: int | None = None,
        left: int | None = None,
        num_samples: int = 16,
        *,
        steps: int | None = None,
        guidance_scale: float | None = None,
        seed: int = 0,
        progress: Callable[[int, int], None] | None = None,
    ) -> Inversion:
        """Draws codes whose images show a patch.

        Args:
            patch: (3, height, width) in [-1, 1], at the resolution of the generator's images.
            top, left: place of its first pixel in the whole image; in the middle by default.
            num_samples: codes to draw; sample i depends on seed + i alone.
            steps, guidance_scale: see `InversionSampling`.
            seed: of the first sample.
            progress: called with (steps done, steps in all).

        Raises:
            ValueError: the patch does not lie within the image.
        """
        if num_samples < 1:
            raise ValueError(f"num_samples must be at least 1, got {num_samples}")
        view = place_patch(patch, self.renderer.size, top, left)
        known = Observation(patch[None].to(self.device), view.to(self.device))
        seeds = [seed + index for index in range(num_samples)]
        return self.sample(
            known, num_samples, seeds, steps=steps, guidance_scale=guidance_scale, progress=progress
        )

    def sample(
        self,
        known: Observation,
        num_samples: int,
        seeds: Sequence[int],
        *,
        steps: int | None = None,
        guidance_scale: float | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Inversion:
        """Draws codes for several patches at once.

        Args:
            known: the patches, on the pipeline's device.
            num_samples: codes for each patch.
            seeds: one for each code, those of the first patch first.
        """
        count, size = len(known.image) * num_samples, self.renderer.size
        steps = self.defaults.steps if steps is None else steps
        guidance_scale = self.defaults.guidance_scale if guidance_scale is None else guidance_scale
        timesteps = self.defaults.timesteps if steps == len(self.defaults.timesteps) else ()
        sources = generators(seeds)
        with precision_on(self.device):
            code, _ = sample(
                self.denoiser, self.renderer, make_scheduler(self.defaults.scheduler, self.scheduler),
                [known], whole_image(size, count, self.device),
                draw_noise((3, size, size), sources, self.device), steps=steps, timesteps=timesteps,
                guidance_scale=guidance_scale, step_generators=sources, callback=counted(progress, steps),
            )
        return self._shown(code, known.view.repeated(num_samples))

    @torch.no_grad()
    def deterministic(self, known: Observation) -> Inversion:
        """The deterministic branch's codes: one average guess for each patch."""
        whole = whole_image(self.renderer.size, len(known.image), self.device)
        with precision_on(self.device):
            guess = self.denoiser.encode([known], whole).signal
        return self._shown(guess, known.view)

    def _shown(self, code: LatentCode, view: PatchView) -> Inversion:
        """In full precision, which a CPU's images have already."""
        if self.device.type == "cpu":
            return Inversion(code.w_plus, code.image.clamp(-1, 1), view)
        return show(self.generator, code.w_plus.float(), view)

    def save(self, folder: str | Path) -> None:
        """Writes config.json and weights.safetensors (half precision), the generator's included."""
        save_model(folder, INVERSION_FORMAT, self, {
            "denoiser": asdict(self.denoiser.config), "generator": asdict(self.generator.config),
        })

    @classmethod
    def from_folder(cls, folder: str | Path, device: torch.device | str = "cpu") -> InversionPipeline:
        """Reads what `save` wrote.

        Raises:
            CheckpointError: files are missing, unreadable, foreign, of another version or hold NaN.
        """
        folder = Path(folder)
        config = read_config(folder, INVERSION_FORMAT)
        with known_settings(folder):
            sizes = {**config["generator"], "channels": tuple(config["generator"]["channels"])}
            network = {**config["denoiser"], "channels": tuple(config["denoiser"]["channels"])}
            denoiser, scheduler = build_inversion(
                Generator(GeneratorConfig(**sizes)), LatentConfig(**network), config["scheduler"]
            )
            sampling = config["sampling"]
            defaults = InversionSampling(**{**sampling, "timesteps": tuple(sampling.get("timesteps", ()))})
        weights = read_weights(folder, denoiser)
        try:
            check_finite(weights)
        except GeneratorError as error:
            raise CheckpointError(f"{folder / WEIGHTS_NAME}: {error}") from error
        denoiser.load_state_dict(weights)
        return cls(denoiser, scheduler, defaults).to(device)


def build_inversion(
    generator: Generator, denoiser: LatentConfig | None = None, schedule: dict[str, Any] | None = None
) -> tuple[LatentDenoiser, DDPMScheduler]:
    """An untrained denoiser for a generator, which it keeps, and its noise schedule."""
    network = LatentDenoiser(denoiser or LatentConfig(), GeneratorForward(generator)).eval()
    return network, DDPMScheduler(**(schedule or SCHEDULE))


@torch.no_grad()
def show(generator: Generator, w_plus: Tensor, view: PatchView) -> Inversion:
    """Codes with their images, in full precision."""
    return Inversion(w_plus, generator(w_plus).clamp(-1, 1), view)


def load_inversion(name_or_folder: str | Path, device: torch.device | str = "cpu") -> InversionPipeline:
    """As `scenediff.load`, for models of this kind alone.

    Raises:
        CheckpointError: no such model, or one of another kind.
    """
    pipeline = load(name_or_folder, device)
    if not isinstance(pipeline, InversionPipeline):
        raise CheckpointError(f"{name_or_folder} is a model of another kind: it inverts no generator")
    return pipeline


def place_patch(patch: Tensor, image_size: int, top: int | None, left: int | None) -> PatchView:
    """The view of a patch (3, height, width); in the middle of the image where its place is not given.

    Raises:
        ValueError: it does not lie within the image.
    """
    height, width = patch.shape[-2:]
    top = max(0, image_size - height) // 2 if top is None else top
    left = max(0, image_size - width) // 2 if left is None else left
    view = patch_view(top, left, (height, width))
    check_patch(view, image_size)
    return view


def _describe(config: GeneratorConfig) -> str:
    channels = ", ".join(map(str, config.channels))
    return f"{config.size}x{config.size} pixels, {config.style_dim} latent and {channels} image channels"
