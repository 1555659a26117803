"""`scenediff train generator` and `scenediff train inversion`: a StyleGAN2 generator, and what inverts it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from scenediff.cli.errors import UserError, user_errors
from scenediff.cli.folders import check_new_folder, check_run_folder
from scenediff.cli.options import Device, OutputFolder, check_at_least, resolve_device, say, say_json

if TYPE_CHECKING:
    from torch import Tensor

    from scenediff.tools.train_generator import GanConfig

Images = Annotated[Path, tyro.conf.arg(metavar="FOLDER|ZIP")]
Weights = Annotated[Path, tyro.conf.arg(metavar="FILE")]


@dataclass(frozen=True)
class TrainGenerator:
    """Trains a StyleGAN2 generator on a folder or zip of pictures.

    The folder gets generator.pt (the usual PyTorch layout, with all that is needed to go on), grids of
    samples, and the log (log.jsonl). Pictures are cut to their middle square and downscaled; of every name,
    about 15 % are held out, always the same.
    """

    images: Images
    """Pictures to learn from, such as FFHQ as published, or what `scenediff data furniture` writes."""
    output: OutputFolder
    """Folder of the run."""
    size: int = 64
    """Side of the generated images, pixels: a power of two."""
    channels: tuple[int, ...] = (192, 192, 192, 96, 48)
    """Width of each resolution from 4x4 on."""
    style_dim: int = 192
    """Width of the latent codes."""
    minutes: float = 20.0
    """Length of the run."""
    max_steps: int = 0
    """Stop after so many steps, if that is earlier; 0 for no limit."""
    batch_size: int = 64
    """Images in a step, a multiple of 4."""
    learning_rate: float = 0.0025
    """Of both networks."""
    r1_gamma: float = 1.0
    """Weight of the discriminator's gradient penalty."""
    path_weight: float = 2.0
    """Weight of the path length regularization; 0 for none."""
    no_cuda_graphs: bool = False
    """Launch every kernel anew instead of recording the steps."""
    use_all: bool = False
    """Learn from all pictures and hold none out."""
    init: Annotated[
        Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="(default: start afresh)")
    ] = None
    """generator.pt of an earlier run to go on from; its sizes are taken."""
    device: Device = "auto"
    """Where to compute; auto takes a CUDA GPU if there is one."""
    seed: int = 0
    """Of everything random."""

    def run(self) -> None:
        """Checks everything, then trains; ends with a line of JSON about the run."""
        check_at_least("--minutes", self.minutes, 0.001)
        for option in ("max_steps", "seed", "r1_gamma", "path_weight"):
            check_at_least(f"--{option.replace('_', '-')}", getattr(self, option), 0)
        check_new_folder(self.output)
        with user_errors():
            from scenediff.renderers.stylegan2 import GeneratorConfig
            from scenediff.tools.generator_files import load_archive
            from scenediff.tools.train_generator import (
                GENERATOR_FILE,
                GeneratorRun,
                train_generator,
            )

            init = load_archive(self.init) if self.init is not None else None
            run = GeneratorRun(
                self.output, init, self._settings(),
                GeneratorConfig(self.size, self.style_dim, channels=self.channels),
            )  # fmt: skip
            images = read_images(self.images, run.sizes.size, hold_out=not self.use_all)
        figures = train_generator(images, run, resolve_device(self.device))
        say(f"wrote {self.output / GENERATOR_FILE}")
        say_json(figures | {"images": len(images)})

    def _settings(self) -> GanConfig:
        from scenediff.tools.train_generator import GanConfig

        return GanConfig(
            minutes=self.minutes, max_steps=self.max_steps, batch_size=self.batch_size,
            learning_rate=self.learning_rate, r1_gamma=self.r1_gamma, path_weight=self.path_weight,
            cuda_graphs=not self.no_cuda_graphs, seed=self.seed,
        )  # fmt: skip


@dataclass(frozen=True)
class TrainInversion:
    """Trains what inverts a generator: patches in, codes out, compared in images alone.

    The folder gets the model (checkpoint/, for --checkpoint of `invert` and `eval inversion`), grids of
    samples, the log and the state to go on from.
    """

    generator: Weights
    """StyleGAN2 checkpoint in the usual PyTorch layout: generator.pt, or a published one."""
    output: OutputFolder
    """Folder of the run."""
    images: Annotated[
        Path | None, tyro.conf.arg(metavar="FOLDER|ZIP", help_behavior_hint="(default: none)")
    ] = None
    """Real pictures to learn from too; otherwise from the generator's alone."""
    real_share: float = 0.4
    """Of the images in a batch, where there are real ones."""
    minutes: float = 20.0
    """Length of the whole schedule."""
    max_steps: int = 0
    """Stop after so many steps, if that is earlier; 0 for no limit."""
    batch_size: int = 192
    """Images in a step."""
    learning_rate: float = 5e-4
    """Peak of the schedule."""
    use_all: bool = False
    """Learn from all pictures and hold none out."""
    resume: bool = False
    """Go on with the interrupted run in the folder."""
    seed: int = 0
    """Of everything random."""

    def run(self) -> None:
        """Checks everything, then trains; ends with a line of JSON about the run."""
        check_at_least("--minutes", self.minutes, 0.001)
        check_at_least("--batch-size", self.batch_size, 1)
        for option in ("max_steps", "seed", "real_share"):
            check_at_least(f"--{option.replace('_', '-')}", getattr(self, option), 0)
        if self.real_share > 1:
            raise UserError(f"--real-share must be at most 1, got {self.real_share:g}")
        check_run_folder(self.output, resume=self.resume)
        with user_errors():
            import torch
            from accelerate import PartialState

            from scenediff.tools.generator_files import load_generator
            from scenediff.tools.train_inversion import CHECKPOINT_FOLDER, InversionRun, train_inversion
            from scenediff.training import TrainConfig

            generator = load_generator(self.generator)
            images = None
            if self.images is not None:
                images = read_images(self.images, generator.config.size, hold_out=not self.use_all)
        train = TrainConfig(
            minutes=self.minutes, max_steps=self.max_steps, batch_size=self.batch_size, seed=self.seed,
            learning_rate=self.learning_rate, context_dropout=0.05, ema_decay=0.998,
        )  # fmt: skip
        run = InversionRun(self.output, resume=self.resume, real_share=self.real_share, train=train)
        process = PartialState(cpu=not torch.cuda.is_available())
        figures = train_inversion(generator, images, run, process.device)
        if process.is_main_process:
            say(f"wrote {self.output / CHECKPOINT_FOLDER}")
            say_json(figures)


def read_images(source: Path, size: int, *, hold_out: bool) -> Tensor:
    """(N, 3, size, size) uint8 of a folder or zip, with a bar."""
    from tqdm import tqdm

    from scenediff.datasets.patches import find_images, load_images

    files = find_images(source).part("train" if hold_out else "all")
    with tqdm(total=len(files.names), desc="reading", unit="image", disable=None) as bar:
        return load_images(files, size, progress=lambda _: bar.update())
