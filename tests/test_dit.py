"""The transformer encoder: its parts against slow references, its resolution, what conditions it."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from pytorch3d.renderer.implicit import HarmonicEmbedding
from tiny_dit import ENCODER, POSED_ENCODER

from scenediff.networks.dit import (
    DitBlock,
    DitConfig,
    DitEncoder,
    pose_waves,
    position_table,
    timestep_waves,
    unpatchify,
)


def test_tokens_become_the_pixels_of_their_patches() -> None:
    rows, columns, patch, channels = 2, 3, 2, 5
    tokens = torch.randn(1, rows * columns, patch * patch * channels)
    maps = unpatchify(tokens, rows, columns, patch)
    assert maps.shape == (1, channels, rows * patch, columns * patch)
    for row in range(rows * patch):
        for column in range(columns * patch):
            token = tokens[0, row // patch * columns + column // patch]
            start = (row % patch * patch + column % patch) * channels
            assert torch.equal(maps[0, :, row, column], token[start : start + channels])


def test_positions_are_waves_of_column_then_row() -> None:
    table = position_table(3, 4, 8, torch.device("cpu")).view(3, 4, 8)
    for row in range(3):
        for column in range(4):
            waves = [
                wave(place / 100**i) for place in (column, row) for wave in (math.sin, math.cos)
                for i in range(2)
            ]
            assert torch.allclose(table[row, column], torch.tensor(waves), atol=1e-6)


def test_timesteps_and_poses_become_waves() -> None:
    waves = timestep_waves(torch.tensor([0, 7]))
    assert torch.equal(waves[0], torch.cat([torch.ones(128), torch.zeros(128)]))
    assert float(waves[1, 64]) == pytest.approx(math.cos(0.07), abs=1e-6)
    assert float(waves[1, 192]) == pytest.approx(math.sin(0.07), abs=1e-6)
    pose = torch.randn(3, 4, 4)
    reference = HarmonicEmbedding(6, omega_0=1.0, append_input=True)(pose.flatten(1)[:, :12])
    # the reference takes cosines as sines of shifted angles, which at 100 radians are 8e-6 apart
    assert torch.allclose(pose_waves(pose), reference, atol=2e-5)


def test_a_block_attends_as_the_formula_says() -> None:
    block = DitBlock(8, heads=2)
    tokens, condition = torch.randn(2, 5, 8), torch.randn(2, 8)
    shift, scale, gate, shift2, scale2, gate2 = block.modulation(condition)[:, None].chunk(6, dim=-1)
    normed = (tokens - tokens.mean(-1, keepdim=True)) / (
        tokens.var(-1, keepdim=True, unbiased=False) + 1e-6
    ).sqrt()
    query, key, value = (
        part.view(2, 5, 2, 4).permute(0, 2, 1, 3)
        for part in block.qkv(normed * (1 + scale) + shift).chunk(3, -1)
    )
    share = (query @ key.mT / 2).softmax(-1)
    attended = block.projection((share @ value).permute(0, 2, 1, 3).reshape(2, 5, 8))
    expected = tokens + gate * attended
    normed = torch.nn.functional.layer_norm(expected, (8,), eps=1e-6)
    expected = expected + gate2 * block.mlp(normed * (1 + scale2) + shift2)
    assert torch.allclose(block(tokens, condition), expected, atol=1e-5)


@pytest.mark.parametrize("size", [(8, 12), (16, 16)])
def test_features_have_the_images_size_at_any_resolution(size: tuple[int, int]) -> None:
    encoder = DitEncoder(ENCODER)
    assert encoder.context(torch.randn(2, 3, *size)).shape == (2, 8, *size)
    assert encoder.target(torch.randn(2, 11, *size), torch.tensor([3, 900])).shape == (2, 8, *size)


def test_contexts_are_read_at_timestep_zero_and_targets_at_theirs() -> None:
    encoder = DitEncoder(ENCODER)
    image = torch.randn(1, 3, 8, 8)
    inputs = torch.cat([image, torch.zeros(1, 8, 8, 8)], dim=1)
    early, late = (encoder.target(inputs, torch.tensor([time])) for time in (0, 500))
    assert (early - late).abs().max() > 1e-3
    encoder.target_stem = encoder.context_stem  # then a target at 0 is read as a context
    assert torch.equal(encoder.context(image), encoder.target(image, torch.tensor([0])))


def test_poses_condition_a_model_that_wants_them() -> None:
    encoder, image = DitEncoder(POSED_ENCODER), torch.randn(1, 3, 8, 8)
    poses = torch.randn(2, 4, 4)
    found = [encoder.context(image, pose[None]) for pose in poses]
    assert (found[0] - found[1]).abs().max() > 1e-3
    with pytest.raises(ValueError, match="wants the absolute pose of every view, got None"):
        encoder.context(image)


def test_impossible_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="height and width must be multiples of 4, got 10x8"):
        DitEncoder(ENCODER).context(torch.randn(1, 3, 10, 8))
    with pytest.raises(ValueError, match=r"width must be a multiple of heads \(3\) and of 4, got 16"):
        replace(ENCODER, heads=3)
    assert DitConfig().width == 1152
