"""From a photo to the ways in which it could move on: a trained motion model, loaded, saved and called."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler
from torch import Tensor

from scenediff.cores import on_cores
from scenediff.forward import Observation
from scenediff.networks.motion_denoiser import MotionConfig, MotionDenoiser
from scenediff.networks.pixel_denoiser import map_size, resize
from scenediff.pipeline import (
    MOTION_FORMAT,
    CheckpointError,
    counted,
    known_settings,
    load,
    precision_on,
    read_config,
    read_weights,
    save_model,
)
from scenediff.renderers.motion import MotionField, MotionRenderer, mean_field, play, resized_field
from scenediff.sampling import draw_noise, generators, make_scheduler, sample

# Much time is spent at high noise, where a step's direction is decided
SCHEDULE = {
    "num_train_timesteps": 1000, "beta_schedule": "linear", "prediction_type": "sample", "clip_sample": False,
}
PHOTO, TARGET = 0.0, 1.0  # moments
CHUNK_PIXELS = {"cpu": 128 * 128, "cuda": 256 * 64 * 64}  # sampled at once


@dataclass(frozen=True)
class MotionSampling:
    """How a model samples unless told otherwise.

    Attributes:
        scheduler: "ddim", "ddpm" or "dpmsolver++".
        steps: denoising steps.
        size: pixels of the shorter side of photos as the network sees them.
    """

    scheduler: str = "ddim"
    steps: int = 20
    size: int = 128


@dataclass(frozen=True)
class Motion:
    """One way in which a photo could move on.

    Attributes:
        photo: (1, 3, height, width) in [-1, 1].
        field: of the same height and width, in its pixels; batch 1.
        metadata: seed, steps and scheduler.
    """

    photo: Tensor
    field: MotionField
    metadata: dict[str, Any]

    def render(self, moment: float = TARGET) -> Tensor:
        """(1, 3, height, width) the photo at a moment: 0 for itself, 1 for where the motion ends."""
        return play(self.photo, self.field, moment)


class MotionPipeline:
    """Samples motions from photos.

    Attributes:
        denoiser: the network; its `renderer` is the forward model.
        scheduler: the noise schedule that it was trained with.
        defaults: how it samples unless told otherwise.
    """

    def __init__(
        self, denoiser: MotionDenoiser, scheduler: DDPMScheduler, defaults: MotionSampling | None = None
    ):
        self.denoiser, self.scheduler = denoiser, scheduler
        self.defaults = defaults or MotionSampling()

    @property
    def renderer(self) -> MotionRenderer:
        return self.denoiser.renderer

    @property
    def device(self) -> torch.device:
        return self.denoiser.alphas_cumprod.device

    def to(self, device: torch.device | str) -> MotionPipeline:
        """Moves the model, in place."""
        self.denoiser.to(device).eval()
        return self

    def __call__(
        self,
        photo: Any,
        num_samples: int = 8,
        *,
        steps: int | None = None,
        seed: int = 0,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[Motion]:
        """Draws motions that could follow a photo.

        Args:
            photo: a path, a PIL image or a `scenediff.datasets.images.Photo`.
            num_samples: motions to draw; sample i depends on seed + i alone.
            steps: denoising steps.
            seed: of the first sample.
            progress: called with (steps done, steps in all).

        Returns:
            the motions, in pixels of the photo at a long side of at most 512.
        """
        from scenediff.datasets.images import Photo, load_photo

        if num_samples < 1:
            raise ValueError(f"num_samples must be at least 1, got {num_samples}")
        if not isinstance(photo, Photo):
            photo = load_photo(photo)
        image = photo.image[None].to(self.device)
        small = resize(image, map_size(photo.size, self.defaults.size))
        seeds = [seed + index for index in range(num_samples)]
        context = small.expand(num_samples, -1, -1, -1)
        fields, _ = self.sample(context, seeds, steps=steps, progress=progress)
        steps = self.defaults.steps if steps is None else steps
        return [
            Motion(
                image, resized_field(fields.part(index), photo.size),
                {"seed": seeds[index], "steps": steps, "scheduler": self.defaults.scheduler},
            )
            for index in range(num_samples)
        ]  # fmt: skip

    @torch.no_grad()
    def sample(
        self,
        photos: Tensor,
        seeds: Sequence[int],
        *,
        steps: int | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> tuple[MotionField, Tensor]:
        """Draws one motion for each of several photos.

        Args:
            photos: (batch, 3, height, width) in [-1, 1], sides divisible by 8.
            seeds: one for each.

        Returns:
            the fields (batch) and the sampled targets (batch, 3, height, width).
        """
        steps = self.defaults.steps if steps is None else steps
        chunk = max(1, CHUNK_PIXELS[self.device.type] // photos[0, 0].numel())
        advance = counted(progress, steps * -(-len(photos) // chunk))

        def drawn(start: int) -> tuple[MotionField, Tensor]:
            part = photos[start : start + chunk].contiguous()
            sources = generators(seeds[start : start + chunk])
            with precision_on(self.device):
                signal, target = sample(
                    self.denoiser, self.renderer, make_scheduler(self.defaults.scheduler, self.scheduler),
                    [Observation(part, PHOTO)], TARGET, draw_noise(part.shape[1:], sources, self.device),
                    steps=steps, step_generators=sources, callback=advance,
                )
            with torch.no_grad():
                return mean_field(signal), target.float()

        fields, targets = zip(*on_cores(drawn, range(0, len(photos), chunk), self.device), strict=True)
        return MotionField.cat(fields), torch.cat(targets)

    @torch.no_grad()
    def deterministic(self, photos: Tensor) -> tuple[MotionField, Tensor]:
        """The deterministic branch's mean motion of each photo, and the mean image that it shows."""
        with precision_on(self.device):
            encoded = self.denoiser.encode([Observation(photos, PHOTO)], TARGET)
        return mean_field(encoded.signal), encoded.image.float()

    def save(self, folder: str | Path) -> None:
        """Writes config.json and weights.safetensors (half precision)."""
        save_model(folder, MOTION_FORMAT, self, {"denoiser": asdict(self.denoiser.config)})

    @classmethod
    def from_folder(cls, folder: str | Path, device: torch.device | str = "cpu") -> MotionPipeline:
        """Reads what `save` wrote.

        Raises:
            CheckpointError: files are missing, unreadable, foreign or of another version.
        """
        folder = Path(folder)
        config = read_config(folder, MOTION_FORMAT)
        with known_settings(folder):
            sizes = {**config["denoiser"], "channels": tuple(config["denoiser"]["channels"])}
            denoiser, scheduler = build_motion_model(MotionConfig(**sizes), config["scheduler"])
            defaults = MotionSampling(**config["sampling"])
        denoiser.load_state_dict(read_weights(folder, denoiser))
        return cls(denoiser, scheduler, defaults).to(device)


def build_motion_model(
    config: MotionConfig | None = None, schedule: dict[str, Any] | None = None
) -> tuple[MotionDenoiser, DDPMScheduler]:
    """An untrained denoiser (with its renderer) and its noise schedule."""
    scheduler = DDPMScheduler(**(schedule or SCHEDULE))
    return MotionDenoiser(config or MotionConfig(), scheduler.alphas_cumprod).eval(), scheduler


def load_motion(name_or_folder: str | Path = "motion", device: torch.device | str = "cpu") -> MotionPipeline:
    """A bundled motion model by its name, or the one in a checkpoint folder.

    Raises:
        CheckpointError: no such model, one that this version can't read, or one for something else.
    """
    pipeline = load(name_or_folder, device)
    if not isinstance(pipeline, MotionPipeline):
        raise CheckpointError(f"{name_or_folder} is no motion model")
    return pipeline
