"""The denoiser of inversion: where patches lie, what is hidden, what it starts from."""

from __future__ import annotations

import pytest
import torch
from tiny_inversion import NETWORK, SIZES, tiny_generator, tiny_inversion

from scenediff.forward import Denoiser, Observation, SelfConditionedDenoiser
from scenediff.inversion_pipeline import build_inversion
from scenediff.renderers.stylegan2 import PatchView, patch_view, whole_image


def observation(top: int, left: int, side: int = 6, batch: int = 2, seed: int = 0) -> Observation:
    image = torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(seed)).clamp(-1, 1)
    return Observation(image, patch_view(top, left, (side, side), batch))


@pytest.fixture(scope="module")
def denoiser():
    return tiny_inversion().denoiser.eval()


def test_an_untrained_denoiser_shows_the_mean_image():
    network, _ = build_inversion(tiny_generator(), NETWORK)
    assert isinstance(network, Denoiser)
    encoded = network.encode([observation(2, 3)], whole_image(16, 2))
    mean = network.renderer.generator.latent_avg.expand(2, SIZES.num_latents, -1)
    assert torch.allclose(encoded.signal.w_plus, mean, atol=1e-6)
    assert torch.allclose(encoded.image, network.renderer.generator(mean), atol=1e-5)


def test_the_context_is_laid_out_in_its_place(denoiser):
    first, second = observation(1, 2, seed=1), observation(4, 5, seed=2)
    canvas = denoiser.lay_out([first, second])
    assert canvas.shape == (2, 4, 16, 16)
    assert torch.equal(canvas[:, :3, 4:10, 5:11], second.image)  # the later one on top
    assert torch.equal(canvas[:, :3, 1:4, 2:8], first.image[:, :, :3])
    assert canvas[:, 3].sum() == 2 * (36 + 36 - 9)
    assert canvas[:, :, 11:].abs().sum() == 0
    with pytest.raises(ValueError, match="at least one"):
        denoiser.lay_out([])


@torch.no_grad()
def test_everything_given_has_an_effect(denoiser):
    """The code changes with the patch, its place, the noisy target, its place and the time."""

    def code(seed=0, top=2, noise_seed=3, target_top=0, time=400):
        context = [observation(top, 3, seed=seed)]
        view = patch_view(target_top, 0, (10, 10), 2)
        noisy = torch.randn(2, 3, 10, 10, generator=torch.Generator().manual_seed(noise_seed))
        encoded = denoiser.encode(context, view)
        return denoiser.denoise(noisy, torch.full((2,), time), encoded, view).w_plus

    usual = code()
    assert usual.shape == (2, SIZES.num_latents, SIZES.style_dim)
    assert torch.equal(code(), usual)
    for change in ({"seed": 1}, {"top": 5}, {"noise_seed": 4}, {"target_top": 6}, {"time": 900}):
        assert (code(**change) - usual).abs().max() > 1e-4, change


@torch.no_grad()
def test_hidden_contexts_make_no_difference(denoiser):
    whole, drop = whole_image(16, 2), torch.tensor([True, False])
    codes = [denoiser.encode([observation(2, 3, seed=seed)], whole, drop).signal.w_plus for seed in (0, 1)]
    assert torch.equal(codes[0][0], codes[1][0])
    assert (codes[0][1] - codes[1][1]).abs().max() > 1e-4


@torch.no_grad()
def test_elements_of_a_batch_are_apart(denoiser):
    """Each has a place of its own; alone, it gives the same code."""
    image = torch.randn(3, 3, 5, 4)
    view = PatchView(torch.tensor([0, 3, 11]), torch.tensor([12, 6, 0]), (5, 4))
    together = denoiser.encode([Observation(image, view)], whole_image(16, 3)).signal.w_plus
    for index in range(3):
        one = slice(index, index + 1)
        known = Observation(image[one], view.part(one))
        alone = denoiser.encode([known], whole_image(16, 1)).signal.w_plus
        assert torch.allclose(alone, together[one], atol=1e-4)


@torch.no_grad()
def test_a_corrected_code_is_not_corrected_again(denoiser):
    """Steps begin with the guess and with what the step before made of it, in turn."""
    whole = whole_image(16, 2)
    context = denoiser.encode([observation(2, 3)], whole)
    assert isinstance(denoiser, SelfConditionedDenoiser)
    noisy, time = torch.randn(2, 3, 16, 16), torch.tensor([300, 500])
    first = denoiser.denoise(noisy, time, context, whole)
    second_context = denoiser.with_estimate(context, first)
    second = denoiser.denoise(noisy, time, second_context, whole)
    assert not torch.allclose(second.w_plus, first.w_plus, atol=1e-4)
    again = denoiser.denoise(noisy, time, denoiser.with_estimate(second_context, second), whole)
    assert torch.equal(again.w_plus, first.w_plus)


@torch.no_grad()
def test_one_context_for_several_elements(denoiser):
    one, two = observation(2, 3, batch=1), whole_image(16, 2)
    noisy, time = torch.randn(2, 3, 16, 16), torch.tensor([300, 500])
    both = Observation(one.image.repeat(2, 1, 1, 1), one.view.repeated(2))
    for drop in (None, torch.tensor([True, False])):
        codes = [
            denoiser.denoise(noisy, time, denoiser.encode([known], two, drop), two) for known in (one, both)
        ]
        assert torch.allclose(codes[0].w_plus, codes[1].w_plus, atol=1e-5)
    patches = PatchView(torch.tensor([0, 5]), torch.tensor([3, 1]), (7, 8))
    guesses = [denoiser.encode([known], patches).image for known in (one, both)]
    assert guesses[0].shape == (2, 3, 7, 8)
    assert torch.allclose(*guesses, atol=1e-5)


def test_only_the_denoiser_is_trained(denoiser):
    trained = [name for name, parameter in denoiser.named_parameters() if parameter.requires_grad]
    assert trained
    assert not any(name.startswith("renderer.") for name in trained)
    encoded = denoiser.encode([observation(2, 3)], whole_image(16, 2))
    code = denoiser.denoise(torch.randn(2, 3, 16, 16), torch.tensor([10, 900]), encoded, whole_image(16, 2))
    shown = denoiser.renderer.render(code, patch_view(0, 0, (9, 9), 2))
    (shown.square().mean() + encoded.image.mean()).backward()
    missing = [name for name in trained if denoiser.get_parameter(name).grad is None]
    denoiser.zero_grad()
    assert not missing
