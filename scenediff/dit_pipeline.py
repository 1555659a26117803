"""The full-size model, from its checkpoint folder to sampled scenes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler, SchedulerMixin
from pytorch3d.renderer import PerspectiveCameras
from safetensors.torch import save_file
from torch import Tensor

from scenediff.ddim import EvenDDIM
from scenediff.forward import Observation
from scenediff.networks.dit import DitConfig
from scenediff.networks.dit_denoiser import DitDenoiser
from scenediff.networks.pixel_denoiser import resize
from scenediff.pipeline import (
    CONFIG_NAME,
    DEFAULT_SCHEDULE,
    DIT_FORMAT,
    WEIGHTS_NAME,
    counted,
    known_settings,
    precision_on,
    read_config,
    read_weights,
    views_around,
)
from scenediff.renderers.cameras import CameraView, PinholeView, look_ahead, to_pinhole
from scenediff.renderers.pixel_field import Rendering
from scenediff.renderers.volume_field import VolumeConfig, VolumeFieldRenderer, VolumeSignal, map_volume
from scenediff.sampling import (
    SEED_STRIDE,
    DynamicThreshold,
    draw_noise,
    generators,
    make_scheduler,
    sample_in_turn,
)
from scenediff.scene import Scene, rays_at_a_time
from scenediff.scene_kinds import KINDS, PhotoVolume


@dataclass(frozen=True)
class DitSampling:
    """How the model samples unless told otherwise.

    Attributes:
        scheduler: "ddim" for `EvenDDIM`, or "ddpm" or "dpmsolver++".
        steps: denoising steps of each target view.
        guidance_scale: see `sampling.sample`; so are the next two.
        temperature: standard deviation of the noise to begin with.
        threshold: quantile of `DynamicThreshold`; 0 for none.
        size: side of the square images, pixels.
        targets: views sampled in turn around the photo.
    """

    scheduler: str = "ddim"
    steps: int = 50
    guidance_scale: float = 2.0
    temperature: float = 0.85
    threshold: float = 0.95
    size: int = 128
    targets: int = 1


@dataclass(frozen=True)
class Shortcuts:
    """Ways to sample faster that change the result; by default none is taken.

    Attributes:
        scheduler: "dpmsolver++" needs 10 to 20 steps instead of 50; None for the model's own, see
            `DitSampling`.
        fine: samples of the second pass on each ray, at least 1; None for all that the model has.
        skip: share of a ray under which samples of the second pass are left out, for example 0.001; see
            `VolumeFieldRenderer.faster`.
    """

    scheduler: str | None = None
    fine: int | None = None
    skip: float = 0.0


EXACT = Shortcuts()


@dataclass(frozen=True)
class VolumeBatch:
    """Fields of several photos at once, for evaluation; each in the world of its own photo's camera."""

    signal: PhotoVolume
    renderer: VolumeFieldRenderer

    @torch.no_grad()
    def render(self, cameras: PerspectiveCameras, size: tuple[int, int]) -> Rendering:
        """What one camera for each field sees of it."""
        return KINDS["volume"].render(self.renderer, self.signal, CameraView(cameras, size))


class DitPipeline:
    """Samples radiance fields from photos; used as `scenediff.pipeline.ScenePipeline` is.

    Attributes:
        denoiser: the network; its `renderer` is the forward model.
        scheduler: the noise schedule that it was trained with.
        defaults: how it samples unless told otherwise.
    """

    def __init__(self, denoiser: DitDenoiser, defaults: DitSampling | None = None):
        self.denoiser, self.defaults = denoiser, defaults or DitSampling()
        self.scheduler = DDPMScheduler(**DEFAULT_SCHEDULE)

    @property
    def renderer(self) -> VolumeFieldRenderer:
        return self.denoiser.renderer

    @property
    def device(self) -> torch.device:
        return self.denoiser.encoder.label.device

    def to(self, device: torch.device | str) -> DitPipeline:
        """Moves the model, in place."""
        self.denoiser.to(device).eval()
        self.renderer.chunk_rays = KINDS["volume"].rays_at_a_time(rays_at_a_time(device))
        if self.device.type == "cuda":
            self.denoiser.memory = torch.cuda.get_device_properties(self.device).total_memory // 4
        return self

    def __call__(
        self,
        photo: Any,
        num_samples: int = 4,
        *,
        steps: int | None = None,
        guidance_scale: float | None = None,
        seed: int = 0,
        fov_degrees: float | None = None,
        progress: Callable[[int, int], None] | None = None,
        shortcuts: Shortcuts = EXACT,
    ) -> list[Scene]:
        """Draws scenes that could have produced the centre square of a photo.

        Arguments and result are those of `ScenePipeline`. Lengths are those of the model's training data,
        not metres. Scenes are rendered with the same `shortcuts` that they were sampled with.
        """
        from scenediff.datasets.images import Photo, load_photo

        if num_samples < 1:
            raise ValueError(f"num_samples must be at least 1, got {num_samples}")
        if not isinstance(photo, Photo):
            photo = load_photo(photo, fov_degrees=fov_degrees)
        steps = self.defaults.steps if steps is None else steps
        guidance_scale = self.defaults.guidance_scale if guidance_scale is None else guidance_scale
        square = centre_square(photo.image)[None].to(self.device)
        cameras = look_ahead(1, photo.fov_degrees, device=self.device)
        context = self._context(square, cameras)
        targets = [self.pinhole(target) for target in self._target_cameras(context, cameras)]
        seeds = [seed + index for index in range(num_samples)]
        known = Observation(context.image.repeat(num_samples, 1, 1, 1), context.view.repeated(num_samples))
        targets = [target.repeated(num_samples) for target in targets]
        volumes, renderer = self._sample(known, targets, seeds, steps, guidance_scale, shortcuts, progress)
        how = {
            "steps": steps, "guidance_scale": guidance_scale,
            "scheduler": shortcuts.scheduler or self.defaults.scheduler, "fov_degrees": photo.fov_degrees,
        }
        if shortcuts != EXACT:
            how["shortcuts"] = asdict(shortcuts)
        return [
            Scene(
                PhotoVolume(map_volume(volumes, partial(_element, index)), square), renderer,
                {"seed": seeds[index], **how},
            )
            for index in range(num_samples)
        ]

    def sample_views(
        self,
        context_image: Tensor,
        context_cameras: PerspectiveCameras,
        target_cameras: PerspectiveCameras,
        num_samples: int = 1,
        *,
        steps: int | None = None,
        guidance_scale: float | None = None,
        seed: int = 0,
        size: tuple[int, int] | None = None,
        shortcuts: Shortcuts = EXACT,
    ) -> list[VolumeBatch]:
        """Draws scenes of several photos at once at given target views; for evaluation.

        Arguments are those of `ScenePipeline`, but for `size`: the model always samples at its own.
        """
        steps = self.defaults.steps if steps is None else steps
        guidance_scale = self.defaults.guidance_scale if guidance_scale is None else guidance_scale
        context, target = self._context(context_image, context_cameras), self.pinhole(target_cameras)
        batches = []
        for index in range(num_samples):
            seeds = [seed + SEED_STRIDE * index + element for element in range(len(context_image))]
            volume, renderer = self._sample(context, [target], seeds, steps, guidance_scale, shortcuts)
            batches.append(VolumeBatch(PhotoVolume(volume, context_image), renderer))
        return batches

    @torch.no_grad()
    def deterministic(self, context_image: Tensor, context_cameras: PerspectiveCameras) -> VolumeBatch:
        """The deterministic branch's fields: one average guess for each photo."""
        context = self._context(context_image, context_cameras)
        with precision_on(self.device):
            guess = self.denoiser.signal(self.denoiser.read([context]), [context], sampled=False)
        return VolumeBatch(PhotoVolume(map_volume(guess, Tensor.float), context_image), self.renderer)

    def _context(self, image: Tensor, cameras: PerspectiveCameras) -> Observation:
        """The centre squares of photos as the network reads them."""
        square = resize(centre_square(image), (self.defaults.size,) * 2)
        return Observation(square, self.pinhole(cameras))

    def pinhole(self, cameras: PerspectiveCameras) -> PinholeView:
        """Views of the model's size; poses relative to the photo stand in for absolute ones."""
        view = to_pinhole(CameraView(cameras, (self.defaults.size,) * 2))
        return replace(view, pose=view.cam_to_world) if self.denoiser.config.absolute_poses else view

    @torch.no_grad()
    def _sample(
        self,
        context: Observation,
        targets: Sequence[PinholeView],
        seeds: Sequence[int],
        steps: int,
        guidance_scale: float,
        shortcuts: Shortcuts,
        progress: Callable[[int, int], None] | None = None,
    ) -> tuple[VolumeSignal, VolumeFieldRenderer]:
        """Fields, and what renders them as they were sampled."""
        sources = generators(seeds)
        threshold = DynamicThreshold(self.defaults.threshold) if self.defaults.threshold else None
        renderer = self.renderer.faster(shortcuts.fine, shortcuts.skip)
        with precision_on(self.device):
            drawn = sample_in_turn(
                self.denoiser, renderer, self.make_scheduler(shortcuts.scheduler), [context], targets,
                [draw_noise(context.image.shape[1:], sources, self.device) for _ in targets],
                steps=steps, guidance_scale=guidance_scale, temperature=self.defaults.temperature,
                threshold=threshold, step_generators=sources,
                callback=counted(progress, steps * len(targets)),
            )
        return map_volume(drawn.signal, Tensor.float), renderer

    @torch.no_grad()
    def _target_cameras(self, context: Observation, cameras: PerspectiveCameras) -> list[PerspectiveCameras]:
        with precision_on(self.device):
            guess = self.denoiser.signal(self.denoiser.read([context]), [context], sampled=False)
            distance = float(self.renderer.render_all(guess, context.view).distance.median())
        return views_around(distance, self.defaults.targets, cameras)

    def make_scheduler(self, name: str | None = None) -> SchedulerMixin | EvenDDIM:
        """The sampler of that name, see `DitSampling`; without one, that of `defaults`."""
        name = name or self.defaults.scheduler
        if name == "ddim":
            return EvenDDIM(self.scheduler.config["num_train_timesteps"])
        return make_scheduler(name, self.scheduler)

    @classmethod
    def from_folder(cls, folder: str | Path, device: torch.device | str = "cpu") -> DitPipeline:
        """Reads what `write_checkpoint` wrote.

        Raises:
            CheckpointError: files are missing, unreadable, foreign or of another version.
        """
        folder = Path(folder)
        config = read_config(folder, DIT_FORMAT)
        with known_settings(folder):
            with torch.device("meta"):
                denoiser = build_denoiser(
                    DitConfig(**config["encoder"]),
                    VolumeConfig(**{**config["field"], "background": tuple(config["field"]["background"])}),
                )
            defaults = DitSampling(**config["sampling"])
        denoiser.load_state_dict(read_weights(folder, denoiser), assign=True)
        return cls(denoiser, defaults).to(device)


def build_denoiser(encoder: DitConfig, field: VolumeConfig) -> DitDenoiser:
    """An untrained denoiser with its renderer."""
    return DitDenoiser(encoder, VolumeFieldRenderer(field)).eval()


def write_checkpoint(
    folder: Path,
    weights: Mapping[str, Tensor],
    encoder: DitConfig,
    field: VolumeConfig,
    sampling: DitSampling,
) -> None:
    """Writes config.json and weights.safetensors, the weights in their own precision."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(dict(weights), folder / WEIGHTS_NAME, metadata={"format": DIT_FORMAT})
    config: dict[str, Any] = {
        "format": DIT_FORMAT, "encoder": asdict(encoder), "field": asdict(field),
        "sampling": asdict(sampling),
    }
    (folder / CONFIG_NAME).write_text(json.dumps(config, indent=1) + "\n")


def centre_square(image: Tensor) -> Tensor:
    """The largest square in the middle of an image (channels, height, width)."""
    height, width = image.shape[-2:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return image[..., top : top + side, left : left + side]


def _element(index: int, tensor: Tensor) -> Tensor:
    return tensor[index : index + 1]
