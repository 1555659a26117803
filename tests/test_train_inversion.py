"""Training what inverts: batches of patches, learning through images alone, the optimisation baseline."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest
import torch
from accelerate.state import AcceleratorState
from tiny_inversion import NETWORK, SIZES, generator_file, pictures, tiny_generator

from scenediff.datasets.patches import patches_of
from scenediff.forward import Observation
from scenediff.inversion_pipeline import load_inversion
from scenediff.renderers.stylegan2 import GeneratorForward, crop, patch_view
from scenediff.tools.generator_files import load_generator
from scenediff.tools.metrics import EfficientNetLite0
from scenediff.tools.projector import ProjectorConfig, project, rate_factor
from scenediff.tools.train_inversion import InversionRun, PatchSource, generated_images, train_inversion
from scenediff.training import TrainConfig

CONFIG = TrainConfig(
    minutes=5.0, max_steps=60, batch_size=16, learning_rate=3e-3, warmup_steps=5, log_every=15, ema_decay=0.9,
    context_dropout=0.05,
)


def tiny_run(folder: Path, **changes) -> InversionRun:
    return InversionRun(
        folder, context_sizes=(6,), target_sizes=(64, 10), grid_images=3, train=CONFIG, denoiser=NETWORK,
        **changes,
    )


def test_batches_hold_patches_of_the_same_images(tmp_path):
    run = tiny_run(tmp_path, real_share=0.25)
    source = PatchSource(tiny_generator(), pictures(), run, torch.device("cpu"))
    sizes = set()
    for seed in range(6):
        batch = source.draw(torch.Generator().manual_seed(seed))
        known, target = batch.context[0], batch.target
        sizes.add(target.image.shape[-1])
        assert known.image.shape == (16, 3, 6, 6)
        assert batch.novel is known
        if target.image.shape[-1] == 16:
            assert torch.equal(crop(target.image, known.view), known.image)
    assert sizes == {16, 10}
    real = (pictures().float() / 127.5 - 1).flatten(1)
    images = source.mixed_images(16, torch.Generator().manual_seed(1)).flatten(1)
    found = (torch.cdist(images, real).min(1).values < 1e-3).tolist()
    assert found == [True] * 4 + [False] * 12


def test_the_generators_images_come_in_chunks_of_any_size():
    generator = tiny_generator()
    images = generated_images(generator, 300, torch.Generator().manual_seed(0))
    assert images.shape == (300, 3, 16, 16)
    some = generated_images(generator, 300, torch.Generator().manual_seed(0))
    assert torch.equal(images, some)


def test_images_of_another_size(tmp_path):
    with pytest.raises(ValueError, match="images must be"):
        PatchSource(tiny_generator(), pictures(size=8), tiny_run(tmp_path), torch.device("cpu"))


def test_it_learns_from_images_alone(tmp_path):
    """Losses fall, the generator stays, no latent is ever given, and the checkpoint loads."""
    AcceleratorState._reset_state(reset_partial_state=True)
    generator = tiny_generator()
    before = {name: value.clone() for name, value in generator.state_dict().items()}
    with mock.patch.dict(os.environ, {"ACCELERATE_USE_CPU": "true"}):
        figures = train_inversion(generator, None, tiny_run(tmp_path), "cpu")
    assert figures["steps"] == 60
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    for name in ("target", "deterministic", "novel", "context"):
        assert lines[-1][name] < 0.8 * lines[0][name], name
    pipeline = load_inversion(tmp_path / "checkpoint")
    for name, value in generator.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert pipeline.generator.config == SIZES
    assert (tmp_path / "grid_0000060.png").is_file()


# --- optimisation --------------------------------------------------------------------------------


def known_patch(count: int = 2) -> tuple[GeneratorForward, Observation]:
    renderer = GeneratorForward(tiny_generator())
    images = generated_images(renderer.generator, count, torch.Generator().manual_seed(3))
    return renderer, patches_of(images, patch_view(2, 3, (6, 6), count))


def test_optimisation_finds_the_patch():
    """A patch that the generator can show is found almost exactly."""
    renderer, known = known_patch()
    found = project(renderer, known, ProjectorConfig(steps=120, perceptual=0.0))
    assert found.psnr[0] < 25
    assert found.psnr[-1] > 30
    assert len(found.seconds) == 120
    assert (found.seconds.diff() > 0).all()
    shown = renderer.render(renderer.code(found.w_plus), known.view)
    assert (shown - known.image).abs().mean() < 0.1


def test_optimisation_stops_when_it_is_good_enough():
    renderer, known = known_patch()
    calls = []
    config = ProjectorConfig(steps=120, perceptual=0.0)
    found = project(renderer, known, config, stop_at=20.0, progress=lambda *done: calls.append(done))
    assert found.psnr[-1] >= 20 > found.psnr[:-1].max()
    assert calls[-1] == (len(found.psnr), 120)
    assert found.seconds_to(20.0) == float(found.seconds[-1])
    assert found.seconds_to(float(found.psnr[0])) == float(found.seconds[0])
    assert found.seconds_to(90.0) == float(found.seconds[-1])  # never: all the time it had


def test_optimisation_sees_perceptual_distance():
    renderer, known = known_patch(1)
    with pytest.raises(ValueError, match="needs a network"):
        project(renderer, known, ProjectorConfig(steps=1))
    network = EfficientNetLite0(side=64)
    both = [
        project(renderer, known, ProjectorConfig(steps=3, perceptual=weight), network).w_plus
        for weight in (0.0, 10.0)
    ]
    assert not torch.equal(*both)


def test_the_published_schedule_of_rates():
    assert [rate_factor(done) for done in (0.0, 0.025, 0.05, 0.5, 0.75)] == pytest.approx([0, 0.5, 1, 1, 1])
    assert rate_factor(0.875) == pytest.approx(0.5)
    assert rate_factor(1.0) == pytest.approx(0.0)


# --- files ---------------------------------------------------------------------------------------


def test_wrong_generator_files(tmp_path):
    good = generator_file(tmp_path / "good.pt")
    assert load_generator(good).config == SIZES
    torch.save({"g_ema": {}, "code": replace}, tmp_path / "code.pt")
    (tmp_path / "text.pt").write_text("no weights")
    torch.save([1, 2], tmp_path / "list.pt")
    cut = good.read_bytes()
    (tmp_path / "cut.pt").write_bytes(cut[: len(cut) // 2])
    for name, words in {
        "code.pt": "could run code", "text.pt": "neither a torch archive nor", "list.pt": "holds a list",
        "cut.pt": "truncated", "absent.pt": "can't be read",
    }.items():  # fmt: skip
        with pytest.raises(ValueError, match=words):
            load_generator(tmp_path / name)
