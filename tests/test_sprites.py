"""Sprites whose posterior is known: chances, exact steps, and the evaluation that compares with them."""

from __future__ import annotations

import colorsys
import math

import pytest
import torch
from tiny_motion import tiny_motion
from torch import Tensor

from scenediff.datasets.sprites import (
    CELL,
    KINDS,
    STEP,
    SpritePairs,
    assemble,
    compose,
    draw_pairs,
    draw_steps,
    hsv_color,
)
from scenediff.tools.evaluate_motion import (
    HELD_OUT_SEED,
    PosteriorTrials,
    direction_figures,
    evaluate_posterior,
    mode_errors,
)

FOURS = tuple(index for index, kind in enumerate(KINDS) if len(kind.chances) == 4)
EIGHTS = tuple(index for index, kind in enumerate(KINDS) if len(kind.chances) == 8)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- the data ------------------------------------------------------------------------------------


def test_the_table_of_kinds() -> None:
    """Unequal chances that add up, of K = 4 and K = 8, in hues well apart."""
    assert len(FOURS) == len(EIGHTS) == 2
    for kind in KINDS:
        assert sum(kind.chances) == pytest.approx(1, abs=1e-12)
        assert len(set(kind.chances)) == len(kind.chances)
        assert min(kind.chances) > 0.03
    hues = sorted(kind.hue for kind in KINDS)
    assert hues == [0, 0.25, 0.5, 0.75]


def test_steps_point_around_from_right_over_down() -> None:
    wanted = torch.tensor([[STEP, 0], [0, STEP], [-STEP, 0], [0, -STEP]])
    assert torch.allclose(KINDS[FOURS[0]].steps(), wanted, atol=1e-5)
    steps = KINDS[EIGHTS[0]].steps()
    assert torch.allclose(steps.norm(dim=1), torch.full((8,), STEP))
    assert torch.allclose(steps[1], torch.full((2,), STEP / math.sqrt(2)))


@pytest.mark.parametrize("index", range(len(KINDS)))
def test_directions_have_their_chances(index: int) -> None:
    draws, kind = 200_000, KINDS[index]
    directions, steps = draw_steps(torch.full((draws // 4, 4), index), seeded(index))
    counts = torch.bincount(directions.flatten(), minlength=len(kind.chances))
    assert len(counts) == len(kind.chances)
    for count, chance in zip(counts.tolist(), kind.chances, strict=True):
        deviation = math.sqrt(draws * chance * (1 - chance))
        assert abs(count - draws * chance) < 4 * deviation  # 24 counts: once in 600 such tables
    assert torch.equal(steps, kind.steps()[directions])


def test_directions_do_not_heed_each_other_nor_the_frame() -> None:
    """Neighbours agree as often as independent ones, and different seeds draw other directions."""
    kinds = torch.full((50_000, 2), FOURS[0])
    directions, _ = draw_steps(kinds, seeded())
    alike = float((directions[:, 0] == directions[:, 1]).float().mean())
    wanted = sum(chance**2 for chance in KINDS[FOURS[0]].chances)
    assert alike == pytest.approx(wanted, abs=4 * math.sqrt(wanted * (1 - wanted) / 50_000))
    assert not torch.equal(directions, draw_steps(kinds, seeded(1))[0])


def test_the_target_is_the_context_with_its_sprites_moved() -> None:
    pairs = draw_pairs(6, 2 * CELL, seeded())
    steps = torch.zeros(6, 4, 2)
    for element in range(6):
        for cell in range(4):
            kind = KINDS[int(pairs.sprites.kinds[element, cell])]
            steps[element, cell] = kind.steps()[pairs.directions[element, cell]]
    rest = compose(pairs.background, *pairs.sprites.draw(torch.zeros_like(steps)))
    assert torch.equal(rest, pairs.context)
    assert torch.equal(compose(pairs.background, *pairs.sprites.draw(steps)), pairs.target)
    changed = (pairs.target - pairs.context).abs().amax(1) > 0.1
    assert 0.02 < changed.float().mean() < 0.5


def test_sprites_move_as_they_are() -> None:
    """By whole pixels, colours and coverage shift bit for bit but for the rounding of positions."""
    sprites = draw_pairs(4, 2 * CELL, seeded()).sprites
    still = sprites.draw(torch.zeros(4, 4, 2))
    moved = sprites.draw(torch.tensor([3.0, -5.0]).expand(4, 4, 2))
    for before, after in zip(still, moved, strict=True):
        assert torch.allclose(after[..., :-5, 3:], before[..., 5:, :-3], atol=1e-4)
    assert not torch.allclose(moved[1], still[1], atol=0.5)


def test_sprites_stay_in_their_cells() -> None:
    """With every step, none of their pixels is cut off."""
    sprites = draw_pairs(64, 2 * CELL, seeded()).sprites
    for step in KINDS[EIGHTS[0]].steps():
        coverage = sprites.draw(step.expand(64, 4, 2))[1][:, :, 0]
        assert coverage.sum((2, 3)).min() > 60
        for edge in (coverage[..., 0], coverage[..., -1], coverage[..., 0, :], coverage[..., -1, :]):
            assert not edge.any()


def test_hues_tell_the_kinds() -> None:
    pairs = draw_pairs(64, 2 * CELL, seeded())
    for color, kind in zip(pairs.sprites.color.flatten(0, 1), pairs.sprites.kinds.flatten(), strict=True):
        hue = colorsys.rgb_to_hsv(*((color + 1) / 2).tolist())[0]
        apart = abs((hue - KINDS[int(kind)].hue + 0.5) % 1 - 0.5)
        assert apart < 0.0601
    assert pairs.sprites.kinds.unique().tolist() == [0, 1, 2, 3]


def test_colours_are_those_of_hsv() -> None:
    hue, saturation, value = torch.rand(3, 50)
    wanted = [colorsys.hsv_to_rgb(*each) for each in zip(hue.tolist(), saturation.tolist(), value.tolist(),
                                                         strict=True)]  # fmt: skip
    assert torch.allclose(hsv_color(hue, saturation, value), 2 * torch.tensor(wanted) - 1, atol=1e-5)
    assert torch.allclose(hsv_color(hue - 1, saturation, value), hsv_color(hue, saturation, value), atol=1e-5)


def test_cells_go_row_by_row() -> None:
    cells = torch.arange(4.0).view(1, 4, 1, 1, 1).expand(1, 4, 1, CELL, CELL)
    whole = assemble(cells)
    assert whole.shape == (1, 1, 2 * CELL, 2 * CELL)
    assert [float(whole[0, 0, row, column]) for row in (0, CELL) for column in (0, CELL)] == [0, 1, 2, 3]
    assert float(whole[0, 0, CELL - 1, CELL - 1]) == 0


def test_pairs_depend_on_the_generator_alone() -> None:
    first, again, other = (draw_pairs(3, CELL, seeded(seed)) for seed in (5, 5, 6))
    for name in ("context", "target", "directions", "background"):
        assert torch.equal(getattr(first, name), getattr(again, name))
    assert not torch.equal(first.context, other.context)
    assert first.context.shape == (3, 3, CELL, CELL)
    assert first.context.abs().max() <= 1
    generator = seeded(5)
    draw_pairs(3, CELL, generator)
    assert not torch.equal(draw_pairs(3, CELL, generator).context, first.context)


def test_only_the_kinds_asked_for() -> None:
    kinds = draw_pairs(200, CELL, seeded(), EIGHTS).sprites.kinds
    counts = torch.bincount(kinds.flatten(), minlength=len(KINDS)).tolist()
    assert counts[FOURS[0]] == counts[FOURS[1]] == 0
    assert abs(counts[EIGHTS[0]] - 100) < 4 * math.sqrt(50)  # binomial


@pytest.mark.parametrize("size", [0, 16, 33, 100, -32])
def test_wrong_sizes_are_refused(size: int) -> None:
    with pytest.raises(ValueError, match=f"multiple of 32 pixels, got {size}"):
        draw_pairs(1, size, seeded())


# --- its evaluation ------------------------------------------------------------------------------


def true_flow(pairs: SpritePairs, directions: Tensor) -> Tensor:
    """(batch, 2, size, size): minus the step where a sprite then is, 0 elsewhere."""
    kinds = pairs.sprites.kinds
    steps = torch.stack([
        KINDS[int(kind)].steps()[int(direction)]
        for kind, direction in zip(kinds.flatten(), directions.flatten(), strict=True)
    ]).view(*kinds.shape, 2)  # fmt: skip
    inside = pairs.sprites.draw(steps)[1] > 0.5
    return assemble(-steps[..., None, None] * inside)


@pytest.mark.parametrize("kinds", [FOURS, EIGHTS])
def test_the_true_flow_of_a_direction_has_no_error(kinds: tuple[int, ...]) -> None:
    pairs = draw_pairs(5, 2 * CELL, seeded(), kinds)
    errors = mode_errors(true_flow(pairs, pairs.directions), pairs)
    count = len(KINDS[kinds[0]].chances)
    assert errors.shape == (5, 4, count)
    assert torch.equal(errors.argmin(-1), pairs.directions)
    assert errors.gather(-1, pairs.directions[..., None]).max() < 1e-5
    others = errors.scatter(-1, pairs.directions[..., None], 100.0)
    assert others.min() > 0.5 * 2 * STEP * math.sin(math.pi / count)  # half the way to the nearest step


def test_no_flow_is_a_step_from_every_mode() -> None:
    pairs = draw_pairs(3, 2 * CELL, seeded(), EIGHTS)
    errors = mode_errors(torch.zeros(3, 2, 2 * CELL, 2 * CELL), pairs)
    assert torch.allclose(errors, torch.full_like(errors, STEP), atol=1e-4)


def sampled_errors(kinds: Tensor, directions: Tensor, count: int) -> Tensor:
    """Errors of exact samples: the distance between steps. (rounds, batch, cells, K)."""
    steps = KINDS[int(kinds[0, 0])].steps()
    return torch.cdist(steps, steps)[directions].view(*directions.shape, count)


@pytest.mark.parametrize("kinds", [FOURS, EIGHTS])
def test_draws_from_the_truth_come_near_to_a_perfect_sampler(kinds: tuple[int, ...]) -> None:
    count, generator = len(KINDS[kinds[0]].chances), seeded(3)
    of_sprites = torch.tensor(kinds).repeat(10).view(5, 4)
    drawn = torch.stack([draw_steps(of_sprites, generator)[0] for _ in range(200)])
    figures = direction_figures(sampled_errors(of_sprites, drawn, count), of_sprites)
    assert figures["modes_found"] == figures["modes"] == count
    assert figures["epe_nearest_mode_px"] == 0
    assert 0.005 < figures["total_variation_of_perfect_sampler"] < 0.03
    assert figures["total_variation"] < 2.5 * figures["total_variation_of_perfect_sampler"]
    assert figures["total_variation"] <= figures["total_variation_worst_kind"] < 0.05


def test_the_perfect_samplers_total_variation_is_the_mean_of_many() -> None:
    of_sprites, generator = torch.full((1, 1), FOURS[0]), seeded(4)
    found = []
    for _ in range(200):
        drawn = draw_steps(of_sprites.expand(1, 300), generator)[0].view(300, 1, 1)
        figures = direction_figures(sampled_errors(of_sprites, drawn, 4), of_sprites)
        found.append(figures["total_variation"])
    wanted = figures["total_variation_of_perfect_sampler"]
    assert sum(found) / len(found) == pytest.approx(wanted, rel=0.1)  # 200 draws of relative deviation 0.5


def test_a_collapsed_sampler_is_found_out() -> None:
    of_sprites = torch.full((5, 4), FOURS[0])
    likeliest = torch.zeros(100, 5, 4, dtype=torch.int64)
    figures = direction_figures(sampled_errors(of_sprites, likeliest, 4), of_sprites)
    assert figures["modes_found"] == 1
    assert figures["total_variation"] == pytest.approx(1 - KINDS[FOURS[0]].chances[0], abs=1e-4)


def test_an_averaging_sampler_finds_no_mode() -> None:
    """Its flow is the chances' mean, nearest to the likeliest mode but far from it."""
    kind, of_sprites = KINDS[FOURS[0]], torch.full((5, 4), FOURS[0])
    mean = (torch.tensor(kind.chances)[:, None] * kind.steps()).sum(0)
    errors = (kind.steps() - mean).norm(dim=1).expand(10, 5, 4, 4)
    figures = direction_figures(errors, of_sprites)
    assert figures["modes_found"] == 0
    assert figures["epe_nearest_mode_px"] == pytest.approx(float((kind.steps() - mean).norm(dim=1).min()),
                                                           abs=1e-3)  # fmt: skip
    assert figures["total_variation"] == pytest.approx(0.6, abs=1e-4)


class Oracle:
    """Stands for a model that knows the truth; its deterministic branch rests."""

    def __init__(self) -> None:
        self.device, self.defaults, self.generator = torch.device("cpu"), tiny_motion().defaults, seeded(8)

    def sample(self, photos: Tensor, seeds: list[int], *, steps: int | None) -> tuple:
        assert len(set(seeds)) == len(photos)
        for kinds in (FOURS, EIGHTS):
            count = len(KINDS[kinds[0]].chances)
            pairs = draw_pairs(len(photos), photos.shape[-1], seeded(HELD_OUT_SEED + count), kinds)
            if torch.equal(pairs.context, photos):
                directions, _ = draw_steps(pairs.sprites.kinds, self.generator)
                return Flow(true_flow(pairs, directions)), None
        raise AssertionError("frames other than the held-out ones")

    def deterministic(self, photos: Tensor) -> tuple:
        return Flow(torch.zeros(len(photos), 2, *photos.shape[2:])), None


class Flow:
    def __init__(self, flow: Tensor) -> None:
        self.flow = flow


def test_who_knows_the_truth_passes() -> None:
    figures = evaluate_posterior(Oracle(), PosteriorTrials(samples=100, frames=10))  # type: ignore[arg-type]
    for count in (4, 8):
        ours, baseline = figures[f"k{count}"], figures["baseline"][f"k{count}"]
        assert ours["total_variation"] < 2.5 * ours["total_variation_of_perfect_sampler"]
        assert ours["modes_found"] == ours["modes"] == baseline["modes"] == count
        assert ours["epe_nearest_mode_px"] < 1e-4
        assert ours["background_resting_share"] == 1
        assert baseline["modes_found"] == 0
        assert baseline["epe_nearest_mode_px"] == pytest.approx(STEP, abs=1e-3)
