"""Where a run of the model of rooms starts from, and what it trains how."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_pool import box_groups
from tiny_pipeline import random_photo, tiny_pipeline

from scenediff.cli.train import TrainRooms
from scenediff.datasets.rooms.pool import DrawConfig, GroupPool
from scenediff.datasets.rooms.stream import joined
from scenediff.networks.regularizers import PerceptualImage
from scenediff.tools.train_rooms import (
    RoomsRun,
    grown,
    hidden_matrices,
    reading_errors,
    starting_point,
    training_step,
)


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


def test_muon_trains_the_inner_matrices_where_it_is_wanted(tmp_path: Path) -> None:
    pipeline = tiny_pipeline()
    run = TrainRooms(tmp_path / "run", muon=True)._settings(0)
    chosen = {id(parameter) for parameter in hidden_matrices(pipeline, run)}
    names = [name for name, parameter in pipeline.denoiser.named_parameters() if id(parameter) in chosen]
    assert len(names) == len(chosen) > 20
    assert all(name.startswith("unet.") and name.endswith(".weight") for name in names)
    assert not any("norm" in name for name in names)
    assert hidden_matrices(pipeline, TrainRooms(tmp_path / "run")._settings(0)) == []


def test_what_was_learned_by_heart_shows(tmp_path: Path) -> None:
    """Photos that a run trains on and held-out ones are read alike, and drawn alike."""
    torch.manual_seed(0)
    pipeline, pool = tiny_pipeline(), GroupPool(6, "cpu", depth_size=16)
    trained, heldout = box_groups(6), box_groups(6)
    pool.add(trained)
    run = RoomsRun(tmp_path, draw=DrawConfig(size=16))
    same = reading_errors(pipeline, pool, trained, run)
    assert same["reading_trained"] == same["reading_heldout"] > 0
    other = reading_errors(pipeline, pool, heldout, run)
    assert other["reading_trained"] == same["reading_trained"] != other["reading_heldout"]


@pytest.mark.parametrize("weight", [0.0, 0.004])
def test_image_features_are_scored_where_they_are_wanted(tmp_path: Path, weight: float) -> None:
    step = training_step(tiny_pipeline(), RoomsRun(tmp_path, perceptual=weight))
    found = [term.weight for term in step.regularizers if isinstance(term, PerceptualImage)]
    assert found == [weight] * (weight > 0)


def test_joined_rooms_keep_their_order() -> None:
    first, second = box_groups(2), box_groups(3)
    both = joined([first, second])
    assert both.images.shape[0] == 5
    assert (both.depths[:2] == first.depths).all()
    assert (both.focal_length[2:] == second.focal_length).all()
