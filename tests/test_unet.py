"""The U-Net: shapes, what reaches the output, its parts against plain formulas, its layout on a GPU."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from scenediff.networks.unet import ResBlock, SelfAttention, TransformerBlock, UNet, timestep_embedding


def shaken(module: torch.nn.Module) -> torch.nn.Module:
    """Untrained blocks begin as zeros; here every parameter gets a value."""
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return module


class Untouched(torch.nn.Module):
    """Stands for a normalisation, which sees the whole map."""

    def forward(self, x: Tensor, *_: Tensor, **__: bool) -> Tensor:
        return x


@pytest.mark.parametrize("size", [(16, 16), (8, 24), (24, 8)])
@pytest.mark.parametrize("blocks", [1, 2])
def test_the_shape_stays(size: tuple[int, int], blocks: int) -> None:
    unet = shaken(UNet((16, 32, 32, 32), blocks, attention_levels=2, embedding=8))
    x, embedding = torch.randn(2, 16, *size), torch.randn(2, 8)
    out = unet(x, embedding)
    assert out.shape == x.shape
    assert out.std() > 0
    assert torch.allclose(unet(x[1:], embedding[1:]), out[1:], atol=1e-4, rtol=1e-3)  # elements don't mix


def test_everything_given_matters() -> None:
    unet = shaken(UNet((16, 32, 32), 1, attention_levels=1, embedding=8))
    x, embedding = torch.randn(1, 16, 8, 12), torch.randn(1, 8)
    injected = [None, torch.randn(1, 32, 4, 6), torch.randn(1, 32, 2, 3)]
    out = unet(x, embedding, injected)
    others = [
        unet(x + 1, embedding, injected),
        unet(x, embedding + 1, injected),
        unet(x, embedding),
        unet(x, embedding, [None, injected[1], None]),
        unet(x, embedding, [None, None, injected[2]]),
    ]
    assert all((out - other).abs().max() > 1e-4 for other in others)
    zeros = [None, torch.zeros(1, 32, 4, 6), None]
    assert torch.equal(unet(x, embedding, zeros), unet(x, embedding))


def test_attention_reaches_across_the_map() -> None:
    """One block sees a few pixels; with attention a far corner still matters, without it doesn't."""
    x, embedding = torch.randn(1, 32, 32, 32), torch.randn(1, 8)
    changed = x.clone()
    changed[..., 0, 0] += 5
    for levels, reaches in ((1, True), (0, False)):
        unet = shaken(UNet((32,), 1, levels, embedding=8))
        unet.middle.attentions[0] = torch.nn.Identity()
        for name, module in unet.named_modules():
            if isinstance(module, torch.nn.GroupNorm):
                parent = unet.get_submodule(name.rpartition(".")[0])
                setattr(parent, name.rpartition(".")[2], Untouched())
        difference = (unet(changed, embedding) - unet(x, embedding))[..., -1, -1].abs().max()
        assert (difference > 0) == reaches


def test_a_block_is_two_convolutions_with_modulation_between() -> None:
    block = shaken(ResBlock(16, 24, 8))
    x, embedding = torch.randn(2, 16, 6, 5), torch.randn(2, 8)
    with torch.no_grad():
        first = functional.group_norm(x, 4, block.norm1.weight, block.norm1.bias)
        middle = block.conv1(first * first.sigmoid())
        scale, shift = block.modulation(embedding)[:, :, None, None].split(24, dim=1)
        second = functional.group_norm(middle, 6, block.norm2.weight, block.norm2.bias) * (1 + scale) + shift
        expected = block.skip(x) + block.conv2(second * second.sigmoid())
        assert torch.allclose(block(x, embedding), expected, atol=1e-5)


def test_attention_is_a_softmax_of_products_in_each_head() -> None:
    attention = shaken(SelfAttention(64))
    x = torch.randn(2, 64, 3, 5)
    with torch.no_grad():
        normed = functional.group_norm(x, 32, attention.norm.weight, attention.norm.bias)
        maps = attention.qkv(normed).reshape(2, 3, 2, 32, 15)  # batch, q k v, heads, channels, positions
        q, k, v = maps.unbind(1)
        shares = (torch.einsum("bhcp,bhcq->bhpq", q, k) / math.sqrt(32)).softmax(dim=-1)
        attended = torch.einsum("bhpq,bhcq->bhcp", shares, v).reshape(2, 64, 3, 5)
        expected = x + attention.output(attended)
        assert torch.allclose(attention(x), expected, atol=1e-5)


def test_new_transformer_blocks_change_nothing_until_they_learn() -> None:
    plain = shaken(UNet((16, 32, 32), 1, attention_levels=1, embedding=8))
    grown = UNet((16, 32, 32), 1, attention_levels=1, embedding=8, transformers=2)
    left = grown.load_state_dict(plain.state_dict(), strict=False)
    assert left.missing_keys
    assert all(name.startswith("transformers.") for name in left.missing_keys)
    x, embedding = torch.randn(2, 16, 8, 12), torch.randn(2, 8)
    with torch.no_grad():
        assert torch.allclose(grown(x, embedding), plain(x, embedding), atol=1e-5)
        for block in grown.transformers:
            shaken(block.output)
        assert (grown(x, embedding) - plain(x, embedding)).abs().max() > 1e-3


def test_a_transformer_block_is_attention_and_a_network_at_each_position() -> None:
    block = shaken(TransformerBlock(32, 8))
    x, embedding = torch.randn(2, 32, 3, 5), torch.randn(2, 8)
    with torch.no_grad():
        middle = block.attention(x)
        scale, shift = block.modulation(embedding)[:, :, None, None].split(32, dim=1)
        normed = functional.group_norm(middle, 32, block.norm.weight, block.norm.bias) * (1 + scale) + shift
        rows = normed.permute(0, 2, 3, 1) @ block.inner.weight[:, :, 0, 0].T + block.inner.bias
        rows = (rows * rows.sigmoid()) @ block.output.weight[:, :, 0, 0].T + block.output.bias
        assert torch.allclose(block(x, embedding), middle + rows.permute(0, 3, 1, 2), atol=1e-5)


def test_the_layout_in_memory_does_not_matter() -> None:
    unet = shaken(UNet((16, 32, 32), 1, attention_levels=1, embedding=8))
    x, embedding = torch.randn(2, 16, 8, 12), torch.randn(2, 8)
    with torch.no_grad():
        last = unet(x.contiguous(memory_format=torch.channels_last), embedding)
        assert torch.allclose(unet(x, embedding), last, atol=1e-4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_channels_are_last_on_the_gpu() -> None:
    unet = shaken(UNet((16, 32, 64), 1, attention_levels=2, embedding=8))
    x, embedding = torch.randn(2, 16, 16, 24), torch.randn(2, 8)
    expected = unet(x, embedding).square().mean()
    names = [name for name, _ in unet.named_parameters()]
    wanted = dict(zip(names, torch.autograd.grad(expected, list(unet.parameters())), strict=True))
    last: list[bool] = []

    def look(conv: torch.nn.Module, inputs: tuple[Tensor], out: Tensor) -> None:
        parts = (conv.weight, *inputs, out)
        last.extend(part.is_contiguous(memory_format=torch.channels_last) for part in parts)

    for module in unet.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(look)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        unet.cuda()(x.cuda(), embedding.cuda()).square().mean().backward()
    assert len(last) > 30
    assert all(last)
    for name, parameter in unet.named_parameters():
        difference = (parameter.grad.cpu() - wanted[name]).abs().max()
        assert difference < 1e-3 * wanted[name].abs().max() + 1e-6, name  # float32 in another order


def test_timestep_embeddings_are_sines_of_falling_frequency() -> None:
    embedding = timestep_embedding(torch.tensor([0, 7]), 8)
    assert torch.equal(embedding[0], torch.tensor([0.0, 0, 0, 0, 1, 1, 1, 1]))
    rates = [1.0, 0.1, 0.01, 0.001]
    expected = [math.sin(7 * rate) for rate in rates] + [math.cos(7 * rate) for rate in rates]
    assert torch.allclose(embedding[1], torch.tensor(expected), atol=1e-6)
