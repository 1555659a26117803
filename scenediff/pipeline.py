"""From a photo to sampled scenes: a trained model with its scheduler, loaded, saved and called."""

from __future__ import annotations

import importlib
import itertools
import json
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler
from pytorch3d.renderer import PerspectiveCameras
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from scenediff.cores import on_cores
from scenediff.forward import Observation
from scenediff.networks.both_ways import read_both_ways
from scenediff.networks.pixel_denoiser import (
    DenoiserConfig,
    PixelDenoiser,
    ReadPhoto,
    map_size,
    rescaled,
)
from scenediff.renderers.cameras import CameraView, look_ahead, perspective_cameras
from scenediff.renderers.pixel_field import (
    FieldConfig,
    FieldSignal,
    PixelFieldRenderer,
    Rendering,
    map_signal,
)
from scenediff.renderers.seen import render_scene
from scenediff.sampling import (
    SEED_STRIDE,
    calm_coarse,
    draw_noise,
    generators,
    laplace_in_turn,
    make_scheduler,
    sample_in_turn,
)
from scenediff.scene import Scene, rays_at_a_time

FORMAT = "scenediff-rooms-1"
DIT_FORMAT = "scenediff-dit-1"  # of the full-size model, see `dit_pipeline`
INVERSION_FORMAT = "scenediff-inversion-1"  # of GAN inversion, see `inversion_pipeline`
MOTION_FORMAT = "scenediff-motion-1"  # of single-image motion, see `motion_pipeline`
OTHER_PIPELINES = {
    DIT_FORMAT: ("scenediff.dit_pipeline", "DitPipeline"),
    INVERSION_FORMAT: ("scenediff.inversion_pipeline", "InversionPipeline"),
    MOTION_FORMAT: ("scenediff.motion_pipeline", "MotionPipeline"),
}
BUNDLED = Path(__file__).parent / "checkpoints"
CONFIG_NAME, WEIGHTS_NAME = "config.json", "weights.safetensors"


class CheckpointError(ValueError):
    """A checkpoint that is missing, foreign or of another version."""


@dataclass(frozen=True)
class SamplingDefaults:
    """How a model samples unless told otherwise.

    Attributes:
        scheduler: "ddim", "ddpm" or "dpmsolver++".
        steps: denoising steps of each target view.
        guidance_scale: 1 for the model's own distribution.
        size: resolution of the diffusion: pixels of the shorter side.
        targets: views sampled in turn around the photo.
        temperature: standard deviation of the noise to begin with; below 1, samples vary less and are softer.
        coarse_temperature: factor on that noise's means over blocks of pixels, see `calm_coarse`.
        doubt: each sample draws a scale of its own for the photo: the logarithm's error has a Laplace
            distribution, as the model learned it, this share as wide as the model thinks; 0 keeps the
            likeliest scale. Consecutive seeds are spread evenly. Needs a model that tells its doubt.
        both_ways: photos are also read as their mirror images, for better depths and a doubt that grows with
            what is unusual about the photo; see `read_both_ways`.
    """

    scheduler: str = "ddim"
    steps: int = 12
    guidance_scale: float = 1.0
    size: int = 64
    targets: int = 2
    temperature: float = 1.0
    coarse_temperature: float = 1.0
    doubt: float = 0.0
    both_ways: bool = False


@dataclass(frozen=True)
class SceneBatch:
    """Fields of several photos at once, for evaluation; each in the world of its own photo's camera."""

    signal: FieldSignal
    renderer: PixelFieldRenderer
    observations: tuple[Observation, ...] = ()

    @torch.no_grad()
    def render(self, cameras: PerspectiveCameras, size: tuple[int, int]) -> Rendering:
        """What one camera for each field sees of it."""
        return render_scene(self.renderer, self.signal, CameraView(cameras, size))


class ScenePipeline:
    """Samples radiance fields from photos.

    Attributes:
        denoiser: the network; its `renderer` is the forward model.
        scheduler: the noise schedule that it was trained with.
        defaults: how it samples unless told otherwise.
    """

    def __init__(
        self, denoiser: PixelDenoiser, scheduler: DDPMScheduler, defaults: SamplingDefaults | None = None
    ):
        self.denoiser, self.scheduler = denoiser, scheduler
        self.defaults = defaults or SamplingDefaults()
        if self.defaults.doubt and not denoiser.config.tells_doubt:
            raise ValueError("sampling.doubt needs a model with denoiser.tells_doubt")

    @property
    def renderer(self) -> PixelFieldRenderer:
        return self.denoiser.renderer

    @property
    def device(self) -> torch.device:
        return next(self.denoiser.parameters()).device

    def to(self, device: torch.device | str) -> ScenePipeline:
        """Moves the model, in place."""
        self.denoiser.to(device).eval()
        self.renderer.chunk_rays = rays_at_a_time(device)
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
    ) -> list[Scene]:
        """Draws scenes that could have produced a photo.

        Args:
            photo: a path, a PIL image or a `scenediff.datasets.images.Photo`.
            num_samples: scenes to draw; sample i depends on seed + i alone.
            steps: denoising steps for each target view.
            guidance_scale: 1 for the model's own distribution, more for sharper and less varied scenes.
            seed: of the first sample.
            fov_degrees: horizontal field of view of the photo; otherwise from EXIF, otherwise a default.
            progress: called with (steps done, steps in all).

        Returns:
            the scenes, on the pipeline's device, in the world of the photo's camera.
        """
        from scenediff.datasets.images import Photo, load_photo

        if num_samples < 1:
            raise ValueError(f"num_samples must be at least 1, got {num_samples}")
        if not isinstance(photo, Photo):
            photo = load_photo(photo, fov_degrees=fov_degrees)
        fov_degrees = photo.fov_degrees
        steps = self.defaults.steps if steps is None else steps
        guidance_scale = self.defaults.guidance_scale if guidance_scale is None else guidance_scale
        image = photo.image.to(self.device)[None]
        known = self._read(_photo_observation(image, look_ahead(1, fov_degrees, device=self.device)))
        distance = float(known.reading.log_depth.exp().median())
        targets = views_around(distance, self.defaults.targets, known.view.cameras)
        size = map_size((image.shape[-2], image.shape[-1]), self.defaults.size)
        seeds = [seed + index for index in range(num_samples)]
        # a GPU takes all at once, a CPU one for each core
        groups = [[one] for one in seeds] if self.device.type == "cpu" else [seeds]
        advance = counted(progress, steps * len(targets) * len(groups))

        def sampled(group: Sequence[int]) -> list[Scene]:
            count = len(group)
            photo = _repeat_read(known, count)
            views = [_repeat(target, count) for target in targets]
            drawn = self._sample(photo, views, group, steps, guidance_scale, size, advance)
            return [
                Scene(
                    _element(drawn.signal, index), self.renderer,
                    {"seed": one, "steps": steps, "guidance_scale": guidance_scale,
                     "temperature": self.defaults.temperature, "doubt": self.defaults.doubt,
                     "coarse_temperature": self.defaults.coarse_temperature,
                     "scheduler": self.defaults.scheduler,
                     "fov_degrees": fov_degrees},
                )
                for index, one in enumerate(group)
            ]  # fmt: skip

        return list(itertools.chain.from_iterable(on_cores(sampled, groups, self.device)))

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
    ) -> list[SceneBatch]:
        """Draws scenes of several photos at once at given target views; for evaluation.

        Args:
            context_image: (batch, 3, height, width) in [-1, 1].
            context_cameras, target_cameras: one for each, in the world of the context's camera.
            num_samples: scenes for each photo; sample i of element j depends on (seed, i, j).
            size: (height, width) of the target views.

        Returns:
            `num_samples` batches.
        """
        size = size or (self.defaults.size,) * 2
        steps = self.defaults.steps if steps is None else steps
        guidance_scale = self.defaults.guidance_scale if guidance_scale is None else guidance_scale
        count = len(context_image)
        photo = _photo_observation(context_image, context_cameras)
        known = self._read(photo, min(size))
        return [
            self._sample(
                known, [target_cameras],
                [seed + SEED_STRIDE * index + element for element in range(count)],
                steps, guidance_scale, size,
            )
            for index in range(num_samples)
        ]

    @torch.no_grad()
    def deterministic(self, context_image: Tensor, context_cameras: PerspectiveCameras) -> SceneBatch:
        """The deterministic branch's fields: one average guess for each photo."""
        view = CameraView(context_cameras, (self.defaults.size,) * 2)
        photo = self._read(_photo_observation(context_image, context_cameras))
        with precision_on(self.device):
            encoded = self.denoiser.encode([photo], view)
        return SceneBatch(map_signal(encoded.signal, Tensor.float), self.renderer)

    def _sample(
        self,
        photo: ReadPhoto,
        targets: Sequence[PerspectiveCameras],
        seeds: Sequence[int],
        steps: int,
        guidance_scale: float,
        size: tuple[int, int],
        advance: Callable[..., None] | None = None,
    ) -> SceneBatch:
        sources = generators(seeds)
        noises = [
            calm_coarse(
                draw_noise((3, *size), sources, photo.image.device), self.defaults.coarse_temperature
            )
            for _ in targets
        ]
        with precision_on(self.device):
            drawn = sample_in_turn(
                self.denoiser, self.renderer, make_scheduler(self.defaults.scheduler, self.scheduler),
                [self._at_own_scales(photo, seeds)],
                [CameraView(target, size) for target in targets], noises, steps=steps,
                guidance_scale=guidance_scale, temperature=self.defaults.temperature,
                step_generators=sources, callback=advance,
            )
            signal = self.denoiser.enlarged(drawn.signal)
        return SceneBatch(map_signal(signal, Tensor.float), self.renderer, drawn.observations)

    def _at_own_scales(self, photo: ReadPhoto, seeds: Sequence[int]) -> ReadPhoto:
        """The photo with its depths scaled for each sample, where the defaults want it; see `doubt`."""
        if not self.defaults.doubt:
            return photo
        doubt = photo.reading.doubt
        if doubt is None:
            raise ValueError("the photo was read by a model that does not tell its doubt")
        errors = doubt * laplace_in_turn(seeds).to(doubt)  # (batch,) as the training's likelihood has them
        factor = (self.defaults.doubt * errors).exp()
        return replace(photo, reading=rescaled(photo.reading, factor))

    @torch.no_grad()
    def _read(self, photo: Observation, short_side: int | None = None) -> ReadPhoto:
        """The photo with what the model reads from it.

        Args:
            short_side: of the maps, pixels; that of the model by default.
        """
        short_side = short_side or self.defaults.size
        with precision_on(self.device):
            if self.defaults.both_ways:
                reading = read_both_ways(self.denoiser, photo, short_side)
            else:
                reading = self.denoiser.read_photo(photo, short_side)
        return ReadPhoto(photo.image, photo.view, reading)

    def save(self, folder: str | Path) -> None:
        """Writes config.json and weights.safetensors (half precision)."""
        save_model(folder, FORMAT, self, {
            "denoiser": asdict(self.denoiser.config), "field": asdict(self.renderer.config),
        })

    @classmethod
    def from_folder(cls, folder: str | Path, device: torch.device | str = "cpu") -> ScenePipeline:
        """Reads what `save` wrote.

        Raises:
            CheckpointError: files are missing, unreadable, foreign or of another version.
        """
        folder = Path(folder)
        config = read_config(folder)
        with known_settings(folder):
            denoiser, scheduler = build_model(
                DenoiserConfig(**{**config["denoiser"], "channels": tuple(config["denoiser"]["channels"])}),
                FieldConfig(**config["field"]), config["scheduler"],
            )
            defaults = SamplingDefaults(**config["sampling"])
        # the backbone's integer counters are not kept
        denoiser.load_state_dict(read_weights(folder, denoiser), strict=False)
        return cls(denoiser, scheduler, defaults).to(device)


SCHEDULE_KEYS = ("num_train_timesteps", "beta_schedule", "prediction_type", "clip_sample")
DEFAULT_SCHEDULE = {
    "num_train_timesteps": 1000, "beta_schedule": "squaredcos_cap_v2", "prediction_type": "sample",
    "clip_sample": False,
}


def build_model(
    denoiser: DenoiserConfig | None = None,
    field: FieldConfig | None = None,
    schedule: dict[str, Any] | None = None,
) -> tuple[PixelDenoiser, DDPMScheduler]:
    """An untrained denoiser (with its renderer) and its noise schedule."""
    renderer = PixelFieldRenderer(field or FieldConfig())
    scheduler = DDPMScheduler(**(schedule or DEFAULT_SCHEDULE))
    config = denoiser or DenoiserConfig()
    return PixelDenoiser(config, renderer).eval(), scheduler


def rebuilt(pipeline: ScenePipeline, config: DenoiserConfig) -> ScenePipeline:
    """A model with other parts: those that both have keep their weights, new ones are untrained."""
    old = pipeline.denoiser.state_dict()
    denoiser, scheduler = build_model(config, pipeline.renderer.config, schedule_of(pipeline.scheduler))
    wanted = denoiser.state_dict()
    denoiser.load_state_dict(wanted | {name: value for name, value in old.items() if name in wanted})
    return ScenePipeline(denoiser, scheduler, pipeline.defaults).to(pipeline.device)


def schedule_of(scheduler: DDPMScheduler) -> dict[str, Any]:
    """What `build_model` makes such a noise schedule from."""
    return {name: scheduler.config[name] for name in SCHEDULE_KEYS}


def load(name_or_folder: str | Path = "rooms", device: torch.device | str = "cpu") -> Any:
    """The pipeline of a bundled model, by its name, or of the model in a checkpoint folder.

    `ScenePipeline` and `DitPipeline` sample scenes from photos, `InversionPipeline` images from patches,
    `MotionPipeline` motions from photos.

    Raises:
        CheckpointError: no such model, or one that this version can't read.
    """
    bundled = BUNDLED / str(name_or_folder)
    folder = bundled if bundled.is_dir() else Path(name_or_folder)
    found = read_config(folder, FORMAT, *OTHER_PIPELINES)["format"]
    if found == FORMAT:
        return ScenePipeline.from_folder(folder, device)
    module, name = OTHER_PIPELINES[found]
    return getattr(importlib.import_module(module), name).from_folder(folder, device)


def load_scenes(name_or_folder: str | Path = "rooms", device: torch.device | str = "cpu") -> Any:
    """Like `load`, but refuses models whose samples are no scenes.

    Raises:
        CheckpointError: also for these.
    """
    pipeline = load(name_or_folder, device)
    if not hasattr(pipeline, "sample_views"):
        raise CheckpointError(f"{name_or_folder} samples no scenes, its model is for something else")
    return pipeline


def read_config(folder: Path, *formats: str) -> dict[str, Any]:
    """The checkpoint's config.json, checked for one of the formats; by default that of `ScenePipeline`."""
    path = folder / CONFIG_NAME
    names = sorted(item.name for item in BUNDLED.iterdir() if item.is_dir()) if BUNDLED.is_dir() else []
    if not folder.is_dir():
        bundled = ", ".join(names) or "none"
        raise CheckpointError(f"{folder}: no such checkpoint folder; bundled models: {bundled}")
    try:
        config = json.loads(path.read_text())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path}: not a readable checkpoint configuration ({error})") from error
    found = config.get("format") if isinstance(config, dict) else None
    formats = formats or (FORMAT,)
    if found not in formats:
        known = " and ".join(map(repr, formats))
        raise CheckpointError(f"{path}: format {found!r}, but this version of scenediff reads {known}")
    return config


def read_weights(folder: Path, model: torch.nn.Module) -> dict[str, Tensor]:
    """A checkpoint's weights in float32, one for each of the model's floating-point tensors.

    Raises:
        CheckpointError: the file is unreadable, or names or shapes are not the model's.
    """
    path = folder / WEIGHTS_NAME
    try:
        weights = {name: value.float() for name, value in load_file(path).items()}
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: not a readable weights file ({error})") from error
    kept = {name: value for name, value in model.state_dict().items() if value.is_floating_point()}
    wanted = {name: value.shape for name, value in kept.items()}
    found = {name: value.shape for name, value in weights.items()}
    if wanted != found:
        names = ", ".join(sorted({name for name, _ in wanted.items() ^ found.items()})[:3])
        message = f"{path}: weights don't fit {CONFIG_NAME} (names or shapes differ: {names})"
        raise CheckpointError(message)
    return weights


@contextmanager
def known_settings(folder: Path) -> Iterator[None]:
    """Turns what unknown or missing settings of a config.json lead to into a CheckpointError."""
    try:
        yield
    except (KeyError, TypeError, ValueError) as error:
        message = f"{folder / CONFIG_NAME}: settings missing or unknown ({error!r})"
        raise CheckpointError(message) from error


def save_model(folder: str | Path, form: str, pipeline: Any, sizes: dict[str, Any]) -> None:
    """Writes config.json and weights.safetensors (half precision).

    Args:
        form: the checkpoint's format. pipeline: with a `denoiser`, a `scheduler` and `defaults`.
        sizes: what the configuration holds besides these two.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    state = pipeline.denoiser.state_dict()
    weights = {name: value.half().contiguous().cpu() for name, value in state.items()
               if value.is_floating_point()}  # fmt: skip
    save_file(weights, folder / WEIGHTS_NAME, metadata={"format": form})
    config = {
        "format": form,
        **sizes,
        "scheduler": schedule_of(pipeline.scheduler),
        "sampling": asdict(pipeline.defaults),
    }
    (folder / CONFIG_NAME).write_text(json.dumps(config, indent=1) + "\n")


def precision_on(device: torch.device) -> torch.autocast:
    """Half precision for matrix products on a GPU, as in training; full precision on a CPU."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")


def counted(progress: Callable[[int, int], None] | None, total: int) -> Callable[..., None]:
    """A sampler's callback that tells `progress` how many of all steps are done."""
    steps, in_order = itertools.count(1), threading.Lock()  # several threads may sample

    def advance(*_: object) -> None:
        if progress is not None:
            with in_order:
                progress(next(steps), total)

    return advance


def views_around(distance: float, count: int, cameras: PerspectiveCameras) -> list[PerspectiveCameras]:
    """Cameras to the right of the photo's, to the left, above and below, turned towards what it shows.

    Args:
        distance: of what the photo shows. count: of cameras, 1 to 4. cameras: the photo's.
    """
    step = min(0.8, max(0.12, 0.3 * distance))
    offsets = [(-step, 0.1 * step), (step, 0.1 * step), (0.0, 0.8 * step), (0.0, -0.6 * step)]
    if not 1 <= count <= len(offsets):
        raise ValueError(f"targets must lie in [1, {len(offsets)}], got {count}")
    centre = (0.0, 0.0, 1.4 * distance)
    return [looking_at((x, y, 0.0), centre, cameras) for x, y in offsets[:count]]


def looking_at(
    position: Sequence[float], point: Sequence[float], like: PerspectiveCameras
) -> PerspectiveCameras:
    """Level cameras (PyTorch3D axes) at a position of the photo's world, facing a point; `like`'s lens."""
    eye, goal = like.R.new_tensor(position), like.R.new_tensor(point)
    forward = torch.nn.functional.normalize(goal - eye, dim=0)
    up = like.R.new_tensor([0.0, 1.0, 0.0])
    left = torch.nn.functional.normalize(torch.linalg.cross(up, forward), dim=0)
    axes = [left, torch.linalg.cross(forward, left), forward]  # of the camera, the rotation's columns
    rotation = torch.stack(axes, dim=1)[None]
    translation = -(eye[None, None] @ rotation)[:, 0]
    return perspective_cameras(rotation, translation, like.focal_length, like.principal_point)


def fov_of(cameras: PerspectiveCameras) -> float:
    """Degrees of the first camera's field of view along the shorter side."""
    return 2 * math.degrees(math.atan(1 / float(cameras.focal_length[0, 0])))


def _photo_observation(image: Tensor, cameras: PerspectiveCameras) -> Observation:
    return Observation(image, CameraView(cameras, (image.shape[-2], image.shape[-1])))


def _element(signal: FieldSignal, index: int) -> FieldSignal:
    """One element of a batch, as a batch of one."""
    return map_signal(signal, lambda tensor: tensor[index : index + 1])


def _repeat_read(photo: ReadPhoto, count: int) -> ReadPhoto:
    image = photo.image.expand(count, -1, -1, -1)
    repeated = map_signal(
        FieldSignal((photo.reading,)), lambda tensor: tensor.expand(count, *[-1] * (tensor.ndim - 1))
    )
    view = CameraView(_repeat(photo.view.cameras, count), photo.view.size)
    return ReadPhoto(image, view, repeated.views[0])


def _repeat(cameras: PerspectiveCameras, count: int) -> PerspectiveCameras:
    return perspective_cameras(
        cameras.R.expand(count, 3, 3), cameras.T.expand(count, 3), cameras.focal_length.expand(count, 2),
        cameras.principal_point.expand(count, 2),
    )
