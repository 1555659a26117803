"""A run in the browser: its samples to walk through, by viser's server.

The world has a GLB's axes: +X right, +Y up, -Z ahead of the photo's camera; metres.
"""

from __future__ import annotations

import base64
import io
import threading
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import trimesh
import viser
from PIL import Image
from pytorch3d.renderer import PerspectiveCameras
from viser.transforms import SO3

from scenediff.renderers.baked import BakedScene, bake, scaled_size
from scenediff.renderers.cameras import opengl_to_pytorch3d, points_to_opengl
from scenediff.scene import Scene
from scenediff.tools.disagreement import Disagreement, disagreement, heat_colors
from scenediff.tools.mesh import NamedCamera, pytorch3d_to_gltf, vertical_fov
from scenediff.tools.outputs import KEY_SIDE
from scenediff.tools.run_folder import Run, SampleFiles
from scenediff.tools.video import to_pixels, video_size
from scenediff.tools.viewer_server import local_server

COMPARED_SIDE = 96  # pixels, shorter side of the views in which samples are compared
RENDERED_SIDE = 384  # pixels, shorter side of "render from here"
FRUSTUM_SIZE = 0.12  # of the distance to what the photo shows
PHOTO_COLOR, TARGET_COLOR = (230, 120, 20), (60, 120, 200)
FLIP_CAMERA = np.diag([1.0, -1.0, -1.0, 1.0])  # from OpenGL's camera axes to OpenCV's, viser's, and back


class ShownSample:
    """One sample; its parts are read or made when they are first needed."""

    def __init__(self, files: SampleFiles) -> None:
        self.files = files
        self.mesh = files.model()

    @cached_property
    def scene(self) -> Scene:
        return Scene.load(self.files.file("scene"))

    @cached_property
    def baked(self) -> BakedScene:
        return bake(self.scene, short_side=KEY_SIDE)

    def heat_mesh(self, where: Disagreement) -> trimesh.Trimesh:
        """The mesh with the samples' disagreement as its colours."""
        loaded = trimesh.load(io.BytesIO(self.mesh), file_type="glb", process=False)
        mesh = loaded.to_geometry() if isinstance(loaded, trimesh.Scene) else loaded
        points = points_to_opengl(torch.from_numpy(np.array(mesh.vertices))).float()
        colors = heat_colors(where.at(points, self.baked)).numpy()
        return trimesh.Trimesh(mesh.vertices, mesh.faces, vertex_colors=colors, process=False)


class Viewer:
    """A server that shows one run; it works from construction on, until `stop`.

    Attributes:
        server: viser's.
        sample: the slider over samples, or None if there is only one. uncertainty, cameras: the toggles.
    """

    def __init__(self, run: Run, host: str = "127.0.0.1", port: int = 8080) -> None:
        self._samples = [ShownSample(files) for files in run.samples]
        self._first = self._samples[0].scene  # so that an unreadable run fails before anything is served
        self._one_at_a_time = threading.RLock()  # viser calls back from several threads
        self._nodes: dict[str, Any] = {}
        self.server = local_server(host, port, "scenediff")
        self.server.scene.set_up_direction("+y")
        self.server.gui.configure_theme(
            show_logo=False, show_share_button=False, control_layout="collapsible"
        )
        self._add_controls(run)
        self.server.on_client_connect(self._go_to_photo)
        self._show()

    def stop(self) -> None:
        """Ends the server."""
        self.server.stop()

    @property
    def index(self) -> int:
        """Of the sample that is shown."""
        return int(self.sample.value) if self.sample is not None else 0

    @property
    def _title(self) -> str:
        """What is shown."""
        seed = self._samples[self.index].files.record.get("seed")
        return f"Sample {self.index}" + (f", seed {seed}" if seed is not None else "")

    @cached_property
    def _focus(self) -> float:
        """Metres from the photo's camera to what it shows."""
        frame = scaled_size(self._first.photo_size, 32)
        return self._first.render(self._first.photo_cameras, frame).depth.median().item()

    @cached_property
    def _disagreement(self) -> Disagreement:
        baked = [sample.baked for sample in self._samples]
        return disagreement(self._first, baked, scaled_size(self._first.photo_size, COMPARED_SIDE))

    def _add_controls(self, run: Run) -> None:
        gui, several = self.server.gui, len(self._samples) > 1
        name = run.record.get("photo", {}).get("file") or run.folder.name
        gui.add_markdown(f"**{name}**")
        self.sample = gui.add_slider("Sample", 0, len(run.samples) - 1, 1, 0) if several else None
        self.uncertainty = gui.add_checkbox(
            "Uncertainty", False, disabled=not several, hint="Yellow: here the samples differ"
        )
        self.cameras = gui.add_checkbox("Cameras", True, hint="The photo's camera and the sampled views'")
        self._status = gui.add_markdown("")
        for handle in (self.sample, self.uncertainty, self.cameras):
            if handle is not None:
                handle.on_update(lambda event: self._show())
        buttons: dict[str, Callable[[viser.ClientHandle], None]] = {
            "Render from here": self._render_from_here,
            "Photo's view": self._go_to_photo,
            "Download GLB": lambda client: self._download(client, "mesh"),
            "Download PLY": lambda client: self._download(client, "points"),
        }
        for label, action in buttons.items():
            gui.add_button(label).on_click(partial(_for_its_client, action))

    def _show(self) -> None:
        """Makes visible what the controls say, and nothing else."""
        with self._one_at_a_time:
            index, hot = self.index, self.uncertainty.value
            wanted = {f"/samples/{index}/{'uncertainty' if hot else 'mesh'}"}
            for name in wanted - self._nodes.keys():
                self._say("comparing the samples ..." if hot else "")
                self._nodes[name] = self._add_sample(name, self._samples[index], hot)
            if self.cameras.value:
                wanted |= self._add_frusta(index)
            for name, node in self._nodes.items():
                node.visible = name in wanted
            self._say(self._title)

    def _add_sample(self, name: str, sample: ShownSample, hot: bool) -> Any:
        if hot:
            return self.server.scene.add_mesh_trimesh(name, sample.heat_mesh(self._disagreement))
        return self.server.scene.add_glb(name, sample.mesh)

    def _add_frusta(self, index: int) -> set[str]:
        """The names of the nodes with a sample's cameras, which are added if need be."""
        scene = self._samples[index].scene
        names = set()
        for n, camera in enumerate([scene.photo_cameras, *scene.target_cameras]):
            names.add(name := f"/samples/{index}/cameras/{n}")
            if name not in self._nodes:
                matrix, (height, width) = to_viser(camera), scene.photo_size
                fov = vertical_fov(NamedCamera(camera, scene.photo_size))
                self._nodes[name] = self.server.scene.add_camera_frustum(
                    name, fov, width / height, scale=FRUSTUM_SIZE * self._focus,
                    color=TARGET_COLOR if n else PHOTO_COLOR,
                    wxyz=SO3.from_matrix(matrix[:3, :3]).wxyz, position=matrix[:3, 3],
                )
        return names

    def _go_to_photo(self, client: viser.ClientHandle) -> None:
        """Moves a visitor to the photo's camera."""
        client.camera.up_direction = (0.0, 1.0, 0.0)
        client.camera.position = (0.0, 0.0, 0.0)
        client.camera.look_at = (0.0, 0.0, -self._focus)
        client.camera.fov = vertical_fov(NamedCamera(self._first.photo_cameras, self._first.photo_size))

    def _render_from_here(self, client: viser.ClientHandle) -> None:
        """Draws the scene, not its mesh, as the visitor stands, and shows the picture."""
        camera = client.camera
        with self._one_at_a_time:
            self._say("rendering ...")
            picture = self.draw(np.array(camera.wxyz), np.array(camera.position), camera.fov, camera.aspect)
            self._say(self._title)
        stream = io.BytesIO()
        Image.fromarray(picture).save(stream, "PNG")
        data, name = stream.getvalue(), f"{self._samples[self.index].files.folder.name}_view.png"
        modal = client.gui.add_modal("Rendered from here")
        with modal:
            encoded = base64.b64encode(data).decode()
            client.gui.add_markdown(f"![{name}](data:image/png;base64,{encoded})", image_root=Path())
            client.gui.add_button("Download PNG").on_click(
                lambda event: client.send_file_download(name, data)
            )
            client.gui.add_button("Close").on_click(lambda event: modal.close())

    def draw(self, wxyz: np.ndarray, position: np.ndarray, fov: float, aspect: float) -> np.ndarray:
        """(height, width, 3) uint8 of the shown sample, from a camera as viser describes it.

        Args:
            wxyz: (4,) quaternion to the world. position: (3,) metres. fov: vertical, radians.
            aspect: width / height.
        """
        size = video_size((1000, round(1000 * min(max(aspect, 0.25), 4.0))), RENDERED_SIDE)
        with self._one_at_a_time:
            camera = from_viser(wxyz, position, fov, size)
            return to_pixels(self._samples[self.index].baked.render(camera, size).image[0])

    def _download(self, client: viser.ClientHandle, kind: str) -> None:
        sample = self._samples[self.index]
        path = sample.files.file(kind)
        client.send_file_download(f"{sample.files.folder.name}{path.suffix}", path.read_bytes())

    def _say(self, text: str) -> None:
        self._status.content = text


def _for_its_client(action: Callable[[viser.ClientHandle], None], event: viser.GuiEvent) -> None:
    """Does something for the visitor who has pressed a button."""
    if event.client is not None:
        action(event.client)


def to_viser(camera: PerspectiveCameras) -> np.ndarray:
    """(4, 4) camera-to-world with OpenCV's camera axes in a GLB's world, of one camera."""
    return pytorch3d_to_gltf(camera) @ FLIP_CAMERA


def from_viser(
    wxyz: np.ndarray, position: np.ndarray, fov: float, size: tuple[int, int]
) -> PerspectiveCameras:
    """Inverse of `to_viser`, for a vertical angle in radians and a (height, width)."""
    height, width = size
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = SO3(wxyz / np.linalg.norm(wxyz)).as_matrix(), position
    pose = torch.from_numpy(matrix @ FLIP_CAMERA).float()[None]
    pose[:, :3] = points_to_opengl(pose[:, :3].mT).mT  # from a GLB's world, as the turn is its own inverse
    focal = torch.full((1, 2), height / 2 / np.tan(fov / 2))
    return opengl_to_pytorch3d(pose, focal, torch.tensor([[width / 2, height / 2]]), size)
