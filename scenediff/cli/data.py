"""`scenediff data`: the data sets that models learn from and what they are made of."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from scenediff.cli.errors import user_errors
from scenediff.cli.folders import output_file, output_folder
from scenediff.cli.options import OutputFolder, check_at_least, say


@dataclass(frozen=True)
class DataRooms:
    """Renders synthetic rooms to folders of posed images with depth, in nerfstudio's format."""

    output: OutputFolder
    """Folder to write; each room gets a folder in it."""
    rooms: int = 10
    """Number of rooms."""
    size: Annotated[int, tyro.conf.arg(metavar="PIXELS")] = 256
    """Side of the images."""
    groups: int = 4
    """Groups of views of each room; the views of a group overlap."""
    views: int = 4
    """Views in a group."""
    split: Literal["train", "heldout"] = "train"
    """Which furniture and textures to use: those to train on, or those kept for evaluation."""
    image_format: Literal["png", "jpg"] = "png"
    """Format of the images; depth is always PNG, in millimetres."""
    pack: Annotated[
        Path | None, tyro.conf.arg(metavar="FILE.zip", help_behavior_hint="(default: the bundled one)")
    ] = None
    """Pack of furniture and textures, as `scenediff data assets` builds it."""
    seed: int = 0
    """Room number i of a seed is always the same."""
    overwrite: bool = False
    """Replace a folder that an earlier run has written."""

    def run(self) -> None:
        """Checks everything, then renders."""
        for option in ("rooms", "groups", "views"):
            check_at_least(f"--{option}", getattr(self, option), 1)
        check_at_least("--size", self.size, 16)
        check_at_least("--seed", self.seed, 0)
        with output_folder(self.output, overwrite=self.overwrite, is_ours=is_rooms_folder) as folder:
            with user_errors():
                from scenediff.datasets.rooms.assets import AssetPack

                AssetPack.load(self.pack)
            from scenediff.datasets.rooms.write import write_rooms

            write_rooms(
                folder, self.rooms, self.size, self.split, self.seed, groups_per_room=self.groups,
                views=self.views, image_format=self.image_format, pack_path=self.pack,
            )  # fmt: skip
        say(f"wrote {self.rooms} rooms to {self.output}")


@dataclass(frozen=True)
class DataAssets:
    """Builds the pack of furniture, materials and textures that rooms are made of.

    The source is the Debian package sweethome3d-furniture (its file, or the folder it was unpacked to).
    """

    furniture: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="PACKAGE")]
    """sweethome3d-furniture_*.deb, or a folder with its libraries somewhere below."""
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"], metavar="FILE.zip")]
    """Pack to write."""
    overwrite: bool = False
    """Replace an existing file."""

    def run(self) -> None:
        """Checks everything, then builds."""
        with output_file(self.output, overwrite=self.overwrite) as partial, user_errors():
            from scenediff.datasets.rooms.build_assets import build_pack

            build_pack(self.furniture, partial)
        say(f"wrote {self.output}")


def is_rooms_folder(folder: Path) -> bool:
    """Whether a folder holds nothing but rendered rooms."""
    entries = [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
    return all(entry.name.startswith("room_") and (entry / "transforms.json").is_file() for entry in entries)
