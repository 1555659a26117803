"""`scenediff train`: models from the streams of data that they learn from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from scenediff.cli.errors import UserError, user_errors
from scenediff.cli.folders import check_interrupted
from scenediff.cli.options import OutputFolder, check_at_least, say, say_json

if TYPE_CHECKING:
    from scenediff.tools.train_rooms import RoomsRun


@dataclass(frozen=True)
class TrainRooms:
    """Trains the model of rooms on rooms that are rendered meanwhile.

    The folder gets the model (checkpoint/, for --checkpoint of the other commands), grids of samples, the log
    (log.jsonl and TensorBoard events) and the state to go on from. It trains on a CUDA GPU if there is one,
    and on several when started by `accelerate launch -m scenediff`.
    """

    output: OutputFolder
    """Folder of the run."""
    minutes: float = 20.0
    """Length of the schedule; 0 for --enlarging-minutes alone."""
    max_steps: int = 0
    """Stop after so many steps, if that is earlier; 0 for no limit."""
    batch_size: int = 128
    """Scenes in a step."""
    learning_rate: float = 6e-4
    """Peak of the schedule."""
    muon: bool = False
    """Train the U-Net's matrices with Muon, which learns faster from scratch; all else with AdamW."""
    mixed_precision: Literal["bf16", "no"] = "bf16"
    """Number format of the network's inner work."""
    workers: int = 2
    """Processes that render rooms."""
    pool: int = 4096
    """Groups of views that are kept to draw batches from."""
    pool_warmup: int = 512
    """Groups of views to wait for before the first step."""
    render_seconds: float = 0.0
    """Render rooms only for so long, then train on them alone; 0 renders all the while."""
    reading_minutes: float = 0.0
    """First learn only the depth of single photos, for so long."""
    enlarging_minutes: float = 0.0
    """Last learn only to enlarge sampled views, to twice their resolution, for so long."""
    photos: int = 0
    """Photos whose depth alone is learned, for each scene of a step."""
    coarse_photos: float = 0.4
    """Share of photos that are given with as few pixels as the views that are sampled."""
    cropped_photos: float = 0.25
    """Share of the photos of --photos that show a part of the view alone, as through a longer lens."""
    cropped_contexts: float = 0.0
    """Share of the scenes whose photo does."""
    perceptual: float = 0.0
    """Weight of ImageNet features of the denoised view, which make samples look less washed out."""
    transformers: int = 0
    """Transformer blocks at the coarsest level; a model to start from gets what it has less of them."""
    size: int = 128
    """Side of the rendered views, pixels."""
    depth_supervision: bool = True
    """Also learn from the rooms' true depths; without, from images alone."""
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

            from scenediff.pipeline import load
            from scenediff.tools.train_rooms import CHECKPOINT_FOLDER, train_rooms

            if self.checkpoint is not None:  # complain while there is no folder yet
                load(self.checkpoint)
            self.output.mkdir(parents=True, exist_ok=True)
        process = PartialState(cpu=not torch.cuda.is_available())
        figures = train_rooms(self._settings(process.process_index), process.device)
        if process.is_main_process:
            say(f"wrote {self.output / CHECKPOINT_FOLDER}")
            say_json(figures)
        process.destroy_process_group()

    def _check(self) -> None:
        check_at_least("--minutes", self.minutes, 0 if self.enlarging_minutes else 0.01)
        for option in ("render_seconds", "reading_minutes", "enlarging_minutes", "perceptual"):
            check_at_least(f"--{option.replace('_', '-')}", getattr(self, option), 0)
        for option in ("max_steps", "photos", "transformers", "seed"):
            check_at_least(f"--{option.replace('_', '-')}", getattr(self, option), 0)
        for option in ("batch_size", "workers", "pool", "pool_warmup"):
            check_at_least(f"--{option.replace('_', '-')}", getattr(self, option), 1)
        for option in ("coarse_photos", "cropped_photos", "cropped_contexts"):
            value = getattr(self, option)
            if not 0 <= value <= 1:
                raise UserError(f"--{option.replace('_', '-')} must lie in [0, 1], got {value}")
        if (self.photos or self.reading_minutes) and not self.depth_supervision:
            raise UserError("--photos and --reading-minutes learn depths: leave out --no-depth-supervision")
        if self.enlarging_minutes and self.size % 128:
            raise UserError(f"--size must be a multiple of 128 for --enlarging-minutes, got {self.size}")
        if self.size % 64 or self.size <= 0:
            raise UserError(f"--size must be a multiple of the model's 64 pixels, got {self.size}")
        if self.resume:
            check_interrupted(self.output)
        if not self.resume and self.output.is_dir() and any(self.output.iterdir()):
            raise UserError(f"{self.output} is not empty: name another folder or add --resume")

    def _settings(self, process_index: int) -> RoomsRun:
        from scenediff.datasets.rooms.pool import DrawConfig
        from scenediff.networks.pixel_denoiser import DenoiserConfig
        from scenediff.tools.train_rooms import RoomsRun
        from scenediff.training import TrainConfig

        return RoomsRun(
            self.output, init=self.checkpoint, resume=self.resume, workers=self.workers,
            pool_groups=self.pool, pool_warmup=self.pool_warmup, render_seconds=self.render_seconds,
            reading_minutes=self.reading_minutes, view_size=self.size,
            enlarging_minutes=self.enlarging_minutes,
            depth_supervision=self.depth_supervision, muon=self.muon, perceptual=self.perceptual,
            draw=DrawConfig(
                photos=self.photos, coarse_photos=self.coarse_photos,
                cropped_photos=self.cropped_photos, cropped_contexts=self.cropped_contexts,
            ),
            denoiser=DenoiserConfig(
                transformers=self.transformers, tells_doubt=self.photos > 0 or self.reading_minutes > 0
            ),
            data_seed=self.seed + 1_000_003 * process_index,  # every process sees rooms of its own
            train=TrainConfig(
                minutes=self.minutes, max_steps=self.max_steps, batch_size=self.batch_size, seed=self.seed,
                learning_rate=self.learning_rate, mixed_precision=self.mixed_precision,
            ),
        )  # fmt: skip
