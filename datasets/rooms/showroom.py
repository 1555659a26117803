"""Single pieces of furniture before a plain wall, as a catalogue shows them: a domain that is easy to learn.

Each piece stands in a round room of two colours, the floor's and the wall's, and is photographed from in
front, to the left or to the right, so that it fills the frame.
"""

from __future__ import annotations

import io
import itertools
import math
import multiprocessing
import zipfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
from PIL import Image
from tqdm import tqdm

from .assets import AssetPack
from .builder import Builder
from .lighting import ambient_light
from .materials import any_colour, hsv, plain, scaled, stock_of
from .pieces import Part, block, from_asset
from .raster import Grading, Rasterizer
from .room import MESH_COLOURS, Colour, Light, Material, Room, Views
from .shapes import CYLINDER

ROLES = ("armchair", "bench", "chair", "sofa", "stool")
ROOM = (12.0, 3.6, 12.0)  # metres; the wall stays out of the way of cameras
FOV_DEGREES = 40.0
AZIMUTH_DEGREES, PITCH_DEGREES = 60.0, (8.0, 28.0)
DYED = 0.4  # share of the pieces
VIEWS = 8  # of each piece, in one exposure


@dataclass(frozen=True)
class Showing:
    """What to photograph.

    Attributes:
        size: pixels of an image's side.
        seed: of everything.
        split: "train" or "heldout", which furniture to show.
        roles: kinds of furniture.
        pack_path: an asset pack; None is the bundled one.
    """

    size: int = 64
    seed: int = 0
    split: str = "train"
    roles: tuple[str, ...] = ROLES
    pack_path: str | None = None


class FurniturePhotographer:
    """Photographs pieces in this process. Use it as a context manager."""

    def __init__(self, showing: Showing) -> None:
        self.showing = showing
        self.pack = AssetPack.load(showing.pack_path)
        stock = stock_of(self.pack, showing.split)
        self.pieces = [index for role in showing.roles for index in _of_role(stock.by_role, role)]
        if not self.pieces:
            raise ValueError(f"the pack has no {showing.split} furniture among {', '.join(showing.roles)}")
        self.rasterizer = Rasterizer(self.pack)

    def __enter__(self) -> FurniturePhotographer:
        return self

    def __exit__(self, *_: object) -> None:
        self.rasterizer.close()

    def photograph(self, number: int) -> np.ndarray:
        """(VIEWS, size, size, 3) uint8 sRGB of piece `number` of the seed."""
        rng = np.random.default_rng([self.showing.seed, number])
        room, size = show(Random(int(rng.integers(2**63))), self.pack, self.showing.split, self.pieces)
        self.rasterizer.upload(room)
        views = views_around(rng, size, VIEWS)
        return self.rasterizer.render(room, views, Grading.sample(rng, 1), self.showing.size).images[0]


def show(
    r: Random, pack: AssetPack, split: str, pieces: Sequence[int]
) -> tuple[Room, tuple[float, float, float]]:
    """One of the pack's pieces (given by their numbers) in a plain room, and its size in metres."""
    stock = stock_of(pack, split)
    b = Builder(r, stock, "showroom", ROOM)
    wall, floor = plain_colour(r), plain_colour(r)
    b.albedo = {"walls": wall, "floor": floor, "ceiling": (0.8, 0.8, 0.8)}
    width, height, depth = ROOM
    b.add_parts(
        [
            Part(CYLINDER, (0, -0.1, 0), (width, height, depth), plain(r, wall, 0.0)),
            block((0, -0.05, 0), (width, 0.05, depth), plain(r, floor, 0.0)),
        ],
        0, 0, 0, 0, b.new_object(),
    )  # fmt: skip
    b.structure = b.objects
    piece = from_asset(r, stock, r.choice(list(pieces)), 1.0)
    if r.random() < DYED:
        dye = Material(scaled(any_colour(r), 1.3), MESH_COLOURS)
        piece = piece._replace(parts=tuple(part._replace(material=dye) for part in piece.parts))
    b.add(piece, 0, 0, 0, 0)
    for side in (-1, 1):
        place = (side * r.uniform(1.0, 2.5), 3.2, r.uniform(1.0, 3.0))
        level = r.uniform(4, 12)
        b.lights.append(Light(place, (0.0, -1.0, 0.0), (level, 0.97 * level, 0.93 * level), 0.5, 0.0))
    return b.finish(ambient_light(b)), piece.size


def plain_colour(r: Random) -> Colour:
    """Pale, grey and saturated paints."""
    return hsv(r.random(), r.uniform(0.0, 0.7) ** 1.3, r.uniform(0.35, 0.97))


def views_around(rng: np.random.Generator, size: tuple[float, float, float], count: int) -> Views:
    """(1, count) cameras that look at the middle of a piece of that size; all of it fits in."""
    azimuth = np.radians(rng.uniform(-AZIMUTH_DEGREES, AZIMUTH_DEGREES, count))
    pitch = np.radians(rng.uniform(*PITCH_DEGREES, count))
    reach = 0.5 * math.hypot(*size) / math.sin(math.radians(FOV_DEGREES) / 2)
    distance = (reach * rng.uniform(0.85, 1.0, count)).clip(max=ROOM[0] / 2 - 0.2)
    outward = np.stack(
        [np.sin(azimuth) * np.cos(pitch), np.sin(pitch), np.cos(azimuth) * np.cos(pitch)], axis=1
    )
    centre = np.array([0.0, size[1] / 2, 0.0]) + distance[:, None] * outward
    left = np.cross([0.0, 1.0, 0.0], -outward)
    left /= np.linalg.norm(left, axis=1, keepdims=True)
    rotation = np.stack([left, np.cross(-outward, left), -outward], axis=2)  # columns: left, up, forward
    translation = -np.einsum("nij,ni->nj", rotation, centre)
    focal_length = np.full(count, 1 / math.tan(math.radians(FOV_DEGREES) / 2))
    arrays = (rotation, translation, focal_length, np.zeros((count, 2)))
    return Views(*(array[None].astype(np.float32) for array in arrays))


def render_furniture(count: int, showing: Showing) -> np.ndarray:
    """(count, size, size, 3) uint8: the first images of a showing, one view of each piece."""
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    with FurniturePhotographer(showing) as photographer:
        return np.stack([photographer.photograph(number)[0] for number in range(count)])


def write_furniture(path: Path, count: int, showing: Showing, workers: int = 1) -> None:
    """Writes a zip of `count` PNG files, 00000000.png and so on; the same for any number of workers."""
    if count < 1 or workers < 1:
        raise ValueError(f"count and workers must be at least 1, got {count} and {workers}")
    pieces = -(-count // VIEWS)
    shares = [range(pieces * part // workers, pieces * (part + 1) // workers) for part in range(workers)]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        files = itertools.islice(_encoded(showing, shares), count)
        for number, data in enumerate(tqdm(files, "furniture", count, unit="image", disable=None)):
            archive.writestr(f"{number:08d}.png", data)


def _encoded(showing: Showing, shares: Sequence[range]) -> Iterator[bytes]:
    """PNG files of numbered pieces; several shares are made by a process each."""
    if len(shares) == 1:
        yield from _photograph_share(showing, shares[0])
        return
    context = multiprocessing.get_context("spawn")  # a forked process can't have an OpenGL context
    with ProcessPoolExecutor(len(shares), context) as processes:
        for files in processes.map(_photograph_share, itertools.repeat(showing), shares):
            yield from files


def _photograph_share(showing: Showing, share: range) -> list[bytes]:
    with FurniturePhotographer(showing) as photographer:
        return [file for number in share for file in _png(photographer.photograph(number))]


def _png(images: np.ndarray) -> list[bytes]:
    files = []
    for image in images:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "PNG", compress_level=1)
        files.append(buffer.getvalue())
    return files


def _of_role(by_role: dict[tuple[str, str], list[int]], role: str) -> list[int]:
    return sorted(index for (name, _), indices in by_role.items() if name == role for index in indices)
