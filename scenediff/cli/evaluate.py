"""`scenediff eval`: the figures of a model; the last line on stdout is all of them as JSON."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from scenediff.cli.errors import UserError, user_errors
from scenediff.cli.folders import output_folder
from scenediff.cli.options import (
    MODELS_OWN,
    Device,
    EvaluationFolder,
    check_at_least,
    check_steps,
    resolve_device,
    say_json,
)

FIGURES_FILE = "metrics.json"


@dataclass(frozen=True)
class Evaluation:
    """What all evaluations have in common."""

    checkpoint: str = "rooms"
    """Name of a bundled model, or a folder with a trained one."""
    samples: int = 8
    """Scenes sampled from each photo, 2 or more."""
    steps: int = 25
    """Denoising steps."""
    guidance_scale: Annotated[float | None, MODELS_OWN] = None
    """1 samples the model's own distribution; above 1 the photo counts for more."""
    size: Annotated[int, tyro.conf.arg(metavar="PIXELS")] = 64
    """Side of the compared images."""
    seed: int = 0
    """Of everything random."""
    device: Device = "auto"
    """Where to compute; auto takes a CUDA GPU if there is one."""
    output: EvaluationFolder = None
    """Folder for the figures and for pictures of what was compared."""
    overwrite: bool = False
    """Replace a folder that an earlier evaluation has written."""

    @contextmanager
    def prepared(self) -> Iterator[tuple[Any, dict[str, Any]]]:
        """The model and the arguments that every evaluation takes, after all checks."""
        check_at_least("--samples", self.samples, 2)
        check_steps(self.steps)
        check_at_least("--size", self.size, 32)
        check_at_least("--seed", self.seed, 0)
        with evaluation_folder(self.output, overwrite=self.overwrite) as folder:
            with user_errors():
                from scenediff.pipeline import load_scenes

                pipeline = load_scenes(self.checkpoint, device=resolve_device(self.device))
            yield pipeline, {
                "size": self.size, "steps": self.steps, "samples": self.samples, "seed": self.seed,
                "guidance_scale": self.guidance_scale, "output": folder,
            }  # fmt: skip


@dataclass(frozen=True)
class EvalRooms(Evaluation):
    """Measures a model on rendered rooms whose furniture and textures it was not trained on."""

    rooms: int = 96
    """Number of rooms."""

    def run(self) -> None:
        """Checks everything, then samples and measures."""
        check_at_least("--rooms", self.rooms, 2)
        with self.prepared() as (pipeline, options):
            from scenediff.tools.evaluate import evaluate_rooms

            figures = evaluate_rooms(pipeline, rooms=self.rooms, **options)
        say_json(figures)


@dataclass(frozen=True)
class EvalCapture(Evaluation):
    """Measures a model on pairs of posed photographs of a real place, with depth.

    The capture is a folder in nerfstudio's format: transforms.json with depth images, and pairs.json, which
    names the photos to sample from and those to compare with.
    """

    capture: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="CAPTURE")] = tyro.MISSING
    """Folder with transforms.json and pairs.json."""

    def run(self) -> None:
        """Checks everything, then samples and measures."""
        with user_errors():
            from scenediff.datasets.captures import load_capture

            load_capture(self.capture)
        with self.prepared() as (pipeline, options):
            from scenediff.datasets.captures import CaptureError
            from scenediff.tools.evaluate import evaluate_capture

            try:
                figures = evaluate_capture(pipeline, self.capture, **options)
            except CaptureError as error:
                raise UserError(str(error)) from error
        say_json(figures)


@dataclass(frozen=True)
class EvalStereo(Evaluation):
    """Measures a model on a real stereo pair with measured disparity, scikit-image's motorcycle in a garage.

    Scenes sampled from the left photo are seen from where the right one was taken, beside the left photo
    moved by the true median disparity, and their depths are compared with the measured ones.
    """

    samples: int = 4
    """Scenes sampled from the photo, 2 or more."""
    steps: int = 8
    """Denoising steps."""

    def run(self) -> None:
        """Checks everything, then samples and measures."""
        from scenediff.datasets.stereo import motorcycle

        try:
            pair = motorcycle()
        except ImportError as error:
            raise UserError("eval stereo needs scikit-image: pip install scikit-image") from error
        with self.prepared() as (pipeline, options):
            from scenediff.tools.evaluate_stereo import evaluate_stereo

            figures = evaluate_stereo(pipeline, pair, **options)
        say_json(figures)


@contextmanager
def evaluation_folder(output: Path | None, *, overwrite: bool) -> Iterator[Path | None]:
    """Where an evaluation writes to, see `output_folder`; None if nothing is wanted."""
    if output is None:
        yield None
    else:
        with output_folder(output, overwrite=overwrite, is_ours=is_evaluation_folder) as folder:
            yield folder


def is_evaluation_folder(folder: Path) -> bool:
    """Whether a folder holds nothing but what an evaluation writes."""
    names = {entry.name for entry in folder.iterdir() if not entry.name.startswith(".")}
    return FIGURES_FILE in names and all(name.startswith("pictures_") for name in names - {FIGURES_FILE})
