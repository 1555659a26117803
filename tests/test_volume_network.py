"""The point networks of the densely integrated field: the shared first layer against the long way round."""

from __future__ import annotations

import pytest
import torch
from tiny_dit import FIELD, random_view
from torch import Tensor
from torch.nn import functional

from scenediff.renderers.cameras import PinholeView
from scenediff.renderers.volume_field import VolumeFieldRenderer, VolumeSignal
from scenediff.renderers.volume_network import PointNetwork, VolumeConfig, encode_position


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
def test_the_first_layer_may_come_before_the_look_up(index: int) -> None:
    renderer = VolumeFieldRenderer(FIELD).eval()
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


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ValueError, match=r"near and far must satisfy 0 <= near < far, got 3\.0 and 2\.0"):
        VolumeConfig(near=3.0, far=2.0)
    with pytest.raises(ValueError, match="must be at least 3, 2 and 0, got 2, 32 and 64"):
        VolumeConfig(coarse=2)
