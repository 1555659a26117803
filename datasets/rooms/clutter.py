"""Things on things: fills the tops, boards and seats of what stands in a room."""

from __future__ import annotations

import math
from random import Random

from . import things as things_
from .builder import Builder, Placed, turned_boxes
from .pieces import Piece, from_asset

Clutter = dict[str, float]


DESK: Clutter = {
    "monitor": 3,
    "laptop": 2,
    "paper": 4,
    "bottle": 2,
    "small_plant": 0.6,
    "table_lamp": 1,
    "tray": 0.7,
    "book_row": 0.7,
    "*computer": 2,
    "*books": 1,
    "*electronics": 1,
}


MEAL: Clutter = {
    "fruit": 4,
    "bottle": 3,
    "paper": 2,
    "tray": 2,
    "small_plant": 0.7,
    "laptop": 0.7,
    "bag": 0.3,
    "*tableware": 3,
    "*food": 2,
    "*bottle": 2,
}


COUNTER: Clutter = {
    "bottle": 4,
    "fruit": 1.2,
    "tray": 1,
    "small_plant": 0.3,
    "*appliance": 4,
    "*tableware": 3,
    "*bottle": 2,
    "*food": 1,
}


SHELF: Clutter = {
    "book_row": 6,
    "bottle": 1,
    "paper": 1,
    "small_plant": 1,
    "ball": 0.4,
    "tray": 1,
    "carton": 0.7,
    "*books": 2,
    "*decoration": 2,
    "*toy": 0.7,
    "*electronics": 0.7,
    "*box": 0.5,
}


TOP: Clutter = {
    "small_plant": 2,
    "book_row": 1,
    "paper": 2,
    "table_lamp": 1.5,
    "tray": 1.5,
    "carton": 1,
    "bottle": 1,
    "ball": 0.4,
    "bag": 0.5,
    "*decoration": 2,
    "*tv": 0.8,
    "*lamp": 1.5,
    "*plant": 1.5,
    "*books": 1,
    "*clock": 0.4,
}


SEAT: Clutter = {"cushion": 5, "bag": 1, "paper": 0.7, "laptop": 0.3}


BATH: Clutter = {"bottle": 5, "tray": 0.6, "small_plant": 0.6, "*bottle": 3}


def fill(b: Builder, below: Placed, things: Clutter, density: float) -> None:
    """Put things on a piece's supports; `density` is roughly their number for each half square metre."""
    r = b.r
    for x0, z0, x1, z1, y, clearance in below.piece.supports:
        w, d = x1 - x0, z1 - z0
        if w < 0.08 or d < 0.06 or (below.y + below.piece.size[1] > 2.05 and below.piece.role != "shelf"):
            continue
        clearance = min(clearance, b.size[1] - below.y - y - 0.05)
        standing: list[tuple[float, float, float, float]] = []
        wanted = min(20, int(density * r.uniform(0.8, 2.8) * (3 * w * d + 1.1 * w + 0.5)))
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
        piece = asset_piece(b, (name[1:],), "top")
        return piece or (things_.bottle(b.r, b.stock) if b.r.random() < 0.5 else None)
    return things_.SMALL[name](b.r, b.stock)


def _spot(
    r: Random,
    piece: Piece,
    x0: float,
    z0: float,
    x1: float,
    z1: float,
    standing: list[tuple[float, float, float, float]],
) -> tuple[float, float, float, tuple[float, float, float, float]] | None:
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


def asset_piece(b: Builder, roles: tuple[str, ...], *placements: str) -> Piece | None:
    indices = [index for role in roles for index in b.stock.indices(role, *placements)]
    if not indices:
        return None
    return from_asset(b.r, b.stock, b.r.choice(indices), b.r.uniform(0.87, 1.15))
