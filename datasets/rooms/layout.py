"""Furnished rooms at random: living rooms, kitchens, offices, corridors, as people leave them."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import numpy as np

from . import furniture as make
from .assets import AssetPack
from .builder import Builder
from .clutter import BATH, COUNTER, DESK, MEAL, SEAT, TOP, fill
from .groups import (
    asset_or,
    clutter_floor,
    cupboards,
    decorate_walls,
    dining_group,
    floor_things,
    rug,
    seating_group,
    stand,
    wall_piece,
    wall_units,
    workplace,
)
from .lighting import ambient_light
from .materials import stock_of
from .room import Room
from .shell import build_shell


def furnish(rng: np.random.Generator, pack: AssetPack, split: str = "train") -> Room:
    """A random furnished room made of one split's assets and surfaces; equal generators give equal rooms."""
    r = Random(int(rng.integers(2**63)))
    kind = r.choices(tuple(_PROGRAMS), [weight for weight, *_ in _PROGRAMS.values()])[0]
    _, (width, depth), windows, doors, program = _PROGRAMS[kind]
    size = (r.uniform(*width), min(max(r.gauss(2.6, 0.22), 2.3), 3.5), r.uniform(*depth))
    if r.random() < 0.5:
        size = (size[2], size[1], size[0])
    b = Builder(r, stock_of(pack, split), kind, size)
    build_shell(b, windows=windows, doors=doors, annex=0.4)
    program(b)
    clutter_floor(b)
    decorate_walls(b)
    return b.finish(ambient_light(b))


def _living_room(b: Builder) -> None:
    r = b.r
    rug(b, 0.6)
    for _ in range(r.choice((1, 1, 2))):
        seating_group(b)
    cupboards(b, r.randint(4, 9))
    if r.random() < 0.5:
        dining_group(b, r.uniform(0.8, 1.6))
    stand(b, ("tv_stand", "fireplace", "piano"), 1, TOP)
    floor_things(b, r.randint(2, 5))


def _bedroom(b: Builder) -> None:
    r = b.r
    rug(b, 0.5)
    bed = wall_piece(b, asset_or(b, ("bed",), lambda: make.simple_bed(r, b.stock), 0.6))
    if bed:
        fill(b, bed, SEAT, 0.5)
        stand(b, ("nightstand",), 2, TOP)
    cupboards(b, r.randint(3, 6))
    if r.random() < 0.5:
        workplace(b)
    floor_things(b, r.randint(2, 6))


def _kitchen(b: Builder) -> None:
    r = b.r
    look = r.randrange(10**9)
    for _ in range(r.choice((1, 1, 2))):
        row = wall_piece(b, make.kitchen_row(r, b.stock, r.uniform(1.4, 3.6), look))
        if row:
            fill(b, row, COUNTER, 1.0)
            wall_units(b, row, look)
    for role in ("fridge", "oven", "kitchen_unit", "washing_machine"):
        if r.random() < 0.5:
            stand(b, (role,), 1, COUNTER)
    for _ in range(r.choice((1, 1, 2))):
        dining_group(b, r.uniform(0.8, 2.8))
    cupboards(b, r.randint(2, 5))


def _office(b: Builder) -> None:
    r = b.r
    look = r.randrange(10**9)
    for _ in range(r.randint(3, 8)):
        workplace(b, look)
    if r.random() < 0.4:
        dining_group(b, r.uniform(1.0, 2.0), DESK)
    cupboards(b, r.randint(4, 9))
    if r.random() < 0.3:
        seating_group(b)
    floor_things(b, r.randint(2, 6))


def _meeting_room(b: Builder) -> None:
    r = b.r
    for _ in range(r.choice((1, 2, 2, 3))):
        dining_group(b, r.uniform(1.6, 3.6), MEAL if r.random() < 0.7 else DESK)
    cupboards(b, r.randint(2, 5))
    if r.random() < 0.3:
        seating_group(b)
    floor_things(b, r.randint(1, 5))


def _corridor(b: Builder) -> None:
    r = b.r
    cupboards(b, r.randint(3, 6))
    if r.random() < 0.4:
        wall_piece(b, asset_or(b, ("bench", "chair", "sofa"), lambda: make.simple_sofa(r, b.stock), 0.6))
    floor_things(b, r.randint(1, 5))


def _bathroom(b: Builder) -> None:
    r = b.r
    for role in ("bath", "sink", "toilet", "shower", "washing_machine", "toilet", "sink"):
        if r.random() < 0.75:
            stand(b, (role,), 1, BATH)
    cupboards(b, r.randint(1, 2), BATH)
    floor_things(b, r.randint(0, 1))


def _mixed(b: Builder) -> None:
    r = b.r
    for _ in range(r.randint(3, 7)):
        r.choice((seating_group, dining_group, workplace))(b)
    cupboards(b, r.randint(4, 9))
    floor_things(b, r.randint(2, 6))


# name: (weight, (width, depth) in metres, windows, doors, program)
_Program = tuple[
    float,
    tuple[tuple[float, float], tuple[float, float]],
    tuple[int, int],
    tuple[int, int],
    Callable[[Builder], None],
]


_PROGRAMS: dict[str, _Program] = {
    "living room": (1.6, ((3.2, 6.5), (3.6, 8.0)), (1, 4), (0, 2), _living_room),
    "bedroom": (0.9, ((2.6, 4.5), (3.0, 5.0)), (1, 2), (1, 2), _bedroom),
    "kitchen": (1.5, ((2.2, 4.5), (2.8, 6.5)), (0, 3), (0, 2), _kitchen),
    "office": (1.7, ((3.0, 7.0), (3.5, 9.0)), (1, 4), (1, 3), _office),
    "meeting room": (1.4, ((3.0, 6.0), (4.0, 9.0)), (0, 4), (1, 3), _meeting_room),
    "corridor": (1.3, ((2.2, 3.2), (4.5, 9.0)), (0, 1), (3, 7), _corridor),
    "bathroom": (0.5, ((2.2, 3.2), (2.2, 4.0)), (0, 1), (1, 1), _bathroom),
    "mixed": (1.2, ((3.0, 7.0), (3.5, 8.0)), (0, 3), (0, 3), _mixed),
}
