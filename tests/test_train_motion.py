"""Training the model of motion: where its pairs come from, its preference for rest, what it starts from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_motion import NETWORK, moving_square, tiny_motion, write_clip

from scenediff.datasets.sprites import draw_pairs
from scenediff.datasets.video import PairConfig, VideoError
from scenediff.losses import LossWeights, snr_weight
from scenediff.motion_pipeline import SCHEDULE, build_motion_model
from scenediff.renderers.motion import MotionSignal, displacements
from scenediff.tools.train_motion import (
    CHECKPOINT_FOLDER,
    LOSS,
    MotionRun,
    RestWhereUnsure,
    batch_source,
    sample_grid,
    starting_point,
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    """The first 80 % are red, the rest, which training must not see, blue; no sprite has a flat channel."""
    frames = moving_square(20, (64, 80), side=16, step=5)
    frames[..., 1] = frames[..., 1] // 2
    frames[:16, ..., 2] = 0
    frames[16:, ..., 0] = 0
    return write_clip(tmp_path_factory.mktemp("videos") / "a.avi", frames)


def run(**changes) -> MotionRun:
    return MotionRun(Path("unused"), **{"size": 32, "short_side": 64, **changes})


def test_without_videos_there_are_sprites_alone() -> None:
    context, target = batch_source(run(), "cpu")(5, seeded(3))
    drawn = draw_pairs(5, 32, seeded(3))
    assert torch.equal(context, drawn.context)
    assert torch.equal(target, drawn.target)


@pytest.mark.parametrize(("share", "sprites"), [(0.0, 0), (0.25, 2), (0.5, 4), (1.0, 8)])
def test_sprites_have_their_share(videos: Path, share: float, sprites: int) -> None:
    """And real pairs come from the first part of the time alone."""
    context, target = batch_source(run(videos=videos, sprite_share=share), "cpu")(8, seeded())
    assert context.shape == target.shape == (8, 3, 32, 32)
    real = [bool((image[2] == -1).all()) for image in context]
    assert real == [False] * sprites + [True] * (8 - sprites)
    assert [bool((image[2] == -1).all()) for image in target] == real
    assert ((target - context).abs().amax((1, 2, 3)) > 0.1).all()


def test_unusable_videos_are_refused_before_training(videos: Path) -> None:
    with pytest.raises(VideoError, match="smaller than crops"):
        batch_source(run(videos=videos, short_side=32, size=64), "cpu")
    with pytest.raises(VideoError, match="nothing moves"):
        batch_source(run(videos=videos, pairs=PairConfig(threshold=255)), "cpu")


def test_rest_is_preferred_by_mean_length_and_signal_to_noise() -> None:
    """0.1 * mean of (weight - floor) * length: 2 px at a weight 3 above the floor, 1 px at the floor."""
    logits, steps = torch.full((2, 25, 4, 4), -1e4), displacements(2).tolist()
    logits[0, steps.index([0, 2])] = 1e4
    logits[1, steps.index([-1, 0])] = 1e4
    signal = MotionSignal(torch.zeros(2, 3, 4, 4), logits)
    rest = RestWhereUnsure(0.1, floor=0.5)
    terms = rest(signal, None, None, torch.tensor([3.5, 0.5]))  # type: ignore[arg-type]
    assert set(terms) == {"rest"}
    assert float(terms["rest"]) == pytest.approx(0.1 * 3 * 2 / 2, rel=1e-4)


def test_the_preference_fades_in_noise() -> None:
    alphas = build_motion_model(NETWORK, SCHEDULE)[1].alphas_cumprod
    weights = snr_weight(alphas, torch.tensor([0, 999]), LOSS) - LOSS.snr_floor
    assert weights[0] == LOSS.snr_cap
    assert 0 <= weights[1] < 1e-3
    assert isinstance(LOSS, LossWeights)


def test_what_a_run_starts_from(tmp_path: Path) -> None:
    """A checkpoint if one is named, the run's own when it goes on, an untrained model otherwise."""
    tiny_motion(steps=3).save(tmp_path / "named")
    tiny_motion(steps=4).save(tmp_path / "run" / CHECKPOINT_FOLDER)
    fresh = starting_point(MotionRun(tmp_path / "new", network=NETWORK, sample_size=48))
    assert fresh.denoiser.config == NETWORK
    assert fresh.defaults.size == 48
    assert starting_point(MotionRun(tmp_path / "run", init=tmp_path / "named")).defaults.steps == 3
    assert starting_point(MotionRun(tmp_path / "run", resume=True)).defaults.steps == 4
    both = MotionRun(tmp_path / "run", resume=True, init=tmp_path / "named")
    assert starting_point(both).defaults.steps == 3
    early = starting_point(MotionRun(tmp_path / "new", resume=True, network=NETWORK))
    assert early.denoiser.config == NETWORK


def test_grids_of_samples() -> None:
    """Context, target, then warp and flow of the mean and of each sample."""
    drawn = draw_pairs(3, 32, seeded())
    grid = sample_grid(tiny_motion(), drawn.context, drawn.target, samples=2)
    assert grid.size == (8 * 32, 3 * 32)
    first = torch.from_numpy(np.array(grid)[:32, :64]).permute(2, 0, 1)
    wanted = torch.cat([drawn.context[0], drawn.target[0]], dim=2)
    assert ((first / 127.5 - 1) - wanted).abs().max() <= 0.5 / 127.5 + 1e-5
