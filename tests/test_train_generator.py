"""Training a generator: augmentation, the discriminator's parts, learning, checkpoints that can go on."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from accelerate.state import AcceleratorState
from tiny_inversion import SIZES, pictures, tiny_generator
from torch.nn import functional

from scenediff.networks.discriminator import Discriminator, EqualConv, with_deviation
from scenediff.renderers.stylegan2 import GeneratorError
from scenediff.tools.augment import AdaptiveAugment, move, recolour
from scenediff.tools.generator_files import load_archive, load_generator
from scenediff.tools.train_generator import Gan, GanConfig, GeneratorRun, train_generator

CONFIG = GanConfig(max_steps=4, batch_size=8, log_every=2, path_every=2, r1_every=2)


@pytest.fixture(autouse=True)
def _fresh_accelerator():
    AcceleratorState._reset_state(reset_partial_state=True)


def run(folder, **changes) -> GeneratorRun:
    return GeneratorRun(folder, train=replace(CONFIG, **changes), generator=SIZES)


# --- augmentation --------------------------------------------------------------------------------


def test_nothing_changes_at_probability_zero():
    images = torch.randn(4, 3, 8, 8)
    assert torch.allclose(AdaptiveAugment("cpu")(images), images, atol=1e-5)


def test_everything_changes_at_probability_one():
    images = torch.randn(64, 3, 8, 8)
    changed = AdaptiveAugment("cpu", p=1.0)(images)
    assert ((changed - images).flatten(1).abs().mean(1) > 0.1).float().mean() > 0.95


def test_colours_of_grey_images_stay_grey():
    """Saturation and hue turn about the axis of grey, brightness and contrast act on all channels alike."""
    grey = torch.rand(32, 1, 4, 4).expand(-1, 3, -1, -1)
    changed = recolour(grey, torch.tensor(1.0))
    assert (changed - changed.mean(1, keepdim=True)).abs().max() < 1e-5
    assert (changed - grey).abs().max() > 0.1


def test_moves_keep_flat_images():
    flat = torch.full((32, 3, 8, 8), 0.37)
    assert torch.allclose(move(flat, torch.tensor(1.0)), flat, atol=1e-5)


def test_augmentation_is_differentiable():
    images = torch.randn(2, 3, 8, 8, requires_grad=True)
    AdaptiveAugment("cpu", p=1.0)(images).square().sum().backward()
    assert images.grad.abs().sum() > 0


def test_the_probability_follows_the_signs():
    """16 images of 160 for the whole way from 0 to 1: a tenth each time, up when sure, down when not."""
    augment = AdaptiveAugment("cpu", target=0.6, images_to_full=160)
    for _ in range(3):
        augment.observe(torch.ones(16))
    assert float(augment.p) == pytest.approx(0.3)
    augment.observe(torch.tensor([1.0, -1.0]).repeat(8))
    assert float(augment.p) == pytest.approx(0.2)
    for _ in range(5):
        augment.observe(-torch.ones(16))
    assert float(augment.p) == 0.0


# --- the discriminator ---------------------------------------------------------------------------


def test_downsampling_is_the_filter_and_a_stride():
    """(1, 3, 3, 1) over the padded image, then the kernel at every second pixel."""
    x = torch.randn(2, 4, 8, 8)
    row = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
    kernel = torch.outer(row, row).expand(4, 1, 4, 4)
    for side, padding in ((3, 2), (1, 1)):
        layer = EqualConv(4, 5, side, downsample=True, bias=False)
        smooth = functional.conv2d(functional.pad(x, (padding,) * 4), kernel, groups=4)
        wanted = functional.conv2d(smooth, layer.weight * layer.scale, stride=2)
        assert layer(x).shape == (2, 5, 4, 4)
        assert torch.allclose(layer(x), wanted, atol=1e-5)


def gradients(device: str) -> dict[str, torch.Tensor]:
    """Of the logits of generated images, for the weights of both networks."""
    torch.manual_seed(0)
    networks = torch.nn.ModuleList([tiny_generator(), Discriminator(SIZES.channels)])
    w_plus = torch.randn(4, SIZES.num_latents, SIZES.style_dim).to(device)
    generator, discriminator = networks.to(device)
    with torch.backends.cudnn.flags(allow_tf32=False):
        discriminator(generator(w_plus)).sum().backward()
    named = networks.named_parameters()
    return {name: weight.grad.cpu() for name, weight in named if weight.grad is not None}


def test_no_pooling_pads(monkeypatch):
    """PyTorch's gradients through avg_pool2d's own padding are off by a pixel on CUDA, not on the CPU."""
    pool, paddings = functional.avg_pool2d, []

    def watched(x, kernel_size, stride=None, padding=0, **others):
        paddings.append(padding)
        return pool(x, kernel_size, stride, padding, **others)

    monkeypatch.setattr(functional, "avg_pool2d", watched)
    gradients("cpu")
    assert paddings
    assert not any(paddings)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="compares CUDA's gradients: needs a CUDA device")
def test_gradients_are_the_same_on_a_gpu():
    wanted, found = gradients("cpu"), gradients("cuda")
    assert wanted.keys() == found.keys()
    for name, value in wanted.items():
        assert torch.allclose(found[name], value, rtol=1e-3, atol=1e-3 * float(value.abs().max())), name


def test_the_deviation_of_groups():
    x = torch.zeros(8, 1, 2, 2)
    x[:4] = 1.0  # groups are every second image: two of each value
    added = with_deviation(x)[:, 1]
    assert torch.allclose(added, torch.full((8, 2, 2), 0.5), atol=1e-3)


def test_half_precision_agrees():
    torch.manual_seed(0)
    network = Discriminator(SIZES.channels)
    images = torch.rand(8, 3, 16, 16) * 2 - 1
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        half = network(images)
        fake = tiny_generator()(torch.randn(2, SIZES.num_latents, SIZES.style_dim))
    assert half.dtype == fake.dtype == torch.float32
    assert torch.allclose(half, network(images), atol=0.05)  # bfloat16 has 8 bits


# --- training ------------------------------------------------------------------------------------


def test_regularizers_are_what_they_say(tmp_path):
    """R1: the squared slope at the images. Path length: 0 penalty where the mean is the lengths' own."""
    torch.manual_seed(0)
    gan = Gan(run(tmp_path), torch.device("cpu"))
    real = pictures(8)
    penalty = float(gan._r1(real)["r1"])
    shown = (real.float() / 127.5 - 1).requires_grad_()
    (slope,) = torch.autograd.grad(gan.discriminator(shown).sum(), shown)
    assert penalty == pytest.approx(float(slope.square().sum((1, 2, 3)).mean()), rel=1e-3)
    assert any(parameter.grad is not None for parameter in gan.discriminator.parameters())

    drawn = gan._draw(64, torch.Generator().manual_seed(0))
    mean_square = float(gan._path_length(*drawn)["path"])  # the mean has hardly moved from 0 yet
    gan.mean_length.fill_(mean_square**0.5)
    variance = float(gan._path_length(*drawn)["path"])
    assert 0 < variance < 0.5 * mean_square  # lengths lie about their mean, not about 0
    assert gan.generator.conv1.conv.weight.grad is not None


def test_it_learns_the_colours(tmp_path):
    """Flat pictures of one colour: generated ones have it after some steps, and did not before."""
    colour = torch.tensor([200, 120, 40], dtype=torch.uint8)
    images = colour[None, :, None, None].expand(16, 3, 16, 16).contiguous()
    figures = train_generator(images, run(tmp_path, max_steps=90, learning_rate=0.01), "cpu")
    assert figures["steps"] == 90
    generator = load_generator(tmp_path / "generator.pt")
    z = torch.randn(32, SIZES.style_dim)
    with torch.no_grad():
        made = generator(generator.to_w_plus(generator.map(z))).mean((0, 2, 3))
    assert (made - (colour.float() / 127.5 - 1)).abs().max() < 0.25


def test_files_logs_and_going_on(tmp_path):
    train_generator(pictures(), run(tmp_path), "cpu")
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4]
    assert {"discriminator", "generator", "r1", "path_length", "augment_p"} <= set(lines[0])
    assert (tmp_path / "grid_0000004.png").is_file()
    archive = load_archive(tmp_path / "generator.pt")
    assert {"g", "d", "g_ema", "latent_avg"} <= set(archive)
    gan = Gan(replace(run(tmp_path), init=archive), torch.device("cpu"))
    assert gan.clock.steps == 4
    assert gan.g_optimizer.state_dict()["state"]
    name = "conv1.conv.weight"
    assert torch.equal(gan.generator.state_dict()[name], archive["g"][name])
    assert torch.equal(gan.average.state_dict()[name], archive["g_ema"][name])
    without = {key: value for key, value in archive.items() if key != "d"}
    with pytest.raises(GeneratorError, match="lacks 'd'"):
        Gan(replace(run(tmp_path), init=without), torch.device("cpu"))


def test_wrong_sizes(tmp_path):
    with pytest.raises(ValueError, match="images must be"):
        train_generator(pictures(size=8), run(tmp_path), "cpu")
    with pytest.raises(ValueError, match="multiple of 4"):
        replace(CONFIG, batch_size=6)
