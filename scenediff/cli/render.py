"""`scenediff render`: a film of a sampled scene."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast, get_args

import tyro

from scenediff.cli.errors import UserError, user_errors
from scenediff.cli.folders import output_file, output_folder
from scenediff.cli.options import CameraPath, Device, check_at_least, check_even, resolve_device, say
from scenediff.cli.record import progress_bar

if TYPE_CHECKING:
    from pytorch3d.renderer import PerspectiveCameras

    from scenediff.scene import Scene
    from scenediff.tools.camera_path_files import PathFile

SUFFIXES = (".mp4", ".gif", "")
PICTURE = re.compile(r"frame_\d{5,}\.png")
FRAMES, SIZE, FPS = 48, 256, 24.0  # where neither the options nor a file with a path tell
LONGEST = 4096  # pixels, of either side: what H.264 decoders take


@dataclass(frozen=True)
class Render:
    """Films a sampled scene along a camera path: MP4, GIF or numbered pictures."""

    scene: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="SCENE")]
    """A scene.safetensors that `scenediff sample` has written."""
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"], metavar="FILE")]
    """What to write: FILE.mp4 (H.264, plays everywhere), FILE.gif, or a folder for PNGs."""
    path: Annotated[str, tyro.conf.arg(metavar="NAME|FILE.json")] = "sway"
    """The camera: sway (past all sampled views), orbit, spiral, dolly (ahead and back), wiggle (left and
    right), or a file: a camera path of nerfstudio's viewer, or one exported by blender_camera_path.py."""
    dataparser_transforms: Annotated[Path | None, tyro.conf.arg(metavar="FILE.json")] = None
    """For a path made in nerfstudio with another method: dataparser_transforms.json of its run."""
    layout: Literal["picture", "depth", "stereo"] = "picture"
    """The picture alone, with its depth beside it, or one for each eye (left, right)."""
    invented: bool = False
    """Write a second film, NAME_invented, that marks in magenta what the photo did not see."""
    eye_distance: Annotated[float, tyro.conf.arg(metavar="METRES")] = 0.063
    """Between the eyes of the layout stereo."""
    frames: Annotated[int | None, tyro.conf.arg(help_behavior_hint="(default: 48, or the file's)")] = None
    """Number of frames of a named path."""
    fps: Annotated[float | None, tyro.conf.arg(help_behavior_hint="(default: 24, or the file's)")] = None
    """Frames a second."""
    size: Annotated[
        int | None, tyro.conf.arg(metavar="PIXELS", help_behavior_hint="(default: 256, or the file's)")
    ] = None
    """Shorter side of a picture; an even number."""
    device: Device = "auto"
    """Where to compute; auto takes a CUDA GPU if there is one."""
    overwrite: bool = False
    """Replace an existing file."""

    def run(self) -> None:
        """Checks everything, then draws and writes."""
        self._check()
        places = [self.output, *([marked_name(self.output)] if self.invented else [])]
        with ExitStack() as stack:
            files = [stack.enter_context(output_film(place, overwrite=self.overwrite)) for place in places]
            with user_errors():
                from scenediff.scene import Scene
                from scenediff.tools.camera_path_files import load_camera_path

                file = None if self._is_named else load_camera_path(self.path, self.dataparser_transforms)
                scene = Scene.load(self.scene, device=resolve_device(self.device))
                size = self._size(scene.photo_size, file)
            self._film(scene, file, size, files)
        for place in places:
            say(f"wrote {place}")

    @property
    def _is_named(self) -> bool:
        return self.path in get_args(CameraPath)

    def _check(self) -> None:
        if self.output.suffix.lower() not in SUFFIXES:
            raise UserError(f"{self.output} must end in .mp4 or .gif, or have no suffix: a folder for PNGs")
        if not self._is_named and Path(self.path).suffix.lower() != ".json":
            names = ", ".join(get_args(CameraPath))
            raise UserError(f"--path must be one of {names} or a .json file, got {self.path}")
        if self._is_named and self.dataparser_transforms is not None:
            raise UserError("--dataparser-transforms goes with a --path from a file")
        if not self._is_named and self.frames is not None:
            raise UserError("--frames goes with a named --path: a file has its own number of frames")
        check_at_least("--frames", self.frames, 2)
        check_at_least("--fps", self.fps, 0.1)
        check_at_least("--eye-distance", self.eye_distance, 0)
        if self.size is not None:
            check_even("--size", self.size, 32)

    def _size(self, photo_size: tuple[int, int], file: PathFile | None) -> tuple[int, int]:
        """(height, width) of a picture, of the photo's shape or of the file's."""
        from scenediff.tools.video import video_size

        shape = photo_size if file is None else file.size
        short_side = self.size or (SIZE if file is None else 2 * max(16, round(min(shape) / 2)))
        height, width = video_size(shape, short_side)
        if max(height, width * (2 if self.layout != "picture" else 1)) > LONGEST:
            raise UserError(f"frames of {width}x{height} pixels are too large for video: lower --size")
        return height, width

    def _film(
        self, scene: Scene, file: PathFile | None, size: tuple[int, int], places: list[Path]
    ) -> None:
        from scenediff.renderers.baked import bake
        from scenediff.tools.film import Film, draw
        from scenediff.tools.outputs import KEY_SIDE
        from scenediff.tools.video import frame_writer

        fps = self.fps or (FPS if file is None else file.fps)
        with progress_bar("filming") as progress, ExitStack() as stack:
            baked = stack.enter_context(bake(
                scene, short_side=min(KEY_SIDE, *size), progress=lambda view: progress(0, 1, f"bake: {view}"),
            ))  # fmt: skip
            focus = float(baked.photo_depth.median())
            cameras = self._cameras(scene, focus) if file is None else file.cameras
            film = Film(baked, cameras, size, self.layout, self.eye_distance)
            writers = [stack.enter_context(frame_writer(place, film.frame_size, fps)) for place in places]
            draw(film, writers[0], *writers[1:], progress=lambda frame: progress(frame, len(film)))
            progress(len(film), len(film))

    def _cameras(self, scene: Scene, focus: float) -> PerspectiveCameras:
        from scenediff.tools.camera_paths import camera_path

        return camera_path(scene, self.frames or FRAMES, cast(CameraPath, self.path), focus=focus)


def marked_name(output: Path) -> Path:
    """Where the film goes that marks what is invented."""
    return output.with_name(f"{output.stem}_invented{output.suffix}")


@contextmanager
def output_film(place: Path, *, overwrite: bool) -> Iterator[Path]:
    """A temporary place for a film: a file or, without suffix, a folder for pictures."""
    if place.suffix:
        with output_file(place, overwrite=overwrite) as path:
            yield path
    else:
        with output_folder(place, overwrite=overwrite, is_ours=is_picture_folder) as path:
            yield path


def is_picture_folder(folder: Path) -> bool:
    """Whether a folder holds nothing but a film's numbered pictures."""
    return all(PICTURE.fullmatch(entry.name) for entry in folder.iterdir())
