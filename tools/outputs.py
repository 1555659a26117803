"""Everything that one sampled scene is written out as."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, get_args

from scenediff.renderers.baked import (
    BakedScene,
    SceneLike,
    bake,
    baked_psnr,
    interpolate_cameras,
    scaled_size,
)
from scenediff.tools.camera_paths import PathKind, camera_path
from scenediff.tools.mesh import export_glb, scene_mesh
from scenediff.tools.pointcloud import export_ply, scene_points
from scenediff.tools.report import save_depth_png
from scenediff.tools.video import video_size, write_video

Output = Literal["scene", "depth", "points", "mesh", "video"]
ALL_OUTPUTS: tuple[Output, ...] = get_args(Output)
FILE_NAMES: dict[Output, str] = {
    "scene": "scene.safetensors", "depth": "depth.png", "points": "points.ply", "mesh": "mesh.glb",
    "video": "video.mp4",
}


class SavableScene(SceneLike, Protocol):
    """A scene that can also be saved."""

    def save(self, path: Path) -> None: ...


KEY_SIDE = 128  # pixels, the key views' short side at most: what was not photographed is no sharper, and the
# photo's own pixels are drawn at full resolution whatever the key views' is
MEASURED_SIDE = 64  # pixels, likewise of the frame that is compared with the field's own


@dataclass(frozen=True)
class OutputOptions:
    """How a scene is written out.

    Attributes:
        short_side: of the baked views and the video, pixels, even.
        frames: of the video. fps: its frames a second. path: its camera path.
        measure: whether to compare a baked frame with the field's own (costs one small frame of the field).
    """

    short_side: int = 256
    frames: int = 48
    fps: int = 24
    path: PathKind = "sway"
    measure: bool = True


@dataclass(frozen=True)
class SceneOutputs:
    """What was written.

    Attributes:
        files: path of each output.
        seconds: wall time of each stage ("bake", "measure" and the outputs' names).
        baked_psnr: dB between a baked frame half-way to the first target and the field's, if measured.
        baked: for more frames; close it when done.
    """

    files: dict[Output, Path]
    seconds: dict[str, float]
    baked_psnr: float | None
    baked: BakedScene


def write_scene_outputs(
    scene: SavableScene, folder: str | Path, *, outputs: Collection[Output] = ALL_OUTPUTS,
    options: OutputOptions | None = None, baked: BakedScene | None = None,
    progress: Callable[[str], None] = lambda stage: None,
) -> SceneOutputs:
    """Writes a scene's files into a folder, which is made if need be.

    Args:
        outputs: which ones; the names' order does not matter.
        baked: if the scene is baked already.
        progress: called with a short name ("bake: view 1/3", "mesh", "video 1/48", ...) as each stage begins.

    Raises:
        ValueError: for an unknown output.
    """
    unknown = sorted(set(outputs) - set(ALL_OUTPUTS))
    if unknown:
        raise ValueError(f"outputs must be among {', '.join(ALL_OUTPUTS)}, got {', '.join(unknown)}")
    options = options or OutputOptions()
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    files = {name: folder / FILE_NAMES[name] for name in ALL_OUTPUTS if name in outputs}
    seconds: dict[str, float] = {}
    if baked is None:
        with _timed("bake", seconds):
            baked = bake(
                scene, short_side=min(KEY_SIDE, options.short_side),
                progress=lambda view: progress(f"bake: {view}"),
            )
    psnr = None
    if options.measure:
        progress("measure")
        with _timed("measure", seconds):
            psnr = _measured_psnr(scene, baked, min(MEASURED_SIDE, options.short_side // 2))
    for name, path in files.items():
        progress(name)
        with _timed(name, seconds):
            _write(name, path, scene, baked, options, progress)
    return SceneOutputs(files, seconds, psnr, baked)


def _write(
    name: Output, path: Path, scene: SavableScene, baked: BakedScene, options: OutputOptions,
    progress: Callable[[str], None],
) -> None:
    if name == "scene":
        scene.save(path)
    elif name == "depth":
        save_depth_png(baked.photo_depth[0, 0], path)
    elif name == "points":
        export_ply(scene_points(baked), path)
    elif name == "mesh":
        export_glb(scene_mesh(baked), path)
    else:
        cameras = camera_path(scene, options.frames, options.path, focus=float(baked.photo_depth.median()))
        write_video(
            baked, cameras, path, video_size(scene.photo_size, options.short_side), options.fps,
            progress=lambda frame: progress(f"video {frame + 1}/{options.frames}"),
        )


def _measured_psnr(scene: SceneLike, baked: BakedScene, short_side: int) -> float:
    """Half-way to the first target, where photo and target have most to bridge, or at the photo's view."""
    cameras = scene.photo_cameras
    if scene.target_cameras:
        cameras = interpolate_cameras(cameras, scene.target_cameras[0], 0.5)
    return baked_psnr(scene, baked, cameras, scaled_size(scene.photo_size, short_side))


@contextmanager
def _timed(name: str, seconds: dict[str, float]) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - start
