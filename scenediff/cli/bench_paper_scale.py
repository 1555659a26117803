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

    sizes: Annotated[tuple[int, ...], tyro.conf.arg(metavar="PIXELS ...")] = (64, 128)
    """Sides of the images; multiples of 4."""
    steps: int = 50
    """Denoising steps of a sample."""
    train_batch: int = 8
    """Pairs in a training step at 128 pixels, at other sizes as many pixels; 0 to measure none."""
    repeats: int = 3
    """Of every measurement."""
    precision: Literal["bfloat16", "float32"] = "bfloat16"
    """Of matrix products."""
    reference_steps: int = 5
    """Denoising steps of the samples that are compared with float32; 0 to compare none."""
    graphs: bool = False
    """Record the training step as a CUDA graph; takes twice the memory while recording."""
    kernels: bool = True
    """Compute the field with the hand-written GPU kernels; without, in plain PyTorch."""
    inexact: bool = False
    """Also measure shortcuts that change the result, and by how much: fewer fine samples, skipping empty
    space, fewer steps; in random fields of which a tenth is not empty."""
    device: Device = "auto"
    """Where to compute; auto takes a CUDA GPU if there is one."""

    def run(self) -> None:
        """Checks everything, then measures."""
        for size in self.sizes:
            check_at_least("--sizes", size, 4)
            if size % 4:
                raise UserError(f"--sizes must be multiples of 4, got {size}")
        check_at_least("--steps", self.steps, 1)
        check_at_least("--train-batch", self.train_batch, 0)
        check_at_least("--repeats", self.repeats, 1)
        check_at_least("--reference-steps", self.reference_steps, 0)
        from scenediff.tools.bench_paper_scale import BenchOptions, bench_paper_scale

        options = BenchOptions(
            sizes=self.sizes, steps=self.steps, train_batch=self.train_batch, repeats=self.repeats,
            half=self.precision == "bfloat16", reference_steps=self.reference_steps, kernels=self.kernels,
            graphs=self.graphs, inexact=self.inexact,
        )  # fmt: skip
        say_json(bench_paper_scale(options, resolve_device(self.device)))
