"""`scenediff export`: a sampled scene for other programs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from scenediff.cli.errors import UserError, user_errors
from scenediff.cli.folders import output_files, output_folder
from scenediff.cli.options import Device, check_at_least, resolve_device, say
from scenediff.cli.record import progress_bar

if TYPE_CHECKING:
    from scenediff.scene import Scene
    from scenediff.tools.exports import ExportFormat

Format = Literal["glb", "obj", "usd", "ply", "pcd", "3dgs", "npz", "nerfstudio"]
FEWEST_FACES, MOST_FACES = 100, 2_000_000
SMALLEST_TEXTURE, LARGEST_TEXTURE = 64, 8192
SCENE_FILE = "scene.safetensors"
DATASET_FILES = ("transforms.json", "images", "depths", SCENE_FILE, "sparse_pc.ply", "camera_path.json")


@dataclass(frozen=True)
class Export:
    """Writes a sampled scene for Blender, point cloud and splat viewers, numpy or nerfstudio.

    Metres, the photo's camera at the origin. glb, obj, usd, ply and pcd have +Y up and the photo looks along
    -Z; 3dgs and npz have the axes of COLMAP and OpenCV (+Y down, +Z ahead). Meshes, points and splats tell
    what the photo saw from what was sampled (attribute, field or group `seen`).

    In Blender, select the camera `photo` and press Ctrl and 0 on the number pad to see what the photo shows.
    """

    scene: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="SCENE")]
    """A scene.safetensors that `scenediff sample` has written, or the folder of a run: then the export also
    tells how much the samples differ (`depth_std`, a share of the depth; `color_std`, one of the range)."""
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"], metavar="PATH")]
    """File to write, or folder for nerfstudio. The format's ending is added where there is none."""
    format: Annotated[
        Format | None, tyro.conf.arg(help_behavior_hint="(default: as PATH ends, or glb)")
    ] = None
    """glb, obj, usd: textured mesh; ply, pcd: points with colours and normals; 3dgs: Gaussian splats; npz:
    points, views and cameras for numpy; nerfstudio: a data set folder. usd is a package (.usdz), or text with
    its picture beside where PATH ends in .usd or .usda."""
    sample: Annotated[int, tyro.conf.arg(metavar="N")] = 0
    """Which sample, if SCENE is the folder of a run."""
    faces: Annotated[int, tyro.conf.arg(metavar="N")] = 50_000
    """Most faces of a mesh."""
    texture: Annotated[int, tyro.conf.arg(metavar="PIXELS")] = 1024
    """Side of a mesh's square texture."""
    closed: bool = False
    """A closed mesh: what was never seen is filled in, as a block around the scene. Otherwise it is open."""
    photo_colors: bool = False
    """Colours what the photo saw with the photo's own pixels: sharper than the scene's own rendering, from
    which it then differs."""
    device: Device = "auto"
    """Where to compute; auto takes a CUDA GPU if there is one."""
    overwrite: bool = False
    """Replace what is there."""

    def run(self) -> None:
        """Checks everything, then writes."""
        self._check_numbers()
        with user_errors():
            from scenediff.tools.exports import export_format

            target = export_format(self.format, self.output)
        path = with_suffix(self.output, target.suffix)
        with self._place(target, path) as place:
            with user_errors():
                from scenediff.scene import Scene

                file, others = scene_files(self.scene, self.sample)
                device = resolve_device(self.device)
                scene, *rest = (Scene.load(one, device=device) for one in (file, *others))
            self._write(target, scene, rest, place)
        say(f"wrote {path}")

    def _check_numbers(self) -> None:
        check_at_least("--sample", self.sample, 0)
        check_between("--faces", self.faces, FEWEST_FACES, MOST_FACES)
        check_between("--texture", self.texture, SMALLEST_TEXTURE, LARGEST_TEXTURE)

    @contextmanager
    def _place(self, target: ExportFormat, path: Path) -> Iterator[Path]:
        if target.suffix:
            with output_files(target.paths(path), overwrite=self.overwrite) as place:
                yield place
        else:
            with output_folder(path, overwrite=self.overwrite, is_ours=is_dataset_folder) as place:
                yield place

    def _write(self, target: ExportFormat, scene: Scene, others: list[Scene], place: Path) -> None:
        from scenediff.tools.exports import EmptySceneError, ExportOptions, prepare_export

        photo_colors = self.photo_colors or target.photo_colors
        options = ExportOptions(self.faces, self.texture, self.closed, photo_colors)
        with progress_bar("exporting") as progress:
            try:
                job = prepare_export(scene, options, others, lambda stage: progress(0, 2, stage))
            except EmptySceneError as error:
                raise UserError(f"{self.scene}: {error}") from error
            try:
                progress(1, 2, "write")
                target.write(job, place)
                progress(2, 2)
            finally:
                job.baked.close()


def check_between(option: str, value: int, lowest: int, highest: int) -> None:
    """Raises a user error for a number out of range."""
    if not lowest <= value <= highest:
        raise UserError(f"{option} must be from {lowest} to {highest}, got {value}")


def with_suffix(path: Path, suffix: str) -> Path:
    """The path with a format's suffix; a user error if it has another one."""
    if not suffix or path.suffix.lower() == suffix:
        return path
    if path.suffix:
        raise UserError(f"{path} must end in {suffix}")
    return path.with_name(path.name + suffix)


def scene_files(path: Path, sample: int) -> tuple[Path, list[Path]]:
    """The file of the scene to export, and those of the run's other samples."""
    from scenediff.tools.run_folder import RECORD, load_run

    if not path.is_dir() or (path / SCENE_FILE).is_file():
        return (path / SCENE_FILE if path.is_dir() else path), []
    if not (path / RECORD).is_file():
        raise UserError(f"{path} has neither a {SCENE_FILE} nor a {RECORD}: name a scene or a run's folder")
    files = [one.file("scene") for one in load_run(path).samples]
    if sample >= len(files):
        raise UserError(f"--sample {sample}: {path} has samples 0 to {len(files) - 1}")
    return files[sample], files[:sample] + files[sample + 1 :]


def is_dataset_folder(folder: Path) -> bool:
    """Whether a folder is a data set that this command has written."""
    return all((folder / name).exists() for name in DATASET_FILES)
