"""The sampler: guidance, seeds, order of the target views, schedulers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from toy_models import (
    COVARIANCE,
    ROWS,
    ExactLinearDenoiser,
    HalfwayDenoiser,
    gaussian_posterior,
    linear_forward_model,
    training_scheduler,
)

from scenediff.forward import Observation, RememberingDenoiser, SelfConditionedDenoiser
from scenediff.sampling import (
    COARSE_BLOCK,
    SCHEDULERS,
    SEED_STRIDE,
    calm_coarse,
    draw_noise,
    generators,
    laplace_in_turn,
    make_scheduler,
    sample,
    sample_at_once,
    sample_in_turn,
)

VALUES = torch.tensor([0.3, -0.2, 0.1])


@pytest.fixture
def denoiser() -> ExactLinearDenoiser:
    return ExactLinearDenoiser(
        linear_forward_model(), training_scheduler().alphas_cumprod.double(), COVARIANCE
    )


def context(values: Tensor = VALUES) -> list[Observation]:
    return [Observation(values.double()[:, None, None], "context")]


def draw(
    denoiser: ExactLinearDenoiser,
    name: str = "ddim",
    seeds: tuple[int, ...] = (5, 6, 7),
    steps: int = 10,
    values: Tensor = VALUES,
    **options,
) -> tuple[Tensor, Tensor]:
    sources = generators(seeds)
    noise = draw_noise((1, 2), sources, "cpu").double()
    return sample(
        denoiser,
        denoiser.forward_model,
        make_scheduler(name, training_scheduler()),
        context(values),
        "target",
        noise,
        steps=steps,
        step_generators=sources,
        **options,
    )


def test_unit_guidance_is_no_guidance(denoiser: ExactLinearDenoiser) -> None:
    _, plain = draw(denoiser)
    assert len(denoiser.encoded) == 1  # the branch without context is not even computed
    _, unit = draw(denoiser, guidance_scale=1.0)
    _, almost = draw(denoiser, guidance_scale=1.0 + 1e-9)
    assert len(denoiser.encoded) == 4
    assert torch.equal(plain, unit)
    assert torch.allclose(plain, almost, atol=1e-8)


@pytest.mark.parametrize("scale", [0.0, 0.5, 3.0])
def test_guidance_moves_away_from_the_estimate_without_context(
    denoiser: ExactLinearDenoiser, scale: float
) -> None:
    """In one step from pure noise the estimates are the posterior's and the prior's means, which is zero."""
    _, image = draw(denoiser, steps=1, guidance_scale=scale)
    mean, _ = gaussian_posterior(COVARIANCE, ROWS["context"], VALUES.double()[:, None])
    assert torch.allclose(
        image[:, 0], scale * mean @ ROWS["target"].T, atol=1e-3
    )  # alpha is 2e-9 there, not 0


def test_zero_guidance_samples_the_prior(denoiser: ExactLinearDenoiser) -> None:
    _, image = draw(denoiser, guidance_scale=0.0, steps=200)
    _, other = draw(denoiser, guidance_scale=0.0, steps=200, values=-VALUES)
    assert torch.allclose(image, other)


def test_steps_may_be_spaced_at_will(denoiser: ExactLinearDenoiser) -> None:
    _, even = draw(denoiser, steps=4)
    _, same = draw(denoiser, steps=4, timesteps=(999, 749, 499, 249))
    assert torch.allclose(even, same, atol=1e-6)
    _, other = draw(denoiser, steps=4, timesteps=(999, 700, 350, 100))
    assert not torch.allclose(even, other, atol=1e-3)
    for wrong in ((999, 700, 350), (999, 350, 700, 100), (1000, 700, 350, 100), (999, 700, 350, -1)):
        with pytest.raises(ValueError, match="timesteps must be 4 falling levels below 1000"):
            draw(denoiser, steps=4, timesteps=wrong)


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_self_conditioned_steps_start_from_the_step_before(
    denoiser: ExactLinearDenoiser, scale: float
) -> None:
    """With guidance, the estimates with and without context are chains of their own."""
    halfway, kept = HalfwayDenoiser(denoiser), []
    assert isinstance(halfway, SelfConditionedDenoiser)
    chains = 1 if scale == 1 else 2
    draw(halfway, steps=4, guidance_scale=scale, callback=lambda index, signal, clean: kept.append(signal))
    starts = halfway.starts[::chains]
    guess = denoiser.encode(context(), "target").signal
    assert torch.allclose(starts[0], guess.expand(3, -1))
    assert len(halfway.starts) == 4 * chains
    assert all(torch.equal(start, signal) for start, signal in zip(starts[1:], kept, strict=False))
    if chains == 2:
        assert not any(torch.equal(*pair) for pair in zip(starts, halfway.starts[1::2], strict=True))


@pytest.mark.parametrize("name", sorted(SCHEDULERS))
def test_a_sample_depends_on_its_own_seed_alone(denoiser: ExactLinearDenoiser, name: str) -> None:
    _, together = draw(denoiser, name)
    for index, seed in enumerate((5, 6, 7)):
        _, alone = draw(denoiser, name, seeds=(seed,), values=VALUES[index : index + 1])
        assert torch.allclose(together[index], alone[0], atol=1e-12)
    _, other = draw(denoiser, name, seeds=(5, 8, 7))
    assert torch.allclose(together[[0, 2]], other[[0, 2]], atol=1e-12)
    assert (together[1] - other[1]).abs().min() > 1e-3


def test_ddpm_takes_the_noise_of_its_steps_from_the_generators(denoiser: ExactLinearDenoiser) -> None:
    torch.manual_seed(1)
    _, first = draw(denoiser, "ddpm")
    torch.manual_seed(2)
    _, second = draw(denoiser, "ddpm")
    assert torch.equal(first, second)
    noise = draw_noise((1, 2), generators((5, 6, 7)), "cpu").double()
    steps = make_scheduler("ddpm", training_scheduler())
    _, unseeded = sample(
        denoiser,
        denoiser.forward_model,
        steps,
        context(),
        "target",
        noise,
        steps=10,
        step_generators=generators((1, 2, 3)),
    )
    assert not torch.allclose(first, unseeded)


def test_temperature_scales_the_noise_to_begin_with(denoiser: ExactLinearDenoiser) -> None:
    noise = draw_noise((1, 2), generators((5, 6, 7)), "cpu").double()
    forward, scheduler = denoiser.forward_model, make_scheduler("ddim", training_scheduler())
    _, cold = sample(denoiser, forward, scheduler, context(), "target", noise, steps=10, temperature=0.5)
    _, scaled = sample(denoiser, forward, scheduler, context(), "target", 0.5 * noise, steps=10)
    _, warm = sample(denoiser, forward, scheduler, context(), "target", noise, steps=10)
    assert torch.equal(cold, scaled)
    assert (cold - warm).abs().max() > 1e-3


def test_thresholds_apply_to_every_guided_estimate(denoiser: ExactLinearDenoiser) -> None:
    seen: list[Tensor] = []

    def threshold(clean: Tensor) -> Tensor:
        seen.append(clean)
        return clean.clamp(-0.1, 0.1)

    _, image = draw(denoiser, steps=4, guidance_scale=3.0, threshold=threshold)
    assert len(seen) == 4
    assert seen[0].abs().max() > 0.1
    assert torch.equal(image, seen[-1].clamp(-0.1, 0.1))


def test_other_views_of_one_run_are_rendered_from_its_signal(denoiser: ExactLinearDenoiser) -> None:
    noise = torch.randn(3, 1, 1, dtype=torch.float64)
    scheduler = make_scheduler("ddim", training_scheduler())
    arguments = (denoiser, denoiser.forward_model, scheduler, context())
    drawn = sample_at_once(*arguments, ["first", "second"], noise, denoised=0, steps=5)
    assert denoiser.encoded == [(("context",), "first")]
    signal, image = sample(*arguments, "first", noise, steps=5)
    assert torch.equal(drawn.signal, signal)
    assert torch.equal(drawn.observations[0].image, image)
    rendered = denoiser.forward_model.render(signal, "second")
    assert torch.equal(drawn.observations[1].image, rendered)
    assert [observation.view for observation in drawn.observations] == ["first", "second"]


def test_every_finished_target_becomes_context_for_the_next(denoiser: ExactLinearDenoiser) -> None:
    noises = [torch.randn(3, 1, 1, dtype=torch.float64) for _ in range(2)]
    options = {"steps": 20}
    scheduler = make_scheduler("dpmsolver++", training_scheduler())
    both = sample_in_turn(
        denoiser, denoiser.forward_model, scheduler, context(), ["first", "second"], noises, **options
    )
    assert [observation.view for observation in both.observations] == ["first", "second"]
    assert denoiser.encoded == [(("context",), "first"), (("context", "first"), "second")]
    _, first = sample(denoiser, denoiser.forward_model, scheduler, context(), "first", noises[0], **options)
    known = [*context(), Observation(first, "first")]
    signal, second = sample(
        denoiser, denoiser.forward_model, scheduler, known, "second", noises[1], **options
    )
    assert torch.equal(both.observations[0].image, first)
    assert torch.equal(both.observations[1].image, second)
    assert torch.equal(both.signal, signal)


def test_a_denoiser_may_add_what_it_knows_of_finished_targets(denoiser: ExactLinearDenoiser) -> None:
    seen = []

    class Remembering(ExactLinearDenoiser):
        def finished(self, signal: Tensor, observation: Observation) -> Observation:
            return Observation(observation.image, ("known", signal))

        def encode(self, known, target_view, drop=None):
            seen.append([observation.view for observation in known])
            return super().encode(known[:1], target_view, drop)

    levels = training_scheduler().alphas_cumprod.double()
    remembering = Remembering(denoiser.forward_model, levels, COVARIANCE)
    assert isinstance(remembering, RememberingDenoiser)
    assert not isinstance(denoiser, RememberingDenoiser)
    noises = [draw_noise((1, 2), generators((seed, 8, 9)), "cpu").double() for seed in (1, 2)]
    drawn = sample_in_turn(
        remembering, remembering.forward_model, make_scheduler("ddim", training_scheduler()), context(),
        ["target", "target"], noises, steps=3,
    )
    assert seen[0] == ["context"]
    assert seen[1][0] == "context"
    word, signal = seen[1][1]
    assert word == "known"
    assert signal.shape == drawn.signal.shape
    assert drawn.observations[0].view == "target"  # what is returned is as it was taken


def test_finished_targets_stay_within_the_range_of_images(denoiser: ExactLinearDenoiser) -> None:
    loud = context(torch.tensor([40.0, -40.0, 0.0]))
    drawn = sample_in_turn(
        denoiser,
        denoiser.forward_model,
        make_scheduler("ddim", training_scheduler()),
        loud,
        ["first"],
        [torch.zeros(3, 1, 1, dtype=torch.float64)],
        steps=3,
    )
    assert drawn.observations[0].image.abs().max() == 1
    assert drawn.signal.abs().max() > 1


def test_the_callback_follows_every_step(denoiser: ExactLinearDenoiser) -> None:
    calls: list[tuple[int, Tensor, Tensor]] = []
    signal, image = draw(denoiser, steps=7, callback=lambda *call: calls.append(call))
    assert [index for index, _, _ in calls] == list(range(7))
    assert torch.equal(calls[-1][1], signal)
    assert torch.equal(calls[-1][2], image)


@pytest.mark.parametrize("name", sorted(SCHEDULERS))
@pytest.mark.parametrize("steps", [1, 12, 1000])
def test_schedules_start_at_pure_noise_and_end_clean(name: str, steps: int) -> None:
    scheduler = make_scheduler(name, training_scheduler())
    scheduler.set_timesteps(steps)
    assert int(scheduler.timesteps[0]) == 999
    assert len(scheduler.timesteps) == steps
    assert (scheduler.timesteps.diff() < 0).all()
    noisy = torch.randn(1, 1, 2)
    for step in scheduler.timesteps:  # whatever came before, the last step returns the estimate
        noisy = scheduler.step(torch.full((1, 1, 2), 0.25), step, noisy).prev_sample
    assert torch.allclose(noisy, torch.full((1, 1, 2), 0.25), atol=1e-4)


def test_noise_is_standard_normal_and_different_everywhere() -> None:
    noise = draw_noise((3, 40, 50), generators(range(6)), "cpu")
    assert noise.shape == (6, 3, 40, 50)
    assert noise.mean().abs() < 4 / noise.numel() ** 0.5
    assert (noise.std() - 1).abs() < 4 / (2 * noise.numel()) ** 0.5
    assert torch.corrcoef(noise.flatten(1)).triu(1).abs().max() < 0.06  # 4.6 standard errors
    sources = generators([0])
    assert not torch.equal(draw_noise((2,), sources, "cpu"), draw_noise((2,), sources, "cpu"))


@pytest.mark.parametrize("size", [(64, 96), (20, 13)])
def test_calm_noise_differs_less_in_what_is_large(size: tuple[int, int]) -> None:
    noise = draw_noise((3, *size), generators((1, 2)), "cpu")
    calm = calm_coarse(noise, 0.25)
    rows, columns = (torch.arange(side) // COARSE_BLOCK for side in size)
    block = rows[:, None] * 100 + columns
    for label in block.unique():
        inside = block == label
        before, after = noise[:, :, inside], calm[:, :, inside]
        assert torch.allclose(after.mean(-1), 0.25 * before.mean(-1), atol=1e-5)
        kept = before - before.mean(-1, keepdim=True)
        assert torch.allclose(after - after.mean(-1, keepdim=True), kept, atol=1e-5)
    assert calm_coarse(noise, 1.0) is noise


@pytest.mark.parametrize("stride", [1, SEED_STRIDE])
def test_laplace_numbers_are_spread_over_few_seeds(stride: int) -> None:
    """Any eight in turn reach every quarter of the distribution; many follow its quantiles."""
    quarters = torch.distributions.Laplace(0.0, 1.0).icdf(torch.tensor([0.25, 0.5, 0.75]))
    for first in (0, 7, 12_345, 2**40 + 1):
        few = laplace_in_turn([first + stride * index for index in range(8)])
        assert set(torch.bucketize(few, quarters).tolist()) == {0, 1, 2, 3}
    many = laplace_in_turn([stride * index for index in range(4_000)])
    wanted = torch.distributions.Laplace(0.0, 1.0).icdf((torch.arange(4_000) + 0.5) / 4_000)
    # evenly spread: each quantile lies within a few ranks of its place, and the tails hold one number a rank
    assert (many.sort().values - wanted)[100:-100].abs().max() < 0.1
    assert abs(many.abs().mean() - 1) < 0.01
    assert laplace_in_turn([0]).item() == 0
    assert laplace_in_turn([5_000_000, 15_000_000]).isfinite().all()


def test_bad_arguments_are_refused(denoiser: ExactLinearDenoiser) -> None:
    with pytest.raises(ValueError, match="scheduler must be one of ddim, ddpm, dpmsolver\\+\\+, got 'euler'"):
        make_scheduler("euler", training_scheduler())
    with pytest.raises(ValueError, match=r"steps must lie in \[1, 1000\], got 0"):
        draw(denoiser, steps=0)
    scheduler = make_scheduler("ddim", training_scheduler())
    for views, noises in ([], []), (["first"], []):
        with pytest.raises(ValueError, match="one noise for each target view"):
            sample_in_turn(denoiser, denoiser.forward_model, scheduler, context(), views, noises, steps=1)
