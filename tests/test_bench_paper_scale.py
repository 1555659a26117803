"""The benchmark of the full-size model, on a tiny one."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny_dit import ENCODER, FIELD, POSED_ENCODER

from scenediff.cli import main
from scenediff.dit_pipeline import DitPipeline, Shortcuts, build_denoiser
from scenediff.renderers.volume_network import VolumeConfig
from scenediff.tools.bench_paper_scale import (
    BenchOptions,
    RandomScene,
    _training,
    bench_paper_scale,
    list_shortcuts,
    median_seconds,
    psnr,
    step_operations,
    surfaces,
)


@pytest.mark.parametrize("encoder", [ENCODER, POSED_ENCODER], ids=["plain", "posed"])
def test_every_part_is_timed(encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scenediff.tools.bench_paper_scale.BATCH_SIZE", 16)
    options = BenchOptions(
        sizes=(16,), steps=2, train_batch=2, repeats=1, half=False, encoder=encoder, field=FIELD
    )
    figures = bench_paper_scale(options, "cpu")["sizes"]["16"]
    times = [value for name, value in figures.items() if name.endswith("_seconds")]
    assert len(times) == 7
    assert min(times) > 0
    assert figures["sample_seconds"] > figures["guided_step_seconds"]  # two steps and what precedes them
    assert figures["training_pairs_per_second"] == pytest.approx(2 / figures["training_step_seconds"])
    without = bench_paper_scale(replace(options, train_batch=0), "cpu")["sizes"]["16"]
    assert "training_step_seconds" not in without


def test_a_training_step_waits_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """No tensor's value is brought to Python, so that it can be recorded as a CUDA graph."""
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda optimizer: None)
    options = BenchOptions(repeats=1, half=False, encoder=ENCODER, field=FIELD)
    pipeline = DitPipeline(build_denoiser(ENCODER, FIELD))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        _training(pipeline, options, 16, 2, torch.device("cpu"))
    read = [event for event in profile.events() if event.name == "aten::item"]
    callers = {event.cpu_parent and event.cpu_parent.name for event in read}
    assert callers <= {"aten::linalg_lu_solve"}  # inverses, on a CPU


def test_half_precision_and_shortcuts_are_compared() -> None:
    options = BenchOptions(
        sizes=(16,), steps=5, train_batch=0, repeats=1, reference_steps=2, inexact=True, encoder=ENCODER,
        field=FIELD,
    )
    figures = bench_paper_scale(options, "cpu")["sizes"]["16"]
    assert 30 < figures["psnr_to_float32_of_2_steps"] < 100
    shortcuts = figures["inexact"]
    assert set(shortcuts.pop("exact")) == {"seconds", "frame_seconds"}
    assert set(shortcuts) == {*list_shortcuts(5, FIELD.fine)}
    for entry in shortcuts.values():
        assert 5 < entry["psnr_to_exact"] < 100
        assert 5 < entry["frame_psnr_to_exact"] < 100
        assert min(entry["seconds"], entry["frame_seconds"]) > 0


def test_random_fields_get_surfaces_for_a_while() -> None:
    """A tenth of the space is occupied, with the mean density there; both passes agree; all is undone."""
    options = BenchOptions(half=False, encoder=ENCODER, field=FIELD)
    pipeline = DitPipeline(build_denoiser(ENCODER, FIELD))
    scene, renderer = RandomScene(pipeline, options, 16, torch.device("cpu")), pipeline.renderer
    before = {name: value.clone() for name, value in renderer.state_dict().items()}
    with torch.no_grad(), surfaces(scene):
        found = scene.densities().clamp(min=0)
        assert float((found > 0).float().mean()) == pytest.approx(0.1, abs=0.02)
        assert float(found[found > 0].mean()) == pytest.approx(20, rel=0.1)
        assert torch.equal(renderer.coarse.output.weight, renderer.fine.output.weight)
    assert all(torch.equal(value, before[name]) for name, value in renderer.state_dict().items())


def test_shortcuts_are_one_at_a_time_but_for_the_last() -> None:
    listed = list_shortcuts(50, 64)
    assert listed["32_fine_samples"] == (50, Shortcuts(fine=32))
    assert listed["skip_0.001"] == (50, Shortcuts(skip=0.001))
    assert listed["20_steps_dpmsolver++"] == (20, Shortcuts("dpmsolver++"))
    assert listed["all"] == (20, Shortcuts("dpmsolver++", 32, 0.001))


def test_psnr_of_a_constant_error() -> None:
    image = torch.zeros(1, 3, 4, 4)
    assert psnr(image + 0.02, image) == pytest.approx(40)


def test_the_published_step_takes_sixty_tera_operations() -> None:
    assert step_operations(VolumeConfig(), 128) == pytest.approx(60e12, rel=0.02)
    assert step_operations(VolumeConfig(), 64) == pytest.approx(15e12, rel=0.02)


def test_the_median_leaves_the_first_run_out() -> None:
    calls: list[int] = []
    assert median_seconds(lambda: calls.append(1), torch.device("cpu"), 3) < 1
    assert len(calls) == 4


def test_bad_options_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "paper-scale", "--sizes", "10"]) == 2
    assert "--sizes must be multiples of 4, got 10" in capsys.readouterr().err
