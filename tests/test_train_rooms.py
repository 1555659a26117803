"""Where a run of the model of rooms starts from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from tiny_pipeline import random_photo, tiny_pipeline

from scenediff.tools.train_rooms import RoomsRun, grown, starting_point


def test_a_model_grows_without_changing(tmp_path: Path) -> None:
    old = tiny_pipeline()
    old.save(tmp_path / "old")
    wanted = replace(old.denoiser.config, transformers=2, tells_doubt=True)
    new = starting_point(RoomsRun(tmp_path / "run", init=tmp_path / "old", denoiser=wanted))
    assert new.denoiser.config == wanted
    assert new.defaults == old.defaults
    before, after = (pipeline(random_photo(), 1)[0].signal.views for pipeline in (old, new))
    for one, other in zip(before, after, strict=True):
        assert torch.allclose(one.log_depth, other.log_depth, atol=0.02)  # weights are kept in half precision
    assert after[0].doubt is not None


def test_a_model_never_shrinks() -> None:
    old = tiny_pipeline()
    assert grown(old, old.denoiser.config) is old
    larger = grown(old, replace(old.denoiser.config, transformers=1))
    assert grown(larger, old.denoiser.config) is larger
