"""What the denoiser of motion reads from a noisy frame, how it starts, and that it learns as a whole."""

from __future__ import annotations

import pytest
import torch
from tiny_motion import NETWORK, tiny_motion
from torch import Tensor
from torch.distributions import Normal

from scenediff.forward import Observation
from scenediff.losses import LossWeights, TrainingBatch, forward_model_loss
from scenediff.motion_pipeline import PHOTO, SCHEDULE, TARGET, build_motion_model
from scenediff.networks.motion_denoiser import EVIDENCE_BOUND, MotionConfig, MotionDenoiser, motion_evidence
from scenediff.renderers.motion import MotionSignal, displacements, mean_field

RADIUS, COUNT = NETWORK.radius, (2 * NETWORK.radius + 1) ** 2
RESTING = COUNT // 2  # index of the displacement (0, 0)


def images(batch: int = 2, size: tuple[int, int] = (16, 24), seed: int = 1) -> Tensor:
    return torch.rand(batch, 3, *size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.fixture(scope="module")
def denoiser() -> MotionDenoiser:
    """Every weight is random."""
    return tiny_motion().denoiser


def untrained() -> MotionDenoiser:
    torch.manual_seed(0)
    return build_motion_model(NETWORK)[0]


def logits_of(denoiser: MotionDenoiser, photo: Tensor, noisy: Tensor, level: int, **options) -> Tensor:
    with torch.no_grad():
        encoded = denoiser.encode([Observation(photo, PHOTO)], TARGET, **options)
        return denoiser.denoise(noisy, torch.full((len(photo),), level), encoded, TARGET).logits


# --- evidence ------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0.02, 0.4, 0.9])
def test_evidence_is_the_ratio_of_gaussians(alpha: float) -> None:
    """Pixel after pixel, displacement after displacement, by the density of the normal distribution."""
    photo, noisy = images(1, (4, 6)), torch.randn(1, 3, 4, 6)
    got = motion_evidence(photo, noisy, torch.full((1, 1, 1, 1), alpha), RADIUS)
    assert got.shape == (1, COUNT, 4, 6)
    spread, bends = (1 - alpha) ** 0.5, []
    for index, (x, y) in enumerate(displacements(RADIUS).long().tolist()):
        for row in range(4):
            for column in range(6):
                there = row + y, column + x
                if not (0 <= there[0] < 4 and 0 <= there[1] < 6):
                    assert got[0, index, row, column] == 0
                    continue
                seen = noisy[0, :, there[0], there[1]]
                moved = Normal(alpha**0.5 * photo[0, :, row, column], spread).log_prob(seen).sum()
                stayed = Normal(alpha**0.5 * photo[0, :, there[0], there[1]], spread).log_prob(seen).sum()
                wanted = EVIDENCE_BOUND * torch.tanh((moved - stayed) / EVIDENCE_BOUND)
                assert float(got[0, index, row, column]) == pytest.approx(float(wanted), abs=1e-4)
                bends.append(abs(float(moved - stayed)))
    assert max(bends) > (0.3 if alpha < 0.1 else EVIDENCE_BOUND)  # the bound matters where noise is low


def test_rest_and_places_out_of_the_frame_have_no_evidence() -> None:
    photo, noisy = images(2, (8, 8)), torch.randn(2, 3, 8, 8)
    got = motion_evidence(photo, noisy, torch.tensor([0.1, 0.99]).view(2, 1, 1, 1), RADIUS)
    assert got[:, RESTING].abs().max() < 2e-4  # terms of up to 300 cancel in float32
    others = [index for index in range(COUNT) if index != RESTING]
    assert (got[:, others, 3:-3, 3:-3].abs() > 1e-4).float().mean() > 0.99
    up_left = displacements(RADIUS).tolist().index([-2, -1])
    assert not got[:, up_left, 0].any()
    assert not got[:, up_left, :, :2].any()
    assert got[:, up_left, 1:, 2:].all()


def test_noise_alone_is_no_evidence() -> None:
    got = motion_evidence(images(), torch.randn(2, 3, 16, 24), torch.zeros(2, 1, 1, 1), RADIUS)
    assert not got.any()


def test_evidence_finds_a_shift() -> None:
    """Summed over the pixels, it is largest for the displacement that happened."""
    photo = images(1, (16, 24))
    target = photo.roll((1, -2), (2, 3))  # down by one, left by two
    alpha = torch.full((1, 1, 1, 1), 0.3)
    noisy = alpha.sqrt() * target + (1 - alpha).sqrt() * torch.randn(photo.shape)
    total = motion_evidence(photo, noisy, alpha, RADIUS)[:, :, 2:-2, 2:-2].sum((2, 3))[0]
    assert displacements(RADIUS)[total.argmax()].tolist() == [-2, 1]


# --- the network ---------------------------------------------------------------------------------


@pytest.mark.parametrize("level", [0, 500, 999])
def test_untrained_it_rests(level: int) -> None:
    denoiser, photo = untrained(), images()
    logits = logits_of(denoiser, photo, torch.randn(photo.shape), level)
    lengths = mean_field(MotionSignal(photo, logits)).flow.norm(dim=1)
    assert (lengths < 0.25).float().mean() > 0.99
    with torch.no_grad():
        encoded = denoiser.encode([Observation(photo, PHOTO)], TARGET)
    assert (mean_field(encoded.signal).flow.norm(dim=1) < 0.25).float().mean() > 0.99
    assert (encoded.image - photo).abs().mean() < 0.1


@pytest.mark.parametrize("size", [(16, 24), (32, 8), (10, 14)])
def test_sizes(denoiser: MotionDenoiser, size: tuple[int, int]) -> None:
    """Any sides that the levels divide, square or not."""
    photo = images(3, size)
    with torch.no_grad():
        encoded = denoiser.encode([Observation(photo, PHOTO)], TARGET)
        signal = denoiser.denoise(torch.randn(3, 3, *size), torch.tensor([0, 10, 999]), encoded, TARGET)
    assert encoded.image.shape == (3, 3, *size)
    assert encoded.signal.logits.shape == signal.logits.shape == (3, COUNT, *size)
    assert signal.photo is photo
    assert signal.logits.isfinite().all()


def test_elements_of_a_batch_do_not_mix(denoiser: MotionDenoiser) -> None:
    photo, noisy = images(3), torch.randn(3, 3, 16, 24)
    both = logits_of(denoiser, photo, noisy, 300)
    alone = logits_of(denoiser, photo[1:2], noisy[1:2], 300)
    assert torch.allclose(both[1:2], alone, atol=1e-3, rtol=1e-4)
    assert not torch.allclose(both[0], both[1], atol=0.1)


def test_it_looks_at_photo_noisy_frame_and_level(denoiser: MotionDenoiser) -> None:
    photo, noisy = images(), torch.randn(2, 3, 16, 24)
    base = logits_of(denoiser, photo, noisy, 300)
    for other in (
        logits_of(denoiser, images(seed=2), noisy, 300),
        logits_of(denoiser, photo, -noisy, 300),
        logits_of(denoiser, photo, noisy, 700),
    ):
        assert (other - base).abs().mean() > 0.05


def test_the_deterministic_branch_sees_no_frame(denoiser: MotionDenoiser) -> None:
    """What `encode` says depends on the photo alone, and shows its mean image."""
    photo = images()
    with torch.no_grad():
        first, second = (denoiser.encode([Observation(photo, PHOTO)], TARGET) for _ in range(2))
        other = denoiser.encode([Observation(images(seed=2), PHOTO)], TARGET)
    assert torch.equal(first.signal.logits, second.signal.logits)
    assert (first.signal.logits - other.signal.logits).abs().mean() > 0.05
    assert torch.equal(first.image, denoiser.renderer.render(first.signal))


def test_dropped_photos_are_hidden_from_the_network(denoiser: MotionDenoiser) -> None:
    """Not from the forward model: it still moves the true photo."""
    drop, noisy = torch.tensor([True, False]), torch.randn(2, 3, 16, 24)
    photo, other = images(), images(seed=2)
    logits = [logits_of(denoiser, each, noisy, 300, drop=drop) for each in (photo, other)]
    assert torch.equal(logits[0][0], logits[1][0])
    assert not torch.allclose(logits[0][1], logits[1][1], atol=0.1)
    hidden = logits_of(denoiser, torch.zeros_like(photo), noisy, 300)
    assert torch.allclose(logits[0][0], hidden[0], atol=1e-3)
    encoded = denoiser.encode([Observation(photo, PHOTO)], TARGET, drop)
    assert encoded.signal.photo is photo
    none = logits_of(denoiser, photo, noisy, 300, drop=torch.tensor([False, False]))
    assert torch.equal(none, logits_of(denoiser, photo, noisy, 300))


@pytest.mark.parametrize("count", [0, 2])
def test_it_starts_from_one_photo(denoiser: MotionDenoiser, count: int) -> None:
    with pytest.raises(ValueError, match=f"one photo, got {count} observations"):
        denoiser.encode([Observation(images(), PHOTO)] * count, TARGET)


def test_gradients_reach_every_parameter(denoiser: MotionDenoiser) -> None:
    """Through the method's objective as it is."""
    scheduler = build_motion_model(NETWORK)[1]
    batch = TrainingBatch([Observation(images(), PHOTO)], Observation(images(seed=2), TARGET))
    terms = forward_model_loss(
        denoiser, denoiser.renderer, scheduler, batch, torch.tensor([100, 800]), torch.randn(2, 3, 16, 24),
        weights=LossWeights(),
    )  # fmt: skip
    assert set(terms) == {"target", "deterministic"}
    denoiser.zero_grad()
    sum(terms.values()).backward()
    for name, parameter in denoiser.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


def test_it_learns_a_shift() -> None:
    """Every photo moves one pixel to the right: some steps later the deterministic branch says so."""
    denoiser, scheduler = build_motion_model(NETWORK)
    optimizer = torch.optim.Adam(denoiser.parameters(), lr=1e-2)
    source = torch.Generator().manual_seed(0)
    for _ in range(120):
        photo = torch.rand(4, 3, 16, 16, generator=source) * 2 - 1
        batch = TrainingBatch([Observation(photo, PHOTO)], Observation(photo.roll(1, 3), TARGET))
        timesteps = torch.randint(1000, (4,), generator=source)
        noise = torch.randn(photo.shape, generator=source)
        terms = forward_model_loss(denoiser, denoiser.renderer, scheduler, batch, timesteps, noise)
        optimizer.zero_grad()
        sum(terms.values()).backward()
        optimizer.step()
    photo = images(8, (16, 16))
    with torch.no_grad():
        field = mean_field(denoiser.encode([Observation(photo, PHOTO)], TARGET).signal)
    error = (field.flow[..., 1:] - torch.tensor([-1.0, 0.0]).view(1, 2, 1, 1)).norm(dim=1)
    assert error.median() < 0.3  # 1 when it rests


def test_the_table_of_levels_is_not_kept_with_the_weights() -> None:
    """It comes from the schedule, with one level more that is noise alone."""
    denoiser, scheduler = build_motion_model(NETWORK, SCHEDULE)
    assert len(denoiser.alphas_cumprod) == 1001
    assert torch.equal(denoiser.alphas_cumprod[:-1], scheduler.alphas_cumprod)
    assert denoiser.alphas_cumprod[-1] == 0
    assert "alphas_cumprod" not in denoiser.state_dict()
    assert MotionConfig().radius >= 5  # the bundled model's sprites step by 5 px
