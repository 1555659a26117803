"""The camera's effects: identity, sharing, determinism, and each effect against what it must do."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from scenediff.datasets import photometric
from scenediff.datasets.photometric import photograph


def rooms(batch: int = 4, views: int = 3, height: int = 32, width: int = 40) -> torch.Tensor:
    """Smooth coloured images with some edges, in [-1, 1]."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(batch * views, 3, 5, 6, generator=generator)
    images = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1)
    return images.view(batch, views, 3, height, width) * 2 - 1


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_zero_strength_is_the_identity():
    images = rooms()
    images[0, 0, :, :4] = -1  # black and white, where power functions are delicate
    images[0, 0, :, 4:8] = 1
    # float32 through the sRGB curve and back: a few units in the last place, steepest near black
    torch.testing.assert_close(photograph(images, None, seeded(), strength=0), images, atol=2e-5, rtol=0)


def test_range_is_kept_and_no_gradient_is_recorded():
    images = rooms(batch=64).requires_grad_()
    photos = photograph(images, None, seeded())
    assert photos.shape == images.shape
    assert photos.dtype == torch.float32
    assert not photos.requires_grad
    assert photos.isfinite().all()
    assert photos.min() >= -1 - 1e-6
    assert photos.max() <= 1 + 1e-6


def test_same_seed_same_photos_and_other_seed_others():
    images = rooms()
    first, again = photograph(images, [0], seeded(3)), photograph(images, [0], seeded(3))
    assert torch.equal(first, again)
    assert not torch.allclose(first, photograph(images, [0], seeded(4)), atol=0.02)


def test_constant_images_keep_equal_tone_in_all_views_without_sensor():
    colours = torch.rand(16, 1, 3, 1, 1, generator=seeded()) * 2 - 1
    images = colours.expand(16, 3, 3, 24, 32).contiguous()
    photos = photograph(images, (), seeded(1))
    # identical arithmetic on identical values: only the order of sums may differ
    torch.testing.assert_close(photos[:, 1:], photos[:, :1].expand(-1, 2, -1, -1, -1), atol=1e-5, rtol=0)
    assert (photos - images).abs().mean() > 0.05
    drift = photograph(images, None, seeded(1))
    assert (drift[:, 1] - drift[:, 0]).abs().mean() > 0.005  # with sensors, views do differ


def test_elements_of_a_batch_get_different_tones():
    images = torch.zeros(8, 1, 3, 16, 16)
    means = photograph(images, (), seeded()).mean((1, 3, 4))
    assert torch.pdist(means).min() > 1e-3
    assert means.std(0).min() > 0.1  # exposure of +-1.2 EV moves mid-grey by more than a tenth of the range


def test_views_without_sensor_do_not_depend_on_sensor_effects():
    images = rooms()
    images[:, 1] = images[:, 0]
    photos = photograph(images, [0], seeded(5))
    # tone is pointwise with smooth gains, so it leaves smooth images smooth; noise and blocks do not
    roughness = photos.diff(n=2, dim=-1).abs().mean((0, 2, 3, 4))
    assert roughness[0] > 1.1 * roughness[1]


def test_exposure_is_linear_light():
    """With a known parameter, one stop doubles the light wherever nothing is compressed."""
    draw = FixedDraw({(-1.2, 1.2): 1.0})
    light = torch.full((1, 1, 3, 4, 4), 0.2)
    torch.testing.assert_close(photometric._expose(light, draw), 2 * light)


def test_shoulder_keeps_white_white():
    draw = FixedDraw({(-1.2, 1.2): 1.2, (0, 1): 1.0})
    light = torch.tensor([0.0, 0.01, 1.0]).view(1, 1, 1, 1, 3).expand(1, 1, 3, 1, 3)
    exposed = photometric._expose(light, draw)[0, 0, 0, 0]
    assert exposed[0] == 0
    assert exposed[1] / 0.01 == pytest.approx(2**1.2, rel=0.02)  # the curve's slope at black is the gain
    assert exposed[2] == pytest.approx(1, abs=1e-6)


def test_colour_matrix_keeps_greys():
    draw = FixedDraw({(-0.4, 0.4): 0.4, (-0.08726646259971647, 0.08726646259971647): 0.08})
    matrix = photometric._colour_matrix(draw)[0]
    torch.testing.assert_close(matrix @ torch.ones(3), torch.ones(3))
    chroma = torch.tensor([1.0, -0.5, -0.5])
    assert (matrix @ chroma).norm() / chroma.norm() == pytest.approx(1.4, rel=1e-5)


def test_blur_is_a_gaussian_of_the_asked_width():
    draw = FixedDraw({(0, 0.7): 0.7}, always=True)
    point = torch.zeros(1, 1, 3, 64, 64)
    point[..., 32, 32] = 1
    spread = photometric._blur(point, draw)[0, 0, 0]
    offset = torch.arange(64) - 32.0
    assert spread.sum() == pytest.approx(1, rel=1e-5)
    # sampled at whole pixels and cut at 3 px, a sigma of 0.7 px keeps its second moment to a percent
    assert (spread.sum(0) * offset.square()).sum() == pytest.approx(0.49, rel=0.02)


def test_noise_grows_with_light_as_shot_noise_does():
    draw = photometric._Draw(1, torch.device("cpu"), seeded(), 1.0)
    noise = photometric._sensor_noise(torch.zeros(1, 2, 3, 200, 200), draw)
    assert noise.std() == pytest.approx(1, rel=0.02)  # 240,000 values
    fixed = FixedDraw({(0, 0.04): 0.04}, always=True)
    light = torch.tensor([0.1, 0.4]).view(1, 2, 1, 1, 1).expand(1, 2, 3, 100, 100)
    deviation = photometric._record(light, fixed).std((2, 3, 4))[0]
    torch.testing.assert_close(deviation, 0.04 * torch.tensor([0.1, 0.4]).sqrt(), rtol=0.05, atol=0)


def test_dct_basis_is_orthonormal_and_fine_tables_change_nothing():
    basis = photometric._dct_basis(torch.device("cpu"))
    torch.testing.assert_close(basis @ basis.T, torch.eye(8), atol=1e-6, rtol=0)
    colour = (rooms(height=30, width=44) + 1) / 2
    lossless = photometric._jpeg(colour, torch.full((4, 3, 1, 1, 1), 1e-3))
    # steps of a thousandth of the tables; the colour matrices of the standard have six digits
    torch.testing.assert_close(lossless, colour, atol=2e-3, rtol=0)


def test_jpeg_agrees_with_a_real_encoder():
    """Against Pillow's encoder at quality 75 without chroma subsampling."""
    rng = np.random.default_rng(0)
    pixels = ((rooms(1, 1, 32, 40)[0, 0].permute(1, 2, 0).numpy() + 1) * 127.5).clip(0, 255)
    pixels = (pixels + rng.normal(0, 8, pixels.shape)).clip(0, 255).round().astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "jpeg", quality=75, subsampling=0)
    real = torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1) / 255
    colour = torch.from_numpy(pixels).permute(2, 0, 1) / 255
    ours = photometric._jpeg(colour[None, None], torch.full((1, 1, 1, 1, 1), 0.5))[0, 0]
    damage = (real - colour).square().mean().sqrt()
    # the encoder rounds tables, colours and pixels to integers: a fraction of the compression's own damage
    assert (ours - real).square().mean().sqrt() < 0.35 * damage


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="images"):
        photograph(torch.zeros(2, 3, 8, 8))
    with pytest.raises(ValueError, match="strength"):
        photograph(rooms(), strength=1.5)
    with pytest.raises(ValueError, match="sensor_views"):
        photograph(rooms(), [3])


class FixedDraw(photometric._Draw):
    """Chosen values for the ranges named, nothing for the others."""

    def __init__(self, values: dict[tuple[float, float], float], always: bool = False) -> None:
        super().__init__(1, torch.device("cpu"), seeded(), 1.0)
        object.__setattr__(self, "values", values)
        object.__setattr__(self, "always", always)

    def uniform(self, low: float, high: float, *, views: int = 1, channels: int = 1) -> torch.Tensor:
        return torch.full((1, views, channels, 1, 1), self.values.get((low, high), 0.0))

    def sometimes(self, chance: float, *, views: int = 1) -> torch.Tensor:
        return torch.full((1, views, 1, 1, 1), float(self.always))
