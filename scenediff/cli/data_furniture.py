"""`scenediff data furniture`: pictures of single pieces of furniture, for generators."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from scenediff.cli.errors import user_errors
from scenediff.cli.folders import output_file
from scenediff.cli.options import check_at_least, say


@dataclass(frozen=True)
class DataFurniture:
    """Renders seats of all kinds before plain walls, as a zip of PNG files."""

    output: Annotated[Path, tyro.conf.arg(aliases=["-o"], metavar="FILE.zip")]
    """File to write."""
    images: int = 30_000
    """Number of pictures, eight of each piece as it is coloured and lit once."""
    size: Annotated[int, tyro.conf.arg(metavar="PIXELS")] = 64
    """Side of the pictures."""
    split: Literal["train", "heldout"] = "train"
    """Which furniture to show: that to train on, or that kept for evaluation."""
    workers: int = 2
    """Processes that render; the pictures are the same for any number of them."""
    pack: Annotated[
        Path | None, tyro.conf.arg(metavar="FILE.zip", help_behavior_hint="(default: the bundled one)")
    ] = None
    """Pack of furniture, as `scenediff data assets` builds it."""
    seed: int = 0
    """Picture number i of a seed is always the same."""
    overwrite: bool = False
    """Replace an existing file."""

    def run(self) -> None:
        """Checks everything, then renders."""
        for option in ("images", "workers"):
            check_at_least(f"--{option}", getattr(self, option), 1)
        check_at_least("--size", self.size, 16)
        check_at_least("--seed", self.seed, 0)
        with output_file(self.output, overwrite=self.overwrite) as partial:
            with user_errors():
                from scenediff.datasets.rooms.assets import AssetPack

                AssetPack.load(self.pack)
            from scenediff.datasets.rooms.showroom import Showing, write_furniture

            pack = None if self.pack is None else str(self.pack)
            showing = Showing(self.size, self.seed, self.split, pack_path=pack)
            write_furniture(partial, self.images, showing, self.workers)
        say(f"wrote {self.images} pictures to {self.output}")
