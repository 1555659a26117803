"""Furnished rooms at random: living rooms, kitchens, offices, corridors and the like, as people leave them."""

from __future__ import annotations

import math
from collections.abc import Callable
from random import Random

import numpy as np

from . import furniture as make
from . import materials
from .assets import AssetPack
from .builder import Builder, Placed, Wall, turned_boxes
from .furniture import Part, Piece
from .materials import any_colour, picture, plain, stock_of
from .room import PLAIN, Material, Room
from .shapes import CUBE
from .shell import ambient_light, build_shell

Clutter = dict[str, float]
_DESK: Clutter = {"monitor": 3, "laptop": 2, "paper": 4, "bottle": 2, "small_plant": 0.6, "table_lamp": 1, "tray": 0.7, "book_row": 0.7, "*computer": 2, "*books": 1, "*electronics": 1}
_MEAL: Clutter = {"fruit": 4, "bottle": 3, "paper": 2, "tray": 2, "small_plant": 0.7, "laptop": 0.7, "bag": 0.3, "*tableware": 3, "*food": 2, "*bottle": 2}
_COUNTER: Clutter = {"bottle": 4, "fruit": 1.2, "tray": 1, "small_plant": 0.3, "*appliance": 4, "*tableware": 3, "*bottle": 2, "*food": 1}
_SHELF: Clutter = {"book_row": 6, "bottle": 1, "paper": 1, "small_plant": 1, "ball": 0.4, "tray": 1, "carton": 0.7, "*books": 2, "*decoration": 2, "*toy": 0.7, "*electronics": 0.7, "*box": 0.5}
_TOP: Clutter = {"small_plant": 2, "book_row": 1, "paper": 2, "table_lamp": 1.5, "tray": 1.5, "carton": 1, "bottle": 1, "ball": 0.4, "bag": 0.5, "*decoration": 2, "*tv": 0.8, "*lamp": 1.5, "*plant": 1.5, "*books": 1, "*clock": 0.4}
_SEAT: Clutter = {"cushion": 5, "bag": 1, "paper": 0.7, "laptop": 0.3}
_BATH: Clutter = {"bottle": 5, "tray": 0.6, "small_plant": 0.6, "*bottle": 3}


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
    _clutter_floor(b)
    _decorate_walls(b)
    return b.finish(ambient_light(b))


# ------------------------------------------------------------------------------------ kinds of rooms


def _living_room(b: Builder) -> None:
    r = b.r
    _rug(b, 0.6)
    for _ in range(r.choice((1, 1, 2))):
        _seating_group(b)
    _cupboards(b, r.randint(4, 9))
    if r.random() < 0.5:
        _dining_group(b, r.uniform(0.8, 1.6))
    _stand(b, ("tv_stand", "fireplace", "piano"), 1, _TOP)
    _floor_things(b, r.randint(2, 5))


def _bedroom(b: Builder) -> None:
    r = b.r
    _rug(b, 0.5)
    bed = _wall_piece(b, _asset_or(b, ("bed",), lambda: make.simple_bed(r, b.stock), 0.6))
    if bed:
        _fill(b, bed, _SEAT, 0.5)
        _stand(b, ("nightstand",), 2, _TOP)
    _cupboards(b, r.randint(3, 6))
    if r.random() < 0.5:
        _workplace(b)
    _floor_things(b, r.randint(2, 6))


def _kitchen(b: Builder) -> None:
    r = b.r
    look = r.randrange(10**9)
    for _ in range(r.choice((1, 1, 2))):
        row = _wall_piece(b, make.kitchen_row(r, b.stock, r.uniform(1.4, 3.6), look))
        if row:
            _fill(b, row, _COUNTER, 1.0)
            _wall_units(b, row, look)
    for role in ("fridge", "oven", "kitchen_unit", "washing_machine"):
        if r.random() < 0.5:
            _stand(b, (role,), 1, _COUNTER)
    for _ in range(r.choice((1, 1, 2))):
        _dining_group(b, r.uniform(0.8, 2.8))
    _cupboards(b, r.randint(2, 5))


def _office(b: Builder) -> None:
    r = b.r
    look = r.randrange(10**9)
    for _ in range(r.randint(3, 8)):
        _workplace(b, look)
    if r.random() < 0.4:
        _dining_group(b, r.uniform(1.0, 2.0), _DESK)
    _cupboards(b, r.randint(4, 9))
    if r.random() < 0.3:
        _seating_group(b)
    _floor_things(b, r.randint(2, 6))


def _meeting_room(b: Builder) -> None:
    r = b.r
    for _ in range(r.choice((1, 2, 2, 3))):
        _dining_group(b, r.uniform(1.6, 3.6), _MEAL if r.random() < 0.7 else _DESK)
    _cupboards(b, r.randint(2, 5))
    if r.random() < 0.3:
        _seating_group(b)
    _floor_things(b, r.randint(1, 5))


def _corridor(b: Builder) -> None:
    r = b.r
    _cupboards(b, r.randint(3, 6))
    if r.random() < 0.4:
        _wall_piece(b, _asset_or(b, ("bench", "chair", "sofa"), lambda: make.simple_sofa(r, b.stock), 0.6))
    _floor_things(b, r.randint(1, 5))


def _bathroom(b: Builder) -> None:
    r = b.r
    for role in ("bath", "sink", "toilet", "shower", "washing_machine", "toilet", "sink"):
        if r.random() < 0.75:
            _stand(b, (role,), 1, _BATH)
    _cupboards(b, r.randint(1, 2), _BATH)
    _floor_things(b, r.randint(0, 1))


def _mixed(b: Builder) -> None:
    r = b.r
    for _ in range(r.randint(3, 7)):
        r.choice((_seating_group, _dining_group, _workplace))(b)
    _cupboards(b, r.randint(4, 9))
    _floor_things(b, r.randint(2, 6))


# name: (weight, (width, depth) in metres, windows, doors, program)
_Program = tuple[float, tuple[tuple[float, float], tuple[float, float]], tuple[int, int], tuple[int, int], Callable[[Builder], None]]
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


# ---------------------------------------------------------------------------------- groups of things


def _asset_or(b: Builder, roles: tuple[str, ...], other: Callable[[], Piece], share: float) -> Piece:
    """A piece of the pack with one of the roles, or a parametric one; `share` of the former."""
    if b.r.random() < share:
        piece = _asset(b, roles, "floor", "against_wall")
        if piece:
            return piece
    return other()


def _asset(b: Builder, roles: tuple[str, ...], *placements: str) -> Piece | None:
    indices = [index for role in roles for index in b.stock.indices(role, *placements)]
    if not indices:
        return None
    return make.from_asset(b.r, b.stock, b.r.choice(indices), b.r.uniform(0.87, 1.15))


def _wall_piece(b: Builder, piece: Piece, tries: int = 8) -> Placed | None:
    return b.along_wall(piece, tries=tries)


def _stand(b: Builder, roles: tuple[str, ...], count: int, things: Clutter) -> None:
    """Assets with their backs to a wall, with things on them."""
    for _ in range(count):
        piece = _asset(b, roles, "against_wall", "floor")
        placed = piece and _wall_piece(b, piece)
        if placed:
            _fill(b, placed, things, 0.8)


def _rug(b: Builder, chance: float) -> None:
    r = b.r
    if r.random() > chance:
        return
    x0, z0, x1, z1 = b.areas[0]
    w, d = r.uniform(0.3, 0.8) * (x1 - x0), r.uniform(0.3, 0.8) * (z1 - z0)
    material = materials.fabric(r, b.stock) if r.random() < 0.5 else materials.carpet(r)
    piece = _asset(b, ("rug",), "rug") if r.random() < 0.5 else None
    if piece:
        w, d = piece.size[0], piece.size[2]
    if w > x1 - x0 or d > z1 - z0:
        return
    x, z = r.uniform(x0 + w / 2, x1 - w / 2), r.uniform(z0 + d / 2, z1 - d / 2)
    parts = piece.parts if piece else (Part(CUBE, (0, 0, 0), (w, 0.012, d), material),)
    b.add_parts(parts, x, 0.0, z, 0.0, b.new_object())


def _dining_group(b: Builder, length: float = 1.4, things: Clutter = _MEAL) -> None:
    """A table, chairs around it in various states of disorder, things on it."""
    r = b.r
    tall = r.random() < 0.08
    w, d, h = length, r.uniform(0.65, 1.0), r.uniform(0.95, 1.08) if tall else r.uniform(0.7, 0.78)
    if length < 1.2 and r.random() < 0.5:
        d = w
    table = _asset_or(b, ("dining_table",), lambda: make.table(r, b.stock, w, d, h), 0.25)
    placed = b.on_floor(table, aligned=True, tries=14, margin=0.25)
    if not placed:
        return
    _fill(b, placed, things, r.uniform(0.6, 1.8))
    look, share = r.randrange(10**9), r.uniform(0.6, 1.0)
    indices = b.stock.indices("chair", "floor")
    index = r.choice(indices) if indices and r.random() < 0.5 else None
    w, _, d = placed.piece.size
    spacing = r.uniform(0.55, 0.7)
    for side in range(4):
        along, across = (w, d) if side % 2 == 0 else (d, w)
        count = int(along / spacing)
        for k in range(count):
            if r.random() < share:
                _chair_at(b, placed, side, (k + 0.5) / count * along - along / 2, across, look, index)


def _chair_at(b: Builder, table: Placed, side: int, u: float, across: float, look: int, index: int | None) -> None:
    """A chair at `u` along a side of a table, pushed in, pulled out or turned away."""
    r = b.r
    chair = make.chair(r, b.stock, look) if index is None else make.from_asset(r, b.stock, index, 1.0)
    turn = table.yaw + side * math.pi / 2
    yaw = turn + math.pi + (r.gauss(0, 0.06) if r.random() < 0.75 else r.uniform(-1.2, 1.2))
    placed = None
    for push in (r.choice((-0.26, -0.18, 0.02)), 0.04, 0.3):  # as far in as it goes
        out = across / 2 + push + chair.size[2] / 2 + r.uniform(-0.03, 0.03)
        x, z = table.x + u * math.cos(turn) + out * math.sin(turn), table.z - u * math.sin(turn) + out * math.cos(turn)
        placed = placed or b.try_add(chair, x, 0.0, z, yaw)
    if placed and r.random() < 0.12:
        _fill(b, placed, {"bag": 1, "cushion": 1, "paper": 0.5}, 5.0)


def _workplace(b: Builder, look: int | None = None) -> None:
    """A desk with a screen and a chair."""
    r = b.r
    q = Random(look) if look is not None else r
    w, d, h = q.uniform(1.0, 1.8), q.uniform(0.6, 0.85), q.uniform(0.7, 0.78)
    piece = _asset_or(b, ("desk",), lambda: make.table(q, b.stock, w, d, h), 0.25)
    desk = b.along_wall(piece, tries=6) if r.random() < 0.65 else b.on_floor(piece, aligned=True, tries=8, margin=0.1)
    if not desk:
        return
    _fill(b, desk, _DESK, r.uniform(0.8, 2.0))
    chair = _asset_or(b, ("chair",), lambda: make.chair(r, b.stock, look or r.randrange(10**9)), 0.5)
    out = desk.piece.size[2] / 2 + chair.size[2] / 2 + r.choice((-0.15, 0.05, 0.3))
    x, z = desk.x + out * math.sin(desk.yaw), desk.z + out * math.cos(desk.yaw)
    b.try_add(chair, x, 0.0, z, desk.yaw + math.pi + r.gauss(0, 0.5))


def _seating_group(b: Builder) -> None:
    """A sofa or armchairs with a low table."""
    r = b.r
    piece = _asset_or(b, ("sofa", "sofa", "armchair"), lambda: make.simple_sofa(r, b.stock), 0.6)
    sofa = b.along_wall(piece, tries=6) if r.random() < 0.7 else b.on_floor(piece, aligned=True, margin=0.1)
    if not sofa:
        return
    _fill(b, sofa, _SEAT, 0.9)
    table = _asset_or(b, ("coffee_table",), lambda: make.table(r, b.stock, r.uniform(0.6, 1.2), r.uniform(0.5, 0.7), r.uniform(0.35, 0.5)), 0.5)
    out = sofa.piece.size[2] / 2 + table.size[2] / 2 + r.uniform(0.25, 0.5)
    placed = b.try_add(table, sofa.x + out * math.sin(sofa.yaw), 0.0, sofa.z + out * math.cos(sofa.yaw), sofa.yaw)
    if placed:
        _fill(b, placed, _MEAL, 1.2)
    for _ in range(r.randint(0, 2)):
        seat = _asset_or(b, ("armchair", "stool", "chair"), lambda: make.simple_sofa(r, b.stock), 0.8)
        b.on_floor(seat, tries=5, margin=0.05)


def _cupboards(b: Builder, count: int, things: Clutter | None = None) -> None:
    """Cupboards, dressers and shelves along the walls."""
    r = b.r
    for _ in range(count):
        kind = r.random()
        piece: Piece | None
        if kind < 0.4:
            piece = make.cabinet(r, b.stock, r.uniform(0.5, 2.0), r.choice((0.75, 0.9, 1.1, 1.2, 2.0)) * r.uniform(0.9, 1.1), r.uniform(0.35, 0.55))
        elif kind < 0.65:
            piece = make.shelf(r, b.stock, r.uniform(0.5, 1.8), r.choice((0.8, 1.2, 1.8, 2.1)) * r.uniform(0.9, 1.08), r.uniform(0.24, 0.4))
        else:
            piece = _asset(b, ("shelf", "dresser", "wardrobe", "dresser", "nightstand", "desk"), "against_wall")
        placed = piece and _wall_piece(b, piece)
        if placed:
            _fill(b, placed, things or (_SHELF if placed.piece.role == "shelf" else _TOP), 1.6 if placed.piece.role == "shelf" else 0.8)


def _wall_units(b: Builder, row: Placed, look: int) -> None:
    """Kitchen units or a shelf above a worktop."""
    r = b.r
    if r.random() < 0.3:
        return
    wall = min(b.walls, key=lambda w: abs(math.remainder(w.yaw - row.yaw, 2 * math.pi)))
    w = row.piece.size[0] * r.uniform(0.5, 1.0)
    if r.random() < 0.75:
        piece = make.cabinet(r, b.stock, w, r.uniform(0.5, 0.75), 0.34, look)
    else:
        piece = make.shelf(r, b.stock, w, r.uniform(0.3, 0.4), 0.25)
    placed = b.along_wall(piece, wall=wall, lift=r.uniform(1.4, 1.5), tries=5)
    if placed and placed.piece.role == "shelf":
        _fill(b, placed, _COUNTER, 1.5)


def _floor_things(b: Builder, count: int) -> None:
    """Plants, lamps and single pieces of the pack that stand anywhere."""
    r = b.r
    for _ in range(count):
        kind = r.random()
        piece: Piece | None
        if kind < 0.45:
            piece = make.potted_plant(r, r.uniform(0.6, 2.0))
        elif kind < 0.6:
            piece = make.floor_lamp(r)
        else:
            piece = _asset(b, ("plant", "lamp", "stool", "armchair", "chair", "bin", "music", "game_table", "other", "toy"), "floor")
        if piece and (r.random() < 0.35 or not b.along_wall(piece, gap=0.03, tries=5)):
            b.on_floor(piece, tries=5)


def _clutter_floor(b: Builder) -> None:
    """Boxes, bags, bins and cables on the floor, rather along the walls."""
    r = b.r
    x0, z0, x1, z1 = b.areas[0]
    for _ in range(int(r.uniform(0.1, 0.55) * (x1 - x0) * (z1 - z0))):
        kind = r.random()
        piece: Piece | None
        if kind < 0.4:
            piece = make.carton(r, b.stock)
        elif kind < 0.55:
            piece = make.bag(r, b.stock)
        elif kind < 0.7:
            piece = make.bin_(r)
        elif kind < 0.8:
            piece = make.potted_plant(r, r.uniform(0.3, 1.2))
        else:
            piece = _asset(b, ("box", "bin", "toy", "plant", "decoration", "music"), "floor", "top")
        if piece and (r.random() < 0.3 or not b.along_wall(piece, gap=r.uniform(0.01, 0.1), tries=3)):
            b.on_floor(piece, tries=3)


def _decorate_walls(b: Builder) -> None:
    """Pictures, posters, notices, shelves, whiteboards, sockets, and whatever the pack has for walls."""
    r = b.r
    for wall in b.walls:
        for _ in range(int(r.uniform(0.3, 1.5) * wall.length)):
            kind = r.random()
            if kind < 0.5:
                _hang_picture(b, wall)
            elif kind < 0.6:
                _hang(b, wall, make.shelf(r, b.stock, r.uniform(0.4, 1.2), r.choice((0.2, 0.35, 0.7)), r.uniform(0.15, 0.28)), r.uniform(1.1, 1.7), _SHELF)
            elif kind < 0.75:
                _hang_socket(b, wall)
            else:
                piece = _asset(b, ("clock", "mirror", "lamp", "tv", "curtain", "switch", "towel", "picture", "other"), "wall")
                if piece and piece.size[1] < b.size[1] - 0.3:
                    _hang(b, wall, piece, min(r.uniform(1.0, 1.7), b.size[1] - piece.size[1] - 0.1), None)


def _hang(b: Builder, wall: Wall, piece: Piece, lift: float, things: Clutter | None) -> None:
    placed = b.along_wall(piece, wall=wall, lift=lift, tries=3, gap=0.002)
    if placed and things:
        _fill(b, placed, things, 1.5)


def _hang_picture(b: Builder, wall: Wall) -> None:
    r = b.r
    image, ratio = picture(r, b.stock)
    w = r.choice((0.21, 0.3, 0.42, 0.6, 0.6, 0.9, 1.2))
    h = w * ratio * r.uniform(0.9, 1.1)
    if r.random() < 0.12:  # a whiteboard or pin board
        w, h, image = r.uniform(0.8, 2.0), r.uniform(0.6, 1.2), plain(r, any_colour(r) if r.random() < 0.4 else (0.8, 0.8, 0.8), 0.6)
    if h > 1.5:
        w, h = w * 1.5 / h, 1.5
    parts = [Part(CUBE, (0, 0, 0), (w, h, 0.006), image)]
    if r.random() < 0.55:
        t, frame = r.uniform(0.01, 0.05), plain(r, any_colour(r)) if r.random() < 0.6 else materials.wood(r, b.stock)
        parts = [Part(CUBE, (0, 0, 0), (w, h, 0.02), frame), Part(CUBE, (0, t, 0.009), (w - 2 * t, h - 2 * t, 0.006), image)]
    _hang(b, wall, Piece("picture", (w, h, 0.03), tuple(parts)), max(0.3, r.gauss(1.55, 0.15) - h / 2), None)


def _hang_socket(b: Builder, wall: Wall) -> None:
    r = b.r
    w = r.choice((0.08, 0.08, 0.16, 0.3))
    material = Material(materials.grey(r.uniform(0.75, 0.95)), PLAIN, gloss=0.4)
    piece = Piece("switch", (w, 0.1, 0.02), (Part(CUBE, (0, 0, 0), (w, 0.08, 0.015), material), Part(CUBE, (0, 0.015, 0.006), (w * 0.6, 0.05, 0.008), material)))
    _hang(b, wall, piece, r.choice((0.25, 0.3, 1.05, 1.1, 1.4)), None)


# --------------------------------------------------------------------------------- things on things


def _fill(b: Builder, below: Placed, things: Clutter, density: float) -> None:
    """Put things on a piece's supports; `density` is roughly their number for each half square metre."""
    r = b.r
    for x0, z0, x1, z1, y, clearance in below.piece.supports:
        w, d = x1 - x0, z1 - z0
        if w < 0.08 or d < 0.06 or below.y + below.piece.size[1] > 2.05 and below.piece.role != "shelf":
            continue
        clearance = min(clearance, b.size[1] - below.y - y - 0.05)
        standing: list[tuple[float, float, float, float]] = []
        wanted = min(16, int(density * r.uniform(0.6, 2.2) * (3 * w * d + 1.1 * w + 0.5)))
        for _ in range(wanted):
            piece = _small(b, things)
            if piece is None or piece.size[1] > clearance:
                continue
            for _ in range(4):
                spot = _spot(r, piece, x0, z0, x1, z1, standing)
                if spot is None:
                    continue
                if _put(b, below, piece, y, *spot[:3]):
                    standing.append(spot[3])
                break


def _small(b: Builder, things: Clutter) -> Piece | None:
    name = b.r.choices(tuple(things), tuple(things.values()))[0]
    if name.startswith("*"):
        piece = _asset(b, (name[1:],), "top")
        return piece or (make.bottle(b.r, b.stock) if b.r.random() < 0.5 else None)
    return make.SMALL[name](b.r, b.stock)


def _spot(r: Random, piece: Piece, x0: float, z0: float, x1: float, z1: float, standing: list[tuple[float, float, float, float]]) -> tuple[float, float, float, tuple[float, float, float, float]] | None:
    """A free place in a rectangle: x, z, yaw and the footprint, or None."""
    yaw = r.gauss(0, 0.15) if r.random() < 0.8 else r.uniform(-0.8, 0.8)
    c, s = abs(math.cos(yaw)), abs(math.sin(yaw))
    w, d = piece.size[0] * c + piece.size[2] * s, piece.size[0] * s + piece.size[2] * c
    if w > x1 - x0 or d > z1 - z0:
        return None
    x, z = r.uniform(x0 + w / 2, x1 - w / 2), r.uniform(z0 + d / 2, z1 - d / 2)
    foot = (x - w / 2, z - d / 2, x + w / 2, z + d / 2)
    if any(foot[0] < b[2] and b[0] < foot[2] and foot[1] < b[3] and b[1] < foot[3] for b in standing):
        return None
    return x, z, yaw, foot


def _put(b: Builder, below: Placed, piece: Piece, y: float, x: float, z: float, yaw: float) -> bool:
    """Place a small piece on another, given where on it."""
    c, s = math.cos(below.yaw), math.sin(below.yaw)
    at = (below.x + x * c + z * s, below.y + y + 0.001, below.z - x * s + z * c)
    if not b.fits(turned_boxes(piece.occupied(), *at, below.yaw + yaw), below=below.number):
        return False
    b.add(piece, *at, below.yaw + yaw, below.number)
    return True
