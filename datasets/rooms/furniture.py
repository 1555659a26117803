"""Parametric furniture, built of unit shapes."""

from __future__ import annotations

import math
from random import Random

from .materials import Stock, board, fabric, grey, hsv, metal, plain, wood
from .pieces import OPEN, Box, Part, Piece, block, chair_boxes
from .room import PLAIN, Material
from .shapes import CUBE, CUSHION, CYLINDER, TAPER


def table(r: Random, stock: Stock, w: float, d: float, h: float) -> Piece:
    """A table top on four legs, trestles, frames or a foot."""
    thick = r.uniform(0.02, 0.05)
    top, leg = (
        board(r, stock) if r.random() < 0.4 else wood(r, stock),
        metal(r) if r.random() < 0.6 else wood(r, stock),
    )
    round_top = abs(w - d) < 0.15 and r.random() < 0.8
    parts = [Part(CYLINDER if round_top else CUBE, (0.0, h - thick, 0.0), (w, thick, d), top)]
    style = "foot" if round_top else r.choice(("legs", "legs", "frames", "panels"))
    below = h - thick
    blocked: list[Box] = [(-w / 2, below - 0.08, -d / 2, w / 2, h, d / 2)]
    if style == "foot":
        parts += [
            Part(CYLINDER, (0, 0, 0), (0.08, below, 0.08), leg),
            Part(CYLINDER, (0, 0, 0), (0.55 * w, 0.03, 0.55 * d), leg),
        ]
        blocked.append((-0.28 * w, 0.0, -0.28 * d, 0.28 * w, below, 0.28 * d))
    else:
        t = r.uniform(0.03, 0.09)
        x, z = w / 2 - t, d / 2 - t
        if style == "panels":
            parts += [block((s * x, 0, 0), (t / 2, below, d * 0.9), leg) for s in (-1, 1)]
        else:
            shape = r.choice((CUBE, CYLINDER, TAPER))
            parts += [
                Part(shape, (sx * x, 0, sz * z), (t, below, t), leg) for sx in (-1, 1) for sz in (-1, 1)
            ]
        if style == "frames":
            parts += [block((s * x, 0, 0), (t, t, d - 2 * t), leg) for s in (-1, 1)]
        elif r.random() < 0.5:
            parts += [block((0, below - 0.07, s * z), (w - 2 * t, 0.07, 0.02), leg) for s in (-1, 1)]
        blocked += [(s * x - t / 2, 0.0, -d / 2, s * x + t / 2, below, d / 2) for s in (-1, 1)]
    edge = 0.15 if round_top else 0.02
    return Piece(
        "table",
        (w, h, d),
        tuple(parts),
        tuple(blocked),
        ((-w / 2 + edge * w, -d / 2 + edge * d, w / 2 - edge * w, d / 2 - edge * d, h, OPEN),),
    )


def chair(r: Random, stock: Stock, look: int) -> Piece:
    """A simple chair; the same `look` gives the same chair."""
    q = Random(look)
    seat, h = q.uniform(0.43, 0.48), q.uniform(0.78, 0.95)
    w, d = q.uniform(0.42, 0.52), q.uniform(0.46, 0.56)
    shell = (
        plain(q, grey(q.uniform(0.03, 0.12)))
        if q.random() < 0.45
        else fabric(q, stock)
        if q.random() < 0.4
        else board(q, stock)
    )
    leg = metal(q)
    t = q.uniform(0.018, 0.035)
    soft = CUSHION if q.random() < 0.4 else CUBE
    parts = [
        Part(soft, (0, seat - 0.05, 0), (w, 0.06, d), shell),
        Part(
            soft,
            (0, seat + q.uniform(0.05, 0.2), -d / 2 + 0.02),
            (w, h - seat - 0.2, 0.035),
            shell,
            tilt=-q.uniform(0.05, 0.2),
        ),
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
        parts += [
            Part(CUBE, (0, 0.04, 0), (w * 1.1, 0.03, 0.05), leg, yaw=k * math.pi / 5 * 2) for k in range(3)
        ]
    parts += [
        Part(CYLINDER, (s * x, seat, -d / 2 + 0.03), (t, h - seat - 0.1, t), leg, tilt=-0.1) for s in (-1, 1)
    ]
    boxes = chair_boxes(w, h, d + 0.06, seat + 0.02)
    return Piece(
        "chair", (w, h, d + 0.06), tuple(parts), boxes, ((-w / 3, -d / 4, w / 3, d / 3, seat + 0.01, 0.4),)
    )


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
        parts.append(
            block(
                (0, plinth + 0.005, z), (w - 0.04, inner, 0.016), front._replace(rib=q.uniform(0.015, 0.05))
            )
        )
    else:
        columns = max(1, round(w / q.uniform(0.4, 0.65))) if style == "doors" else max(1, round(w / 0.9))
        rows = (
            max(1, round(inner / 0.85)) if style == "doors" else max(2, round(inner / q.uniform(0.18, 0.3)))
        )
        handle, bar = metal(q), q.random() < 0.6
        cw, ch = (w - 0.02) / columns, inner / rows
        for i in range(columns):
            for j in range(rows):
                x, y = -w / 2 + 0.01 + (i + 0.5) * cw, plinth + 0.005 + j * ch
                parts.append(block((x, y + 0.003, z), (cw - 0.008, ch - 0.008, 0.02), front))
                hx, hy = (
                    (x + (cw / 2 - 0.05) * (1 if i % 2 else -1), y + ch * 0.6)
                    if style == "doors"
                    else (x, y + ch * 0.7)
                )
                shape = (0.012, 0.12, 0.02) if style == "doors" else (0.14, 0.012, 0.02)
                parts.append(block((hx, hy, z + 0.02), shape if bar else (0.025, 0.025, 0.025), handle))
    return Piece(
        "cabinet",
        (w, h, d + 0.04),
        tuple(parts),
        (),
        ((-w / 2 + 0.02, -d / 2 + 0.02, w / 2 - 0.02, d / 2 - 0.02, h, OPEN),),
    )


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
    inside = tuple(
        (-w / 2 + t, -d / 2 + 0.01, w / 2 - t, d / 2 - 0.01, i * gap + t, gap - t - 0.01)
        for i in range(count)
    )
    return Piece("shelf", (w, h, d), tuple(parts), (), (*inside, (-w / 2, -d / 2, w / 2, d / 2, h, OPEN)))


def kitchen_row(r: Random, stock: Stock, w: float, look: int) -> Piece:
    """Lower units with one worktop, a sink and a hob."""
    base = cabinet(r, stock, w, 0.88, 0.58, look)
    top = (
        wood(r, stock)
        if r.random() < 0.5
        else plain(r, grey(r.choice((0.1, 0.3, 0.8, 0.92))), r.uniform(0.2, 0.8))
    )
    parts = [*base.parts, block((0, 0.88, 0.01), (w, 0.04, 0.62), top)]
    sink = r.uniform(-w / 2 + 0.4, w / 2 - 0.4)
    steel = Material(grey(0.7), PLAIN, gloss=0.8)
    parts += [
        block((sink, 0.915, 0), (0.5, 0.008, 0.4), steel),
        block((sink, 0.917, 0), (0.4, 0.008, 0.3), plain(r, grey(0.2))),
    ]
    parts += [
        Part(CYLINDER, (sink, 0.92, -0.22), (0.03, 0.25, 0.03), steel),
        block((sink, 1.15, -0.14), (0.025, 0.02, 0.18), steel),
    ]
    left, right = -w / 2 + 0.03, w / 2 - 0.03
    supports = [(left, -0.26, sink - 0.3, 0.28, 0.92, 0.5), (sink + 0.3, -0.26, right, 0.28, 0.92, 0.5)]
    hob = sink + (1 if sink < 0 else -1) * 0.8
    if abs(hob) < w / 2 - 0.35:
        parts.append(block((hob, 0.918, 0), (0.56, 0.006, 0.5), Material(grey(0.04), PLAIN, gloss=0.8)))
    return Piece(
        "kitchen_row", (w, 0.92, 0.64), tuple(parts), (), tuple(s for s in supports if s[2] - s[0] > 0.15)
    )


def radiator(r: Random, w: float) -> Piece:
    """A ribbed panel under a window."""
    h, d = r.uniform(0.4, 0.75), 0.1
    paint = plain(r, grey(r.uniform(0.75, 0.95)), 0.3)
    parts = [
        block((0, 0.12, 0), (w, h, d * 0.7), paint._replace(rib=r.uniform(0.03, 0.06))),
        block((0, 0.12 + h, 0), (w, 0.01, d), paint),
    ]
    return Piece("radiator", (w, h + 0.13, d), tuple(parts))


def floor_lamp(r: Random) -> Piece:
    """A shade on a pole."""
    h, shade = r.uniform(1.3, 1.8), r.uniform(0.25, 0.45)
    pole = metal(r)
    glow = Material(hsv(0.1, 0.2, 0.95), PLAIN, emission=r.choice((0.0, 0.0, 0.3, 1.5)))
    parts = (
        Part(CYLINDER, (0, 0, 0), (0.28, 0.025, 0.28), pole),
        Part(CYLINDER, (0, 0, 0), (0.025, h - 0.1, 0.025), pole),
        Part(CYLINDER, (0, h - 0.3, 0), (shade, 0.3, shade), glow),
    )
    return Piece(
        "lamp",
        (shade, h, shade),
        parts,
        ((-0.14, 0, -0.14, 0.14, h - 0.3, 0.14), (-shade / 2, h - 0.3, -shade / 2, shade / 2, h, shade / 2)),
    )


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
    parts += [
        Part(CUSHION, (-w / 2 + arm + (i + 0.5) * each, seat - 0.14, 0.1), (each, 0.16, d - 0.22), cloth)
        for i in range(seats)
    ]
    return Piece(
        "sofa",
        (w, back, d),
        tuple(parts),
        (),
        ((-w / 2 + arm, -d / 4 + 0.05, w / 2 - arm, d / 2 - 0.08, seat + 0.01, OPEN),),
    )


def simple_bed(r: Random, stock: Stock) -> Piece:
    """A mattress with a cover and pillows."""
    w, d = r.choice((0.9, 1.2, 1.4, 1.6, 1.8)) * r.uniform(0.97, 1.05), r.uniform(1.95, 2.15)
    h, frame = r.uniform(0.4, 0.6), board(r, stock)
    parts = [
        block((0, 0.06, 0), (w + 0.06, 0.22, d), frame),
        block((0, 0, -d / 2 + 0.03), (w + 0.06, r.uniform(0.6, 1.1), 0.05), frame),
        Part(CUSHION, (0, 0.22, 0.02), (w, h - 0.22, d - 0.08), plain(r, grey(0.9), 0.0)),
        Part(CUSHION, (0, 0.24, 0.22), (w + 0.05, h - 0.2, d * 0.72), fabric(r, stock)),
    ]
    count = 1 if w < 1.3 else 2
    parts += [
        Part(
            CUSHION,
            ((i - (count - 1) / 2) * w / 2, h - 0.03, -d / 2 + 0.33),
            (min(0.7, w / count - 0.06), 0.15, 0.42),
            fabric(r, stock),
            tilt=-0.2,
        )
        for i in range(count)
    ]
    return Piece(
        "bed", (w + 0.06, h + 0.05, d), tuple(parts), (), ((-w / 2, 0.0, w / 2, d / 2 - 0.1, h + 0.05, OPEN),)
    )
