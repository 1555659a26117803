"""Groups of furniture as people arrange it: a table with chairs, a desk, a sofa, cupboards, pictures."""

from __future__ import annotations

import math
from collections.abc import Callable
from random import Random

from . import furniture as make
from . import materials
from . import things as things_
from .builder import Builder, Placed, Wall
from .clutter import COUNTER, DESK, MEAL, SEAT, SHELF, TOP, Clutter, asset_piece, fill
from .materials import any_colour, picture, plain
from .pieces import Part, Piece, from_asset
from .room import PLAIN, Material
from .shapes import CUBE


def asset_or(b: Builder, roles: tuple[str, ...], other: Callable[[], Piece], share: float) -> Piece:
    """A piece of the pack with one of the roles, or a parametric one; `share` of the former."""
    if b.r.random() < share:
        piece = asset_piece(b, roles, "floor", "against_wall")
        if piece:
            return piece
    return other()


def wall_piece(b: Builder, piece: Piece, tries: int = 8) -> Placed | None:
    lift = min(piece.elevation, b.size[1] - piece.size[1] - 0.05)
    return b.along_wall(piece, tries=tries, lift=lift if lift > 0.05 else 0.0)


def stand(b: Builder, roles: tuple[str, ...], count: int, things: Clutter) -> None:
    """Assets with their backs to a wall, with things on them."""
    for _ in range(count):
        piece = asset_piece(b, roles, "against_wall", "floor")
        placed = piece and wall_piece(b, piece)
        if placed:
            fill(b, placed, things, 0.8)


def rug(b: Builder, chance: float) -> None:
    r = b.r
    if r.random() > chance:
        return
    x0, z0, x1, z1 = b.areas[0]
    w, d = r.uniform(0.3, 0.8) * (x1 - x0), r.uniform(0.3, 0.8) * (z1 - z0)
    material = materials.fabric(r, b.stock) if r.random() < 0.5 else materials.carpet(r)
    piece = asset_piece(b, ("rug",), "rug") if r.random() < 0.5 else None
    if piece:
        w, d = piece.size[0], piece.size[2]
    if w > x1 - x0 or d > z1 - z0:
        return
    x, z = r.uniform(x0 + w / 2, x1 - w / 2), r.uniform(z0 + d / 2, z1 - d / 2)
    parts = piece.parts if piece else (Part(CUBE, (0, 0, 0), (w, 0.012, d), material),)
    b.add_parts(parts, x, 0.0, z, 0.0, b.new_object())


def dining_group(b: Builder, length: float = 1.4, things: Clutter = MEAL) -> None:
    """A table, chairs around it in various states of disorder, things on it."""
    r = b.r
    tall = r.random() < 0.08
    w, d, h = length, r.uniform(0.65, 1.0), r.uniform(0.95, 1.08) if tall else r.uniform(0.7, 0.78)
    if length < 1.2 and r.random() < 0.5:
        d = w
    table = asset_or(b, ("dining_table",), lambda: make.table(r, b.stock, w, d, h), 0.25)
    placed = b.on_floor(table, aligned=True, tries=14, margin=0.25)
    if not placed:
        return
    fill(b, placed, things, r.uniform(0.6, 1.8))
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


def _chair_at(
    b: Builder, table: Placed, side: int, u: float, across: float, look: int, index: int | None
) -> None:
    """A chair at `u` along a side of a table, pushed in, pulled out or turned away."""
    r = b.r
    chair = make.chair(r, b.stock, look) if index is None else from_asset(r, b.stock, index, 1.0)
    turn = table.yaw + side * math.pi / 2
    yaw = turn + math.pi + (r.gauss(0, 0.06) if r.random() < 0.75 else r.uniform(-1.2, 1.2))
    placed = None
    for push in (r.choice((-0.26, -0.18, 0.02)), 0.04, 0.3):  # as far in as it goes
        out = across / 2 + push + chair.size[2] / 2 + r.uniform(-0.03, 0.03)
        x, z = (
            table.x + u * math.cos(turn) + out * math.sin(turn),
            table.z - u * math.sin(turn) + out * math.cos(turn),
        )
        placed = placed or b.try_add(chair, x, 0.0, z, yaw)
    if placed and r.random() < 0.12:
        fill(b, placed, {"bag": 1, "cushion": 1, "paper": 0.5}, 5.0)


def workplace(b: Builder, look: int | None = None) -> None:
    """A desk with a screen and a chair."""
    r = b.r
    q = Random(look) if look is not None else r
    w, d, h = q.uniform(1.0, 1.8), q.uniform(0.6, 0.85), q.uniform(0.7, 0.78)
    piece = asset_or(b, ("desk",), lambda: make.table(q, b.stock, w, d, h), 0.25)
    desk = (
        b.along_wall(piece, tries=6)
        if r.random() < 0.65
        else b.on_floor(piece, aligned=True, tries=8, margin=0.1)
    )
    if not desk:
        return
    fill(b, desk, DESK, r.uniform(0.8, 2.0))
    chair = asset_or(b, ("chair",), lambda: make.chair(r, b.stock, look or r.randrange(10**9)), 0.5)
    out = desk.piece.size[2] / 2 + chair.size[2] / 2 + r.choice((-0.15, 0.05, 0.3))
    x, z = desk.x + out * math.sin(desk.yaw), desk.z + out * math.cos(desk.yaw)
    b.try_add(chair, x, 0.0, z, desk.yaw + math.pi + r.gauss(0, 0.5))


def seating_group(b: Builder) -> None:
    """A sofa or armchairs with a low table."""
    r = b.r
    piece = asset_or(b, ("sofa", "sofa", "armchair"), lambda: make.simple_sofa(r, b.stock), 0.6)
    sofa = b.along_wall(piece, tries=6) if r.random() < 0.7 else b.on_floor(piece, aligned=True, margin=0.1)
    if not sofa:
        return
    fill(b, sofa, SEAT, 0.9)
    table = asset_or(
        b,
        ("coffee_table",),
        lambda: make.table(r, b.stock, r.uniform(0.6, 1.2), r.uniform(0.5, 0.7), r.uniform(0.35, 0.5)),
        0.5,
    )
    out = sofa.piece.size[2] / 2 + table.size[2] / 2 + r.uniform(0.25, 0.5)
    placed = b.try_add(
        table, sofa.x + out * math.sin(sofa.yaw), 0.0, sofa.z + out * math.cos(sofa.yaw), sofa.yaw
    )
    if placed:
        fill(b, placed, MEAL, 1.2)
    for _ in range(r.randint(0, 2)):
        seat = asset_or(b, ("armchair", "stool", "chair"), lambda: make.simple_sofa(r, b.stock), 0.8)
        b.on_floor(seat, tries=5, margin=0.05)


def cupboards(b: Builder, count: int, things: Clutter | None = None) -> None:
    """Cupboards, dressers and shelves along the walls."""
    r = b.r
    for _ in range(count):
        kind = r.random()
        piece: Piece | None
        if kind < 0.4:
            piece = make.cabinet(
                r,
                b.stock,
                r.uniform(0.5, 2.0),
                r.choice((0.75, 0.9, 1.1, 1.2, 2.0)) * r.uniform(0.9, 1.1),
                r.uniform(0.35, 0.55),
            )
        elif kind < 0.65:
            piece = make.shelf(
                r,
                b.stock,
                r.uniform(0.5, 1.8),
                r.choice((0.8, 1.2, 1.8, 2.1)) * r.uniform(0.9, 1.08),
                r.uniform(0.24, 0.4),
            )
        else:
            piece = asset_piece(
                b, ("shelf", "dresser", "wardrobe", "dresser", "nightstand", "desk"), "against_wall"
            )
        placed = piece and wall_piece(b, piece)
        if placed:
            fill(
                b,
                placed,
                things or (SHELF if placed.piece.role == "shelf" else TOP),
                1.6 if placed.piece.role == "shelf" else 0.8,
            )


def wall_units(b: Builder, row: Placed, look: int) -> None:
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
        fill(b, placed, COUNTER, 1.5)


def floor_things(b: Builder, count: int) -> None:
    """Plants, lamps and single pieces of the pack that stand anywhere."""
    r = b.r
    for _ in range(count):
        kind = r.random()
        piece: Piece | None
        if kind < 0.45:
            piece = things_.potted_plant(r, r.uniform(0.6, 2.0))
        elif kind < 0.54:
            piece = make.floor_lamp(r)
        else:
            piece = asset_piece(
                b,
                ("plant", "lamp", "stool", "armchair", "chair", "bin", "music", "game_table", "other", "toy"),
                "floor",
            )
        if piece and (r.random() < 0.35 or not b.along_wall(piece, gap=0.03, tries=5)):
            b.on_floor(piece, tries=5)


def clutter_floor(b: Builder) -> None:
    """Boxes, bags, bins and cables on the floor, rather along the walls."""
    r = b.r
    x0, z0, x1, z1 = b.areas[0]
    for _ in range(int(r.uniform(0.15, 0.75) * (x1 - x0) * (z1 - z0))):
        kind = r.random()
        piece: Piece | None
        if kind < 0.4:
            piece = things_.carton(r, b.stock)
        elif kind < 0.55:
            piece = things_.bag(r, b.stock)
        elif kind < 0.7:
            piece = things_.bin_(r)
        elif kind < 0.8:
            piece = things_.potted_plant(r, r.uniform(0.3, 1.2))
        else:
            piece = asset_piece(b, ("box", "bin", "toy", "plant", "decoration", "music"), "floor", "top")
        if piece and (r.random() < 0.3 or not b.along_wall(piece, gap=r.uniform(0.01, 0.1), tries=3)):
            b.on_floor(piece, tries=3)


def decorate_walls(b: Builder) -> None:
    """Pictures, posters, notices, shelves, whiteboards, sockets, and whatever the pack has for walls."""
    r = b.r
    for wall in b.walls:
        for _ in range(int(r.uniform(0.4, 2.0) * wall.length)):
            kind = r.random()
            if kind < 0.5:
                _hang_picture(b, wall)
            elif kind < 0.6:
                _hang(
                    b,
                    wall,
                    make.shelf(
                        r, b.stock, r.uniform(0.4, 1.2), r.choice((0.2, 0.35, 0.7)), r.uniform(0.15, 0.28)
                    ),
                    r.uniform(1.1, 1.7),
                    SHELF,
                )
            elif kind < 0.75:
                _hang_socket(b, wall)
            else:
                piece = asset_piece(
                    b,
                    ("clock", "mirror", "lamp", "tv", "curtain", "switch", "towel", "picture", "other"),
                    "wall",
                )
                if piece and piece.size[1] < b.size[1] - 0.3:
                    lift = (
                        piece.elevation * r.uniform(0.9, 1.1)
                        if piece.elevation > 0.15
                        else r.uniform(1.0, 1.7)
                    )
                    _hang(b, wall, piece, max(0.0, min(lift, b.size[1] - piece.size[1] - 0.1)), None)


def _hang(b: Builder, wall: Wall, piece: Piece, lift: float, things: Clutter | None) -> None:
    placed = b.along_wall(piece, wall=wall, lift=lift, tries=3, gap=0.002)
    if placed and things:
        fill(b, placed, things, 1.5)


def _hang_picture(b: Builder, wall: Wall) -> None:
    r = b.r
    image, ratio = picture(r, b.stock)
    w = r.choice((0.21, 0.3, 0.42, 0.6, 0.6, 0.9, 1.2))
    h = w * ratio * r.uniform(0.9, 1.1)
    if r.random() < 0.12:  # a whiteboard or pin board
        w, h, image = (
            r.uniform(0.8, 2.0),
            r.uniform(0.6, 1.2),
            plain(r, any_colour(r) if r.random() < 0.4 else (0.8, 0.8, 0.8), 0.6),
        )
    if h > 1.5:
        w, h = w * 1.5 / h, 1.5
    parts = [Part(CUBE, (0, 0, 0), (w, h, 0.006), image)]
    if r.random() < 0.55:
        t, frame = (
            r.uniform(0.01, 0.05),
            plain(r, any_colour(r)) if r.random() < 0.6 else materials.wood(r, b.stock),
        )
        parts = [
            Part(CUBE, (0, 0, 0), (w, h, 0.02), frame),
            Part(CUBE, (0, t, 0.009), (w - 2 * t, h - 2 * t, 0.006), image),
        ]
    _hang(b, wall, Piece("picture", (w, h, 0.03), tuple(parts)), max(0.3, r.gauss(1.55, 0.15) - h / 2), None)


def _hang_socket(b: Builder, wall: Wall) -> None:
    r = b.r
    w = r.choice((0.08, 0.08, 0.16, 0.3))
    material = Material(materials.grey(r.uniform(0.75, 0.95)), PLAIN, gloss=0.4)
    piece = Piece(
        "switch",
        (w, 0.1, 0.02),
        (
            Part(CUBE, (0, 0, 0), (w, 0.08, 0.015), material),
            Part(CUBE, (0, 0.015, 0.006), (w * 0.6, 0.05, 0.008), material),
        ),
    )
    _hang(b, wall, piece, r.choice((0.25, 0.3, 1.05, 1.1, 1.4)), None)
