"""`scenediff bench paper-scale`: times of the full-size model; the last line on stdout is JSON."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from scenediff.cli.errors import UserError
from scenediff.cli.options import Device, check_at_least, resolve_device, say_json


@dataclass(frozen=True)
class BenchPaperScale:
    """Measures the full-size model on random weights: one guided step, one sample, one frame, one training
    step. Medians, by CUDA events on a GPU."""

    size: Annotated[int, tyro.conf.arg(metavar="PIXELS")] = 128
    """Side of the images; a multiple of 4."""
    steps: int = 50
    """Denoising steps of a sample."""
    train_batch: int = 1
    """Pairs in a training step; 0 to measure none."""
    repeats: int = 3
    """Of every measurement."""
    precision: Literal["bfloat16", "float32"] = "bfloat16"
    """Of matrix products."""
    device: Device = "auto"
    """Where to compute; auto takes a CUDA GPU if there is one."""

    def run(self) -> None:
        """Checks everything, then measures."""
        check_at_least("--size", self.size, 4)
        check_at_least("--steps", self.steps, 1)
        check_at_least("--train-batch", self.train_batch, 0)
        check_at_least("--repeats", self.repeats, 1)
        if self.size % 4:
            raise UserError(f"--size must be a multiple of 4, got {self.size}")
        from scenediff.tools.bench_paper_scale import BenchOptions, bench_paper_scale

        options = BenchOptions(
            size=self.size, steps=self.steps, train_batch=self.train_batch, repeats=self.repeats,
            half=self.precision == "bfloat16",
        )  # fmt: skip
        say_json(bench_paper_scale(options, resolve_device(self.device)))
