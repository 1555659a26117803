"""From a patch to codes: seeds, places, the core's sampler, checkpoints and their errors."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_inversion import SIZES, tiny_generator, tiny_inversion
from tiny_pipeline import tiny_pipeline

import scenediff
from scenediff.forward import Observation
from scenediff.inversion_pipeline import InversionPipeline, load_inversion, place_patch
from scenediff.pipeline import CheckpointError
from scenediff.renderers.stylegan2 import Generator, GeneratorConfig, GeneratorError, PatchView
from scenediff.sampling import draw_noise, generators
from scenediff.tools.evaluate_inversion import InversionTrials, invert_patches, patch_figures
from scenediff.tools.train_inversion import generated_images


@pytest.fixture(scope="module")
def pipeline():
    return tiny_inversion()


def patch(height: int = 6, width: int = 5) -> torch.Tensor:
    return torch.rand(3, height, width, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_samples_and_their_patches(pipeline):
    steps = []
    drawn = pipeline(patch(), 2, 3, num_samples=3, seed=5, progress=lambda *done: steps.append(done))
    assert steps == [(1, 3), (2, 3), (3, 3)]
    assert drawn.w_plus.shape == (3, SIZES.num_latents, SIZES.style_dim)
    assert drawn.images.shape == (3, 3, 16, 16)
    assert torch.equal(drawn.patches, drawn.images[:, :, 2:8, 3:8])
    shown = pipeline.generator(drawn.w_plus).clamp(-1, 1)
    assert torch.allclose(shown, drawn.images, atol=1e-5)
    assert not torch.allclose(drawn.images[0], drawn.images[1], atol=1e-3)


def test_a_sample_depends_on_its_seed_alone(pipeline):
    four = pipeline(patch(), num_samples=4, seed=5)
    one = pipeline(patch(), num_samples=1, seed=7)
    assert torch.allclose(one.w_plus[0], four.w_plus[2], atol=1e-4)


def test_several_patches_at_once(pipeline):
    view = PatchView(torch.tensor([1, 8]), torch.tensor([4, 0]), (6, 5))
    images = torch.stack([patch(), -patch()])
    drawn = pipeline.sample(Observation(images, view), 2, [10, 11, 20, 21])
    alone = pipeline(images[1], 8, 0, num_samples=2, seed=20)
    assert torch.allclose(drawn.w_plus[2:], alone.w_plus, atol=1e-4)
    guess = pipeline.deterministic(Observation(images, view))
    assert guess.images.shape == (2, 3, 16, 16)


def test_the_denoised_target_is_the_whole_image(pipeline):
    """One step from pure noise: the code is the denoiser's for that noise, at the last training step."""
    drawn = pipeline(patch(), 2, 3, num_samples=1, steps=1, seed=5)
    view = place_patch(patch(), 16, 2, 3)
    noise = draw_noise((3, 16, 16), generators([5]), "cpu")
    with torch.no_grad():
        whole = place_patch(torch.zeros(3, 16, 16), 16, None, None)
        encoded = pipeline.denoiser.encode([Observation(patch()[None], view)], whole)
        wanted = pipeline.denoiser.denoise(noise, torch.tensor([999]), encoded, whole)
    assert torch.allclose(drawn.w_plus, wanted.w_plus, atol=1e-4)


def test_places():
    view = place_patch(patch(6, 5), 16, None, None)
    assert (int(view.top), int(view.left), view.size) == (5, 5, (6, 5))
    with pytest.raises(ValueError, match="at most the generator's 16x16 pixels, got 5x17"):
        place_patch(patch(17, 5), 16, None, None)
    with pytest.raises(ValueError, match="left must lie in"):
        place_patch(patch(6, 5), 16, 0, 12)


def test_another_generator_must_have_the_same_sizes(pipeline):
    other = tiny_inversion()
    before = other(patch(), num_samples=1).images
    other.replace_generator(tiny_generator(seed=9))
    assert not torch.allclose(other(patch(), num_samples=1).images, before, atol=1e-2)
    with pytest.raises(GeneratorError, match=r"32x32 pixels.*16x16 pixels"):
        other.replace_generator(Generator(GeneratorConfig(32, 12, 2, (16, 16, 8, 8))))


def test_round_trip(pipeline, tmp_path):
    pipeline.save(tmp_path / "model")
    again = scenediff.load(tmp_path / "model")
    assert isinstance(again, InversionPipeline)
    assert again.defaults == pipeline.defaults
    wanted = pipeline(patch(), num_samples=2)
    got = again(patch(), num_samples=2)
    assert torch.allclose(got.images, wanted.images, atol=0.05)  # weights are kept in half precision
    assert load_inversion(tmp_path / "model").generator.config == SIZES


def test_wrong_checkpoints(pipeline, tmp_path):
    folder = tmp_path / "model"
    pipeline.save(folder)
    weights = load_file(folder / "weights.safetensors")
    config = json.loads((folder / "config.json").read_text())

    def rejects(words):
        with pytest.raises(CheckpointError, match=words):
            load_inversion(folder)

    bad = weights["renderer.generator.conv1.conv.weight"].clone()
    bad[..., 0] = torch.nan
    save_file({**weights, "renderer.generator.conv1.conv.weight": bad}, folder / "weights.safetensors")
    rejects("conv1.conv.weight has values that are not finite")
    others = {name: value for name, value in weights.items() if name != "head"}
    save_file(others, folder / "weights.safetensors")
    rejects("weights don't fit config.json.*head")
    sizes = {**config["generator"], "size": 32}
    (folder / "config.json").write_text(json.dumps({**config, "generator": sizes}))
    rejects("settings missing or unknown")
    tiny_pipeline().save(tmp_path / "rooms")
    with pytest.raises(CheckpointError, match="a model of another kind"):
        load_inversion(tmp_path / "rooms")


def test_the_bundled_model_keeps_patches_and_varies_elsewhere():
    """Eight patches, two samples each; the model's card has 27 dB and a ratio of 4.6 for more of them."""
    pipeline = load_inversion("furniture")
    outcome = invert_patches(
        pipeline, generated_images(pipeline.generator, 8, torch.Generator().manual_seed(0)),
        InversionTrials(patch=24, samples=2), torch.Generator().manual_seed(1),
    )  # fmt: skip
    figures = patch_figures(outcome)
    assert figures["patch_psnr_db"] > 24
    assert figures["patch_psnr_db"] > figures["patch_psnr_deterministic_db"] - 1
    assert figures["std_ratio_outside_inside"] > 2.5
