"""Groups of views of synthetic rooms, made as fast as they are used: in this process, or by worker processes.

Room number i of a seed is the same room with the same views however it is made. Workers write into shared
memory and are read in turn, so a stream's order does not depend on timing either.
"""

from __future__ import annotations

import multiprocessing
import os
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from .assets import AssetPack
from .layout import furnish
from .raster import Grading, Photos, Rasterizer, Stage, untimed
from .room import Room, Views
from .viewpoints import sample_groups

SLABS = 3
_ATTEMPTS = 20
_SINGLE_THREADED = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "LP_NUM_THREADS")


@dataclass(frozen=True, eq=False)
class RoomBatch:
    """G groups of K views with depths and cameras (PyTorch3D convention: x_cam = x_world @ R + T)."""

    images: np.ndarray
    """(G, K, S, S, 3) uint8 sRGB."""
    depths: np.ndarray
    """(G, K, S, S) float16 metres along the optical axis."""
    rotation: np.ndarray
    """(G, K, 3, 3) float32."""
    translation: np.ndarray
    """(G, K, 3) float32."""
    focal_length: np.ndarray
    """(G, K) float32, NDC."""
    principal: np.ndarray
    """(G, K, 2) float32, NDC."""

    def __len__(self) -> int:
        return len(self.images)

    def first(self, count: int) -> RoomBatch:
        """The first groups alone."""
        return RoomBatch(**{name: value[:count] for name, value in vars(self).items()})


@dataclass(frozen=True)
class StreamConfig:
    """What a stream consists of.

    Attributes:
        size: pixels of an image's side.
        views: views in a group.
        groups_per_room: groups taken of one room.
        seed: of everything.
        split: "train" or "heldout".
        pack_path: an asset pack; None is the bundled one.
        device_index: the GPU that draws, where there are several.
    """

    size: int = 128
    views: int = 4
    groups_per_room: int = 5
    seed: int = 0
    split: str = "train"
    pack_path: str | None = None
    device_index: int = 0

    def __post_init__(self) -> None:
        for name in ("size", "views", "groups_per_room"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: got {getattr(self, name)}, wanted at least 1")


class RoomPhotographer:
    """Makes rooms and photographs them, in this process. Use it as a context manager."""

    def __init__(self, config: StreamConfig, stage: Stage = untimed) -> None:
        """`stage` surrounds "layout" and "viewpoints", and the rasterizer's own stages."""
        self.config = config
        self.stage = stage
        self.pack = AssetPack.load(config.pack_path)
        self.rasterizer = Rasterizer(self.pack, stage, config.device_index)

    def __enter__(self) -> RoomPhotographer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.rasterizer.close()

    def arrange(self, number: int) -> tuple[Room, Views, np.random.Generator]:
        """Room `number`, now uploaded, its groups of cameras, and the generator to go on with."""
        config = self.config
        for attempt in range(_ATTEMPTS):
            rng = np.random.default_rng([config.seed, number, attempt])
            with self.stage("layout"):
                room = furnish(rng, self.pack, config.split)
            with self.stage("viewpoints"):
                self.rasterizer.upload(room)
                views = sample_groups(rng, room, self.rasterizer, config.groups_per_room, config.views)
            if views is not None:
                return room, views, rng
        raise RuntimeError(f"no views found in {_ATTEMPTS} rooms (seed {config.seed}, room {number})")

    def photograph(self, number: int) -> RoomBatch:
        """The groups of room `number`."""
        room, views, rng = self.arrange(number)
        grading = Grading.sample(rng, self.config.groups_per_room)
        photos = self.rasterizer.render(room, views, grading, self.config.size)
        return _batch(photos, views)


def render_groups(
    seed: int,
    count: int,
    size: int,
    split: str,
    *,
    views: int = 4,
    groups_per_room: int = 1,
    pack_path: str | Path | None = None,
) -> RoomBatch:
    """`count` groups of views, rendered in this process: the first ones of the stream with these settings."""
    if count < 1:
        raise ValueError(f"count: got {count}, wanted at least 1")
    path = None if pack_path is None else str(pack_path)
    config = StreamConfig(size, views, groups_per_room, seed, split, path)
    with RoomPhotographer(config) as photographer:
        rooms = joined([photographer.photograph(number) for number in range(-(-count // groups_per_room))])
    return rooms.first(count)


def joined(rooms: Sequence[RoomBatch]) -> RoomBatch:
    """All their groups in one."""
    return RoomBatch(
        **{name: np.concatenate([getattr(room, name) for room in rooms]) for name in vars(rooms[0])}
    )


class RoomStream:
    """An endless iterator over `RoomBatch`es, one room each, made by worker processes.

    Use it as a context manager. Chunk i is room i of the seed. A worker's error is raised here.
    """

    def __init__(
        self,
        workers: int,
        *,
        size: int = 128,
        views: int = 4,
        groups_per_room: int = 5,
        seed: int = 0,
        split: str = "train",
        pack_path: str | Path | None = None,
        start: int = 0,
        device_index: int = 0,
    ) -> None:
        """`start` is the number of the first room, to go on where an earlier stream ended."""
        if workers < 1:
            raise ValueError(f"workers: got {workers}, wanted at least 1")
        path = None if pack_path is None else str(pack_path)
        self.config = StreamConfig(size, views, groups_per_room, seed, split, path, device_index)
        self.workers = workers
        self.start = start
        self._running: list[_Worker] = []

    def __enter__(self) -> RoomStream:
        with _environment(_SINGLE_THREADED):
            self._running = [_Worker(self.config, self.start + k, self.workers) for k in range(self.workers)]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in self._running:
            worker.connection.close()
        for worker in self._running:
            worker.join()
        self._running = []

    def __iter__(self) -> Iterator[RoomBatch]:
        if not self._running:
            raise RuntimeError("RoomStream: use it as a context manager (with RoomStream(...) as stream)")
        while True:
            for worker in self._running:
                yield worker.next_batch()


class _Worker:
    """A process that fills slabs of shared memory, one room each."""

    def __init__(self, config: StreamConfig, first: int, step: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._slabs = [context.RawArray("B", _slab_bytes(config)) for _ in range(SLABS)]
        self._arrays = [_arrays(slab, config) for slab in self._slabs]
        self.connection, child = context.Pipe()
        self._process = context.Process(
            target=_work, args=(config, first, step, self._slabs, child), daemon=True, name=f"rooms-{first}"
        )
        self._process.start()
        child.close()  # so that a worker's death ends the connection

    def next_batch(self) -> RoomBatch:
        try:
            message = self.connection.recv()
        except (EOFError, ConnectionResetError) as error:
            self._process.join(5)
            raise RuntimeError(f"{self._process.name} died (exit code {self._process.exitcode})") from error
        if isinstance(message, str):
            raise RuntimeError(f"{self._process.name} failed:\n{message}")
        batch = RoomBatch(**{name: array.copy() for name, array in self._arrays[message].items()})
        self.connection.send(message)
        return batch

    def join(self) -> None:
        self._process.join(10)
        if self._process.is_alive():
            self._process.terminate()
            self._process.join()


def _work(config: StreamConfig, first: int, step: int, slabs: list[Any], connection: Connection) -> None:
    """A worker's life: fill free slabs until the consumer hangs up."""
    try:
        arrays = [_arrays(slab, config) for slab in slabs]
        free = list(range(len(slabs)))
        with RoomPhotographer(config) as photographer:
            number = first
            while True:
                batch = photographer.photograph(number)
                while not free or connection.poll():
                    free.append(connection.recv())
                slab = free.pop()
                for name, array in arrays[slab].items():
                    array[...] = getattr(batch, name)
                connection.send(slab)
                number += step
    except (EOFError, BrokenPipeError, ConnectionResetError, KeyboardInterrupt):
        return  # the consumer has hung up
    except Exception:
        connection.send(traceback.format_exc())


def _batch(photos: Photos, views: Views) -> RoomBatch:
    return RoomBatch(
        photos.images, photos.depths, views.rotation, views.translation, views.focal_length, views.principal
    )


def _layout(config: StreamConfig) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    lead = (config.groups_per_room, config.views)
    single = np.dtype(np.float32)
    return {
        "images": ((*lead, config.size, config.size, 3), np.dtype(np.uint8)),
        "depths": ((*lead, config.size, config.size), np.dtype(np.float16)),
        "rotation": ((*lead, 3, 3), single),
        "translation": ((*lead, 3), single),
        "focal_length": (lead, single),
        "principal": ((*lead, 2), single),
    }


def _slab_bytes(config: StreamConfig) -> int:
    return sum(
        -(-int(np.prod(shape)) * dtype.itemsize // 64) * 64 for shape, dtype in _layout(config).values()
    )


def _arrays(slab: Any, config: StreamConfig) -> dict[str, np.ndarray]:
    """The fields of a batch as views of shared memory."""
    memory = np.frombuffer(slab, np.uint8)
    arrays, offset = {}, 0
    for name, (shape, dtype) in _layout(config).items():
        length = int(np.prod(shape)) * dtype.itemsize
        arrays[name] = memory[offset : offset + length].view(dtype).reshape(shape)
        offset += -(-length // 64) * 64
    return arrays


@contextmanager
def _environment(names: tuple[str, ...]) -> Iterator[None]:
    """One thread for each library of the processes started meanwhile: there are as many workers as cores."""
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
