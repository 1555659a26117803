"""The viewer in headless Chromium, its cameras in closed form, and that nothing leaves the machine."""

from __future__ import annotations

import io
import math
import socket
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from analytic_scene import turned
from browser import chromium, needs_chromium
from PIL import Image
from pytorch3d.transforms import random_rotations
from tiny_run import write_tiny_run

from scenediff.renderers.cameras import look_ahead, perspective_cameras
from scenediff.tools.run_folder import load_run
from scenediff.tools.video import to_pixels

pytest.importorskip("viser", reason="viser is not installed")
from viser.transforms import SO3

from scenediff.tools.viewer import Viewer, from_viser, to_viser

CHECKBOX = "[...document.querySelectorAll('label')].find(l => l.innerText.trim() === {!r})"


@pytest.fixture(scope="module")
def viewer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Viewer]:
    folder = write_tiny_run(tmp_path_factory.mktemp("run") / "out")
    viewer = Viewer(load_run(folder), port=free_port())
    yield viewer
    viewer.stop()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def visible_samples(viewer: Viewer) -> set[str]:
    """The nodes, cameras aside, that are to be seen; a new one joins before the old ones are hidden."""
    nodes = dict(viewer._nodes)
    return {name for name, node in nodes.items() if node.visible and "cameras" not in name}


@needs_chromium
def test_the_viewer_in_a_browser(viewer: Viewer, tmp_path: Path) -> None:
    downloads = tmp_path / "downloads"
    with chromium(tmp_path / "profile", (600, 420)) as page:
        page.open(f"http://127.0.0.1:{viewer.server.get_port()}")
        page.until("document.body.innerText.includes('Sample 0, seed 0')")
        page.until("document.querySelector('canvas') !== null")
        page.settled()
        page.drag((100, 150), (200, 120))  # aside: from the photo's place all samples look alike
        first = page.settled()

        page.run("document.querySelector('[role=slider]').focus()")
        page.key("ArrowRight")
        page.until("document.body.innerText.includes('Sample 1, seed 1')")
        assert viewer.index == 1
        canvas = slice(None), slice(0, 260)  # beside the controls

        def is_another() -> bool:
            # grey levels: 0.6 here, 0.15 from the photo's place, 0 between pictures of one sample
            return bool(np.abs(page.picture().astype(int) - first)[canvas].mean() > 0.3)

        page.wait(is_another)

        page.download_to(downloads)
        page.press("Download GLB")
        data = page.downloaded(downloads, "sample_01.glb")
        assert data == viewer._samples[1].mesh
        assert trimesh.load(io.BytesIO(data), file_type="glb").to_geometry().faces.shape[0] > 100
        page.press("Download PLY")
        cloud = trimesh.load(io.BytesIO(page.downloaded(downloads, "sample_01.ply")), file_type="ply")
        assert len(cloud.vertices) > 100

        page.press("Render from here")
        page.press("Download PNG")
        drawn = Image.open(io.BytesIO(page.downloaded(downloads, "sample_01_view.png")))
        assert min(drawn.size) >= 384
        page.press("Close")

        page.run(f"document.getElementById({CHECKBOX.format('Uncertainty')}.htmlFor).click()")
        page.until("document.body.innerText.includes('Sample 1, seed 1')")
        page.wait(lambda: visible_samples(viewer) == {"/samples/1/uncertainty"})
        assert page.errors == []
        here = f"//127.0.0.1:{viewer.server.get_port()}"
        assert all(here in address or address.startswith("data:") for address in page.requests)


def test_it_listens_to_this_machine_only(viewer: Viewer) -> None:
    assert viewer.server.get_host() == "127.0.0.1"
    port = viewer.server.get_port()
    with socket.create_connection(("127.0.0.1", port), timeout=5):
        pass
    with socket.socket() as probe:  # another address of this machine: nobody is there
        probe.settimeout(2)
        assert probe.connect_ex(("127.0.0.2", port)) != 0


def test_no_public_address_is_asked_for(viewer: Viewer, caplog: pytest.LogCaptureFixture) -> None:
    assert viewer.server.request_share_url() is None
    assert "refused" in caplog.text


def test_from_the_photos_place_it_draws_the_photo(viewer: Viewer) -> None:
    scene = viewer._samples[0].scene
    height, width = scene.photo_size
    matrix = to_viser(scene.photo_cameras)
    fov = 2 * math.atan(1 / scene.photo_cameras.focal_length[0, 1].item())
    wxyz = SO3.from_matrix(matrix[:3, :3]).wxyz
    drawn = viewer.draw(wxyz, matrix[:3, 3], fov, width / height)
    photo = Image.fromarray(to_pixels(scene.photo[0])).resize(drawn.shape[1::-1])
    assert np.abs(drawn.astype(int) - np.asarray(photo)).mean() < 8
    assert np.abs(drawn[:, ::-1].astype(int) - np.asarray(photo)).mean() > 20


def test_cameras_by_hand() -> None:
    """viser: OpenCV's camera axes (right, down, ahead) in a GLB's world (right, up, back)."""
    photo = to_viser(look_ahead(1, 60))
    assert np.allclose(photo, np.diag([1.0, -1, -1, 1]))
    # to the left, up and ahead of the photo's camera; it looks left
    moved = to_viser(turned((0.5, 0.25, 2.0), 90.0, torch.tensor([2.0])))
    assert np.allclose(moved[:3, 3], [-0.5, 0.25, -2.0])
    assert np.allclose(moved[:3, 2], [-1, 0, 0], atol=1e-6)
    assert np.allclose(moved[:3, 1], [0, -1, 0], atol=1e-6)


def test_cameras_round_trip() -> None:
    size = (60, 100)
    cameras = perspective_cameras(random_rotations(1), torch.randn(1, 3), torch.tensor([1.8]))
    matrix = to_viser(cameras)
    wxyz = SO3.from_matrix(matrix[:3, :3]).wxyz
    again = from_viser(wxyz, matrix[:3, 3], 2 * math.atan(1 / 1.8), size)
    for name in ("R", "T", "focal_length", "principal_point"):
        assert torch.allclose(getattr(again, name), getattr(cameras, name), atol=1e-5), name
