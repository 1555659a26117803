"""Learning depth from single photos: what is trained, what is not, and that it learns."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from tiny_pipeline import tiny_pipeline

from scenediff.datasets.rooms.pool import PhotoBatch
from scenediff.forward import Observation
from scenediff.networks.pixel_denoiser import PixelDenoiser
from scenediff.networks.reading import PhotoReading, ReadingBeside, laplace_score, scale_error
from scenediff.networks.regularizers import DepthSupervision
from scenediff.renderers.cameras import CameraView, look_ahead


def photo_batch(count: int = 4, size: int = 32) -> PhotoBatch:
    """Brightness tells the depth, from 1 to 3 metres."""
    source = torch.Generator().manual_seed(0)
    shade = torch.rand(count, 1, 4, 4, generator=source).repeat_interleave(8, 2).repeat_interleave(8, 3)
    image = (2 * shade - 1).expand(-1, 3, -1, -1)
    photo = Observation(image, CameraView(look_ahead(count, 60.0), (size, size)))
    return PhotoBatch(photo, (1 + 2 * shade)[:, :, ::2, ::2])


def test_it_learns_depth_and_leaves_the_rest_of_the_model_alone() -> None:
    denoiser = tiny_pipeline(size=16).denoiser
    reading = PhotoReading(denoiser, 16, DepthSupervision(edges=0.5)).train()
    batch = photo_batch()
    shown = (torch.zeros(4, dtype=torch.bool),)
    optimizer = torch.optim.Adam([p for p in reading.parameters() if p.requires_grad], lr=3e-3)
    errors = []
    for _ in range(40):
        optimizer.zero_grad()
        terms = reading(batch, *shown)
        assert list(terms) == ["reading"]
        terms["reading"].backward()
        errors.append(terms["reading"].item())
        optimizer.step()
    assert errors[-1] < 0.4 * errors[0]
    untouched = [name for name, parameter in denoiser.named_parameters() if parameter.grad is None]
    assert any(name.startswith("target_stem") for name in untouched)
    assert all(name.startswith(("target_stem", "renderer", "backbone")) for name in untouched)


def test_hidden_photos_do_not_matter() -> None:
    denoiser = tiny_pipeline(size=16).denoiser
    reading = PhotoReading(denoiser, 16, DepthSupervision()).eval()
    batch, hidden = photo_batch(), torch.ones(4, dtype=torch.bool)
    black = PhotoBatch(Observation(torch.rand(4, 3, 32, 32), batch.photo.view), batch.depth)
    with torch.no_grad():
        assert torch.equal(reading(batch, hidden)["reading"], reading(black, hidden)["reading"])
        assert not torch.equal(reading(batch, ~hidden)["reading"], reading(black, ~hidden)["reading"])


def test_what_is_hidden_is_drawn_at_the_wanted_share() -> None:
    reading = PhotoReading(tiny_pipeline(size=16).denoiser, 16, DepthSupervision())
    (drop,) = reading.draw(photo_batch(400, 8), 0.25, torch.Generator().manual_seed(0))
    assert drop.shape == (400,)
    assert 60 < drop.sum() < 140  # 4.6 standard deviations about 100


def test_beside_the_objective_it_scores_the_batch_s_further_photos() -> None:
    denoiser, depth = tiny_pipeline(size=16).denoiser, DepthSupervision()
    photos = photo_batch()
    with torch.no_grad():
        reading = PhotoReading(denoiser, 16, depth)
        alone = reading(photos, torch.zeros(4, dtype=torch.bool))["reading"]
        term = ReadingBeside(reading, weight=3.0)
        found = term(None, None, SimpleNamespace(truth=SimpleNamespace(photos=photos)), None)
        assert list(found) == ["reading"]
        assert found["reading"].item() == pytest.approx(3 * alone.item(), rel=1e-5)
        assert term(None, None, SimpleNamespace(truth=SimpleNamespace(photos=None)), None) == {}


def test_fine_tuning_changes_late_image_features_only() -> None:
    denoiser = tiny_pipeline(size=16).denoiser
    tuned = denoiser.backbone.fine_tune()
    PhotoReading(denoiser, 16, DepthSupervision())(photo_batch(), torch.zeros(4, dtype=torch.bool))[
        "reading"
    ].backward()
    changed = {name for name, value in denoiser.backbone.named_parameters() if value.grad is not None}
    assert {id(value) for name, value in denoiser.backbone.named_parameters() if name in changed} == {
        id(value) for value in tuned
    }
    assert any(name.startswith("blocks.10.") for name in changed)
    assert not any(name.startswith(("stem", "norm", "blocks.2.")) for name in changed)
    assert denoiser.backbone.fine_tune(False) == []


def test_the_error_of_a_scale_is_the_mean_error_where_depths_are_known() -> None:
    truth = torch.tensor([[1.0, 2.0], [4.0, 0.0]]).expand(2, 1, 2, 2)
    log_depth = truth.clamp(min=1).log() + torch.tensor([0.3, -0.1]).view(2, 1, 1, 1)
    log_depth[:, :, 1, 1] = 99.0
    assert torch.allclose(scale_error(log_depth, truth), torch.tensor([0.3, -0.1]), atol=1e-6)
    assert float(scale_error(log_depth, torch.zeros_like(truth)).abs().max()) == 0  # nothing is known


def test_doubt_is_scored_best_at_the_mean_size_of_errors() -> None:
    errors = torch.randn(2000, generator=torch.Generator().manual_seed(0))
    spreads = torch.linspace(0.2, 3, 281)
    scores = torch.stack([laplace_score(errors, spread).mean() for spread in spreads])
    assert spreads[scores.argmin()] == pytest.approx(float(errors.abs().mean()), abs=0.01)


def test_doubt_is_learned_from_the_scale_without_changing_it() -> None:
    torch.manual_seed(0)
    denoiser = PixelDenoiser(
        replace(tiny_pipeline(size=16).denoiser.config, tells_doubt=True), tiny_pipeline().renderer
    )
    reading = PhotoReading(denoiser, 16, DepthSupervision(), doubt=2.0).train()
    batch, shown = photo_batch(), torch.zeros(4, dtype=torch.bool)
    terms = reading(batch, shown)
    assert list(terms) == ["reading", "doubt"]
    read = denoiser.read_photo(batch.photo, 16)
    off = scale_error(read.log_depth, batch.depth)
    assert terms["doubt"].item() == pytest.approx(2 * laplace_score(off, read.doubt).mean().item(), rel=1e-5)
    terms["doubt"].backward()
    assert denoiser.doubt.bias.grad.abs() > 0
    assert denoiser.head.weight.grad is None  # the depths themselves are not pulled towards their doubt
