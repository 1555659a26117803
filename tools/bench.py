"""How fast rooms are rendered: views a second of a stream, and the time that each stage takes."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

import moderngl

from scenediff.datasets.rooms.stream import SLABS, RoomPhotographer, RoomStream, StreamConfig

GPU_STAGES = ("probes", "shadows", "surfaces", "lighting", "develop")


def bench_rasterizer(workers: int, seconds: float, size: int = 128, seed: int = 0) -> dict[str, Any]:
    """Views that a `RoomStream` of `workers` processes delivers, for at least `seconds`.

    The first rooms do not count: the workers' start, and what quick starters laid in meanwhile.

    Raises:
        ValueError: for a number that is not positive.
        RuntimeError: where a worker fails, for want of OpenGL for instance.
    """
    if seconds <= 0:
        raise ValueError(f"seconds: got {seconds}, wanted more than 0")
    with RoomStream(workers, size=size, seed=seed) as stream:
        rooms = iter(stream)
        for _ in islice(rooms, workers * (1 + SLABS)):
            pass
        counts, start, elapsed = [], time.perf_counter(), 0.0
        while elapsed < seconds:
            counts.append(next(rooms).depths.shape[:2])
            elapsed = time.perf_counter() - start
    views = sum(groups * views for groups, views in counts)
    return {
        "views_per_second": views / elapsed,
        "workers": workers,
        "size": size,
        "seed": seed,
        "rooms": len(counts),
        "views": views,
        "seconds": elapsed,
    }


def profile_rasterizer(rooms: int, size: int = 128, seed: int = 0) -> dict[str, Any]:
    """Mean milliseconds a room by stage, one process rendering alone.

    "stages" has for each stage "wall" and, where the GPU works, "gpu" by its own clock. The GPU is waited for
    after each stage, so that "wall" includes its work; "viewpoints" includes "probes".
    """
    if rooms < 1:
        raise ValueError(f"rooms: got {rooms}, wanted at least 1")
    watch = _Stopwatch()
    with RoomPhotographer(StreamConfig(size=size, seed=seed), watch.stage) as photographer:
        photographer.photograph(rooms)
        watch.start(photographer.rasterizer.context)
        begin = time.perf_counter()
        for number in range(rooms):
            photographer.photograph(number)
        total = time.perf_counter() - begin
        renderer = photographer.rasterizer.context.info["GL_RENDERER"]
    stages = {"all": {"wall": total}} | watch.seconds
    return {
        "rooms": rooms,
        "size": size,
        "renderer": renderer,
        "stages": {
            stage: {clock: 1000 * value / rooms for clock, value in clocks.items()}
            for stage, clocks in stages.items()
        },
    }


class _Stopwatch:
    """Adds up the seconds of stages, once started."""

    def __init__(self) -> None:
        self.seconds: dict[str, dict[str, float]] = {}
        self._context: moderngl.Context | None = None

    def start(self, context: moderngl.Context) -> None:
        self._context = context
        self.seconds = defaultdict(lambda: defaultdict(float))

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        if self._context is None:
            yield
            return
        begin = time.perf_counter()
        if name in GPU_STAGES:
            query = self._context.query(time=True)
            with query:
                yield
            self.seconds[name]["gpu"] += query.elapsed / 1e9  # waits for the GPU
        else:
            yield
        self.seconds[name]["wall"] += time.perf_counter() - begin
