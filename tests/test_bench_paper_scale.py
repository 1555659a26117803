"""The benchmark of the full-size model, on a tiny one."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny_dit import ENCODER, FIELD, POSED_ENCODER

from scenediff.cli import main
from scenediff.renderers.volume_field import VolumeConfig
from scenediff.tools.bench_paper_scale import (
    BenchOptions,
    bench_paper_scale,
    median_seconds,
    psnr,
    step_operations,
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


def test_half_precision_and_shortcuts_are_compared() -> None:
    options = BenchOptions(
        sizes=(16,), steps=5, train_batch=0, repeats=1, reference_steps=2, inexact=True, encoder=ENCODER,
        field=FIELD,
    )
    figures = bench_paper_scale(options, "cpu")["sizes"]["16"]
    assert 30 < figures["psnr_to_float32_of_2_steps"] < 100
    shortcuts = figures["inexact"]
    assert set(shortcuts) >= {"3_fine_samples", "1_fine_samples", "2_steps_dpmsolver++", "1_steps_ddim"}
    assert all(5 < entry["psnr_to_exact"] < 100 for entry in shortcuts.values())


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
