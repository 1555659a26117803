"""`scenediff train`: models from the streams of data that they learn from."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from scenediff.cli.errors import UserError, user_errors
from scenediff.cli.options import OutputFolder, check_at_least, say, say_json

if TYPE_CHECKING:
    import torch

    from scenediff.losses import TrainingBatch
    from scenediff.pipeline import ScenePipeline
    from scenediff.training import TrainConfig, TrainingStep

MODEL_FOLDER = "model"


@dataclass(frozen=True)
class TrainRooms:
    """Trains the model of rooms on rooms that are rendered meanwhile.

    The folder gets the model (model/, for --checkpoint of the other commands), the log (log.jsonl and
    TensorBoard events) and the state to go on from. It trains on a CUDA GPU if there is one.
    """

    output: OutputFolder
    """Folder of the run."""
    minutes: float = 20.0
    """Length of the whole schedule."""
    max_steps: int = 0
    """Stop after so many steps, if that is earlier; 0 for no limit."""
    batch_size: int = 128
    """Scenes in a step."""
    learning_rate: float = 6e-4
    """Peak of the schedule."""
    mixed_precision: Literal["bf16", "no"] = "bf16"
    """Number format of the network's inner work."""
    compile: bool = False
    """Compile the network; pays from a few minutes of training."""
    workers: int = 2
    """Processes that render rooms."""
    pool: int = 4096
    """Groups of views that are kept to draw batches from."""
    size: int = 128
    """Side of the rendered views, pixels."""
    depth_supervision: bool = False
    """Also learn from the rooms' true depths."""
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
            pipeline = self._model()
            config = self._config()
            self.output.mkdir(parents=True, exist_ok=True)
        with self._batches() as next_batch:
            from scenediff.training import train

            figures = train(
                self._step(pipeline, config), next_batch, config, self.output, resume=self.resume,
                on_save=lambda step: pipeline.save(self.output / MODEL_FOLDER),
            )  # fmt: skip
        say(f"wrote {self.output / MODEL_FOLDER}")
        say_json(figures)

    def _check(self) -> None:
        check_at_least("--minutes", self.minutes, 0.01)
        for option in ("max_steps", "seed"):
            check_at_least(f"--{option.replace('_', '-')}", getattr(self, option), 0)
        for option in ("batch_size", "workers", "pool"):
            check_at_least(f"--{option.replace('_', '-')}", getattr(self, option), 1)
        if self.size % 64 or self.size <= 0:
            raise UserError(f"--size must be a multiple of the model's 64 pixels, got {self.size}")
        if self.resume and not (self.output / "state").is_dir():
            raise UserError(f"--resume: {self.output} holds no interrupted run")
        if not self.resume and self.output.is_dir() and any(self.output.iterdir()):
            raise UserError(f"{self.output} is not empty: name another folder or add --resume")

    def _model(self) -> ScenePipeline:
        from accelerate import PartialState

        from scenediff.pipeline import ScenePipeline, build_model, load

        device = PartialState().device
        if self.checkpoint is not None:
            pipeline = load(self.checkpoint, device)
        else:
            denoiser, scheduler = build_model()
            denoiser.backbone.load_imagenet()
            pipeline = ScenePipeline(denoiser.to(device), scheduler)
        pipeline.denoiser.train()
        return pipeline

    def _config(self) -> TrainConfig:
        from scenediff.training import TrainConfig

        return TrainConfig(
            minutes=self.minutes, max_steps=self.max_steps, batch_size=self.batch_size, seed=self.seed,
            learning_rate=self.learning_rate, mixed_precision=self.mixed_precision, compile=self.compile,
        )  # fmt: skip

    def _step(self, pipeline: ScenePipeline, config: TrainConfig) -> TrainingStep:
        from scenediff.losses import LossWeights, Regularizer
        from scenediff.networks.regularizers import DepthSupervision, DirectImage
        from scenediff.training import TrainingStep

        if config.compile:
            pipeline.denoiser.compile_parts()
        terms: list[Regularizer] = [DirectImage()]
        if self.depth_supervision:
            terms.append(DepthSupervision())
        return TrainingStep(pipeline.denoiser, pipeline.renderer, pipeline.scheduler, LossWeights(), terms)

    @contextmanager
    def _batches(self) -> Iterator[Callable[[torch.Generator], TrainingBatch]]:
        """Draws from a pool of view groups that a thread keeps filling with freshly rendered rooms."""
        from accelerate import PartialState

        from scenediff.datasets.rooms.pool import DrawConfig, GroupPool
        from scenediff.datasets.rooms.stream import RoomStream

        state = PartialState()
        pool, stop = GroupPool(self.pool, state.device), threading.Event()
        seed = self.seed + 1_000_003 * state.process_index  # every process sees rooms of its own
        with RoomStream(self.workers, size=self.size, seed=seed) as stream:
            rooms = iter(stream)
            while pool.filled < min(self.pool, 4 * self.batch_size):  # enough for the first batches to vary
                pool.add(next(rooms))

            def fill() -> None:
                try:
                    while not stop.is_set():
                        pool.add(next(rooms))
                except RuntimeError:
                    if not stop.wait(1):  # Ctrl-C reaches the workers first: then the run is about to stop
                        raise

            drawing = DrawConfig()
            feeder = threading.Thread(target=fill, name="rooms", daemon=True)
            def next_batch(generator: torch.Generator) -> TrainingBatch:
                if not feeder.is_alive():
                    raise RuntimeError("rooms are no longer rendered: see the error above")
                return pool.draw(self.batch_size, drawing, generator)

            feeder.start()
            try:
                yield next_batch
            finally:
                stop.set()
                feeder.join()
