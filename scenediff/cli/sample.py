"""`scenediff sample`: photos in, 3D scenes out."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from scenediff.cli.errors import UserError, user_errors
from scenediff.cli.folders import output_folder
from scenediff.cli.options import (
    MODELS_OWN,
    CameraPath,
    Device,
    OutputFolder,
    check_at_least,
    check_even,
    check_steps,
    resolve_device,
    say,
)
from scenediff.cli.record import Timings, describe_fov, describe_photo, progress_bar, versions

if TYPE_CHECKING:
    from scenediff.datasets.images import Photo
    from scenediff.dit_pipeline import DitPipeline
    from scenediff.pipeline import ScenePipeline
    from scenediff.renderers.baked import BakedScene
    from scenediff.scene import Scene
    from scenediff.tools.outputs import SceneOutputs

RUN_FILE = "run.json"
PHOTO_FILES = re.compile(r"run\.json|contact_sheet\.png|uncertainty\.png|report\.html|sample_\d+")
PANEL_SIZE = 160  # shorter side of the contact sheet's pictures, pixels


@dataclass(frozen=True)
class Sample:
    """Samples 3D scenes from photos of rooms.

    Each sample gets a folder with the scene itself (scene.safetensors), a textured mesh (mesh.glb), coloured
    points (points.ply), a flight through it (video.mp4) and the photo's depth (depth.png); each photo gets a
    contact sheet, a map of where the samples disagree (uncertainty.png) and run.json, which tells how all was
    made. Several photos get a folder each, named after them.

    Equal seeds give equal files on the same machine, save for the timings in run.json.
    """

    photos: Annotated[
        tyro.conf.Positional[tuple[Path, ...]],
        tyro.conf.arg(metavar="PHOTO [PHOTO ...]", help_behavior_hint="(required)"),
    ]
    """Photos: JPEG, PNG, TIFF, WebP and others, of any size and orientation."""
    output: OutputFolder
    """Folder to write."""
    num_samples: Annotated[int, tyro.conf.arg(aliases=["-n"], metavar="N")] = 4
    """Scenes to draw from each photo."""
    steps: Annotated[int | None, MODELS_OWN] = None
    """Denoising steps of each target view; more are slower and a little sharper."""
    guidance_scale: Annotated[float | None, MODELS_OWN] = None
    """1 samples the model's own distribution; above 1 the photo counts for more, samples differ less."""
    scheduler: Annotated[Literal["ddim", "ddpm", "dpmsolver++"] | None, MODELS_OWN] = None
    """Full-size models only, as the next two: dpmsolver++ needs 10 to 20 --steps instead of 50."""
    fine_samples: Annotated[int | None, MODELS_OWN] = None
    """Samples of the second pass on each ray; fewer are faster and less exact."""
    skip_empty: Annotated[float, tyro.conf.arg(metavar="SHARE")] = 0.0
    """Leave out samples of the second pass where the first found less than this share of a ray, for example
    0.001: faster and less exact. 0 leaves out none."""
    seed: int = 0
    """Of the first sample; the others take the numbers after it."""
    fov: Annotated[
        float | None, tyro.conf.arg(metavar="DEGREES", help_behavior_hint="(default: EXIF's)")
    ] = None
    """Horizontal field of view of the whole upright photo, degrees. Without it and without EXIF data, it is
    65 degrees across the longer side, as most phones have."""
    checkpoint: str = "rooms"
    """Name of a bundled model, or a folder with a trained one."""
    device: Device = "auto"
    """Where to compute; auto takes a CUDA GPU if there is one."""
    size: Annotated[int, tyro.conf.arg(metavar="PIXELS")] = 256
    """Shorter side of the video's frames and of the depth map; an even number."""
    frames: int = 48
    """Number of the video's frames."""
    path: CameraPath = "sway"
    """The video's camera: past all sampled views, in a circle, a spiral, ahead and back, left and right."""
    overwrite: bool = False
    """Replace a folder that an earlier run has written."""

    def run(self) -> None:
        """Checks everything, then samples and writes one photo after the other."""
        self._check_numbers()
        with output_folder(self.output, overwrite=self.overwrite, is_ours=is_run_folder) as folder:
            timings = Timings()
            with timings.stage("photos"):
                photos = self._load_photos()
            with timings.stage("model"), user_errors():
                from scenediff.pipeline import load_scenes

                pipeline = load_scenes(self.checkpoint, device=resolve_device(self.device))
            shortcuts = self._shortcuts(pipeline)
            names = distinct_names([photo.path for photo in photos])
            for name, photo in zip(names, photos, strict=True):
                target = folder if len(photos) == 1 else folder / name
                target.mkdir(exist_ok=True)
                self._one_photo(pipeline, photo, target, Timings(timings.seconds), shortcuts)
        say(f"wrote {self.output}")

    def _check_numbers(self) -> None:
        if not self.photos:
            raise UserError("no photo given: scenediff sample PHOTO -o FOLDER")
        check_at_least("--num-samples", self.num_samples, 1)
        check_steps(self.steps)
        check_at_least("--guidance-scale", self.guidance_scale, 0)
        check_at_least("--fine-samples", self.fine_samples, 1)
        if not 0 <= self.skip_empty < 1:
            raise UserError(f"--skip-empty must be at least 0 and less than 1, got {self.skip_empty:g}")
        check_at_least("--seed", self.seed, 0)
        check_at_least("--frames", self.frames, 2)
        check_even("--size", self.size, 32)

    def _load_photos(self) -> list[Photo]:
        with user_errors():
            from scenediff.datasets.images import load_photo

            photos = [load_photo(path, fov_degrees=self.fov) for path in self.photos]
        for photo in photos:
            for notice in (*photo.notices, describe_fov(photo)):
                say(f"{photo.path}: {notice}")
        return photos

    def _shortcuts(self, pipeline: Any) -> dict[str, Any]:
        """Further arguments of the pipeline; only those of the full-size model have any."""
        if self.scheduler is None and self.fine_samples is None and not self.skip_empty:
            return {}
        from scenediff.dit_pipeline import DitPipeline, Shortcuts

        if not isinstance(pipeline, DitPipeline):
            raise UserError(
                "--scheduler, --fine-samples and --skip-empty are for full-size models,"
                f" which --checkpoint {self.checkpoint} is not"
            )
        most = pipeline.renderer.config.fine
        if self.fine_samples is not None and self.fine_samples > most:
            raise UserError(f"--fine-samples must be at most the model's {most}, got {self.fine_samples}")
        return {"shortcuts": Shortcuts(self.scheduler, self.fine_samples, self.skip_empty)}

    def _one_photo(
        self, pipeline: ScenePipeline | DitPipeline, photo: Photo, folder: Path, timings: Timings,
        shortcuts: dict[str, Any],
    ) -> None:
        with timings.stage("sampling"), progress_bar("sampling") as progress:
            scenes = pipeline(
                photo, num_samples=self.num_samples, steps=self.steps, guidance_scale=self.guidance_scale,
                seed=self.seed, progress=progress, **shortcuts,
            )  # fmt: skip
        with timings.stage("writing"):
            outputs = self._write_scenes(scenes, folder, pipeline.device)
        for output in outputs:  # of all cores together
            timings.add({f"of it {name}": seconds for name, seconds in output.seconds.items()})
        with timings.stage("report"):
            write_report(scenes, [output.baked for output in outputs], folder)
        for output in outputs:
            output.baked.close()
        record = self._record(photo, scenes, outputs, str(pipeline.device))
        text = json.dumps(record | {"timings_seconds": timings.rounded()}, indent=2)
        (folder / RUN_FILE).write_text(text + "\n")

    def _write_scenes(self, scenes: list[Scene], folder: Path, device: Any) -> list[SceneOutputs]:
        from scenediff.cores import on_cores
        from scenediff.tools.outputs import OutputOptions, write_scene_outputs

        options = OutputOptions(short_side=self.size, frames=self.frames, path=self.path)
        with progress_bar("writing") as progress:
            written = itertools.count(1)

            def write(index: int) -> SceneOutputs:
                stage, place = partial(progress, 0, len(scenes)), folder / sample_name(index)
                output = write_scene_outputs(scenes[index], place, options=options, progress=stage)
                progress(next(written), len(scenes))
                return output

            return on_cores(write, range(len(scenes)), device)

    def _record(
        self, photo: Photo, scenes: list[Scene], outputs: list[SceneOutputs], device: str
    ) -> dict[str, Any]:
        """How the run was made; nothing here changes when the same command runs again."""
        samples = [
            {
                "folder": sample_name(index),
                **scene.metadata,
                "files": {name: path.name for name, path in output.files.items()},
                "frames_drawn_from": "baked scene",
                "baked_psnr_db": round(output.baked_psnr, 2) if output.baked_psnr is not None else None,
            }
            for index, (scene, output) in enumerate(zip(scenes, outputs, strict=True))
        ]
        return {
            "photo": describe_photo(photo),
            "checkpoint": self.checkpoint,
            "device": device,
            "seed": self.seed,
            "samples": samples,
            "versions": versions(),
        }


def write_report(scenes: Sequence[Scene], baked: Sequence[BakedScene], folder: Path) -> None:
    """The contact sheet and, for two samples or more, where they disagree."""
    from scenediff.cores import on_cores
    from scenediff.renderers.baked import scaled_size
    from scenediff.tools.report import contact_sheet, sample_row, uncertainty_panels

    first, size = scenes[0], scaled_size(scenes[0].photo_size, PANEL_SIZE)
    rows = on_cores(lambda n: sample_row(scenes[n], baked[n], size, f"sample {n}"), range(len(scenes)))
    disagreement = uncertainty_panels(first, baked, size)
    contact_sheet(first.photo.cpu(), rows, disagreement).save(folder / "contact_sheet.png")
    if disagreement:
        contact_sheet(first.photo.cpu(), [disagreement]).save(folder / "uncertainty.png")


def sample_name(index: int) -> str:
    """Name of a sample's folder."""
    return f"sample_{index:02d}"


def is_run_folder(folder: Path) -> bool:
    """Whether a folder holds what this command writes, for one photo or several, and nothing else."""
    entries = [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
    if (folder / RUN_FILE).is_file():
        return all(PHOTO_FILES.fullmatch(entry.name) for entry in entries)
    return all(entry.is_dir() and (entry / RUN_FILE).is_file() and is_run_folder(entry) for entry in entries)


def distinct_names(paths: list[Path | None]) -> list[str]:
    """The stems of files; those that repeat get a number."""
    names: list[str] = []
    for path in paths:
        stem = path.stem if path else "photo"
        name, number = stem, 2
        while name in names:
            name, number = f"{stem}_{number}", number + 1
        names.append(name)
    return names
