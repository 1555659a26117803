"""The densely integrated field: exact savings against the long way round, shortcuts against the exact way."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny_dit import FIELD, SIZE, random_view
from torch import Tensor

from scenediff.renderers.rays import along
from scenediff.renderers.volume_field import VolumeFieldRenderer, VolumeSignal, map_volume
from scenediff.renderers.volume_rays import (
    absorption,
    fine_distances,
    fixed_uniform,
    integrate,
    pinhole_rays,
    worth_decoding,
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
def test_a_signal_is_prepared_once_until_weights_change(renderer: VolumeFieldRenderer) -> None:
    signal, other = random_signal(renderer), random_signal(renderer)
    view = random_view()
    prepared = renderer._prepare(signal)
    image = renderer.render(signal, view)
    assert renderer._prepare(signal) is prepared
    assert not torch.equal(renderer.render(other, view), image)
    assert torch.equal(renderer.render(signal, view), image)
    before = renderer._prepare(signal)
    renderer.fine.time[0].weight.mul_(3)
    assert renderer._prepare(signal) is not before
    assert not torch.equal(renderer.render(signal, view), image)
    with torch.enable_grad():
        assert renderer._prepare(signal) is not renderer._prepare(signal)


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


def with_surfaces(renderer: VolumeFieldRenderer) -> VolumeFieldRenderer:
    """Some space is empty and some opaque; both passes find the same."""
    renderer.fine.load_state_dict(renderer.coarse.state_dict())
    for network in (renderer.coarse, renderer.fine):
        network.output.weight.data[3] *= 60
        network.output.bias.data[3] = 0
    return renderer


def test_no_shortcut_is_taken_unasked(renderer: VolumeFieldRenderer) -> None:
    assert renderer.faster() is renderer
    assert renderer.faster(fine=FIELD.fine, skip=0.0) is renderer
    quick = renderer.faster(fine=2, skip=0.01)
    assert (quick.config.fine, quick.config.skip) == (2, 0.01)
    assert renderer.config == FIELD
    assert quick.fine is renderer.fine
    assert quick.faster() is quick
    with pytest.raises(ValueError, match=r"fine must lie in \[1, 6\], got 0"):
        renderer.faster(fine=0)
    with pytest.raises(ValueError, match=r"fine must lie in \[1, 6\], got 7"):
        renderer.faster(fine=7)
    with pytest.raises(ValueError, match=r"skip must lie in \[0, 1\), got 1\.5"):
        renderer.faster(skip=1.5)


@torch.no_grad()
def test_fewer_fine_samples_are_those_of_a_smaller_field(renderer: VolumeFieldRenderer) -> None:
    signal, view = random_signal(renderer), random_view()
    quick = renderer.faster(fine=2)
    smaller = VolumeFieldRenderer(replace(FIELD, fine=2)).eval()
    smaller.load_state_dict(renderer.state_dict())
    assert torch.equal(quick.render(signal, view), smaller.render(signal, view))
    assert not torch.equal(quick.render(signal, view), renderer.render(signal, view))


@torch.no_grad()
def test_skipped_samples_count_as_empty(renderer: VolumeFieldRenderer) -> None:
    """Against all samples decoded and the density of those with little weight around them set to zero."""
    torch.manual_seed(4)
    with_surfaces(renderer)
    signal, view, share = random_signal(renderer), random_view(), 0.02
    quick = renderer.faster(skip=share).render_all(signal, view)
    origins, directions = pinhole_rays(view)
    even = torch.linspace(FIELD.near, FIELD.far, FIELD.coarse).expand(*directions.shape[:2], -1)

    def decode(distances: Tensor, network: int) -> tuple[Tensor, Tensor]:
        points = along(origins, directions, distances).flatten(1, 2)
        density, values = renderer.at_points(signal, points, network)
        return density.view_as(distances), values.unflatten(1, distances.shape[1:])

    weights = absorption(decode(even, 0)[0], even)
    extra = fine_distances(even, weights, fixed_uniform((*even.shape[:2], FIELD.fine), even.device))
    every = torch.cat([even, extra], dim=-1)
    density, values = decode(every, 1)
    wanted = torch.cat([worth_decoding(weights, even, part, share) for part in (even, extra)], dim=-1)
    assert 0.05 < float(wanted.float().mean()) < 0.9
    image, distance, opacity = integrate(density * wanted, values, every, FIELD.background)
    assert torch.allclose(quick.image, image[..., :3].mT.unflatten(-1, SIZE), atol=1e-4)
    assert torch.allclose(quick.features, image[..., 3:].mT.unflatten(-1, SIZE), atol=1e-4)
    assert torch.allclose(quick.distance[:, 0].flatten(1), distance, atol=1e-4)
    assert torch.allclose(quick.opacity[:, 0].flatten(1), opacity, atol=1e-4)


@torch.no_grad()
def test_skipping_decodes_less_and_changes_little(renderer: VolumeFieldRenderer) -> None:
    torch.manual_seed(4)
    with_surfaces(renderer)
    signal, view = random_signal(renderer), random_view()
    decoded: list[int] = []
    renderer.fine.output.register_forward_hook(lambda _, given, __: decoded.append(given[0].numel()))
    images = [renderer.faster(skip=skip).render(signal, view) for skip in (0.0, 0.001)]
    assert decoded[0] == 2 * SIZE[0] * SIZE[1] * (FIELD.coarse + FIELD.fine) * FIELD.width
    assert sum(decoded[1:]) < 0.8 * decoded[0]
    error = images[1] - images[0]
    assert 0 < float(error.square().mean().sqrt()) < 0.1  # of 2; in noise, thin things hide between samples


@torch.no_grad()
def test_skipping_leaves_out_nothing_that_has_weight(renderer: VolumeFieldRenderer) -> None:
    renderer.coarse.output.weight.data[3], renderer.coarse.output.bias.data[3] = 0, 0.1  # thin fog
    signal, view = random_signal(renderer), random_view()
    exact, quick = (each.render_all(signal, view) for each in (renderer, renderer.faster(skip=1e-6)))
    for part in ("image", "distance", "opacity", "features"):
        assert torch.allclose(getattr(quick, part), getattr(exact, part), atol=1e-5), part


@torch.no_grad()
def test_skipping_goes_with_memory_parts_and_batches(renderer: VolumeFieldRenderer) -> None:
    torch.manual_seed(4)
    quick = with_surfaces(renderer).faster(skip=0.02)
    signal, view = random_signal(renderer), random_view()
    whole = quick.render(signal, view)
    known = replace(quick.remember(replace(signal, views=signal.views[:2]), view), views=signal.views)
    close = [torch.allclose(quick.render(known, view)[n], whole[n], atol=1e-3) for n in range(2)]
    first = replace(view, cam_to_world=view.cam_to_world[:1], intrinsics=view.intrinsics[:1])
    alone = quick.render(map_volume(signal, lambda tensor: tensor[:1]), first)
    assert torch.allclose(alone, whole[:1], atol=1e-3)  # of places at a threshold, rounding errors decide
    quick.chunk_rays = 50
    assert torch.allclose(quick.render(signal, view), whole, atol=1e-3)
    assert all(close)


@torch.no_grad()
def test_empty_space_may_be_skipped_altogether(renderer: VolumeFieldRenderer) -> None:
    renderer.coarse.output.bias[3] = -1e6
    rendering = renderer.faster(skip=0.001).render_all(random_signal(renderer), random_view())
    assert torch.allclose(rendering.image[0, :, 0, 0], 2 * torch.tensor(FIELD.background) - 1)
    assert rendering.opacity.abs().max() == 0


def test_distortion_is_rendered_when_asked_for(renderer: VolumeFieldRenderer) -> None:
    """An opaque wall right behind the near plane: one weight in the first of the evenly spaced samples."""
    signal, view = random_signal(renderer), random_view()
    assert renderer.render_all(signal, view).distortion is None
    found = renderer.render_all(signal, view, distortion=True)
    assert found.distortion is not None
    assert found.distortion.shape == found.opacity.shape
    assert torch.equal(found.image, renderer.render(signal, view))
    found.distortion.mean().backward()
    assert renderer.fine.output.weight.grad is not None
    assert renderer.fine.output.weight.grad[3].abs().max() > 0
    renderer.config = replace(FIELD, fine=0)
    renderer.coarse.output.bias.data[3] = 1e6
    wall = renderer.render_all(signal, view, distortion=True).distortion
    assert wall is not None
    length = 1 / (FIELD.coarse - 1)
    assert torch.allclose(wall, torch.full_like(wall, length / 3), atol=1e-5)
