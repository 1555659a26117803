"""What several commands share: their common options, checks and lines of output."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from scenediff.cli.errors import UserError

Device = Literal["auto", "cpu", "cuda"]
CameraPath = Literal["sway", "orbit", "spiral", "dolly", "wiggle"]
MOST_STEPS = 1000  # the noise levels of every model
MODELS_OWN = tyro.conf.arg(help_behavior_hint="(default: the model's)")
OutputFolder = Annotated[Path, tyro.conf.arg(aliases=["-o"], metavar="FOLDER")]
EvaluationFolder = Annotated[
    Path | None,
    tyro.conf.arg(aliases=["-o"], metavar="FOLDER", help_behavior_hint="(default: write nothing)"),
]


def resolve_device(name: Device) -> str:
    """`cpu` or `cuda`; `auto` takes the GPU where there is one."""
    import torch

    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: no CUDA GPU is usable here, use --device cpu")
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return name


def check_at_least(option: str, value: float | None, lowest: float) -> None:
    """Raises a user error for a number that is too small, infinite or no number; None is fine."""
    if value is not None and not lowest <= value < math.inf:
        raise UserError(f"{option} must be at least {lowest:g}, got {value:g}")


def check_steps(steps: int | None) -> None:
    """Raises a user error for numbers of denoising steps that no model has."""
    check_at_least("--steps", steps, 1)
    if steps is not None and steps > MOST_STEPS:
        raise UserError(f"--steps must be at most {MOST_STEPS}, got {steps}")


def check_even(option: str, value: int, lowest: int) -> None:
    """Raises a user error for a size that video can't have: its colours have half the resolution."""
    check_at_least(option, value, lowest)
    if value % 2:
        raise UserError(f"{option} must be even, got {value}")


def say(text: str) -> None:
    """One line for the user; progress and errors go to stderr instead."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def say_json(values: dict[str, Any]) -> None:
    """One line that a program can read."""
    say(json.dumps(values, sort_keys=True))
