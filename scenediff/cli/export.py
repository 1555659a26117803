"""`scenediff export`: a sampled scene as mesh, points and depth."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from scenediff.cli.errors import user_errors
from scenediff.cli.folders import output_folder
from scenediff.cli.options import Device, OutputFolder, check_at_least, check_even, resolve_device, say
from scenediff.cli.record import progress_bar

if TYPE_CHECKING:
    from scenediff.scene import Scene

Format = Literal["mesh", "points", "depth"]
FILES: dict[Format, str] = {"mesh": "mesh.glb", "points": "points.ply", "depth": "depth.png"}


@dataclass(frozen=True)
class Export:
    """Writes a sampled scene as a textured mesh, coloured points and the photo's depth."""

    scene: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="SCENE")]
    """A scene.safetensors that `scenediff sample` has written."""
    output: OutputFolder
    """Folder to write."""
    formats: tuple[Format, ...] = ("mesh", "points", "depth")
    """What to write."""
    size: Annotated[int, tyro.conf.arg(metavar="PIXELS")] = 256
    """Shorter side of the views that mesh and points are made of, and of the depth map; even."""
    device: Device = "auto"
    """Where to compute; auto takes a CUDA GPU if there is one."""
    overwrite: bool = False
    """Replace a folder that an earlier export has written."""

    def run(self) -> None:
        """Checks everything, then writes."""
        check_at_least("number of --formats", len(self.formats), 1)
        check_even("--size", self.size, 32)
        with output_folder(self.output, overwrite=self.overwrite, is_ours=is_export_folder) as folder:
            with user_errors():
                from scenediff.scene import Scene

                scene = Scene.load(self.scene, device=resolve_device(self.device))
            self._write(scene, folder)
        say(f"wrote {self.output}")

    def _write(self, scene: Scene, folder: Path) -> None:
        from scenediff.tools.outputs import OutputOptions, write_scene_outputs

        options = OutputOptions(short_side=self.size, measure=False)
        with progress_bar("exporting") as progress:
            output = write_scene_outputs(
                scene, folder, outputs=self.formats, options=options, progress=partial(progress, 0, 1)
            )
        output.baked.close()


def is_export_folder(folder: Path) -> bool:
    """Whether a folder holds nothing but what this command writes."""
    return all(entry.name in FILES.values() for entry in folder.iterdir() if not entry.name.startswith("."))
