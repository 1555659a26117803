"""A run of `scenediff sample` with the untrained tiny model, for tests of what comes after it."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

from tiny_pipeline import random_photo, tiny_pipeline

from scenediff.cli import main


def write_tiny_run(folder: Path, samples: int = 2) -> Path:
    """Writes a run of a 96x72 photo into a folder; returns it."""
    photo = folder.with_name("photo.png")
    random_photo().save(photo)
    options = ["-n", str(samples), "--size", "48", "--frames", "4", "--device", "cpu"]
    with mock.patch("scenediff.pipeline.load", return_value=tiny_pipeline()):
        assert main(["sample", str(photo), "-o", str(folder), *options]) == 0
    return folder
