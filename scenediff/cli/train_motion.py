"""`scenediff train motion`, and the evaluations of motion models."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from scenediff.cli.errors import UserError, user_errors
from scenediff.cli.evaluate import evaluation_folder
from scenediff.cli.folders import check_run_folder
from scenediff.cli.options import (
    MODELS_OWN,
    Device,
    EvaluationFolder,
    OutputFolder,
    check_at_least,
    check_steps,
    resolve_device,
    say,
    say_json,
)

if TYPE_CHECKING:
    from scenediff.tools.train_motion import MotionRun


@dataclass(frozen=True)
class TrainMotion:
    """Trains the model of motion on pairs of frames, of synthetic sprites and of videos, never on motion.

    The folder gets the model (checkpoint/, for --checkpoint of `motion` and its evaluations), grids of
    samples, the log (log.jsonl and TensorBoard events) and the state to go on from. Of every clip the first
    80 % of its time are learned from; of eight clips or more, some are held out as a whole.
    """

    output: OutputFolder
    """Folder of the run."""
    videos: Annotated[
        Path | None, tyro.conf.arg(metavar="CLIP|FOLDER|FILE.npz", help_behavior_hint="(default: none)")
    ] = None
    """Clips to learn from, or what `scenediff data video` wrote; otherwise sprites alone."""
    sprite_share: float = 0.5
    """Share of sprites in a batch, where there are videos."""
    minutes: float = 10.0
    """Length of the whole schedule."""
    max_steps: int = 0
    """Stop after so many steps, if that is earlier; 0 for no limit."""
    batch_size: int = 128
    """Pairs in a step."""
    learning_rate: float = 1e-3
    """Peak of the schedule."""
    mixed_precision: Literal["bf16", "no"] = "bf16"
    """Number format of the network's inner work."""
    gaps: tuple[int, ...] = (2, 3)
    """Frames from a context to its target, each as probable."""
    rest: float = 0.005
    """Weight of the preference for rest where the images tell no motion."""
    checkpoint: str | None = None
    """Model to start from: a bundled one's name or a folder."""
    resume: bool = False
    """Go on with the interrupted run in the folder."""
    seed: int = 0
    """Of everything random."""

    def run(self) -> None:
        """Checks everything, then trains; ends with a line of JSON about the run."""
        self._check()
        with user_errors():
            import torch
            from accelerate import PartialState

            from scenediff.motion_pipeline import load_motion
            from scenediff.tools.train_motion import CHECKPOINT_FOLDER, batch_source, train_motion

            if self.checkpoint is not None:
                load_motion(self.checkpoint)  # complains while there is no folder yet
            run = self._settings()
            process = PartialState(cpu=not torch.cuda.is_available())
            source = batch_source(run, process.device)
            self.output.mkdir(parents=True, exist_ok=True)
        figures = train_motion(run, source, process.device)
        if process.is_main_process:
            say(f"wrote {self.output / CHECKPOINT_FOLDER}")
            say_json(figures)

    def _check(self) -> None:
        check_at_least("--minutes", self.minutes, 0.001)
        check_at_least("--batch-size", self.batch_size, 1)
        for option in ("max_steps", "seed", "rest", "sprite_share"):
            check_at_least(f"--{option.replace('_', '-')}", getattr(self, option), 0)
        if self.sprite_share > 1:
            raise UserError(f"--sprite-share must be at most 1, got {self.sprite_share:g}")
        if not self.gaps or min(self.gaps) < 1:
            raise UserError(f"--gaps must be one or more whole numbers from 1 on, got {self.gaps}")
        check_run_folder(self.output, resume=self.resume)

    def _settings(self) -> MotionRun:
        from scenediff.datasets.video import PairConfig
        from scenediff.tools.train_motion import MotionRun
        from scenediff.training import TrainConfig

        return MotionRun(
            self.output, self.videos, self.sprite_share, init=self.checkpoint, resume=self.resume,
            rest=self.rest, pairs=PairConfig(gaps=self.gaps),
            train=TrainConfig(
                minutes=self.minutes, max_steps=self.max_steps, batch_size=self.batch_size, seed=self.seed,
                learning_rate=self.learning_rate, mixed_precision=self.mixed_precision, context_dropout=0.0,
            ),
        )  # fmt: skip


@dataclass(frozen=True)
class MotionEvaluation:
    """What the evaluations of motion have in common."""

    checkpoint: str = "motion"
    """Name of a bundled model, or a folder with a trained one."""
    steps: Annotated[int | None, MODELS_OWN] = None
    """Denoising steps."""
    size: Annotated[int, tyro.conf.arg(metavar="PIXELS")] = 64
    """Side of the images."""
    seed: int = 0
    """Of the samples; what they are compared with is always the same."""
    device: Device = "auto"
    """Where to compute; auto takes a CUDA GPU if there is one."""
    output: EvaluationFolder = None
    """Folder for the figures and for pictures of what was compared."""
    overwrite: bool = False
    """Replace a folder that an earlier evaluation has written."""

    @contextmanager
    def prepared(self) -> Iterator[tuple[Any, Path | None]]:
        """The model and the folder to write to, after all checks."""
        check_steps(self.steps)
        check_at_least("--seed", self.seed, 0)
        with user_errors():
            from scenediff.motion_pipeline import load_motion

            pipeline = load_motion(self.checkpoint, resolve_device(self.device))
        with evaluation_folder(self.output, overwrite=self.overwrite) as folder:
            yield pipeline, folder


@dataclass(frozen=True)
class EvalMotionPosterior(MotionEvaluation):
    """Measures samples against a posterior that is known: sprites that jump, by chances that their hue tells.

    The last line is JSON: for 4 and 8 directions (k4, k8) the total variation between sampled and true
    frequencies, the end-point error to the nearest mode and the modes found, and under baseline the same for
    the deterministic branch. Sprites and backgrounds are none that training has seen.
    """

    samples: int = 1000
    """Images sampled for each number of directions; each has four sprites at 64 pixels."""
    frames: int = 20
    """Distinct first frames among them, each sampled equally often."""

    def run(self) -> None:
        """Checks everything, then samples and measures."""
        check_at_least("--samples", self.samples, 1)
        check_at_least("--frames", self.frames, 1)
        if self.size % 32 or self.size <= 0:
            raise UserError(f"--size must be a multiple of 32 pixels, got {self.size}")
        with self.prepared() as (pipeline, folder):
            from scenediff.tools.evaluate_motion import PosteriorTrials, evaluate_posterior

            trials = PosteriorTrials(self.samples, self.frames, self.size, self.steps, self.seed)
            figures = evaluate_posterior(pipeline, trials, folder)
        say_json(figures)


@dataclass(frozen=True)
class EvalMotionVideo(MotionEvaluation):
    """Measures samples on the held-out part of videos: the last 20 % of their time.

    The last line is JSON: how far contexts warped along sampled flows are from their targets on moving
    pixels, beside the identity and the deterministic branch, and how still pixels stay that do not move.
    """

    videos: Annotated[
        tyro.conf.Positional[Path], tyro.conf.arg(metavar="CLIP|FOLDER|FILE.npz")
    ] = tyro.MISSING
    """Clips, or what `scenediff data video` wrote."""
    samples: int = 8
    """Motions sampled from each context."""
    pairs: int = 96
    """Pairs of images, cut around places where something moves."""

    def run(self) -> None:
        """Checks everything, then samples and measures."""
        check_at_least("--samples", self.samples, 1)
        check_at_least("--pairs", self.pairs, 1)
        if self.size % 8 or not 32 <= self.size <= 128:
            raise UserError(f"--size must be a multiple of 8 pixels from 32 to 128, got {self.size}")
        with user_errors():
            from scenediff.tools.evaluate_motion import VideoTrials, evaluate_video, held_out_pairs

            trials = VideoTrials(self.samples, self.pairs, self.size, steps=self.steps, seed=self.seed)
            context, target = held_out_pairs(self.videos, trials)
        with self.prepared() as (pipeline, folder):
            figures = evaluate_video(pipeline, context, target, trials, folder)
        say_json(figures)
