"""The full-size architecture as a denoiser: guidance in one batch, hidden contexts, objective, sampling."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from diffusers import DDPMScheduler
from tiny_dit import ENCODER, FIELD, POSED_ENCODER, SIZE, random_context, random_view, tiny_dit

from scenediff.ddim import EvenDDIM
from scenediff.forward import Denoiser, ForwardModel, Observation, PairedDenoiser
from scenediff.losses import TrainingBatch, forward_model_loss
from scenediff.networks.dit_denoiser import DitDenoiser
from scenediff.pipeline import DEFAULT_SCHEDULE
from scenediff.renderers.volume_field import VolumeFieldRenderer
from scenediff.sampling import DynamicThreshold, sample, sample_at_once, sample_in_turn

OPTIONS = {"steps": 2, "guidance_scale": 3.0, "temperature": 0.85, "threshold": DynamicThreshold()}


class Unpaired:
    """The same denoiser without its way of running both passes of guidance at once."""

    def __init__(self, denoiser: DitDenoiser):
        self.encode, self.denoise = denoiser.encode, denoiser.denoise


@pytest.mark.parametrize("config", [ENCODER, POSED_ENCODER], ids=["plain", "posed"])
def test_both_passes_of_guidance_run_in_one_batch(config) -> None:
    denoiser, context, view = tiny_dit(config), random_context(), random_view()
    assert isinstance(denoiser, PairedDenoiser)
    assert isinstance(denoiser.renderer, ForwardModel)
    apart = Unpaired(denoiser)
    assert isinstance(apart, Denoiser)
    assert not isinstance(apart, PairedDenoiser)
    noise = torch.randn(2, 3, *SIZE)
    runs = [
        sample(each, denoiser.renderer, EvenDDIM(), context, view, noise, **OPTIONS)
        for each in (denoiser, apart)
    ]
    (signal, image), (other_signal, other_image) = runs
    assert torch.allclose(image, other_image, atol=1e-4)  # fine samples move with rounding errors
    assert [len(seen.cam_to_world) for seen in signal.views] == [2, 2, 2]
    for seen, other in zip(signal.views, other_signal.views, strict=True):
        assert torch.allclose(seen.maps[0], other.maps[0], atol=1e-4)


@torch.no_grad()
def test_hidden_contexts_are_zeros_and_others_are_not_touched() -> None:
    denoiser, context, view = tiny_dit(), random_context(), random_view()
    drop = torch.tensor([False, True])
    plain, mixed = denoiser.encode(context, view), denoiser.encode(context, view, drop)
    blank = [Observation(torch.zeros_like(seen.image), seen.view) for seen in context]
    hidden = denoiser.encode(blank, view)
    assert torch.allclose(mixed.image[0], plain.image[0], atol=1e-5)
    assert torch.allclose(mixed.image[1], hidden.image[1], atol=1e-5)
    assert (plain.image[1] - hidden.image[1]).abs().max() > 1e-3


def test_the_objective_trains_every_part() -> None:
    denoiser, view = tiny_dit(), random_view()
    batch = TrainingBatch(
        random_context(), Observation(torch.rand(2, 3, *SIZE), view),
        novel=Observation(torch.rand(2, 3, *SIZE), random_view()),
    )
    terms = forward_model_loss(
        denoiser, denoiser.renderer, DDPMScheduler(**DEFAULT_SCHEDULE), batch, torch.tensor([20, 600]),
        torch.randn(2, 3, *SIZE), drop=torch.tensor([False, True]),
    )
    assert {"target", "novel", "deterministic"} <= terms.keys()
    sum(terms.values()).backward()
    without = {name for name, value in denoiser.named_parameters() if value.grad is None}
    # no gradient passes from the samples' places to the network that placed them
    assert all(name.startswith("renderer.coarse.") for name in without)
    assert denoiser.encoder.context_stem.weight.grad.abs().max() > 0
    assert denoiser.renderer.deterministic.feature.weight.grad.abs().max() > 0


def test_what_is_remembered_fits_the_memory() -> None:
    denoiser, context, view = tiny_dit(), random_context(), random_view()
    with torch.no_grad():
        assert denoiser.encode(context, view).extras[1].remembered is not None
        denoiser.memory = denoiser.renderer.remembered_bytes(view) - 1
        assert denoiser.encode(context, view).extras[1].remembered is None
    denoiser.memory = 2**30
    assert denoiser.encode(context, view).extras[1].remembered is None  # gradients are wanted


def test_views_are_sampled_at_once_or_in_turn() -> None:
    denoiser, context = tiny_dit(), random_context(1)
    views = [random_view() for _ in range(3)]
    noises = [torch.randn(2, 3, *SIZE) for _ in views]
    arguments = (denoiser, denoiser.renderer, EvenDDIM(), context, views)
    once = sample_at_once(*arguments, noises[0], denoised=1, **OPTIONS)
    assert len(once.signal.views) == 2
    signal, image = sample(*arguments[:4], views[1], noises[0], **OPTIONS)
    assert torch.equal(once.observations[1].image, image)
    with torch.no_grad():
        rendered = denoiser.renderer.render(signal, views[2])
    assert torch.allclose(once.observations[2].image, rendered, atol=1e-5)
    turn = sample_in_turn(*arguments, noises, **OPTIONS)
    assert len(turn.signal.views) == 4  # the photo, and every target in its turn
    with pytest.raises(ValueError, match="at least one target view is needed"):
        sample_at_once(*arguments[:4], [], noises[0], **OPTIONS)


def test_parts_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="the encoder's channels must be the field's 8, got 16"):
        DitDenoiser(replace(ENCODER, channels=16), VolumeFieldRenderer(FIELD))
    with pytest.raises(ValueError, match="target_inputs must be 11, got 71"):
        DitDenoiser(replace(ENCODER, target_inputs=71), VolumeFieldRenderer(FIELD))
    context = [Observation(seen.image, replace(seen.view, pose=None)) for seen in random_context()]
    denoiser = tiny_dit(POSED_ENCODER)
    with pytest.raises(ValueError, match="absolute pose of every context view, got None"):
        denoiser.encode(context, random_view())
