"""Scenes: rendering in batches, files that keep what is rendered, files that are none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tiny_pipeline import random_photo, tiny_pipeline

from scenediff.pipeline import looking_at
from scenediff.renderers.cameras import perspective_cameras
from scenediff.scene import FORMAT, Scene, SceneError, rays_at_a_time

SIZE = (12, 16)
PARTS = ("image", "depth", "opacity", "features")


@pytest.fixture(scope="module")
def scene() -> Scene:
    return tiny_pipeline()(random_photo(), 2, seed=3, fov_degrees=60.0)[1]


def test_a_scene_knows_its_photo_and_targets(scene: Scene) -> None:
    assert scene.photo.shape == (1, 3, 72, 96)
    assert scene.photo_size == (72, 96)
    assert torch.equal(scene.photo_cameras.R[0], torch.eye(3))
    assert torch.equal(scene.photo_cameras.T[0], torch.zeros(3))
    assert len(scene.target_cameras) == 2
    assert all(len(cameras.R) == 1 for cameras in scene.target_cameras)
    assert scene.metadata["seed"] == 4


def test_cameras_are_rendered_one_by_one(scene: Scene) -> None:
    first, second = (looking_at((x, 0.0, 0.0), (0.0, 0.0, 2.0), scene.photo_cameras) for x in (-0.3, 0.4))
    both = perspective_cameras(
        *(torch.cat([getattr(first, name), getattr(second, name)]) for name in ("R", "T", "focal_length"))
    )
    together = scene.render(both, SIZE)
    assert together.image.shape == (2, 3, *SIZE)
    assert not together.image.requires_grad
    for index, camera in enumerate((first, second)):
        alone = scene.render(camera, SIZE)
        for part in PARTS:
            assert torch.equal(getattr(together, part)[index], getattr(alone, part)[0]), part
    assert (together.image[0] - together.image[1]).abs().max() > 0.01


def test_no_cameras_give_no_frames(scene: Scene) -> None:
    none = perspective_cameras(torch.zeros(0, 3, 3), torch.zeros(0, 3), torch.zeros(0))
    frames = scene.render(none, SIZE)
    assert frames.image.shape == (0, 3, *SIZE)
    assert frames.depth.shape == (0, 1, *SIZE)


def test_a_file_keeps_what_is_rendered(scene: Scene, tmp_path: Path) -> None:
    path = tmp_path / "scene.safetensors"
    scene.save(path)
    loaded = Scene.load(path)
    assert loaded.metadata == scene.metadata
    assert loaded.photo_size == scene.photo_size
    assert torch.allclose(loaded.photo, scene.photo, atol=1e-3)  # half precision: 2^-11 at 1
    for before, after in zip(scene.signal.views, loaded.signal.views, strict=True):
        assert torch.equal(before.log_depth, after.log_depth)
        for name in ("R", "T", "focal_length", "principal_point"):
            assert torch.equal(getattr(before.cameras, name), getattr(after.cameras, name))
    for camera in (scene.photo_cameras, scene.target_cameras[1]):
        before, after = scene.render(camera, SIZE), loaded.render(camera, SIZE)
        for part in PARTS:  # features of size 1 in half precision are off by 5e-4 and pass 4 layers
            assert torch.allclose(getattr(before, part), getattr(after, part), atol=0.02, rtol=0.01), part
    again = tmp_path / "again.safetensors"
    loaded.save(again)
    for part in PARTS:
        first, second = (each.render(scene.photo_cameras, SIZE) for each in (loaded, Scene.load(again)))
        assert torch.equal(getattr(first, part), getattr(second, part)), part


def test_a_scene_is_one_sample_of_the_batch(scene: Scene, tmp_path: Path) -> None:
    scene.save(tmp_path / "scene.safetensors")
    with safe_open(tmp_path / "scene.safetensors", framework="pt") as file:
        assert file.metadata()["format"] == FORMAT
        for name in file.keys():  # noqa: SIM118
            assert not name.startswith("views.") or file.get_slice(name).get_shape()[0] == 1, name
    assert (tmp_path / "scene.safetensors").stat().st_size < 300_000


def test_moving_keeps_the_frames(scene: Scene) -> None:
    moved = scene.to("cpu")
    assert torch.equal(
        moved.render(scene.photo_cameras, SIZE).image, scene.render(scene.photo_cameras, SIZE).image
    )


def test_files_that_are_no_scenes_are_refused(scene: Scene, tmp_path: Path) -> None:
    path = tmp_path / "scene.safetensors"
    with pytest.raises(SceneError, match=r"scene\.safetensors: not a readable scene file"):
        Scene.load(path)
    with pytest.raises(SceneError, match="not a readable scene file"):
        Scene.load(tmp_path)
    scene.save(path)
    whole = path.read_bytes()
    for bad in (b"", b"text, not a scene", whole[: len(whole) // 2], whole[:5]):
        path.write_bytes(bad)
        with pytest.raises(SceneError, match="not a readable scene file"):
            Scene.load(path)
    save_file({"weights": torch.zeros(3)}, path)
    with pytest.raises(SceneError, match=f"format None, but this version reads '{FORMAT}'"):
        Scene.load(path)
    save_file(
        {"weights": torch.zeros(3)}, path, metadata={"format": "scenediff-scene-0", "field": json.dumps({})}
    )
    with pytest.raises(SceneError, match="format 'scenediff-scene-0'"):
        Scene.load(path)


@pytest.mark.parametrize("part", ["renderer.field.hidden.weight", "views.1.log_depth", "field", "metadata"])
def test_incomplete_scenes_are_refused(scene: Scene, tmp_path: Path, part: str) -> None:
    path = tmp_path / "scene.safetensors"
    scene.save(path)
    with safe_open(path, framework="pt") as file:
        header, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert part in header or part in tensors
    save_file(
        {name: value for name, value in tensors.items() if name != part},
        path,
        metadata={name: value for name, value in header.items() if name != part},
    )
    with pytest.raises(SceneError, match="parts of the scene are missing or don't fit"):
        Scene.load(path)


def test_cpus_take_fewer_rays_at_a_time() -> None:
    assert rays_at_a_time("cpu") < rays_at_a_time("cuda:1")


def test_the_same_scene_is_the_same_file(scene: Scene, tmp_path: Path) -> None:
    scene.save(tmp_path / "first.safetensors")
    first = (tmp_path / "first.safetensors").read_bytes()
    for _ in range(8):  # a header in random order agrees by luck once in six times
        scene.save(tmp_path / "again.safetensors")
        assert (tmp_path / "again.safetensors").read_bytes() == first
