"""Recorded training steps: thousands of small launches replayed as one, so that the host bounds nothing."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

WARM_UP = 2  # runs before recording: compilers, caches and lazily made handles may not be recorded


class RecordedGradients:
    """A function that leaves gradients in parameters, recorded as a graph for each shape of its arguments.

    The function must not wait for the device, and what it does may depend on its arguments' shapes only, not
    on their values. Numbers drawn from the device's default generator are new at every replay.

    Args:
        function: called with nested records of tensors; drops old gradients, runs a backward pass and returns
            named tensors.
        parameters: those whose gradients it writes.
    """

    def __init__(self, function: Callable[..., dict[str, Tensor]], parameters: Sequence[nn.Parameter]):
        self.function, self.parameters = function, list(parameters)
        self._recordings: dict[tuple, _Recording] = {}
        self._pool: Any = None

    def __call__(self, *arguments: Any) -> dict[str, Tensor]:
        """The function's result; it and the gradients are overwritten by the next call."""
        tensors = list(tensors_of(arguments))
        key = tuple((tensor.shape, tensor.dtype, tensor.device) for tensor in tensors)
        if key not in self._recordings:
            self._recordings[key] = self._record(arguments)
        recording = self._recordings[key]
        torch._foreach_copy_(recording.inputs, tensors)
        recording.graph.replay()
        for parameter, gradient in zip(self.parameters, recording.gradients, strict=True):
            parameter.grad = gradient
        return recording.result

    def _record(self, arguments: tuple) -> _Recording:
        own = own_copy(arguments)
        inputs = list(tensors_of(own))
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(WARM_UP):
                self.function(*own)
        torch.cuda.current_stream().wait_stream(aside)
        torch.cuda.empty_cache()  # a graph has memory of its own, and while recording none can be given back
        graph = torch.cuda.CUDAGraph()
        # other threads go on copying rendered rooms to the device meanwhile
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            result = self.function(*own)
        self._pool = self._pool or graph.pool()
        return _Recording(graph, inputs, result, [p.grad for p in self.parameters])


class _Recording:
    def __init__(
        self, graph: Any, inputs: list[Tensor], result: dict[str, Tensor], gradients: list[Tensor | None]
    ):
        self.graph, self.inputs, self.result, self.gradients = graph, inputs, result, gradients


def tensors_of(value: Any) -> Iterator[Tensor]:
    """Every tensor in nested tuples, lists, dictionaries and objects with attributes, in a fixed order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from tensors_of(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from tensors_of(part)
    elif hasattr(value, "__dict__") and not isinstance(value, type):
        yield from tensors_of(vars(value))


def own_copy(value: Any) -> Any:
    """A deep copy whose tensors own contiguous memory, so that new values can be copied into all of them."""
    copied = copy.deepcopy(value)
    for tensor in tensors_of(copied):
        tensor.data = tensor.detach().clone(memory_format=torch.contiguous_format)
    return copied
