"""The generator against the published layout's outputs and a slow reference; patches against slicing."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_inversion import SIZES, tiny_generator
from torch.nn import functional

from scenediff.forward import ForwardModel
from scenediff.renderers.stylegan2 import (
    Generator,
    GeneratorConfig,
    GeneratorError,
    GeneratorForward,
    ModulatedConv,
    PatchView,
    check_patch,
    crop,
    from_public,
    infer_config,
    paste,
    patch_view,
    to_public,
    upsample_image,
    whole_image,
)

ROOT = Path(__file__).parents[1]
GOLDEN = Path(os.environ.get("SCENEDIFF_PARITY_DIR") or ROOT / "../shared/parity") / "stylegan2"
FILTER = torch.outer(torch.tensor([1.0, 3, 3, 1]), torch.tensor([1.0, 3, 3, 1])) / 64


# --- the published layout ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def golden():
    if not GOLDEN.is_dir():
        pytest.skip(f"no goldens in {GOLDEN} (SCENEDIFF_PARITY_DIR names another directory)")
    weights, given, wanted = (
        load_file(GOLDEN / f"{name}.safetensors") for name in ("weights", "inputs", "outputs")
    )
    archive = {"g": {}, "d": {}, "g_ema": weights, "latent_avg": given["latent_mean"]}
    return from_public(archive), given, wanted


@torch.no_grad()
def test_goldens(golden):
    """1e-4 is what another order of the same float32 sums needs at most; images reach 11."""
    generator, given, wanted = golden
    w = generator.map(given["z"])
    codes = {
        "image": generator.to_w_plus(w),
        "image_truncation_0p7": generator.to_w_plus(generator.truncated(w, 0.7)),
        "image_mixed_at_4": generator.to_w_plus(w, generator.map(given["z2"]), 4),
        "image_from_w_plus": given["w_plus"],
    }
    assert torch.allclose(codes["image"], wanted["latents"], atol=1e-5)
    for name, w_plus in codes.items():
        assert torch.allclose(generator(w_plus), wanted[name], rtol=0, atol=1e-4), name


def test_golden_sizes_are_inferred(golden):
    config = json.loads((GOLDEN / "config.json").read_text())
    sizes = golden[0].config
    assert (sizes.size, sizes.style_dim, sizes.mapping_layers) == (64, config["style_dim"], config["n_mlp"])
    assert sizes.channels == tuple(config["channels"][str(4 * 2**level)] for level in range(5))
    assert sizes.num_latents == config["n_latent"]


# --- against a slow reference --------------------------------------------------------------------


def filtered(x, up, before, after):
    """Zeros put between pixels, padding, and the filter (1, 3, 3, 1), as the layout defines resampling."""
    batch, channels, height, width = x.shape
    spread = x.new_zeros(batch, channels, height * up, width * up)
    spread[:, :, ::up, ::up] = x
    padded = functional.pad(spread, (before, after, before, after))
    kernel = (FILTER * up * up).to(x).expand(channels, 1, 4, 4)
    return functional.conv2d(padded, kernel, groups=channels)


def test_images_are_upsampled_by_the_filter():
    image = torch.randn(2, 3, 5, 5, dtype=torch.float64)
    assert torch.allclose(upsample_image(image), filtered(image, 2, 2, 1), atol=1e-12)


@pytest.mark.parametrize("upsample", [False, True])
def test_modulated_convolution_is_the_papers(upsample):
    """Eq. 1 and 3 of the paper: kernels scaled and normalised for each image, one image at a time."""
    torch.manual_seed(1)
    layer = ModulatedConv(3, 5, 3, 4, upsample=upsample).double()
    x, style = torch.randn(2, 3, 6, 6, dtype=torch.float64), torch.randn(2, 4, dtype=torch.float64)
    scaled, factors = layer(x, style)
    for index in range(2):
        scales = layer.modulation(style)[index]
        kernel = layer.weight[0] * layer.scale * scales[:, None, None]
        kernel = kernel / (kernel.square().sum((1, 2, 3), keepdim=True) + 1e-8).sqrt()
        if upsample:
            wide = functional.conv_transpose2d(x[index : index + 1], kernel.transpose(0, 1), stride=2)
            wanted = filtered(wide, 1, 1, 1) * 4
        else:
            wanted = functional.conv2d(x[index : index + 1], kernel, padding=1)
        got = (scaled * factors)[index : index + 1]
        assert torch.allclose(got, wanted, atol=1e-6)  # factors are computed in float32


def test_noise_is_stored_or_drawn():
    generator = tiny_generator()
    w_plus = torch.randn(2, SIZES.num_latents, SIZES.style_dim)
    with torch.no_grad():
        assert torch.equal(generator(w_plus), generator(w_plus))
        stored = [noise.expand(2, -1, -1, -1) for noise in generator.noises.maps()]
        assert torch.allclose(generator(w_plus, stored), generator(w_plus), atol=1e-5)
        others = [generator(w_plus, generator.random_noise(2)) for _ in range(2)]
    assert (others[0] - others[1]).abs().mean() > 1e-3


def test_truncation_and_mixing():
    generator = tiny_generator()
    w = generator.map(torch.randn(2, SIZES.style_dim))
    assert torch.allclose(generator.truncated(w, 0.0), generator.latent_avg.expand_as(w), atol=1e-6)
    assert torch.allclose(generator.truncated(w, 1.0), w, atol=1e-6)
    mixed = generator.to_w_plus(w[:1], w[1:], mix_at=2)
    assert torch.equal(mixed[0, :2], w[:1].expand(2, -1))
    assert torch.equal(mixed[0, 2:], w[1:].expand(SIZES.num_latents - 2, -1))
    with pytest.raises(ValueError, match="mix_at"):
        generator.to_w_plus(w[:1], w[1:], mix_at=SIZES.num_latents)


def test_the_mean_of_w_is_estimated():
    generator = tiny_generator()
    w = generator.map(torch.randn(20_000, SIZES.style_dim))
    error = (generator.latent_avg - w.mean(0)).abs() / w.std(0)
    assert error.max() < 0.15  # 1024 draws: a standard error of 0.03


# --- patches -------------------------------------------------------------------------------------


def test_patches_are_slices():
    images = torch.randn(3, 2, 9, 9)
    view = PatchView(torch.tensor([0, 2, 5]), torch.tensor([4, 0, 3]), (4, 5))
    patches = crop(images, view)
    for index, (top, left) in enumerate(zip(view.top.tolist(), view.left.tolist(), strict=True)):
        assert torch.equal(patches[index], images[index, :, top : top + 4, left : left + 5])


def test_the_whole_image_is_a_patch():
    images = torch.randn(2, 3, 8, 8)
    assert torch.equal(crop(images, whole_image(8, 2)), images)


def test_pasting_is_the_transpose_of_cropping():
    images, patches = torch.randn(2, 3, 8, 8), torch.randn(2, 3, 3, 5)
    view = PatchView(torch.tensor([1, 5]), torch.tensor([3, 0]), (3, 5))
    pasted = paste(patches, view, 8)
    assert torch.allclose((crop(images, view) * patches).sum(), (images * pasted[:, :3]).sum(), atol=1e-4)
    assert torch.equal(crop(pasted[:, :3], view), patches)
    assert pasted[:, 3].sum() == 2 * 15
    assert torch.equal(crop(pasted[:, 3:], view), torch.ones(2, 1, 3, 5))


def test_the_forward_model_is_differentiable_in_the_code():
    forward = GeneratorForward(tiny_generator().double())
    assert isinstance(forward, ForwardModel)
    assert not any(parameter.requires_grad for parameter in forward.parameters())
    w_plus = torch.randn(1, SIZES.num_latents, SIZES.style_dim, dtype=torch.float64, requires_grad=True)
    view = patch_view(3, 9, (5, 4))
    (slope,) = torch.autograd.grad(forward.render(forward.code(w_plus), view).square().sum(), w_plus)
    direction = torch.randn_like(w_plus)
    step = 1e-5  # images come in float32 steps of 1e-7: central differences are good to 1e-2
    with torch.no_grad():
        codes = [forward.code(w_plus + sign * step * direction) for sign in (1, -1)]
        ends = [forward.render(code, view).square().sum() for code in codes]
    measured = (ends[0] - ends[1]) / (2 * step)
    assert torch.allclose(measured, (slope * direction).sum(), rtol=0.05)


@pytest.mark.parametrize(
    ("view", "words"),
    [
        (patch_view(0, 0, (17, 4)), "at most the generator's 16x16"),
        (patch_view(13, 0, (4, 4)), "top must lie in .0, 12."),
        (patch_view(0, -1, (4, 4)), "left must lie in .0, 12."),
    ],
)
def test_patches_outside_the_image(view, words):
    with pytest.raises(ValueError, match=words):
        check_patch(view, 16)


# --- files ---------------------------------------------------------------------------------------


def test_the_public_layout_round_trip():
    generator = tiny_generator()
    weights = to_public(generator)
    assert weights["convs.0.conv.blur.kernel"].sum() == pytest.approx(4)
    again = from_public({"g_ema": weights, "latent_avg": generator.latent_avg})
    assert again.config == SIZES
    w_plus = torch.randn(1, SIZES.num_latents, SIZES.style_dim)
    with torch.no_grad():
        assert torch.equal(again(w_plus), generator(w_plus))
    assert torch.equal(again.latent_avg, generator.latent_avg)


def test_a_missing_mean_is_estimated():
    generator = tiny_generator()
    again = from_public(to_public(generator))
    assert torch.allclose(again.latent_avg, generator.latent_avg, atol=0.3)
    assert again.latent_avg.abs().sum() > 0


@torch.no_grad()
def test_a_generator_of_256_pixels():
    """Random weights at a tenth of the published width, in half precision, as some files are."""
    channels = (48, 48, 48, 48, 48, 24, 12)
    weights = to_public(Generator(GeneratorConfig(256, 32, 8, channels)))
    generator = from_public({"g_ema": {name: value.half() for name, value in weights.items()}})
    assert generator.config == GeneratorConfig(256, 32, 8, channels)
    image = generator(generator.to_w_plus(generator.map(torch.randn(1, 32))))
    assert image.shape == (1, 3, 256, 256)
    assert np.isfinite(image.numpy()).all()
    assert image.std() > 1e-3


@pytest.mark.parametrize("size", [1024, 256])
def test_published_sizes_have_the_published_keys(size):
    """Layers of FFHQ's generators, by the public layout's channels at twice the usual multiplier."""
    published = {4: 512, 8: 512, 16: 512, 32: 512, 64: 512, 128: 256, 256: 128, 512: 64, 1024: 32}
    channels = tuple(width for side, width in published.items() if side <= size)
    with torch.device("meta"):
        generator = Generator(GeneratorConfig(size, 512, 8, channels))
    state = generator.state_dict()
    levels = size.bit_length() - 3
    assert state[f"convs.{2 * levels - 1}.conv.weight"].shape == (1, channels[-1], channels[-1], 3, 3)
    assert state[f"noises.noise_{2 * levels}"].shape == (1, 1, size, size)
    assert infer_config(state) == generator.config
    assert generator.config.num_latents == {1024: 18, 256: 14}[size]


def test_wrong_files():
    generator = tiny_generator()

    def rejects(words, **changes):
        weights = {**to_public(generator), **changes}
        kept = {name: value for name, value in weights.items() if value is not None}
        with pytest.raises(GeneratorError, match=words):
            from_public({"g_ema": kept})

    nan = generator.conv1.conv.weight.detach().clone()
    nan[0, 0, 0, 0, 0] = torch.nan
    rejects("conv1.conv.weight has values that are not finite", **{"conv1.conv.weight": nan})
    rejects("to_rgb1.bias should be .1, 3, 1, 1., got nothing", **{"to_rgb1.bias": None})
    rejects("extra.weight should be absent", **{"extra.weight": torch.zeros(1)})
    rejects("not the usual filter", **{"convs.0.conv.blur.kernel": torch.ones(4, 4)})
    with pytest.raises(GeneratorError, match="no StyleGAN2 generator"):
        from_public({"weights": torch.zeros(3)})
    with pytest.raises(GeneratorError, match="holds no generator"):
        from_public({"g_ema": 3})
    with pytest.raises(GeneratorError, match="power of two"):
        GeneratorConfig(48)
    with pytest.raises(GeneratorError, match="channels"):
        GeneratorConfig(32, channels=(8, 8))
