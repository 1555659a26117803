"""Recorded steps: nested records are copied whole, and replays give the gradients of direct calls."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from scenediff.cuda_graphs import RecordedGradients, own_copy, tensors_of


@dataclass(frozen=True)
class Record:
    image: Tensor
    more: tuple
    name: str = "photo"


def some_record(seed: int = 0, batch: int = 2) -> Record:
    noise = torch.randn(batch, 3, generator=torch.Generator().manual_seed(seed))
    return Record(noise, ({"focal": torch.ones(batch, 1).expand(-1, 2)}, [torch.arange(batch)], None))


def test_every_tensor_is_found_in_order() -> None:
    record = some_record()
    found = list(tensors_of((record, record.image)))
    expected = [record.image, record.more[0]["focal"], record.more[1][0], record.image]
    assert [id(tensor) for tensor in found] == [id(tensor) for tensor in expected]


def test_an_own_copy_takes_new_values_without_touching_the_original() -> None:
    record = some_record()
    copied = own_copy(record)
    for tensor in tensors_of(copied):
        tensor.copy_(torch.full_like(tensor, 7))  # fails on expanded memory
        assert tensor.is_contiguous()
    assert record.more[0]["focal"].unique().tolist() == [1.0]
    assert copied.name == "photo"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="records CUDA graphs: needs a CUDA device")
def test_replays_give_the_gradients_of_direct_calls() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 2)).cuda()

    def gradients(record: Record) -> dict[str, Tensor]:
        model.zero_grad(set_to_none=True)
        loss = (model(record.image) - record.more[0]["focal"]).square().mean()
        loss.backward()
        return {"loss": loss.detach()}

    def on_device(seed: int, batch: int) -> Record:
        record = some_record(seed, batch)
        return Record(record.image.cuda(), ({"focal": record.more[0]["focal"].cuda()},))

    recorded = RecordedGradients(gradients, list(model.parameters()))
    for seed, batch in ((0, 4), (1, 4), (2, 8), (3, 4), (4, 8)):
        record = on_device(seed, batch)
        loss = recorded(record)["loss"].clone()
        got = [parameter.grad.clone() for parameter in model.parameters()]
        expected_loss = gradients(record)["loss"]
        torch.testing.assert_close(loss, expected_loss)
        for value, parameter in zip(got, model.parameters(), strict=True):
            torch.testing.assert_close(value, parameter.grad)
