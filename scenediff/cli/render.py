"""`scenediff render`: a film of a sampled scene."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from scenediff.cli.errors import UserError, user_errors
from scenediff.cli.folders import output_file
from scenediff.cli.options import Device, check_at_least, check_even, resolve_device, say
from scenediff.cli.record import progress_bar

if TYPE_CHECKING:
    from scenediff.scene import Scene


@dataclass(frozen=True)
class Render:
    """Films a sampled scene along a camera path."""

    scene: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="SCENE")]
    """A scene.safetensors that `scenediff sample` has written."""
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"], metavar="FILE.mp4")]
    """Video to write."""
    frames: int = 48
    """Number of frames."""
    size: Annotated[int, tyro.conf.arg(metavar="PIXELS")] = 256
    """Shorter side of the frames; an even number."""
    path: Literal["sway", "orbit", "dolly"] = "sway"
    """The camera: past all sampled views, in a circle, or ahead and back."""
    device: Device = "auto"
    """Where to compute; auto takes a CUDA GPU if there is one."""
    overwrite: bool = False
    """Replace an existing file."""

    def run(self) -> None:
        """Checks everything, then draws and writes."""
        check_at_least("--frames", self.frames, 2)
        check_even("--size", self.size, 32)
        if self.output.suffix.lower() != ".mp4":
            raise UserError(f"{self.output} must end in .mp4")
        with output_file(self.output, overwrite=self.overwrite) as file:
            with user_errors():
                from scenediff.scene import Scene

                scene = Scene.load(self.scene, device=resolve_device(self.device))
            self._film(scene, file)
        say(f"wrote {self.output}")

    def _film(self, scene: Scene, file: Path) -> None:
        from scenediff.tools.outputs import FILE_NAMES, OutputOptions, write_scene_outputs

        options = OutputOptions(short_side=self.size, frames=self.frames, path=self.path, measure=False)
        with progress_bar("filming") as progress:
            output = write_scene_outputs(
                scene, file.parent, outputs=["video"], options=options, progress=partial(progress, 0, 1)
            )
        output.baked.close()
        (file.parent / FILE_NAMES["video"]).rename(file)
