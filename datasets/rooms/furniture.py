"""Parametric furniture and household things, built of unit shapes, and pieces made from a pack's assets.

A piece stands at its own origin (x and z centred, base at y = 0, front toward +z), in metres.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from random import Random
from typing import NamedTuple

from . import materials
from .assets import Asset
from .materials import Stock, any_colour, board, fabric, grey, hsv, metal, picture, plain, wood
from .room import PLAIN, Material
from .shapes import BAG, BASKET, BOOKS, CUBE, CUSHION, CYLINDER, FRUITS, PLANTS, SPHERE, TAPER

Box = tuple[float, float, float, float, float, float]
Rectangle = tuple[float, float, float, float, float, float]
OPEN = 10.0


class Part(NamedTuple):
    """One mesh of a piece; `mesh` is a unit shape's name or an asset's number."""

    mesh: str | int
    at: tuple[float, float, float]
    size: tuple[float, float, float]
    material: Material
    yaw: float = 0.0
    tilt: float = 0.0
    """Turn about the part's own x axis, through its base's centre."""


class Piece(NamedTuple):
    """Parts that move together, what they keep occupied, and where things can stand on them."""

    role: str
    size: tuple[float, float, float]
    parts: tuple[Part, ...]
    boxes: tuple[Box, ...] = ()
    """Occupied (low xyz, high xyz); empty: the whole of `size`."""
    supports: tuple[Rectangle, ...] = ()
    """x0, z0, x1, z1, y, free height."""

    def occupied(self) -> tuple[Box, ...]:
        """`boxes`, or the whole piece."""
        w, h, d = self.size
        return self.boxes or ((-w / 2, 0.0, -d / 2, w / 2, h, d / 2),)


def block(at: tuple[float, float, float], size: tuple[float, float, float], material: Material) -> Part:
    """A box with its base's centre at `at`."""
    return Part(CUBE, at, size, material)


def from_asset(r: Random, stock: Stock, index: int, scale: float) -> Piece:
    """An asset, scaled and recoloured."""
    asset = stock.asset(index)
    stretch = (scale * r.uniform(0.95, 1.05), scale, scale * r.uniform(0.95, 1.05))
    size = (asset.size[0] * stretch[0], asset.size[1] * stretch[1], asset.size[2] * stretch[2])
    parts = (Part(index, (0.0, 0.0, 0.0), stretch, materials.recoloured(r, stock, asset)),)
    supports = tuple(
        (s.x0 * stretch[0], s.z0 * stretch[2], s.x1 * stretch[0], s.z1 * stretch[2], s.y * scale, s.clearance * scale)
        for s in asset.support
    )
    return Piece(asset.role, size, parts, _asset_boxes(asset, size), supports)


def _asset_boxes(asset: Asset, size: tuple[float, float, float]) -> tuple[Box, ...]:
    w, h, d = size
    if asset.role == "dining_table" and 0.6 < h < 1.2:
        slab = (-w / 2, 0.8 * h, -d / 2, w / 2, h, d / 2)
        return slab, (-0.3 * w, 0.0, -0.25 * d, 0.3 * w, 0.8 * h, 0.25 * d)
    if asset.role == "chair" and h > 0.7:
        return _chair_boxes(w, h, d, 0.5)
    return ()


def _chair_boxes(w: float, h: float, d: float, seat: float) -> tuple[Box, ...]:
    return (-w / 2, 0.0, -d / 2, w / 2, seat, d / 2), (-w / 2, seat, -d / 2, w / 2, h, -0.2 * d)


def table(r: Random, stock: Stock, w: float, d: float, h: float) -> Piece:
    """A table top on four legs, trestles, frames or a foot."""
    thick = r.uniform(0.02, 0.05)
    top, leg = board(r, stock) if r.random() < 0.4 else wood(r, stock), metal(r) if r.random() < 0.6 else wood(r, stock)
    round_top = abs(w - d) < 0.15 and r.random() < 0.8
    parts = [Part(CYLINDER if round_top else CUBE, (0.0, h - thick, 0.0), (w, thick, d), top)]
    style = "foot" if round_top else r.choice(("legs", "legs", "frames", "panels"))
    below = h - thick
    blocked: list[Box] = [(-w / 2, below - 0.08, -d / 2, w / 2, h, d / 2)]
    if style == "foot":
        parts += [Part(CYLINDER, (0, 0, 0), (0.08, below, 0.08), leg), Part(CYLINDER, (0, 0, 0), (0.55 * w, 0.03, 0.55 * d), leg)]
        blocked.append((-0.28 * w, 0.0, -0.28 * d, 0.28 * w, below, 0.28 * d))
    else:
        t = r.uniform(0.03, 0.09)
        x, z = w / 2 - t, d / 2 - t
        if style == "panels":
            parts += [block((s * x, 0, 0), (t / 2, below, d * 0.9), leg) for s in (-1, 1)]
        else:
            shape = r.choice((CUBE, CYLINDER, TAPER))
            parts += [Part(shape, (sx * x, 0, sz * z), (t, below, t), leg) for sx in (-1, 1) for sz in (-1, 1)]
        if style == "frames":
            parts += [block((s * x, 0, 0), (t, t, d - 2 * t), leg) for s in (-1, 1)]
        elif r.random() < 0.5:
            parts += [block((0, below - 0.07, s * z), (w - 2 * t, 0.07, 0.02), leg) for s in (-1, 1)]
        blocked += [(s * x - t / 2, 0.0, -d / 2, s * x + t / 2, below, d / 2) for s in (-1, 1)]
    edge = 0.15 if round_top else 0.02
    return Piece("table", (w, h, d), tuple(parts), tuple(blocked), ((-w / 2 + edge * w, -d / 2 + edge * d, w / 2 - edge * w, d / 2 - edge * d, h, OPEN),))


def chair(r: Random, stock: Stock, look: int) -> Piece:
    """A simple chair; the same `look` gives the same chair."""
    q = Random(look)
    seat, h = q.uniform(0.43, 0.48), q.uniform(0.78, 0.95)
    w, d = q.uniform(0.42, 0.52), q.uniform(0.46, 0.56)
    shell = plain(q, grey(q.uniform(0.03, 0.12))) if q.random() < 0.45 else fabric(q, stock) if q.random() < 0.4 else board(q, stock)
    leg = metal(q)
    t = q.uniform(0.018, 0.035)
    soft = CUSHION if q.random() < 0.4 else CUBE
    parts = [
        Part(soft, (0, seat - 0.05, 0), (w, 0.06, d), shell),
        Part(soft, (0, seat + q.uniform(0.05, 0.2), -d / 2 + 0.02), (w, h - seat - 0.2, 0.035), shell, tilt=-q.uniform(0.05, 0.2)),
    ]
    x, z, below = w / 2 - t, d / 2 - t, seat - 0.04
    style = q.choice(("legs", "cantilever", "foot", "legs"))
    if style == "legs":
        parts += [Part(CYLINDER, (sx * x, 0, sz * z), (t, below, t), leg) for sx in (-1, 1) for sz in (-1, 1)]
    elif style == "cantilever":
        parts += [Part(CYLINDER, (s * x, 0, z), (t, below, t), leg) for s in (-1, 1)]
        parts += [block((s * x, 0, 0), (t, t, d), leg) for s in (-1, 1)] + [block((0, 0, -z), (w, t, t), leg)]
    else:
        parts += [Part(CYLINDER, (0, 0.05, 0), (0.05, below - 0.05, 0.05), leg)]
        parts += [Part(CUBE, (0, 0.04, 0), (w * 1.1, 0.03, 0.05), leg, yaw=k * math.pi / 5 * 2) for k in range(3)]
    parts += [Part(CYLINDER, (s * x, seat, -d / 2 + 0.03), (t, h - seat - 0.1, t), leg, tilt=-0.1) for s in (-1, 1)]
    boxes = _chair_boxes(w, h, d + 0.06, seat + 0.02)
    return Piece("chair", (w, h, d + 0.06), tuple(parts), boxes, ((-w / 3, -d / 4, w / 3, d / 3, seat + 0.01, 0.4),))


def cabinet(r: Random, stock: Stock, w: float, h: float, d: float, look: int | None = None) -> Piece:
    """A closed cupboard: doors or drawers with gaps and handles, or a tambour front."""
    q = r if look is None else Random(look)
    body, front = board(q, stock), board(q, stock)
    if q.random() < 0.6:
        front = body
    plinth = q.choice((0.0, 0.05, 0.1))
    top = wood(q, stock) if q.random() < 0.4 else body
    parts = [
        block((0, plinth, -0.01), (w - 0.02, h - plinth - 0.025, d - 0.02), body),
        block((0, h - 0.025, 0), (w, 0.025, d), top),
    ]
    if plinth:
        parts.append(block((0, 0, -0.03), (w - 0.06, plinth, d - 0.08), plain(q, grey(0.1))))
    style = q.choice(("doors", "doors", "drawers", "tambour"))
    z, inner = d / 2 - 0.02, h - plinth - 0.035
    if style == "tambour":
        parts.append(block((0, plinth + 0.005, z), (w - 0.04, inner, 0.016), front._replace(rib=q.uniform(0.015, 0.05))))
    else:
        columns = max(1, round(w / q.uniform(0.4, 0.65))) if style == "doors" else max(1, round(w / 0.9))
        rows = max(1, round(inner / 0.85)) if style == "doors" else max(2, round(inner / q.uniform(0.18, 0.3)))
        handle, bar = metal(q), q.random() < 0.6
        cw, ch = (w - 0.02) / columns, inner / rows
        for i in range(columns):
            for j in range(rows):
                x, y = -w / 2 + 0.01 + (i + 0.5) * cw, plinth + 0.005 + j * ch
                parts.append(block((x, y + 0.003, z), (cw - 0.008, ch - 0.008, 0.02), front))
                hx, hy = (x + (cw / 2 - 0.05) * (1 if i % 2 else -1), y + ch * 0.6) if style == "doors" else (x, y + ch * 0.7)
                shape = (0.012, 0.12, 0.02) if style == "doors" else (0.14, 0.012, 0.02)
                parts.append(block((hx, hy, z + 0.02), shape if bar else (0.025, 0.025, 0.025), handle))
    return Piece("cabinet", (w, h, d + 0.04), tuple(parts), (), ((-w / 2 + 0.02, -d / 2 + 0.02, w / 2 - 0.02, d / 2 - 0.02, h, OPEN),))


def shelf(r: Random, stock: Stock, w: float, h: float, d: float) -> Piece:
    """Open shelves, as a bookcase on the floor or, low and short, for the wall."""
    material = board(r, stock)
    t = r.uniform(0.016, 0.03)
    count = max(1, round(h / r.uniform(0.28, 0.4)))
    gap = (h - t) / count
    parts = [block((s * (w - t) / 2, 0, 0), (t, h, d), material) for s in (-1, 1)]
    parts += [block((0, i * gap, 0), (w - 2 * t, t, d), material) for i in range(count + 1)]
    if r.random() < 0.6:
        parts.append(block((0, 0, -d / 2 + 0.004), (w, h, 0.008), material))
    inside = tuple((-w / 2 + t, -d / 2 + 0.01, w / 2 - t, d / 2 - 0.01, i * gap + t, gap - t - 0.01) for i in range(count))
    return Piece("shelf", (w, h, d), tuple(parts), (), (*inside, (-w / 2, -d / 2, w / 2, d / 2, h, OPEN)))


def kitchen_row(r: Random, stock: Stock, w: float, look: int) -> Piece:
    """Lower units with one worktop, a sink and a hob."""
    base = cabinet(r, stock, w, 0.88, 0.58, look)
    top = wood(r, stock) if r.random() < 0.5 else plain(r, grey(r.choice((0.1, 0.3, 0.8, 0.92))), r.uniform(0.2, 0.8))
    parts = [*base.parts, block((0, 0.88, 0.01), (w, 0.04, 0.62), top)]
    sink = r.uniform(-w / 2 + 0.4, w / 2 - 0.4)
    steel = Material(grey(0.7), PLAIN, gloss=0.8)
    parts += [block((sink, 0.915, 0), (0.5, 0.008, 0.4), steel), block((sink, 0.917, 0), (0.4, 0.008, 0.3), plain(r, grey(0.2)))]
    parts += [Part(CYLINDER, (sink, 0.92, -0.22), (0.03, 0.25, 0.03), steel), block((sink, 1.15, -0.14), (0.025, 0.02, 0.18), steel)]
    left, right = -w / 2 + 0.03, w / 2 - 0.03
    supports = [(left, -0.26, sink - 0.3, 0.28, 0.92, 0.5), (sink + 0.3, -0.26, right, 0.28, 0.92, 0.5)]
    hob = sink + (1 if sink < 0 else -1) * 0.8
    if abs(hob) < w / 2 - 0.35:
        parts.append(block((hob, 0.918, 0), (0.56, 0.006, 0.5), Material(grey(0.04), PLAIN, gloss=0.8)))
    return Piece("kitchen_row", (w, 0.92, 0.64), tuple(parts), (), tuple(s for s in supports if s[2] - s[0] > 0.15))


def radiator(r: Random, w: float) -> Piece:
    """A ribbed panel under a window."""
    h, d = r.uniform(0.4, 0.75), 0.1
    paint = plain(r, grey(r.uniform(0.75, 0.95)), 0.3)
    parts = [block((0, 0.12, 0), (w, h, d * 0.7), paint._replace(rib=r.uniform(0.03, 0.06))), block((0, 0.12 + h, 0), (w, 0.01, d), paint)]
    return Piece("radiator", (w, h + 0.13, d), tuple(parts))


def carton(r: Random, stock: Stock) -> Piece:
    """A cardboard box, a crate or a storage box, sometimes two in a stack."""
    parts, y = [], 0.0
    w, d = r.uniform(0.25, 0.6), r.uniform(0.2, 0.45)
    for _ in range(r.choice((1, 1, 1, 2))):
        h = r.uniform(0.15, 0.4)
        colour = hsv(r.uniform(0.06, 0.1), r.uniform(0.35, 0.55), r.uniform(0.5, 0.8)) if r.random() < 0.65 else any_colour(r)
        parts.append(block((0, y, 0), (w, h, d), Material(colour, PLAIN, gloss=0.05, speckle=0.06, grain=0.02)))
        if r.random() < 0.6:
            parts.append(block((0, y + h, 0), (w, 0.002, 0.05), plain(r, grey(r.uniform(0.5, 0.9)))))
        if r.random() < 0.4:
            parts.append(Part(CUBE, (r.uniform(-0.2, 0.2) * w, y + 0.25 * h, d / 2), (0.35 * w, 0.4 * h, 0.003), picture(r, stock)[0]))
        y += h
    return Piece("box", (w, y + 0.004, d + 0.006), tuple(parts), (), ((-w / 2, -d / 2, w / 2, d / 2, y + 0.002, OPEN),))


def potted_plant(r: Random, h: float) -> Piece:
    """Leaves over a pot."""
    pot = min(0.5, r.uniform(0.16, 0.35) * h + 0.04)
    spread = h * r.uniform(0.4, 0.75)
    wide = min(spread, pot * r.uniform(0.8, 1.2))
    leaf = Material(materials.tinted(r, 0.9, 0.25), gloss=r.uniform(0, 0.5))
    pot_material = plain(r, any_colour(r) if r.random() < 0.5 else grey(r.choice((0.06, 0.2, 0.9))))
    soil = plain(r, hsv(0.07, 0.5, 0.15), 0.0)
    parts = (
        Part(r.choice((TAPER, CYLINDER, TAPER)), (0, 0, 0), (wide, pot, wide), pot_material),
        Part(CYLINDER, (0, pot, 0), (wide * 0.85, 0.003, wide * 0.85), soil),
        Part(r.choice(PLANTS), (0, pot * 0.9, 0), (spread, h - pot * 0.9, spread), leaf, yaw=r.uniform(0, 6.28)),
    )
    return Piece("plant", (spread, h, spread), parts)


def bin_(r: Random) -> Piece:
    """A waste-paper bin or a tall one."""
    h, w = r.uniform(0.28, 0.65), r.uniform(0.2, 0.32)
    parts = (Part(r.choice((TAPER, BASKET, CUBE, CYLINDER)), (0, 0, 0), (w, h, w), plain(r, any_colour(r))),)
    return Piece("bin", (w, h, w), parts)


def bag(r: Random, stock: Stock) -> Piece:
    """A bag or a bundle."""
    w, h, d = r.uniform(0.2, 0.45), r.uniform(0.15, 0.45), r.uniform(0.15, 0.35)
    material = fabric(r, stock) if r.random() < 0.7 else Material(grey(r.uniform(0.8, 0.95)), PLAIN, gloss=0.5)
    return Piece("bag", (w, h, d), (Part(r.choice((BAG, CUSHION)), (0, 0, 0), (w, h, d), material),))


def floor_lamp(r: Random) -> Piece:
    """A shade on a pole."""
    h, shade = r.uniform(1.3, 1.8), r.uniform(0.25, 0.45)
    pole = metal(r)
    glow = Material(hsv(0.1, 0.2, 0.95), PLAIN, emission=r.choice((0.0, 0.3, 2.0, 4.0)))
    parts = (
        Part(CYLINDER, (0, 0, 0), (0.28, 0.025, 0.28), pole), Part(CYLINDER, (0, 0, 0), (0.025, h - 0.1, 0.025), pole),
        Part(CYLINDER, (0, h - 0.3, 0), (shade, 0.3, shade), glow),
    )
    return Piece("lamp", (shade, h, shade), parts, ((-0.14, 0, -0.14, 0.14, h - 0.3, 0.14), (-shade / 2, h - 0.3, -shade / 2, shade / 2, h, shade / 2)))


def simple_sofa(r: Random, stock: Stock) -> Piece:
    """Cushions in a frame, for one to three."""
    seats = r.choice((1, 2, 2, 3))
    cloth = fabric(r, stock)
    arm, d = r.uniform(0.1, 0.22), r.uniform(0.8, 0.95)
    w, seat, back = seats * r.uniform(0.55, 0.75) + 2 * arm, r.uniform(0.36, 0.44), r.uniform(0.68, 0.9)
    side = r.uniform(0.5, 0.65)
    parts = [
        Part(CUSHION, (0, 0.04, 0), (w, seat - 0.1, d), cloth),
        Part(CUSHION, (0, 0.04, -d / 2 + 0.11), (w, back - 0.04, 0.22), cloth),
        *(Part(CUSHION, (s * (w - arm) / 2, 0.04, 0), (arm, side, d), cloth) for s in (-1, 1)),
    ]
    each = (w - 2 * arm) / seats
    parts += [Part(CUSHION, (-w / 2 + arm + (i + 0.5) * each, seat - 0.14, 0.1), (each, 0.16, d - 0.22), cloth) for i in range(seats)]
    return Piece("sofa", (w, back, d), tuple(parts), (), ((-w / 2 + arm, -d / 4 + 0.05, w / 2 - arm, d / 2 - 0.08, seat + 0.01, OPEN),))


def simple_bed(r: Random, stock: Stock) -> Piece:
    """A mattress with a cover and pillows."""
    w, d = r.choice((0.9, 1.2, 1.4, 1.6, 1.8)) * r.uniform(0.97, 1.05), r.uniform(1.95, 2.15)
    h, frame = r.uniform(0.4, 0.6), board(r, stock)
    parts = [
        block((0, 0.06, 0), (w + 0.06, 0.22, d), frame), block((0, 0, -d / 2 + 0.03), (w + 0.06, r.uniform(0.6, 1.1), 0.05), frame),
        Part(CUSHION, (0, 0.22, 0.02), (w, h - 0.22, d - 0.08), plain(r, grey(0.9), 0.0)),
        Part(CUSHION, (0, 0.24, 0.22), (w + 0.05, h - 0.2, d * 0.72), fabric(r, stock)),
    ]
    count = 1 if w < 1.3 else 2
    parts += [Part(CUSHION, ((i - (count - 1) / 2) * w / 2, h - 0.03, -d / 2 + 0.33), (min(0.7, w / count - 0.06), 0.15, 0.42), fabric(r, stock), tilt=-0.2) for i in range(count)]
    return Piece("bed", (w + 0.06, h + 0.05, d), tuple(parts), (), ((-w / 2, 0.0, w / 2, d / 2 - 0.1, h + 0.05, OPEN),))


# ------------------------------------------------------------------ things that stand on other things


def fruit_bowl(r: Random, stock: Stock) -> Piece:
    """A basket, bowl or tray full of fruit."""
    w, h = r.uniform(0.2, 0.38), r.uniform(0.07, 0.13)
    shell = wood(r, stock)._replace(rib=-0.02) if r.random() < 0.5 else plain(r, any_colour(r))
    parts = [Part(BASKET, (0, 0, 0), (w, h, w * r.uniform(0.7, 1.0)), shell)]
    parts.append(Part(r.choice(FRUITS), (0, 0.3 * h, 0), (w * 0.84, h * 0.7 + 0.05, w * 0.68), Material(materials.tinted(r), gloss=0.4), yaw=r.uniform(0, 6)))
    return Piece("food", (w, h + 0.07, w), tuple(parts))


def bottle(r: Random, stock: Stock) -> Piece:
    """A bottle, jar, mug or can."""
    w, h = r.uniform(0.06, 0.1), r.uniform(0.08, 0.3)
    body = plain(r, any_colour(r), r.uniform(0.1, 0.9))
    parts = [Part(r.choice((CYLINDER, CYLINDER, TAPER, BASKET)), (0, 0, 0), (w, h, w), body)]
    if h > 0.16:
        parts.append(Part(CYLINDER, (0, h, 0), (w * r.uniform(0.3, 0.9), 0.04, w * 0.4), plain(r, any_colour(r))))
    return Piece("bottle", (w, h + 0.04, w), tuple(parts))


def paper(r: Random, stock: Stock) -> Piece:
    """Sheets, a magazine or a pile of books."""
    parts, y = [], 0.0
    for _ in range(r.choice((1, 1, 2, 4))):
        w, d, h = r.uniform(0.15, 0.3), r.uniform(0.2, 0.3), r.choice((0.003, 0.01, 0.03, 0.04))
        material = picture(r, stock)[0] if r.random() < 0.35 else plain(r, grey(0.93) if h < 0.01 else any_colour(r))
        parts.append(Part(CUBE, (0, y, 0), (w, h, d), material, yaw=r.uniform(-0.3, 0.3)))
        y += h
    return Piece("paper", (0.34, y, 0.34), tuple(parts))


def book_row(r: Random, stock: Stock) -> Piece:
    """Books or files standing side by side."""
    w, h, d = r.uniform(0.15, 0.6), r.uniform(0.2, 0.31), r.uniform(0.15, 0.24)
    return Piece("books", (w, h, d), (Part(r.choice(BOOKS), (0, 0, 0), (w, h, d), Material(materials.tinted(r, 0.95, 0.2))),))


def laptop(r: Random, stock: Stock) -> Piece:
    """An open laptop."""
    w, d, tilt = r.uniform(0.28, 0.38), r.uniform(0.2, 0.26), -r.uniform(0.1, 0.5)
    case = plain(r, grey(r.choice((0.08, 0.6, 0.75))), 0.4)
    screen = Material(picture(r, stock)[0].tint, picture(r, stock)[0].layer, gloss=0.8, emission=r.choice((0.0, 0.6)))
    keys = plain(r, grey(0.1))._replace(rib=-0.018)
    y, z = 0.015 + 0.012 * math.cos(tilt), -d / 2 + 0.006
    parts = (
        block((0, 0, 0), (w, 0.018, d), case), block((0, 0.018, -0.03), (w * 0.86, 0.001, d * 0.45), keys),
        Part(CUBE, (0, y, z), (w, d, 0.01), case, tilt=tilt), Part(CUBE, (0, y + 0.01, z + 0.006), (w * 0.93, d * 0.9, 0.003), screen, tilt=tilt),
    )
    return Piece("computer", (w, d, d + 0.12), parts, (), ())


def monitor(r: Random, stock: Stock) -> Piece:
    """A screen on a foot, with a keyboard before it."""
    w = r.uniform(0.45, 0.75)
    h, lift = w * r.uniform(0.5, 0.65), r.uniform(0.08, 0.16)
    case = plain(r, grey(r.choice((0.04, 0.06, 0.1, 0.8))), 0.4)
    glow = r.random() < 0.4
    screen = picture(r, stock)[0]._replace(emission=0.8, gloss=0.6) if glow else plain(r, grey(0.03), 0.9)
    parts = [
        block((0, 0, -0.1), (0.24, 0.015, 0.18), case), block((0, 0.01, -0.12), (0.05, lift + 0.1, 0.03), case),
        block((0, lift, -0.09), (w, h, 0.04), case), block((0, lift + 0.012, -0.069), (w - 0.03, h - 0.03, 0.002), screen),
    ]
    if r.random() < 0.7:
        keys = plain(r, grey(r.choice((0.08, 0.15, 0.85))), 0.2)
        parts += [Part(CUBE, (0, 0, 0.16), (0.42, 0.02, 0.14), keys._replace(rib=0.019)), Part(CUSHION, (0.29, 0, 0.16), (0.06, 0.03, 0.1), keys)]
    return Piece("monitor", (max(w, 0.66), lift + h, 0.46), tuple(parts))


def table_lamp(r: Random, stock: Stock) -> Piece:
    """A small lamp with a shade."""
    h, w = r.uniform(0.3, 0.55), r.uniform(0.15, 0.32)
    glow = Material(hsv(0.1, r.uniform(0, 0.4), 0.9), PLAIN, emission=r.choice((0.0, 0.0, 3.0)))
    foot = metal(r) if r.random() < 0.5 else plain(r, any_colour(r))
    parts = (Part(CYLINDER, (0, 0, 0), (w * 0.6, 0.02, w * 0.6), foot), Part(CYLINDER, (0, 0, 0), (0.03, h - 0.1, 0.03), foot), Part(r.choice((CYLINDER, BASKET)), (0, h - 0.18, 0), (w, 0.18, w), glow))
    return Piece("lamp", (w, h, w), parts)


def tray(r: Random, stock: Stock) -> Piece:
    """A crate, box or tray, sometimes with a bag in it."""
    w, h, d = r.uniform(0.2, 0.45), r.uniform(0.05, 0.18), r.uniform(0.15, 0.32)
    parts = [block((0, 0, 0), (w, h, d), plain(r, any_colour(r)))]
    if r.random() < 0.5:
        parts.append(Part(r.choice((BAG, CUSHION)), (0, h * 0.5, 0), (w * 0.95, h * 0.6 + 0.08, d * 0.95), Material(grey(r.uniform(0.3, 0.95)), PLAIN, gloss=0.5)))
    return Piece("tray", (w, h * 1.1 + 0.08, d), tuple(parts))


def ball(r: Random, stock: Stock) -> Piece:
    """A ball, an apple, a globe."""
    w = r.choice((0.07, 0.08, 0.12, 0.22)) * r.uniform(0.9, 1.1)
    return Piece("toy", (w, w, w), (Part(SPHERE, (0, 0, 0), (w, w, w), plain(r, any_colour(r))),))


def small_plant(r: Random, stock: Stock) -> Piece:
    """A pot plant for a table or shelf."""
    return potted_plant(r, r.uniform(0.15, 0.5))


def cushion(r: Random, stock: Stock) -> Piece:
    """A pillow lying flat."""
    w, d = r.uniform(0.3, 0.5), r.uniform(0.3, 0.5)
    return Piece("cushion", (w, 0.14, d), (Part(CUSHION, (0, 0, 0), (w, 0.13, d), fabric(r, stock)),))


SMALL: dict[str, Callable[[Random, Stock], Piece]] = {
    "fruit": fruit_bowl, "bottle": bottle, "paper": paper, "book_row": book_row, "laptop": laptop, "monitor": monitor,
    "table_lamp": table_lamp, "tray": tray, "ball": ball, "small_plant": small_plant, "cushion": cushion,
    "bag": bag, "carton": carton,
}
