"""The densely integrated field: integrals in closed form, exact shortcuts against the long way round."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny_dit import FIELD, SIZE, random_view
from torch import Tensor
from torch.nn import functional

from scenediff.renderers.cameras import PinholeView
from scenediff.renderers.volume_field import (
    PointNetwork,
    VolumeConfig,
    VolumeFieldRenderer,
    VolumeSignal,
    absorption,
    encode_position,
    fine_distances,
    fixed_uniform,
    map_volume,
)


@pytest.fixture
def renderer() -> VolumeFieldRenderer:
    return VolumeFieldRenderer(FIELD).eval()


def random_signal(renderer: VolumeFieldRenderer, views: int = 3, batch: int = 2) -> VolumeSignal:
    return VolumeSignal(
        tuple(
            renderer.view(
                torch.randn(batch, 8, 6, 8), random_view(batch), torch.randint(1000, (batch,)), sampled=True
            )
            for _ in range(views)
        ),
        sampled=True,
    )


def test_constant_density_absorbs_exponentially() -> None:
    distances = torch.linspace(1, 3, 201, dtype=torch.float64)
    weights = absorption(torch.full((201,), 0.7, dtype=torch.float64), distances)
    length = distances - 1 + 0.01  # the last step counts twice
    assert torch.allclose(weights.cumsum(0), 1 - torch.exp(-0.7 * length), atol=1e-6)


def test_an_opaque_sample_hides_what_is_behind() -> None:
    weights = absorption(torch.tensor([0.0, 1e4, 5.0, 5.0]), torch.tensor([1.0, 2.0, 3.0, 4.0]))
    assert torch.allclose(weights, torch.tensor([0.0, 1.0, 0.0, 0.0]), atol=1e-6)


def test_fine_samples_follow_the_weights() -> None:
    """Share of the samples in each bin between middles: its inner weight's share, to 4 standard errors."""
    distances = torch.linspace(0, 9, 10)
    weights = torch.tensor([9.0, 1.0, 0.0, 2.0, 0.0, 0.0, 4.0, 1.0, 0.0, 9.0])
    uniform = torch.rand(20_000)
    found = fine_distances(distances, weights, uniform)
    assert found.min() >= 0.5
    assert found.max() <= 8.5
    inner = weights[1:-1] / weights[1:-1].sum()
    share = torch.histc(found, 8, 0.5, 8.5) / len(found)
    assert torch.allclose(share, inner, atol=4 * (0.25 / 20_000) ** 0.5)
    inside = found[(found > 6.0) & (found < 6.5)]
    assert float(inside.mean()) == pytest.approx(6.25, abs=0.02)  # uniform within a bin


def test_fine_samples_by_a_slow_reference() -> None:
    distances, weights, uniform = torch.linspace(1, 3, 7), torch.rand(4, 7), torch.rand(4, 5)
    found = fine_distances(distances.expand(4, 7), weights, uniform)
    middles = (distances[1:] + distances[:-1]) / 2
    for ray in range(4):
        mass = weights[ray, 1:-1] + 1e-5
        cdf = [0.0, *(mass / mass.sum()).cumsum(0).tolist()]
        for k, u in enumerate(uniform[ray].tolist()):
            bin = max(i for i in range(5) if cdf[i] < u)
            expected = middles[bin] + (u - cdf[bin]) / (cdf[bin + 1] - cdf[bin]) * 2 / 6
            assert float(found[ray, k]) == pytest.approx(float(expected), abs=1e-5)


def test_positions_are_encoded_octave_by_octave() -> None:
    found = encode_position(torch.tensor([0.1, 0.2, 0.3]), FIELD)
    assert found.shape == (39,)
    assert torch.equal(found[:3], torch.tensor([0.1, 0.2, 0.3]))
    assert torch.allclose(found[9:12], torch.sin(3 * found[:3]), atol=1e-6)
    assert torch.allclose(found[12:15], torch.cos(3 * found[:3]), atol=1e-6)


def field_the_long_way(
    network: PointNetwork,
    features: list[Tensor],
    views: list[PinholeView],
    times: list[Tensor],
    points: Tensor,
) -> tuple[Tensor, Tensor]:
    """Features are sampled first and go through the first layer with the encoded positions."""
    weight = torch.cat([network.position.weight, network.feature.weight], dim=1)
    states = []
    for maps, view, time in zip(features, views, times, strict=True):
        local = torch.cat([points, torch.ones_like(points[..., :1])], dim=-1)
        local = (local @ torch.linalg.inv(view.cam_to_world).mT)[..., :3]
        image = local @ view.intrinsics.mT
        grid = 2 * image[..., :2] / (image[..., 2:] + 1e-9) - 1
        seen = functional.grid_sample(maps, grid[:, None], padding_mode="border", align_corners=True)
        inputs = torch.cat([encode_position(local, network.config), seen[:, :, 0].mT], dim=-1)
        state = functional.linear(inputs, weight, network.position.bias)
        for block, (scale, shift) in zip(network.blocks[:3], network.modulations(time)[:3], strict=True):
            state = state + block.second((block.first(state.relu()) * (1 + scale) + shift).relu())
        states.append(state)
    state = torch.stack(states).mean(0)
    for block, (scale, shift) in zip(network.blocks[3:], network.modulations(times[-1])[3:], strict=True):
        state = state + block.second((block.first(state.relu()) * (1 + scale) + shift).relu())
    output = network.output(state.relu())
    return output[..., 3].relu(), torch.cat([output[..., :3].sigmoid(), output[..., 4:]], dim=-1)


@pytest.mark.parametrize("index", [0, 1])
@torch.no_grad()
def test_the_first_layer_may_come_before_the_look_up(renderer: VolumeFieldRenderer, index: int) -> None:
    features = [torch.randn(2, 8, 6, 8) for _ in range(3)]
    views = [random_view() for _ in range(3)]
    times = [torch.randint(1000, (2,)) for _ in range(3)]
    parts = zip(features, views, times, strict=True)
    signal = VolumeSignal(tuple(renderer.view(*part, sampled=True) for part in parts), sampled=True)
    points = torch.randn(2, 50, 3)  # before and behind the cameras, in and out of their images
    expected = field_the_long_way(renderer.networks(True)[index], features, views, times, points)
    for found, wanted in zip(renderer.at_points(signal, points, index), expected, strict=True):
        assert torch.allclose(found, wanted, atol=1e-4)  # positions outside are rounded differently
    assert expected[0].max() > 0


@pytest.mark.parametrize("fine", [0, 6])
@torch.no_grad()
def test_remembering_changes_nothing(renderer: VolumeFieldRenderer, fine: int) -> None:
    renderer.config = replace(FIELD, fine=fine)
    whole, view = random_signal(renderer), random_view()
    known = renderer.remember(replace(whole, views=whole.views[:2]), view)
    assert known.remembered is not None
    assert sum(s.nbytes for s in known.remembered.states) == renderer.remembered_bytes(view)
    both = [renderer.render_all(signal, view) for signal in (whole, replace(known, views=whole.views))]
    for part in ("image", "distance", "opacity", "features"):
        assert torch.allclose(*(getattr(each, part) for each in both), atol=1e-5), part
    other = random_view()  # what is remembered of one view says nothing about another
    both = [renderer.render(signal, other) for signal in (whole, replace(known, views=whole.views))]
    assert torch.equal(*both)


@torch.no_grad()
def test_rays_may_be_computed_a_few_at_a_time(renderer: VolumeFieldRenderer) -> None:
    signal, view = random_signal(renderer), random_view()
    known = replace(renderer.remember(replace(signal, views=signal.views[:2]), view), views=signal.views)
    whole = renderer.render_all(signal, view)
    renderer.chunk_rays = 50
    for each in (signal, known):
        parts = renderer.render_all(each, view)
        assert torch.allclose(parts.image, whole.image, atol=1e-5)
        assert torch.allclose(parts.distance, whole.distance, atol=1e-5)


@torch.no_grad()
def test_chosen_pixels_are_those_of_the_whole_image(renderer: VolumeFieldRenderer) -> None:
    renderer.config = replace(FIELD, fine=0)
    signal, view = random_signal(renderer), random_view()
    pixels = torch.stack([torch.randint(side, (2, 9)) for side in SIZE], dim=-1)
    chosen = renderer.render(signal, replace(view, pixels=pixels))
    whole = renderer.render(signal, view)
    assert chosen.shape == (2, 3, 9, 1)
    for element in range(2):
        rows, columns = pixels[element].unbind(-1)
        assert torch.allclose(chosen[element, :, :, 0], whole[element][:, rows, columns], atol=1e-5)


@torch.no_grad()
def test_empty_space_shows_the_background(renderer: VolumeFieldRenderer) -> None:
    for network in renderer.networks(sampled=True):
        network.output.bias[3] = -1e6
    rendering = renderer.render_all(random_signal(renderer), random_view())
    assert torch.allclose(rendering.image[0, :, 0, 0], 2 * torch.tensor(FIELD.background) - 1)
    assert rendering.features.abs().max() == 0
    assert rendering.distance.abs().max() == 0


def test_gradients_reach_everything_that_decodes_a_signal(renderer: VolumeFieldRenderer) -> None:
    features = torch.randn(2, 8, 6, 8, requires_grad=True)
    view = renderer.view(features, random_view(), torch.tensor([3, 700]), sampled=True)
    rendering = renderer.render_all(VolumeSignal((view,), sampled=True), random_view())
    (rendering.image.square().mean() + rendering.features.square().mean()).backward()
    assert features.grad is not None
    assert features.grad.abs().max() > 0
    for name, parameter in renderer.fine.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


@torch.no_grad()
def test_frames_repeat_but_training_draws_new_samples(renderer: VolumeFieldRenderer) -> None:
    signal, view = random_signal(renderer), random_view()
    assert torch.equal(renderer.render(signal, view), renderer.render(signal, view))
    renderer.train()
    assert not torch.equal(renderer.render(signal, view), renderer.render(signal, view))
    numbers = fixed_uniform((2, 5, 7), torch.device("cpu"))
    assert torch.equal(numbers[0], numbers[1])
    assert numbers[0].unique().numel() == 35


def test_a_mapped_signal_forgets(renderer: VolumeFieldRenderer) -> None:
    signal = random_signal(renderer)
    first = map_volume(renderer.remember(signal, random_view()), lambda tensor: tensor[:1])
    assert first.remembered is None
    assert [len(view.maps[0]) for view in first.views] == [1, 1, 1]


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ValueError, match=r"near and far must satisfy 0 <= near < far, got 3\.0 and 2\.0"):
        VolumeConfig(near=3.0, far=2.0)
    with pytest.raises(ValueError, match="must be at least 3, 2 and 0, got 2, 32 and 64"):
        VolumeConfig(coarse=2)
