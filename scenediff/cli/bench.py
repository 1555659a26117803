"""`scenediff bench`: how fast the parts are; the last line on stdout is all figures as JSON."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Annotated, Literal

import tyro

from scenediff.cli.errors import UserError
from scenediff.cli.options import Device, check_at_least, resolve_device, say_json


@dataclass(frozen=True)
class BenchRasterizer:
    """Measures how many views of rooms are rendered each second by several processes."""

    workers: int = field(default_factory=lambda: os.cpu_count() or 1)
    """Processes that render; by default as many as there are processors."""
    seconds: float = 20.0
    """How long to measure, after some rooms to warm up."""
    size: Annotated[int, tyro.conf.arg(metavar="PIXELS")] = 128
    """Side of the views."""
    seed: int = 0
    """Of the rooms."""
    profile: Annotated[int, tyro.conf.arg(metavar="ROOMS")] = 0
    """Rooms to time stage by stage afterwards, in one process; 0 for none."""

    def run(self) -> None:
        """Checks everything, then measures."""
        check_at_least("--workers", self.workers, 1)
        check_at_least("--seconds", self.seconds, 0.1)
        check_at_least("--size", self.size, 8)
        check_at_least("--seed", self.seed, 0)
        check_at_least("--profile", self.profile, 0)
        from scenediff.tools.bench import bench_rasterizer, profile_rasterizer

        try:
            figures = bench_rasterizer(self.workers, self.seconds, self.size, self.seed)
            if self.profile:
                figures["stages"] = profile_rasterizer(self.profile, self.size, self.seed)["stages"]
        except RuntimeError as error:  # no OpenGL, in this process or in a worker
            raise UserError(str(error)) from error
        say_json(figures)


@dataclass(frozen=True)
class BenchTraining:
    """Measures how many pairs of views the bundled model's architecture trains on each second."""

    batch_size: int = 64
    """Pairs in a step."""
    steps: int = 100
    """Steps to take; the first tenth does not count."""
    mixed_precision: Literal["bf16", "no"] = "bf16"
    """Number format of the network's inner work."""
    device: Device = "auto"
    """Where to train."""

    def run(self) -> None:
        """Checks everything, then measures."""
        check_at_least("--batch-size", self.batch_size, 1)
        check_at_least("--steps", self.steps, 30)
        from scenediff.tools.bench_training import bench_training

        device = resolve_device(self.device)
        say_json(
            bench_training(device, self.batch_size, self.steps, mixed_precision=self.mixed_precision)
        )
