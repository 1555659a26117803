"""`scenediff convert`: a released checkpoint of the full-size model becomes a checkpoint folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from scenediff.cli.errors import user_errors
from scenediff.cli.folders import output_folder
from scenediff.cli.options import OutputFolder, say

FILES = {"config.json", "weights.safetensors"}


@dataclass(frozen=True)
class Convert:
    """Turns a released checkpoint of the full-size model into a folder for `scenediff sample --checkpoint`.

    Every tensor's name and shape is checked first. Code in the checkpoint is never run; a file with any is
    refused.
    """

    checkpoint: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="CHECKPOINT")]
    """A torch archive, or a safetensors file with the same names."""
    output: OutputFolder
    """Folder to write."""
    config: Annotated[
        Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="(default: the published sizes)")
    ] = None
    """JSON with the model's sizes."""
    weights: Literal["ema", "model"] = "ema"
    """Of a torch archive: the averaged weights or the last ones."""
    overwrite: bool = False
    """Replace a folder that an earlier conversion has written."""

    def run(self) -> None:
        """Reads, checks and writes."""
        place = output_folder(self.output, overwrite=self.overwrite, is_ours=is_checkpoint_folder)
        with place as folder, user_errors():
            from scenediff.tools.convert import convert

            convert(self.checkpoint, folder, self.config, self.weights)
        say(f"wrote {self.output}")


def is_checkpoint_folder(folder: Path) -> bool:
    """Whether a folder holds nothing but what this command writes."""
    return all(entry.name in FILES for entry in folder.iterdir() if not entry.name.startswith("."))
