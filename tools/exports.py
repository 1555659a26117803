"""A scene in the formats of other programs: what each is called, which files it has, and what writes it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import trimesh
from torch import Tensor

from scenediff.renderers.baked import BakedScene, bake, scaled_size
from scenediff.renderers.cameras import CameraView, ndc_to_pixels_intrinsics, to_pinhole
from scenediff.renderers.layers import KeyView
from scenediff.scene import Scene
from scenediff.tools.fusion import FARTHEST, OPAQUE
from scenediff.tools.mesh import NamedCamera, export_glb
from scenediff.tools.mesh_files import cameras_json, export_obj, export_usda, export_usdz
from scenediff.tools.pointcloud import PointCloud, export_pcd, export_ply, scene_points, without_outliers
from scenediff.tools.report import uncertainty_map
from scenediff.tools.splats import export_splats, scene_splats
from scenediff.tools.texture import unwrapped_mesh
from scenediff.tools.video import to_pixels

KEY_SIDE = 128  # pixels, short side of the key views: twice the bundled model's features
COMPARED_SIDE = 48  # pixels, of the frames in which samples are compared
FEWEST_OPAQUE = 0.01  # of the photo's view; a scene with less is empty
Progress = Callable[[str], None]


class EmptySceneError(ValueError):
    """A scene in which there is nothing to export."""


@dataclass(frozen=True)
class ExportOptions:
    """How a scene is exported.

    Attributes:
        max_faces, texture_size (texels), closed: as for `unwrapped_mesh`.
        photo_colors: whether what the photo saw gets the photo's own pixels, else the scene's rendering.
    """

    max_faces: int = 50_000
    texture_size: int = 1024
    closed: bool = False
    photo_colors: bool = False


@dataclass(frozen=True)
class ExportJob:
    """A scene ready to be written.

    Attributes:
        baked: its key views. uncertainty: `key_disagreement` if other samples are there.
    """

    scene: Scene
    baked: BakedScene
    options: ExportOptions
    uncertainty: Sequence[Tensor] | None = None

    @property
    def camera(self) -> NamedCamera:
        """The photo's."""
        return NamedCamera(self.scene.photo_cameras.cpu(), self.scene.photo_size)


def prepare_export(
    scene: Scene, options: ExportOptions, others: Sequence[Scene] = (),
    progress: Progress = lambda stage: None,
) -> ExportJob:
    """Renders what all formats are made of.

    Args:
        others: further samples of the same photo; where they differ from the scene goes into the export.

    Raises:
        EmptySceneError: nothing in the scene is opaque.
    """
    baked = bake(
        scene, short_side=KEY_SIDE, photo_colors=options.photo_colors,
        progress=lambda view: progress(f"render {view}"),
    )  # fmt: skip
    photo = baked.keys[0]
    if float(((photo.opacity > OPAQUE) & (photo.depth < FARTHEST)).float().mean()) < FEWEST_OPAQUE:
        raise EmptySceneError(f"the scene is empty: its photo shows nothing solid within {FARTHEST:g} m")
    if not others:
        return ExportJob(scene, baked, options)
    progress("compare samples")
    return ExportJob(scene, baked, options, key_disagreement(baked.keys, [scene, *others]))


def key_disagreement(keys: Sequence[KeyView], scenes: Sequence[Scene]) -> list[Tensor]:
    """For each key view (1, 2, h, w): by how much samples differ there.

    The two are standard deviations over samples, of depth as a share of it and of colour as one of the range.
    """
    maps = []
    for key in keys:
        cameras = key.cameras.to(scenes[0].photo.device)
        differ = uncertainty_map(scenes, cameras, scaled_size(key.size, COMPARED_SIDE))
        maps.append(torch.stack([differ.depth_std, differ.color_std / 2])[None])
    return maps


def _write_glb(job: ExportJob, path: Path) -> None:
    export_glb(_mesh(job), path, job.camera)


def _write_obj(job: ExportJob, path: Path) -> None:
    export_obj(_mesh(job), path)
    path.with_suffix(".cameras.json").write_text(cameras_json([job.camera]))


def _write_usd(job: ExportJob, path: Path) -> None:
    export_usdz(_mesh(job), path, job.camera)


def _write_usd_text(job: ExportJob, path: Path) -> None:
    export_usda(_mesh(job), path, job.camera)


def _write_ply(job: ExportJob, path: Path) -> None:
    export_ply(_points(job), path)


def _write_pcd(job: ExportJob, path: Path) -> None:
    export_pcd(_points(job), path)


def _write_splats(job: ExportJob, path: Path) -> None:
    export_splats(scene_splats(job.baked), path)
    path.with_suffix(".cameras.json").write_text(cameras_json([job.camera], y_down=True))


def _write_npz(job: ExportJob, path: Path) -> None:
    """Points and, for each key view, its picture, depth, opacity and camera (OpenCV's axes, all of them)."""
    cloud = _points(job)
    down = torch.tensor([-1.0, -1.0, 1.0])
    arrays = {
        "points": (cloud.positions * down).numpy(), "normals": (cloud.normals * down).numpy(),
        "colors": cloud.colors.numpy(), **{name: values.numpy() for name, values in cloud.labels.items()},
        "photo": to_pixels(job.scene.photo[0]),
    }  # fmt: skip
    for index, key in enumerate(job.baked.keys):
        focal, principal = (part[0] for part in ndc_to_pixels_intrinsics(key.cameras, key.size))
        pinhole, intrinsics = to_pinhole(CameraView(key.cameras, key.size)), torch.eye(3)
        intrinsics[[0, 1], [0, 1]], intrinsics[:2, 2] = focal, principal
        arrays |= {
            f"view_{index:02d}_image": to_pixels(key.image[0]),
            f"view_{index:02d}_depth": key.depth[0, 0].numpy(),
            f"view_{index:02d}_opacity": key.opacity[0, 0].numpy(),
            f"view_{index:02d}_intrinsics": intrinsics.numpy(),
            f"view_{index:02d}_cam_to_world": pinhole.cam_to_world[0].numpy(),
        }
    np.savez_compressed(path, **arrays)


def _write_nerfstudio(job: ExportJob, path: Path) -> None:
    from scenediff.tools.nerfstudio_dataset import write_nerfstudio_dataset

    write_nerfstudio_dataset(job.scene, job.baked, path)


def _mesh(job: ExportJob) -> trimesh.Trimesh:
    options = job.options
    return unwrapped_mesh(
        job.baked, max_faces=options.max_faces, texture_size=options.texture_size, closed=options.closed,
        uncertainty=job.uncertainty,
    )


def _points(job: ExportJob) -> PointCloud:
    return without_outliers(scene_points(job.baked, labelled=True, uncertainty=job.uncertainty))


@dataclass(frozen=True)
class ExportFormat:
    """One format.

    Attributes:
        suffix: of its file, "" for a folder.
        write: writes a job to a path that ends in the suffix.
        beside: suffixes of the files that are written along with it.
        photo_colors: whether it always takes the photo's own pixels, see `ExportOptions`.
    """

    suffix: str
    write: Callable[[ExportJob, Path], None]
    beside: tuple[str, ...] = ()
    photo_colors: bool = False

    def paths(self, path: Path) -> list[Path]:
        """All that is written for a path."""
        return [path, *(path.with_suffix(suffix) for suffix in self.beside)]


USD_TEXT = (".usd", ".usda")  # a text file with its picture beside, instead of a package
FORMATS: Mapping[str, ExportFormat] = {
    "glb": ExportFormat(".glb", _write_glb),
    "obj": ExportFormat(".obj", _write_obj, (".mtl", ".png", ".cameras.json")),
    "usd": ExportFormat(".usdz", _write_usd),
    "ply": ExportFormat(".ply", _write_ply),
    "pcd": ExportFormat(".pcd", _write_pcd),
    "3dgs": ExportFormat(".ply", _write_splats, (".cameras.json",)),
    "npz": ExportFormat(".npz", _write_npz),
    "nerfstudio": ExportFormat("", _write_nerfstudio, photo_colors=True),
}


def export_format(name: str | None, path: Path) -> ExportFormat:
    """The format of a name, or else of a path's ending, a GLB if it has none.

    Raises:
        ValueError: no format has such an ending.
    """
    suffix = path.suffix.lower()
    if suffix in USD_TEXT and name in (None, "usd"):
        return ExportFormat(suffix, _write_usd_text, (".png",))
    if name is not None:
        return FORMATS[name]
    for target in FORMATS.values() if suffix else (FORMATS["glb"],):
        if target.suffix == suffix or not suffix:
            return target
    endings = ", ".join(dict.fromkeys(target.suffix for target in FORMATS.values() if target.suffix))
    raise ValueError(f"{path}: no format ends in {suffix}; one of {endings}, or name the format")
