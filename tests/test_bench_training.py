"""The benchmark of training runs the real loop and reports its own log's speeds."""

from __future__ import annotations

import pytest

from scenediff.networks.pixel_denoiser import DenoiserConfig
from scenediff.renderers.pixel_field import FieldConfig
from scenediff.tools.bench_training import bench_training

SMALL = DenoiserConfig(channels=(16, 32, 32, 32), blocks=1, embedding=32)
FIELD = FieldConfig(channels=16, feature_channels=3, samples=4, proposal_bins=8)


def test_it_needs_enough_steps_for_a_median() -> None:
    with pytest.raises(ValueError, match="30"):
        bench_training("cpu", steps=10)


@pytest.mark.slow
def test_it_measures_pairs_a_second() -> None:
    figures = bench_training("cpu", 1, 30, denoiser=SMALL, field=FIELD, mixed_precision="no")
    assert 0 < figures["slowest"] <= figures["pairs_per_second"] < 1000
    assert figures["device"] == "cpu"
    assert (figures["batch_size"], figures["steps"]) == (1, 30)
