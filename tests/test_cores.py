"""Work side by side on a CPU's cores."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_info

from scenediff.cores import on_cores


@pytest.fixture(autouse=True)
def two_cores():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    assert torch.get_num_threads() == 2  # as it was
    torch.set_num_threads(before)


def test_results_come_in_order_from_one_thread_for_each_core() -> None:
    both_there = threading.Barrier(2, timeout=20)  # opens only if two run at once

    def work(item: int) -> tuple[int, int, str]:
        both_there.wait()
        return item * item, torch.get_num_threads(), threading.current_thread().name

    found = on_cores(work, range(6))
    assert [square for square, _, _ in found] == [0, 1, 4, 9, 16, 25]
    assert {threads for _, threads, _ in found} == {1}
    assert len({name for _, _, name in found}) == 2


@pytest.mark.parametrize(("count", "device"), [(1, "cpu"), (3, "cuda"), (0, "cpu")])
def test_one_item_and_gpus_stay_where_they_are(count: int, device: str) -> None:
    found = on_cores(lambda item: (item, threading.current_thread()), range(count), device)
    assert found == [(item, threading.current_thread()) for item in range(count)]


def test_an_error_ends_it() -> None:
    begun = []

    def work(item: int) -> None:
        begun.append(item)
        raise ValueError(f"item {item}")

    with pytest.raises(ValueError, match="item 0"):
        on_cores(work, range(100))
    assert len(begun) < 100


def test_numbers_are_those_of_one_thread() -> None:
    values = [torch.randn(64, 64, generator=torch.Generator().manual_seed(seed)) for seed in range(4)]
    assert all(map(torch.equal, on_cores(lambda value: value @ value, values), [v @ v for v in values]))


def blas_threads() -> list[int]:
    return [library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"]


def test_products_of_numpy_stay_on_one_thread_meanwhile() -> None:
    np.ones((2, 2)) @ np.ones((2, 2))  # loads the library
    before = blas_threads()
    assert before
    found = on_cores(lambda item: blas_threads(), range(2))
    assert found == [[1] * len(before)] * 2
    assert blas_threads() == before
