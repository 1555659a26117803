"""How fast the model of rooms trains: pairs a second on one device, rooms' rendering left out."""

from __future__ import annotations

import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch

from scenediff.datasets.rooms.pool import GroupPool
from scenediff.datasets.rooms.stream import render_groups
from scenediff.losses import TrainingBatch
from scenediff.networks.pixel_denoiser import DenoiserConfig
from scenediff.renderers.pixel_field import FieldConfig
from scenediff.tools.train_rooms import RoomsRun, starting_point, training_step
from scenediff.tools.trials import peak_memory_gb
from scenediff.training import TrainConfig, train

GROUPS = 20


def bench_training(
    device: torch.device | str,
    batch_size: int = 64,
    steps: int = 100,
    *,
    denoiser: DenoiserConfig | None = None,
    field: FieldConfig | None = None,
    mixed_precision: str = "bf16",
) -> dict[str, Any]:
    """Trains an untrained model for some steps and takes the median speed of tenths of them.

    Args:
        batch_size, steps, mixed_precision: see `TrainConfig`.
        denoiser, field: sizes of the model; those of the bundled one by default.

    Raises:
        ValueError: fewer than 30 steps, of which the first tenth only warms up.
    """
    if steps < 30:
        raise ValueError(f"steps must be at least 30, got {steps}")
    with tempfile.TemporaryDirectory() as folder:
        config = TrainConfig(
            minutes=1e6, max_steps=steps, batch_size=batch_size, log_every=steps // 10,
            mixed_precision=mixed_precision, save_every_minutes=1e6,
        )
        run = RoomsRun(
            Path(folder), train=config, denoiser=denoiser or DenoiserConfig(),
            field_config=field or FieldConfig(),
        )
        pool = GroupPool(GROUPS, device, depth_size=run.draw.size)
        pool.add(render_groups(run.data_seed, GROUPS, run.view_size, "train", groups_per_room=5))

        def next_batch(generator: torch.Generator) -> TrainingBatch:
            return pool.draw(batch_size, run.draw, generator)

        train(training_step(starting_point(run).to(device), run), next_batch, config, run.output)
        lines = [json.loads(line) for line in (run.output / "log.jsonl").read_text().splitlines()]
    device = torch.device(device)
    speeds = [line["elements_per_second"] for line in lines[1:]]
    return {
        "pairs_per_second": statistics.median(speeds), "slowest": min(speeds), "batch_size": batch_size,
        "steps": steps, "device": _device_name(device), "peak_memory_gb": round(peak_memory_gb(device), 1),
    }


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
