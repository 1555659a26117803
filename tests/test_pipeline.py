"""From a photo to scenes with a tiny untrained model: seeds, shapes, files, refusals, target cameras."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tiny_pipeline import random_photo, tiny_pipeline
from torch.nn import functional

import scenediff
from scenediff.datasets.images import load_photo
from scenediff.forward import Observation, RememberingDenoiser
from scenediff.networks.both_ways import read_both_ways
from scenediff.pipeline import (
    CheckpointError,
    ScenePipeline,
    _photo_observation,
    _repeat_read,
    build_model,
    fov_of,
    load,
    looking_at,
)
from scenediff.renderers.cameras import CameraView, look_ahead, perspective_cameras
from scenediff.sampling import calm_coarse, laplace_in_turn, sample_in_turn
from scenediff.scene import Scene

SIZE = (12, 16)


@pytest.fixture(scope="module")
def pipeline() -> ScenePipeline:
    return tiny_pipeline()


def frames(scene: Scene) -> torch.Tensor:
    """A frame from the side, where what was sampled is seen."""
    return scene.render(scene.target_cameras[0], SIZE).image


# --- sampling ------------------------------------------------------------------------------------


def test_a_photo_becomes_scenes(pipeline: ScenePipeline) -> None:
    calls: list[tuple[int, int]] = []
    scenes = pipeline(random_photo(), 3, seed=10, fov_degrees=60.0, progress=lambda *call: calls.append(call))
    assert [scene.metadata["seed"] for scene in scenes] == [10, 11, 12]
    assert scenes[0].metadata["steps"] == 2
    assert calls == [(done, 12) for done in range(1, 13)]  # 3 samples, 2 steps of 2 target views
    images = [frames(scene) for scene in scenes]
    assert all(image.isfinite().all() for image in images)
    assert (images[0] - images[1]).abs().max() > 1e-3
    assert len({id(scene.renderer) for scene in scenes}) == 1


def test_a_sample_depends_on_its_seed_alone(pipeline: ScenePipeline) -> None:
    photo = random_photo()
    three, again = (pipeline(photo, 3, seed=5) for _ in range(2))
    alone = pipeline(photo, 1, seed=7)[0]
    other = pipeline(photo, 1, seed=8)[0]
    assert all(torch.equal(frames(a), frames(b)) for a, b in zip(three, again, strict=True))
    # another number of threads adds up in another order: float32, over two steps of two targets
    assert torch.allclose(frames(three[2]), frames(alone), atol=1e-4)
    assert not torch.allclose(frames(other), frames(alone), atol=1e-3)


def test_the_photo_is_read_once(pipeline: ScenePipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    read = pipeline.denoiser.read_photo
    sizes = []

    def counting(observation: Observation, *options: Any) -> Any:
        sizes.append(observation.image.shape[-1])
        return read(observation, *options)

    monkeypatch.setattr(pipeline.denoiser, "read_photo", counting)
    pipeline(random_photo(), 3)
    assert sizes == [96]  # what was sampled is known without reading it
    cameras = look_ahead(1, 50.0)
    pipeline.sample_views(load_photo(random_photo()).image[None], cameras, cameras, 3)
    assert sizes == [96, 96]


def test_finished_targets_keep_their_depths(pipeline: ScenePipeline) -> None:
    """The second target's context is the first one as it was sampled."""
    assert isinstance(pipeline.denoiser, RememberingDenoiser)
    photo = load_photo(random_photo()).image[None]
    cameras = look_ahead(1, 60.0)
    targets = [looking_at((x, 0.0, 0.0), (0.0, 0.0, 2.0), cameras) for x in (-0.4, 0.4)]
    known = pipeline._read(_photo_observation(photo, cameras))
    first = pipeline._sample(known, targets[:1], [3], 2, 1.0, (16, 24))
    both = pipeline._sample(known, targets, [3], 2, 1.0, (16, 24))
    assert len(both.signal.views) == 3
    for name in ("log_depth", "image", "features"):
        kept, before = (getattr(batch.signal.views[1], name) for batch in (both, first))
        assert torch.allclose(kept, before, atol=1e-4), name


def test_a_read_photo_is_as_good_as_the_photo(pipeline: ScenePipeline) -> None:
    image = load_photo(random_photo()).image[None]
    cameras = look_ahead(1, 50.0)
    read = pipeline._read(_photo_observation(image, cameras))
    both = _repeat_read(read, 2)
    view = CameraView(look_ahead(2, 50.0), (16, 24))
    plain = Observation(image.expand(2, -1, -1, -1), CameraView(look_ahead(2, 50.0), read.view.size))
    with torch.no_grad():
        for drop in (None, torch.tensor([True, False])):
            first, second = (pipeline.denoiser.encode([photo], view, drop) for photo in (both, plain))
            # in a batch of two, sums come in another order
            assert torch.allclose(first.image, second.image, atol=1e-5)
            assert torch.allclose(first.signal.views[0].features, second.signal.views[0].features, atol=1e-4)


def test_photos_are_read_both_ways_where_wanted() -> None:
    """In scenes, in views for evaluation and in the deterministic branch alike."""
    pipeline, plain = tiny_pipeline(both_ways=True), tiny_pipeline()
    image, cameras = load_photo(random_photo()).image[None], look_ahead(1, 50.0)
    signals = [
        pipeline(random_photo(), 1, fov_degrees=50.0)[0].signal,
        pipeline.sample_views(image, cameras, cameras, size=(16, 24))[0].signal,
        pipeline.deterministic(image, cameras).signal,
    ]
    photo = _photo_observation(image, cameras)
    with torch.no_grad():
        expected = read_both_ways(pipeline.denoiser, photo, 16).log_depth
        once = plain.denoiser.read_photo(photo, 16).log_depth
    assert not torch.allclose(once, expected, atol=1e-3)
    for signal in signals[1:]:
        assert torch.allclose(signal.views[0].log_depth, expected, atol=1e-5)
    # its camera has the photo's horizontal field of view, the others' that of the shorter side
    known = _photo_observation(image, signals[0].views[0].cameras)
    with torch.no_grad():
        expected = read_both_ways(pipeline.denoiser, known, 16).log_depth
    assert torch.allclose(signals[0].views[0].log_depth, expected, atol=1e-5)


@pytest.mark.parametrize("name", ["ddpm", "dpmsolver++"])
def test_other_schedulers_keep_seeds_apart_too(name: str) -> None:
    pipeline = tiny_pipeline(scheduler=name, steps=3)
    two, alone = pipeline(random_photo(), 2, seed=0), pipeline(random_photo(), 1, seed=1)
    assert torch.allclose(frames(two[1]), frames(alone[0]), atol=1e-4)
    assert two[0].metadata["scheduler"] == name


def test_without_temperature_all_samples_are_one() -> None:
    first, second = tiny_pipeline(temperature=0.0)(random_photo(), 2)
    assert torch.allclose(frames(first), frames(second), atol=1e-4)
    assert first.metadata["temperature"] == 0


def test_samples_begin_with_calm_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    begun = []

    def recording(*arguments: Any, **options: Any) -> Any:
        begun.append(arguments[5])
        return sample_in_turn(*arguments, **options)

    monkeypatch.setattr("scenediff.pipeline.sample_in_turn", recording)
    for factor in (1.0, 0.3):
        (scene,) = tiny_pipeline(coarse_temperature=factor)(random_photo(), 1)
        assert scene.metadata["coarse_temperature"] == factor
    for plain, calm in zip(*begun, strict=True):
        assert torch.allclose(calm, calm_coarse(plain, 0.3))
        assert not torch.allclose(calm, plain, atol=0.1)


def test_samples_may_doubt_the_scale() -> None:
    """Each draws a factor of its own, by its seed, of the size that the model tells."""
    sure = tiny_pipeline()
    config = replace(sure.denoiser.config, tells_doubt=True)
    denoiser, scheduler = build_model(config, sure.renderer.config)
    denoiser.load_state_dict(sure.denoiser.state_dict(), strict=False)
    defaults = replace(sure.defaults, doubt=0.5)
    doubting = ScenePipeline(denoiser, scheduler, defaults)

    def scales(pipeline: ScenePipeline, seed: int = 0) -> list[torch.Tensor]:
        return [scene.signal.views[0].log_depth for scene in pipeline(random_photo(), 3, seed=seed)]

    known = scales(sure)
    assert torch.allclose(known[0], known[1], atol=1e-5)
    drawn, again = scales(doubting), scales(doubting, seed=1)
    shifts = [each - known[0] for each in drawn]
    for seed, shift in enumerate(shifts):
        # of the whole photo; an untrained model's doubt is 0.1
        assert torch.allclose(shift, 0.5 * 0.1 * laplace_in_turn([seed]).expand_as(shift), atol=1e-4)
    assert torch.allclose(drawn[1], again[0], atol=1e-4)  # of seed 1
    assert (shifts[0] - shifts[1]).abs().min() > 1e-4
    with pytest.raises(ValueError, match="tells_doubt"):
        ScenePipeline(sure.denoiser, scheduler, defaults)


@pytest.mark.parametrize(("width", "height"), [(96, 72), (72, 96), (97, 61), (64, 64), (160, 90)])
def test_photos_of_any_shape(pipeline: ScenePipeline, width: int, height: int) -> None:
    scene = pipeline(random_photo(width, height), 1, fov_degrees=60.0)[0]
    assert scene.photo_size == (height, width)
    features = scene.signal.views[0].features.shape[-2:]
    assert features == scene.signal.views[1].features.shape[-2:]
    assert min(features) == 16
    assert max(features) == pytest.approx(16 * max(width, height) / min(width, height), abs=4)
    assert scene.render(scene.photo_cameras, (height // 4, width // 4)).image.isfinite().all()
    # 60 degrees are across the width; cameras know the shorter side
    across = 2 * math.degrees(
        math.atan(math.tan(math.radians(fov_of(scene.photo_cameras) / 2)) * width / min(width, height))
    )
    assert across == pytest.approx(60, abs=1e-3)


@pytest.mark.parametrize(("width", "height"), [(96, 72), (61, 97)])
def test_the_photo_is_seen_through_its_own_camera(width: int, height: int) -> None:
    """With blend weights in favour of pixels, the scene at the photo's camera is the photo, to the pixel."""
    pipeline = tiny_pipeline()
    field = pipeline.renderer.field
    for layer, row, value in ((field.view_gates, 1, -8.0), (field.output, 4, -8.0)):
        torch.nn.init.zeros_(layer.weight[row])
        torch.nn.init.constant_(layer.bias[row], value)
    scene = pipeline(random_photo(width, height), 1)[0]
    torch.nn.init.constant_(field.view_gates.bias[1], 8.0)
    alone = Scene(type(scene.signal)(scene.signal.views[:1]), scene.renderer)
    frame = alone.render(scene.photo_cameras, (height, width)).image
    assert torch.allclose(frame, scene.photo, atol=1e-3)


def test_guidance_and_steps_are_obeyed(pipeline: ScenePipeline) -> None:
    photo = random_photo()
    plain, one, zero, strong = (
        pipeline(photo, 1, guidance_scale=scale)[0] for scale in (None, 1.0, 0.0, 4.0)
    )
    assert torch.equal(frames(plain), frames(one))
    assert zero.metadata["guidance_scale"] == 0
    assert not torch.allclose(frames(plain), frames(zero), atol=1e-4)
    assert not torch.allclose(frames(plain), frames(strong), atol=1e-4)
    more = pipeline(photo, 1, steps=5)[0]
    assert more.metadata["steps"] == 5
    assert not torch.allclose(frames(plain), frames(more), atol=1e-4)


def test_paths_images_and_photos_are_the_same(pipeline: ScenePipeline, tmp_path: Path) -> None:
    random_photo().save(tmp_path / "photo.png")
    sources = [
        tmp_path / "photo.png",
        str(tmp_path / "photo.png"),
        random_photo(),
        load_photo(random_photo()),
    ]
    images = [frames(pipeline(source, 1)[0]) for source in sources]
    assert all(torch.equal(image, images[0]) for image in images)


def test_bad_arguments_are_refused(pipeline: ScenePipeline) -> None:
    with pytest.raises(ValueError, match="num_samples must be at least 1, got 0"):
        pipeline(random_photo(), 0)
    with pytest.raises(ValueError, match=r"steps must lie in \[1, 1000\], got 0"):
        pipeline(random_photo(), 1, steps=0)
    with pytest.raises(ValueError, match="targets must lie in"):
        tiny_pipeline(targets=9)(random_photo(), 1)


def test_views_of_several_photos_are_sampled_at_once(pipeline: ScenePipeline) -> None:
    images, cameras = torch.rand(2, 3, 32, 32) * 2 - 1, look_ahead(2, 60.0)
    targets = perspective_cameras(
        cameras.R, torch.tensor([[0.2, 0, 0], [-0.3, 0.1, 0]]), cameras.focal_length
    )
    batches = pipeline.sample_views(images, cameras, targets, 2, seed=1)
    assert len(batches) == 2
    drawn = [batch.render(targets, SIZE).image for batch in batches]
    assert drawn[0].shape == (2, 3, *SIZE)
    assert not torch.allclose(drawn[0], drawn[1], atol=1e-4)
    assert batches[0].observations[0].image.shape == (2, 3, 16, 16)
    alone = pipeline.sample_views(
        images[:1],
        look_ahead(1, 60.0),
        perspective_cameras(targets.R[:1], targets.T[:1], targets.focal_length[:1]),
        1,
        seed=1,
    )[0]
    assert torch.allclose(alone.observations[0].image[0], batches[0].observations[0].image[0], atol=1e-4)
    average = pipeline.deterministic(images, cameras)
    assert len(average.signal.views) == 1
    assert average.render(targets, SIZE).image.shape == (2, 3, *SIZE)


def test_target_views_look_at_what_the_photo_shows(pipeline: ScenePipeline) -> None:
    scene = pipeline(random_photo(), 1)[0]
    right, left = scene.target_cameras
    distance = float(scene.signal.views[0].log_depth.exp().median())
    centre = torch.tensor([[0.0, 0.0, 1.4 * distance]])
    for camera, sign in ((right, -1), (left, 1)):  # +X is left
        assert sign * camera.get_camera_center()[0, 0] > 0.1
        pixels = camera.transform_points_screen(centre, image_size=torch.tensor([SIZE]))
        assert torch.allclose(pixels[0, :2], torch.tensor([8.0, 6.0]), atol=1e-3)
        assert torch.equal(camera.focal_length, scene.photo_cameras.focal_length)


# --- cameras -------------------------------------------------------------------------------------

coordinates = st.floats(-3, 3, allow_nan=False, width=32)


@given(st.tuples(coordinates, coordinates, coordinates), st.tuples(coordinates, coordinates, coordinates))
@settings(max_examples=40, deadline=None)
def test_looking_at_looks_there_and_is_level(eye: tuple[float, ...], goal: tuple[float, ...]) -> None:
    offset = torch.tensor(goal) - torch.tensor(eye)
    if offset[[0, 2]].norm() < 0.05:  # straight up or down no camera is level
        return
    camera = looking_at(eye, goal, look_ahead(1, 60.0))
    rotation = camera.R[0]
    assert torch.allclose(rotation.T @ rotation, torch.eye(3), atol=1e-5)
    assert torch.linalg.det(rotation) == pytest.approx(1, abs=1e-4)
    assert torch.allclose(camera.get_camera_center()[0], torch.tensor(eye), atol=1e-4)
    local = torch.tensor([goal]) @ rotation + camera.T
    assert torch.allclose(
        local[0], torch.tensor([0.0, 0.0, float(offset.norm())]), atol=1e-4
    )  # straight ahead
    assert rotation[1, 0] == pytest.approx(0, abs=1e-6)  # its left is level,
    assert rotation[1, 1] > 0  # its up points up


def test_looking_ahead_is_the_photo_camera() -> None:
    camera = looking_at((0, 0, 0), (0, 0, 2), look_ahead(1, 50.0))
    assert torch.allclose(camera.R[0], torch.eye(3))
    assert fov_of(camera) == pytest.approx(50, abs=1e-4)


# --- files ---------------------------------------------------------------------------------------


def test_a_checkpoint_keeps_the_model(pipeline: ScenePipeline, tmp_path: Path) -> None:
    pipeline.save(tmp_path / "model")
    loaded = load(tmp_path / "model")
    assert loaded.defaults == pipeline.defaults
    assert loaded.denoiser.config == pipeline.denoiser.config
    assert loaded.renderer.config == pipeline.renderer.config
    assert not loaded.denoiser.training
    assert torch.equal(loaded.scheduler.alphas_cumprod, pipeline.scheduler.alphas_cumprod)
    before, after = pipeline.denoiser.state_dict(), loaded.denoiser.state_dict()
    for name, value in before.items():
        if value.is_floating_point():
            assert torch.equal(after[name], value.half().float()), name
    loaded.save(tmp_path / "again")
    assert (tmp_path / "again/weights.safetensors").read_bytes() == (
        tmp_path / "model/weights.safetensors"
    ).read_bytes()
    first, second = (each(random_photo(), 1)[0] for each in (loaded, scenediff.load(str(tmp_path / "again"))))
    assert torch.equal(frames(first), frames(second))
    difference = (frames(pipeline(random_photo(), 1)[0]) - frames(first)).abs().mean()
    assert difference < 0.02  # weights in half precision


def test_bad_checkpoints_are_refused(pipeline: ScenePipeline, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere: no such checkpoint folder"):
        load(tmp_path / "nowhere")
    folder = tmp_path / "model"
    folder.mkdir()
    with pytest.raises(CheckpointError, match="not a readable checkpoint configuration"):
        load(folder)
    config_path, weights_path = folder / "config.json", folder / "weights.safetensors"
    for text in ("{", "\x00\xff", '{"model": "other"}', "[1, 2]", '{"format": "scenediff-rooms-0"}'):
        config_path.write_text(text, encoding="latin-1")
        with pytest.raises(CheckpointError, match=r"not a readable|but this version of scenediff reads"):
            load(folder)
    pipeline.save(folder)
    config = json.loads(config_path.read_text())
    for section in ("denoiser", "field", "scheduler", "sampling"):
        config_path.write_text(json.dumps({name: value for name, value in config.items() if name != section}))
        with pytest.raises(CheckpointError, match=r"config\.json"):
            load(folder)
    config_path.write_text(json.dumps({**config, "field": {**config["field"], "colour": "red"}}))
    with pytest.raises(CheckpointError, match=r"config\.json"):
        load(folder)
    config_path.write_text(json.dumps(config))
    whole = weights_path.read_bytes()
    for damaged in (b"", whole[:1000], b"no weights"):
        weights_path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match="not a readable weights file"):
            load(folder)
    weights_path.unlink()
    with pytest.raises(CheckpointError, match="not a readable weights file"):
        load(folder)
    weights_path.write_bytes(whole)
    weights = load_file(weights_path)
    missing = {name: value for name, value in weights.items() if name != "head.bias"}
    other_shape = {**weights, "head.bias": functional.pad(weights["head.bias"], (0, 1))}
    for wrong in (missing, {**weights, "tail.bias": torch.zeros(1)}, other_shape):
        save_file(wrong, weights_path)
        with pytest.raises(CheckpointError, match=r"weights don't fit config.json .*(head|tail)\.bias"):
            load(folder)
