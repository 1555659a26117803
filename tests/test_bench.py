"""The figures of the benchmark agree with themselves; the command prints them as one line of JSON."""

from __future__ import annotations

import json

import pytest

from scenediff.cli import main
from scenediff.datasets.rooms.assets import BUNDLED_PACK
from scenediff.tools.bench import GPU_STAGES, bench_rasterizer, profile_rasterizer

needs_pack = pytest.mark.skipif(not BUNDLED_PACK.is_file(), reason="no bundled asset pack")


@needs_pack
def test_command_counts_the_views_of_a_stream_and_times_the_stages(capsys):
    arguments = ["--workers", "1", "--seconds", "0.5", "--size", "16", "--seed", "3", "--profile", "1"]
    assert main(["bench", "rasterizer", *arguments]) == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (figures["workers"], figures["size"], figures["seed"]) == (1, 16, 3)
    assert figures["seconds"] >= 0.5
    assert figures["rooms"] >= 1
    assert figures["views"] == 20 * figures["rooms"]  # five groups of four
    assert figures["views_per_second"] == pytest.approx(figures["views"] / figures["seconds"])
    assert set(figures["stages"]) == {"all", "layout", "viewpoints", "read back", *GPU_STAGES}


@needs_pack
def test_stages_fit_into_the_whole():
    profile = profile_rasterizer(2, size=16)
    stages = profile["stages"]
    outer = set(stages) - {"all", "probes"}  # probes are a part of viewpoints
    total = stages["all"]["wall"]
    assert 0.5 * total < sum(stages[name]["wall"] for name in outer) <= total
    assert stages["probes"]["wall"] < stages["viewpoints"]["wall"]
    for name in GPU_STAGES:
        # the GPU's clock and the processor's: a millisecond for their difference
        assert 0 < stages[name]["gpu"] < stages[name]["wall"] + 1
    assert profile["renderer"]


def test_bad_settings_are_refused(capsys):
    with pytest.raises(ValueError, match="seconds"):
        bench_rasterizer(1, 0)
    with pytest.raises(ValueError, match="workers"):
        bench_rasterizer(0, 1)
    with pytest.raises(ValueError, match="rooms"):
        profile_rasterizer(0)
    assert main(["bench", "rasterizer", "--workers", "0"]) == 2
    assert "--workers" in capsys.readouterr().err
