"""From a photo to scenes of the full-size architecture: seeds, cameras, files, outputs."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_dit import ENCODER, FIELD, POSED_ENCODER, tiny_dit
from tiny_pipeline import random_photo

import scenediff
from scenediff.cli import main
from scenediff.ddim import EvenDDIM, cosine_alphas
from scenediff.dit_pipeline import DitPipeline, DitSampling, Shortcuts, centre_square, write_checkpoint
from scenediff.networks.dit import DitConfig
from scenediff.pipeline import CheckpointError, looking_at
from scenediff.renderers.cameras import look_ahead, perspective_cameras
from scenediff.renderers.volume_field import VolumeFieldRenderer
from scenediff.scene import Scene, SceneError
from scenediff.tools.outputs import OutputOptions, write_scene_outputs

SAMPLING = DitSampling(steps=2, size=16, targets=2)
PARTS = ("image", "depth", "opacity", "features")


def tiny(encoder: DitConfig = ENCODER) -> DitPipeline:
    denoiser = tiny_dit(encoder)
    for network in (denoiser.renderer.coarse, denoiser.renderer.fine, denoiser.renderer.deterministic):
        torch.nn.init.normal_(network.output.weight, std=1.0)
    return DitPipeline(denoiser, SAMPLING).to("cpu")


@pytest.fixture(scope="module")
def scene() -> Scene:
    return tiny()(random_photo(), 2, seed=3, fov_degrees=60.0)[1]


def test_a_scene_keeps_the_photos_centre(scene: Scene) -> None:
    assert scene.photo.shape == (1, 3, 72, 72)
    assert torch.allclose(scene.photo_cameras.R[0], torch.eye(3))
    assert scene.photo_cameras.T.abs().max() < 1e-6
    assert len(scene.target_cameras) == 2
    assert (scene.target_cameras[0].T - scene.photo_cameras.T).norm() > 0.1
    assert scene.metadata["seed"] == 4
    image = torch.arange(3 * 5).view(1, 3, 5)
    assert torch.equal(centre_square(image), image[:, :, 1:4])
    assert torch.equal(centre_square(image.mT), image.mT[:, 1:4])


@pytest.mark.parametrize("encoder", [ENCODER, POSED_ENCODER], ids=["plain", "posed"])
def test_a_sample_depends_on_its_own_seed_alone(encoder: DitConfig) -> None:
    pipeline, photo = tiny(encoder), random_photo()
    together = pipeline(photo, 2, seed=5)
    alone = pipeline(photo, 1, seed=6)[0]
    frames = [each.render(each.target_cameras[0], (8, 8)).image for each in (*together, alone)]
    assert torch.allclose(frames[1], frames[2], atol=1e-3)  # fine samples move with rounding errors
    assert (frames[0] - frames[1]).abs().max() > 0.01


def test_depth_is_along_the_optical_axis_and_positive(scene: Scene) -> None:
    """A wall right behind the near plane: distance / cos is constant, so depth falls with the angle."""
    frames = scene.render(scene.photo_cameras, (12, 12))
    assert frames.depth.min() > 0
    assert frames.opacity.min() >= 0
    assert frames.opacity.max() <= 1
    wall = tiny()(random_photo(), 1, fov_degrees=60.0)[0]
    with torch.no_grad():
        for network in wall.renderer.networks(sampled=True):
            network.output.weight[3], network.output.bias[3] = 0, 1e6
    depth = wall.render(wall.photo_cameras, (3, 3)).depth[0, 0]
    edge = math.tan(math.radians(wall.metadata["fov_degrees"] / 2))
    reach = torch.tensor([-2 / 3, 0.0, 2 / 3]) * edge  # at the pixels' centres
    cosine = 1 / (1 + reach[:, None] ** 2 + reach[None] ** 2).sqrt()
    assert torch.allclose(depth, FIELD.near * cosine, atol=1e-4)


def test_a_file_keeps_what_is_rendered(scene: Scene, tmp_path: Path) -> None:
    path = tmp_path / "scene.safetensors"
    scene.save(path)
    with safe_open(path, framework="pt") as file:
        assert file.metadata()["kind"] == "volume"
        assert not any("deterministic" in name for name in file.keys())  # noqa: SIM118
    loaded = Scene.load(path)
    assert loaded.metadata == scene.metadata
    assert torch.allclose(loaded.photo, scene.photo, atol=1e-3)  # half precision
    turned = looking_at((0.2, 0.1, 0.0), (0.0, 0.0, 2.0), scene.photo_cameras)
    before, after = scene.render(turned, (8, 12)), loaded.render(turned, (8, 12))
    for part in PARTS:
        assert torch.allclose(getattr(before, part), getattr(after, part), atol=0.05, rtol=0.02), part
    again = tmp_path / "again.safetensors"
    loaded.save(again)
    for part in PARTS:
        first, second = (each.render(turned, (8, 12)) for each in (loaded, Scene.load(again)))
        assert torch.equal(getattr(first, part), getattr(second, part)), part


def test_no_cameras_give_no_frames(scene: Scene) -> None:
    none = perspective_cameras(torch.zeros(0, 3, 3), torch.zeros(0, 3), torch.zeros(0))
    assert scene.render(none, (4, 6)).image.shape == (0, 3, 4, 6)
    assert scene.to("cpu").photo_size == (72, 72)


def test_files_with_missing_parts_are_refused(scene: Scene, tmp_path: Path) -> None:
    path = tmp_path / "scene.safetensors"
    scene.save(path)
    with safe_open(path, framework="pt") as file:
        header, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    for part in ("renderer.fine.output.weight", "views.1.maps.0", "photo"):
        kept = {name: value for name, value in tensors.items() if name != part}
        save_file(kept, path, metadata=header)
        with pytest.raises(SceneError, match="parts of the scene are missing or don't fit"):
            Scene.load(path)
    save_file(tensors, path, metadata=header | {"kind": "unheard-of"})
    with pytest.raises(SceneError, match="unheard-of"):
        Scene.load(path)


def test_a_scene_is_written_out_like_any_other(scene: Scene, tmp_path: Path) -> None:
    options = OutputOptions(short_side=32, frames=2, measure=False)
    outputs = write_scene_outputs(scene, tmp_path, outputs=["scene", "depth", "points"], options=options)
    outputs.baked.close()
    assert all(path.stat().st_size > 100 for path in outputs.files.values())


def test_checkpoints_come_back(tmp_path: Path) -> None:
    pipeline = tiny()
    write_checkpoint(tmp_path / "model", pipeline.denoiser.state_dict(), ENCODER, FIELD, SAMPLING)
    loaded = scenediff.load(tmp_path / "model")
    assert isinstance(loaded, DitPipeline)
    assert loaded.defaults == SAMPLING
    assert not loaded.denoiser.training
    for name, value in pipeline.denoiser.state_dict().items():
        assert torch.equal(loaded.denoiser.state_dict()[name], value), name
    assert next(loaded.denoiser.parameters()).requires_grad


def test_broken_checkpoints_are_refused(tmp_path: Path) -> None:
    folder, pipeline = tmp_path / "model", tiny()
    write_checkpoint(folder, pipeline.denoiser.state_dict(), replace(ENCODER, depth=1), FIELD, SAMPLING)
    with pytest.raises(CheckpointError, match=r"weights\.safetensors: weights don't fit config\.json"):
        scenediff.load(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"encoder": {"weight": 3}}))
    with pytest.raises(CheckpointError, match=r"config\.json: settings missing or unknown"):
        scenediff.load(folder)
    weights = load_file(folder / "weights.safetensors")
    assert weights
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "weights.safetensors").write_bytes(b"cut")
    with pytest.raises(CheckpointError, match="not a readable weights file"):
        scenediff.load(folder)


def test_several_photos_are_sampled_at_given_views() -> None:
    pipeline = tiny()
    photos, cameras = torch.rand(2, 3, 20, 24) * 2 - 1, look_ahead(2, 60.0)
    targets = perspective_cameras(cameras.R, torch.tensor([[0.2, 0.0, 0.0]] * 2), cameras.focal_length)
    first, second = pipeline.sample_views(photos, cameras, targets, 2, seed=3)
    frames = [batch.render(targets, (8, 8)) for batch in (first, second)]
    assert frames[0].image.shape == (2, 3, 8, 8)
    assert (frames[0].image - frames[1].image).abs().max() > 0.01
    (again,) = pipeline.sample_views(photos[1:], cameras[[1]], targets[[1]], seed=4)
    alone = again.render(targets[[1]], (8, 8)).image[0]
    assert torch.allclose(frames[0].image[1], alone, atol=1e-3)
    guess = pipeline.deterministic(photos, cameras)
    assert guess.render(cameras, (8, 8)).image.shape == (2, 3, 8, 8)


def test_impossible_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="num_samples must be at least 1, got 0"):
        tiny()(random_photo(), 0)
    other = DitPipeline(tiny_dit(), replace(SAMPLING, scheduler="dpmsolver++", threshold=0.0)).to("cpu")
    assert len(other(random_photo(), 1)) == 1


def test_shortcuts_change_a_sample_only_when_taken() -> None:
    pipeline, photo = tiny(), random_photo()
    with torch.no_grad():
        for network in pipeline.renderer.networks(sampled=True):
            network.output.bias[3] = 2
    (exact,), (same,) = pipeline(photo, 1, seed=3), pipeline(photo, 1, seed=3, shortcuts=Shortcuts())
    whole = exact.render(exact.target_cameras[0], (8, 8))
    again = same.render(exact.target_cameras[0], (8, 8))
    assert all(torch.equal(getattr(whole, part), getattr(again, part)) for part in PARTS)
    assert "shortcuts" not in exact.metadata
    for shortcuts in (Shortcuts(fine=2), Shortcuts(skip=0.05), Shortcuts(scheduler="ddpm")):
        (quick,) = pipeline(photo, 1, seed=3, shortcuts=shortcuts)
        image = quick.render(exact.target_cameras[0], (8, 8)).image
        assert not torch.equal(image, whole.image), shortcuts
        assert quick.metadata["shortcuts"] == asdict(shortcuts)
    assert pipeline.renderer.config == FIELD  # later samples are exact again


def test_a_scene_keeps_its_shortcuts_in_its_file(tmp_path: Path) -> None:
    (quick,) = tiny()(random_photo(), 1, shortcuts=Shortcuts(fine=2, skip=0.01))
    quick.save(tmp_path / "scene.safetensors")
    loaded = Scene.load(tmp_path / "scene.safetensors")
    assert isinstance(loaded.renderer, VolumeFieldRenderer)
    assert loaded.renderer.config == replace(FIELD, fine=2, skip=0.01)


def test_the_scheduler_is_the_asked_one() -> None:
    pipeline = tiny()
    assert isinstance(pipeline.make_scheduler(), EvenDDIM)
    solver = pipeline.make_scheduler("dpmsolver++")
    assert solver.config["algorithm_type"] == "dpmsolver++"
    solver.set_timesteps(10)
    own = pipeline.make_scheduler()
    own.set_timesteps(10)
    assert solver.timesteps.tolist() == own.timesteps.tolist()  # same times, same schedule, higher order
    assert torch.allclose(solver.alphas_cumprod, own.alphas_cumprod, atol=1e-4)
    with pytest.raises(ValueError, match="scheduler must be one of ddim, ddpm"):
        pipeline(random_photo(), 1, shortcuts=Shortcuts(scheduler="euler"))


def test_fewer_steps_of_higher_order_come_closer() -> None:
    """To the closed form for images that are normally distributed about 0.3, of deviation 0.2."""
    pipeline, start = tiny(), torch.linspace(-2, 2, 9)
    share = cosine_alphas()

    def solved(name: str, steps: int) -> torch.Tensor:
        scheduler, noisy = pipeline.make_scheduler(name), start
        scheduler.set_timesteps(steps)
        for time in scheduler.timesteps:
            a = share[time]
            clean = 0.3 + 0.04 * a.sqrt() / (0.04 * a + 1 - a) * (noisy - a.sqrt() * 0.3)
            noisy = scheduler.step(clean, time, noisy).prev_sample
        return noisy

    exact = 0.3 + 0.2 * start  # the last noise level leaves nothing of the image
    errors = {
        (name, steps): float((solved(name, steps) - exact).abs().max())
        for name, steps in (("ddim", 50), ("ddim", 15), ("dpmsolver++", 15))
    }
    assert errors["dpmsolver++", 15] < 0.8 * errors["ddim", 15], errors
    assert errors["ddim", 50] < errors["ddim", 15]


def test_the_command_takes_shortcuts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, photo, output = tmp_path / "model", tmp_path / "photo.png", tmp_path / "out"
    pipeline = tiny()
    for network in (pipeline.renderer.coarse, pipeline.renderer.fine):
        network.output.weight.data[3], network.output.bias.data[3] = 0, 1e6  # a wall to make a mesh of
    write_checkpoint(model, pipeline.denoiser.state_dict(), ENCODER, FIELD, replace(SAMPLING, targets=1))
    Image.new("RGB", (64, 64), (90, 120, 30)).save(photo)
    given = ["sample", str(photo), "-o", str(output), "-n", "1", "--frames", "2", "--size", "32"]
    short = ["--steps", "1", "--scheduler", "dpmsolver++", "--fine-samples", "2", "--skip-empty", "0.01"]
    assert main([*given, "--checkpoint", str(model), *short]) == 0, capsys.readouterr().err
    (sample,) = json.loads((output / "run.json").read_text())["samples"]
    assert sample["shortcuts"] == {"scheduler": "dpmsolver++", "fine": 2, "skip": 0.01}
    assert (sample["steps"], sample["scheduler"]) == (1, "dpmsolver++")
    for bad, message in (
        (["--fine-samples", "7", "--checkpoint", str(model)], "--fine-samples must be at most the model's 6"),
        (["--skip-empty", "1"], "--skip-empty must be at least 0 and less than 1, got 1"),
        (["--fine-samples", "0"], "--fine-samples must be at least 1, got 0"),
        (["--skip-empty", "0.1"], "are for full-size models, which --checkpoint rooms is not"),
    ):
        assert main([*given, "--overwrite", *bad]) == 2
        assert message in capsys.readouterr().err
