"""From a photo to motions: seeds, sizes, all kinds of photos, checkpoints and their errors."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load, load_file, save_file
from tiny_motion import NETWORK, tiny_motion
from tiny_pipeline import random_photo, tiny_pipeline
from torch import Tensor

import scenediff
from scenediff import motion_pipeline
from scenediff.forward import Observation
from scenediff.motion_pipeline import (
    PHOTO,
    TARGET,
    Motion,
    MotionPipeline,
    MotionSampling,
    build_motion_model,
    load_motion,
)
from scenediff.pipeline import CheckpointError
from scenediff.renderers.motion import mean_field
from scenediff.sampling import draw_noise, generators


@pytest.fixture(scope="module")
def pipeline() -> MotionPipeline:
    return tiny_motion()


def photos(count: int = 2, size: tuple[int, int] = (32, 40), seed: int = 1) -> Tensor:
    return torch.rand(count, 3, *size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_motions_of_a_photo(pipeline: MotionPipeline) -> None:
    steps: list[tuple[int, int]] = []
    drawn = pipeline(random_photo(), 3, seed=5, progress=lambda *done: steps.append(done))
    total = steps[-1][1]
    assert steps == [(done, total) for done in range(1, total + 1)]
    assert total in (2, 4, 6)  # two steps of each chunk
    assert [motion.metadata for motion in drawn] == [
        {"seed": seed, "steps": 2, "scheduler": "ddim"} for seed in (5, 6, 7)
    ]
    for motion in drawn:
        assert motion.photo.shape == (1, 3, 72, 96)
        assert motion.field.flow.shape == motion.field.motion.shape == (1, 2, 72, 96)
        assert motion.field.visible.shape == motion.field.importance.shape == (1, 1, 72, 96)
        assert motion.field.flow.isfinite().all()
        # at 32 of 72 pixels, displacements of up to 2 are up to 4.5 long
        assert 0.1 < motion.field.flow.abs().max() <= 2 * 72 / 32 + 1e-4
        assert motion.render().shape == (1, 3, 72, 96)
    assert not torch.allclose(drawn[0].field.flow, drawn[1].field.flow, atol=1e-2)
    assert torch.allclose(drawn[0].render(0.0), drawn[0].photo, atol=1e-5)
    assert not torch.allclose(drawn[0].render(1.0), drawn[0].photo, atol=1e-2)


def test_a_sample_depends_on_its_seed_alone(pipeline: MotionPipeline) -> None:
    """Three at once are the three one by one, wherever they stand."""
    three = pipeline(random_photo(), 3, seed=5)
    for index, motion in enumerate(three):
        (alone,) = pipeline(random_photo(), 1, seed=5 + index)
        assert torch.allclose(alone.field.flow, motion.field.flow, atol=1e-4)
        assert alone.metadata == motion.metadata


def test_chunks_change_nothing(pipeline: MotionPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    together, shown = pipeline.sample(photos(5), [3, 1, 4, 1, 5])
    progress: list[tuple[int, int]] = []
    monkeypatch.setitem(motion_pipeline.CHUNK_PIXELS, "cpu", 2 * 32 * 40)
    apart, shown_apart = pipeline.sample(
        photos(5), [3, 1, 4, 1, 5], progress=lambda *done: progress.append(done)
    )
    assert progress[-1] == (6, 6)  # three chunks of two steps
    assert torch.allclose(together.flow, apart.flow, atol=1e-4)
    assert torch.allclose(shown, shown_apart, atol=1e-4)
    assert not torch.allclose(together.flow[1], together.flow[3], atol=1e-3)  # one seed, two photos


def test_one_step_is_the_denoisers_answer_to_noise(pipeline: MotionPipeline) -> None:
    """At the schedule's last level, from the noise of the seed."""
    photo = photos(1)
    field, target = pipeline.sample(photo, [9], steps=1)
    with torch.no_grad():
        encoded = pipeline.denoiser.encode([Observation(photo, PHOTO)], TARGET)
        noise = draw_noise((3, 32, 40), generators([9]), "cpu")
        signal = pipeline.denoiser.denoise(noise, torch.tensor([999]), encoded, TARGET)
    assert torch.allclose(field.flow, mean_field(signal).flow, atol=1e-5)
    assert torch.allclose(target, pipeline.renderer.render(signal), atol=1e-4)


def test_steps_count(pipeline: MotionPipeline) -> None:
    seen: list[tuple[int, int]] = []
    (motion,) = pipeline(random_photo(), 1, steps=4, progress=lambda *done: seen.append(done))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert motion.metadata["steps"] == 4
    (other,) = pipeline(random_photo(), 1)
    assert not torch.allclose(motion.field.flow, other.field.flow, atol=1e-3)
    with pytest.raises(ValueError, match="steps must lie in"):
        pipeline(random_photo(), 1, steps=0)


def test_the_deterministic_branch(pipeline: MotionPipeline) -> None:
    photo = photos()
    field, image = pipeline.deterministic(photo)
    assert field.flow.shape == (2, 2, 32, 40)
    with torch.no_grad():
        encoded = pipeline.denoiser.encode([Observation(photo, PHOTO)], TARGET)
    assert torch.equal(image, encoded.image)
    assert not field.flow.requires_grad


def test_at_least_one_sample(pipeline: MotionPipeline) -> None:
    with pytest.raises(ValueError, match="num_samples must be at least 1, got 0"):
        pipeline(random_photo(), 0)


# --- photos --------------------------------------------------------------------------------------


def flow_of(pipeline: MotionPipeline, photo: Path | Image.Image) -> Motion:
    (motion,) = pipeline(photo, 1)
    assert motion.field.flow.shape[-2:] == motion.photo.shape[-2:]
    assert motion.field.flow.isfinite().all()
    assert motion.render(0.5).shape == motion.photo.shape
    return motion


@pytest.mark.parametrize("size", [(32, 32), (41, 33), (33, 50), (97, 61)])
def test_any_size(pipeline: MotionPipeline, size: tuple[int, int]) -> None:
    """Odd ones, and those that no level of the network divides."""
    motion = flow_of(pipeline, random_photo(*size))
    assert motion.photo.shape == (1, 3, size[1], size[0])


def test_photos_smaller_than_the_model(pipeline: MotionPipeline) -> None:
    """They are enlarged for the network; flows come in their own pixels."""
    large = MotionPipeline(pipeline.denoiser, pipeline.scheduler, MotionSampling(steps=1, size=64))
    motion = flow_of(large, random_photo(40, 32))
    assert motion.photo.shape == (1, 3, 32, 40)
    assert motion.field.flow.abs().max() <= 2 * 32 / 64 + 1e-4


def test_long_photos_are_cut_and_large_ones_shrunk(pipeline: MotionPipeline) -> None:
    assert flow_of(pipeline, random_photo(200, 50)).photo.shape == (1, 3, 50, 89)
    assert flow_of(pipeline, random_photo(640, 480)).photo.shape == (1, 3, 384, 512)


def test_grey_transparent_and_16_bit_photos(pipeline: MotionPipeline, tmp_path: Path) -> None:
    """They are the 8-bit colour photo that looks the same."""
    path, grey = tmp_path / "photo.png", random_photo(50, 40).convert("L")
    wanted = flow_of(pipeline, grey.convert("RGB"))
    deep = np.asarray(grey).astype(np.uint16) * 257
    alpha = grey.convert("RGBA")
    for image in (grey, Image.fromarray(deep), alpha, grey.convert("LA")):
        image.save(path)
        motion = flow_of(pipeline, path)
        assert torch.allclose(motion.photo, wanted.photo, atol=1e-6)
        assert torch.allclose(motion.field.flow, wanted.field.flow, atol=1e-4)
    alpha.putalpha(0)
    alpha.save(path)
    assert torch.equal(flow_of(pipeline, path).photo, torch.ones(1, 3, 40, 50))  # all white


# --- checkpoints ---------------------------------------------------------------------------------


def test_round_trip(pipeline: MotionPipeline, tmp_path: Path) -> None:
    pipeline.save(tmp_path / "model")
    again = scenediff.load(tmp_path / "model")
    assert isinstance(again, MotionPipeline)
    assert again.defaults == pipeline.defaults
    assert again.denoiser.config == NETWORK
    assert torch.equal(again.denoiser.alphas_cumprod, pipeline.denoiser.alphas_cumprod)
    weights = load_file(tmp_path / "model" / "weights.safetensors")
    assert {value.dtype for value in weights.values()} == {torch.float16}
    own, read = pipeline.denoiser.state_dict(), again.denoiser.state_dict()
    assert set(own) == set(read) == set(weights)
    for name, value in own.items():
        assert torch.equal(read[name], value.half().float()), name
    assert not again.denoiser.training
    wanted, got = (each.sample(photos(), [1, 2])[0] for each in (pipeline, again))
    assert (got.flow - wanted.flow).abs().mean() < 0.02  # weights are kept in half precision
    again.save(tmp_path / "again")
    for name in ("config.json", "weights.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "model" / name).read_bytes()


def test_the_untrained_model_has_the_sizes_it_is_given() -> None:
    denoiser, scheduler = build_motion_model(NETWORK)
    assert denoiser.config == NETWORK
    assert scheduler.config.prediction_type == "sample"
    assert not denoiser.training
    kept = MotionPipeline(denoiser, scheduler)
    assert kept.defaults == MotionSampling()
    assert kept.renderer is denoiser.renderer


def test_foreign_folders(pipeline: MotionPipeline, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    pipeline.save(folder)
    config = json.loads((folder / "config.json").read_text())
    weights = load(whole := (folder / "weights.safetensors").read_bytes())

    def rejects(words: str, **changes) -> None:
        (folder / "config.json").write_text(json.dumps({**config, **changes}))
        with pytest.raises(CheckpointError, match=words) as caught:
            load_motion(folder)
        assert "\n" not in str(caught.value)

    network, unknown = config["denoiser"], r"config\.json: settings missing or unknown"
    rejects(unknown + ".*colour", denoiser={**network, "colour": "red"})
    rejects(unknown + ".*speed", sampling={**config["sampling"], "speed": 3})
    rejects(unknown + ".*gamma", scheduler={**config["scheduler"], "gamma": 3})
    rejects(unknown, denoiser={name: value for name, value in network.items() if name != "channels"})
    rejects(unknown, denoiser=None)
    rejects(unknown, denoiser={**network, "channels": [16, 20]})  # no groups of this width
    rejects(r"config\.json: format 'scenediff-motion-9'", format="scenediff-motion-9")
    rejects(r"weights\.safetensors: weights don't fit config\.json", denoiser={**network, "radius": 3})

    (folder / "weights.safetensors").write_bytes(whole[: len(whole) // 2])
    rejects(r"weights\.safetensors: not a readable weights file")
    others = {name: value for name, value in weights.items() if name != "trust.weight"}
    save_file(others, folder / "weights.safetensors")
    rejects(r"weights\.safetensors: weights don't fit config\.json.*trust\.weight")
    (folder / "weights.safetensors").unlink()
    rejects(r"weights\.safetensors: not a readable weights file")
    (folder / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config\.json: not a readable checkpoint"):
        load_motion(folder)
    with pytest.raises(CheckpointError, match="nowhere: no such checkpoint folder"):
        load_motion(tmp_path / "nowhere")


def test_models_of_other_things(pipeline: MotionPipeline, tmp_path: Path) -> None:
    tiny_pipeline().save(tmp_path / "rooms")
    with pytest.raises(CheckpointError, match="rooms is no motion model"):
        load_motion(tmp_path / "rooms")
    with pytest.raises(CheckpointError, match=r"config\.json: format 'scenediff-rooms-1'"):
        MotionPipeline.from_folder(tmp_path / "rooms")
    pipeline.save(tmp_path / "motion")
    assert isinstance(load_motion(tmp_path / "motion"), MotionPipeline)
