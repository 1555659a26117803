"""Camera paths: closed, smooth, near the photo's place, looking where they should."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from analytic_scene import AnalyticScene, turned

from scenediff.cli.options import CameraPath
from scenediff.renderers.baked import one_camera
from scenediff.renderers.depth_maps import camera_centers, project
from scenediff.tools.camera_paths import PATH_KINDS, PathKind, camera_path


@pytest.fixture(scope="module")
def scene() -> AnalyticScene:
    return AnalyticScene(photo_size=(96, 128))


def test_the_command_line_has_the_same_names() -> None:
    assert get_args(CameraPath) == PATH_KINDS


@pytest.mark.parametrize("kind", PATH_KINDS)
def test_paths_start_and_end_at_the_photo_and_are_smooth(scene: AnalyticScene, kind: PathKind) -> None:
    path = camera_path(scene, 48, kind)
    assert len(path.R) == 48
    for end in (0, -1):
        assert torch.allclose(path.R[end], torch.eye(3), atol=1e-5)
        assert torch.allclose(path.T[end], torch.zeros(3), atol=1e-5)
    steps = camera_centers(path).diff(dim=0).norm(dim=1)
    assert steps.sum() > 0.1
    assert steps.max() < 2.2 * steps.mean()  # no jumps: a sine's fastest step is 1.6 times its mean
    identity = path.R @ path.R.transpose(1, 2)
    assert torch.allclose(identity, torch.eye(3).expand_as(identity), atol=1e-5)
    reach = (camera_centers(scene.target_cameras[0])[0]).norm()
    assert camera_centers(path).norm(dim=1).max() < 1.2 * reach  # stays where the scene was sampled


def test_sway_meets_all_targets(scene: AnalyticScene) -> None:
    focal = scene.photo_cameras.focal_length[:, 0]
    several = AnalyticScene(photo_size=(96, 128))
    several.target_cameras = [turned((0.4, 0.0, 0.2), -10.0, focal), turned((-0.3, 0.1, 0.3), 15.0, focal)]
    path = camera_path(several, 49)
    for target in several.target_cameras:
        distance = (camera_centers(path) - camera_centers(target)).norm(dim=1)
        nearest = int(distance.argmin())
        assert distance[nearest] < 0.06  # a tenth of the reach aside at most
        assert (path.R[nearest] - target.R[0]).abs().max() < 0.05


@pytest.mark.parametrize("kind", ["orbit", "spiral", "wiggle"])
def test_the_focus_stays_in_the_middle(scene: AnalyticScene, kind: PathKind) -> None:
    path = camera_path(scene, 16, kind, focus=2.0)
    for n in range(16):
        pixels, _ = project(torch.tensor([[0.0, 0.0, 2.0]]), one_camera(path, n), (100, 100))
        assert torch.allclose(pixels, torch.full((1, 2), 50.0), atol=2.0)


def test_a_scene_without_targets_has_a_path_too(scene: AnalyticScene) -> None:
    alone = AnalyticScene(photo_size=(96, 128))
    alone.target_cameras = []
    assert camera_centers(camera_path(alone, 12)).norm(dim=1).max() > 0.05


@pytest.mark.parametrize(("arguments", "message"), [
    ({"frames": 1}, "frames must be at least 2, got 1"),
    ({"kind": "fly"}, "kind must be one of .* got 'fly'"),
])  # fmt: skip
def test_bad_paths_are_refused(scene: AnalyticScene, arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        camera_path(scene, **arguments)



def test_what_makes_each_path_its_own(scene: AnalyticScene) -> None:
    places = {kind: camera_centers(camera_path(scene, 49, kind)) for kind in PATH_KINDS}
    assert places["orbit"][:, 2].abs().max() < 1e-6  # flat
    assert places["dolly"][:, :2].abs().max() < 1e-6  # straight
    assert places["dolly"][:, 2].argmax() == 24
    assert places["wiggle"][:, 1:].abs().max() < 1e-6
    left_and_right = torch.sign(places["wiggle"][[6, 18, 30, 42], 0])
    assert left_and_right.tolist() == [1, -1, 1, -1]
    radius = places["spiral"][:, :2].norm(dim=1)
    assert radius[:25].diff().min() > -1e-6  # ever wider until the middle of the time
    assert places["spiral"][:, 2].argmax() == 24
    angle = torch.atan2(places["spiral"][1:-1, 1], places["spiral"][1:-1, 0])
    turns = torch.remainder(angle.diff(), 2 * torch.pi).sum() / (2 * torch.pi)
    assert turns == pytest.approx(2 * 46 / 48, abs=1e-3)
