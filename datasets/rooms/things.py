"""Household things that stand on furniture, on shelves and about the floor, built of unit shapes."""

from __future__ import annotations

import math
from collections.abc import Callable
from random import Random

from . import materials
from .materials import Stock, any_colour, fabric, grey, hsv, metal, picture, plain, wood
from .pieces import OPEN, Part, Piece, block
from .room import PLAIN, Material
from .shapes import BAG, BASKET, BOOKS, CUBE, CUSHION, CYLINDER, FRUITS, PLANTS, SPHERE, TAPER


def carton(r: Random, stock: Stock) -> Piece:
    """A cardboard box, a crate or a storage box, sometimes two in a stack."""
    parts, y = [], 0.0
    w, d = r.uniform(0.25, 0.6), r.uniform(0.2, 0.45)
    for _ in range(r.choice((1, 1, 1, 2))):
        h = r.uniform(0.15, 0.4)
        colour = (
            hsv(r.uniform(0.06, 0.1), r.uniform(0.35, 0.55), r.uniform(0.5, 0.8))
            if r.random() < 0.65
            else any_colour(r)
        )
        parts.append(
            block((0, y, 0), (w, h, d), Material(colour, PLAIN, gloss=0.05, speckle=0.06, grain=0.02))
        )
        if r.random() < 0.6:
            parts.append(block((0, y + h, 0), (w, 0.002, 0.05), plain(r, grey(r.uniform(0.5, 0.9)))))
        if r.random() < 0.4:
            parts.append(
                Part(
                    CUBE,
                    (r.uniform(-0.2, 0.2) * w, y + 0.25 * h, d / 2),
                    (0.35 * w, 0.4 * h, 0.003),
                    picture(r, stock)[0],
                )
            )
        y += h
    return Piece(
        "box", (w, y + 0.004, d + 0.006), tuple(parts), (), ((-w / 2, -d / 2, w / 2, d / 2, y + 0.002, OPEN),)
    )


def bin_(r: Random) -> Piece:
    """A waste-paper bin or a tall one."""
    h, w = r.uniform(0.28, 0.65), r.uniform(0.2, 0.32)
    parts = (Part(r.choice((TAPER, BASKET, CUBE, CYLINDER)), (0, 0, 0), (w, h, w), plain(r, any_colour(r))),)
    return Piece("bin", (w, h, w), parts)


def bag(r: Random, stock: Stock) -> Piece:
    """A bag or a bundle."""
    w, h, d = r.uniform(0.2, 0.45), r.uniform(0.15, 0.45), r.uniform(0.15, 0.35)
    material = (
        fabric(r, stock) if r.random() < 0.7 else Material(grey(r.uniform(0.8, 0.95)), PLAIN, gloss=0.5)
    )
    return Piece("bag", (w, h, d), (Part(r.choice((BAG, CUSHION)), (0, 0, 0), (w, h, d), material),))


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
        Part(
            r.choice(PLANTS), (0, pot * 0.9, 0), (spread, h - pot * 0.9, spread), leaf, yaw=r.uniform(0, 6.28)
        ),
    )
    return Piece("plant", (spread, h, spread), parts)


def fruit_bowl(r: Random, stock: Stock) -> Piece:
    """A basket, bowl or tray full of fruit."""
    w, h = r.uniform(0.2, 0.38), r.uniform(0.07, 0.13)
    shell = wood(r, stock)._replace(rib=-0.02) if r.random() < 0.5 else plain(r, any_colour(r))
    parts = [Part(BASKET, (0, 0, 0), (w, h, w * r.uniform(0.7, 1.0)), shell)]
    parts.append(
        Part(
            r.choice(FRUITS),
            (0, 0.3 * h, 0),
            (w * 0.84, h * 0.7 + 0.05, w * 0.68),
            Material(materials.tinted(r), gloss=0.4),
            yaw=r.uniform(0, 6),
        )
    )
    return Piece("food", (w, h + 0.07, w), tuple(parts))


def bottle(r: Random, stock: Stock) -> Piece:
    """A bottle, jar, mug or can."""
    w, h = r.uniform(0.06, 0.1), r.uniform(0.08, 0.3)
    body = plain(r, any_colour(r), r.uniform(0.1, 0.9))
    parts = [Part(r.choice((CYLINDER, CYLINDER, TAPER, BASKET)), (0, 0, 0), (w, h, w), body)]
    if h > 0.16:
        parts.append(
            Part(CYLINDER, (0, h, 0), (w * r.uniform(0.3, 0.9), 0.04, w * 0.4), plain(r, any_colour(r)))
        )
    return Piece("bottle", (w, h + 0.04, w), tuple(parts))


def paper(r: Random, stock: Stock) -> Piece:
    """Sheets, a magazine or a pile of books."""
    parts, y = [], 0.0
    for _ in range(r.choice((1, 1, 2, 4))):
        w, d, h = r.uniform(0.15, 0.3), r.uniform(0.2, 0.3), r.choice((0.003, 0.01, 0.03, 0.04))
        material = (
            picture(r, stock)[0] if r.random() < 0.35 else plain(r, grey(0.93) if h < 0.01 else any_colour(r))
        )
        parts.append(Part(CUBE, (0, y, 0), (w, h, d), material, yaw=r.uniform(-0.3, 0.3)))
        y += h
    return Piece("paper", (0.34, y, 0.34), tuple(parts))


def book_row(r: Random, stock: Stock) -> Piece:
    """Books or files standing side by side."""
    w, h, d = r.uniform(0.15, 0.6), r.uniform(0.2, 0.31), r.uniform(0.15, 0.24)
    return Piece(
        "books",
        (w, h, d),
        (Part(r.choice(BOOKS), (0, 0, 0), (w, h, d), Material(materials.tinted(r, 0.95, 0.2))),),
    )


def laptop(r: Random, stock: Stock) -> Piece:
    """An open laptop."""
    w, d, tilt = r.uniform(0.28, 0.38), r.uniform(0.2, 0.26), -r.uniform(0.1, 0.5)
    case = plain(r, grey(r.choice((0.08, 0.6, 0.75))), 0.4)
    screen = Material(
        picture(r, stock)[0].tint, picture(r, stock)[0].layer, gloss=0.8, emission=r.choice((0.0, 0.6))
    )
    keys = plain(r, grey(0.1))._replace(rib=-0.018)
    y, z = 0.015 + 0.012 * math.cos(tilt), -d / 2 + 0.006
    parts = (
        block((0, 0, 0), (w, 0.018, d), case),
        block((0, 0.018, -0.03), (w * 0.86, 0.001, d * 0.45), keys),
        Part(CUBE, (0, y, z), (w, d, 0.01), case, tilt=tilt),
        Part(CUBE, (0, y + 0.01, z + 0.006), (w * 0.93, d * 0.9, 0.003), screen, tilt=tilt),
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
        block((0, 0, -0.1), (0.24, 0.015, 0.18), case),
        block((0, 0.01, -0.12), (0.05, lift + 0.1, 0.03), case),
        block((0, lift, -0.09), (w, h, 0.04), case),
        block((0, lift + 0.012, -0.069), (w - 0.03, h - 0.03, 0.002), screen),
    ]
    if r.random() < 0.7:
        keys = plain(r, grey(r.choice((0.08, 0.15, 0.85))), 0.2)
        parts += [
            Part(CUBE, (0, 0, 0.16), (0.42, 0.02, 0.14), keys._replace(rib=0.019)),
            Part(CUSHION, (0.29, 0, 0.16), (0.06, 0.03, 0.1), keys),
        ]
    return Piece("monitor", (max(w, 0.66), lift + h, 0.46), tuple(parts))


def table_lamp(r: Random, stock: Stock) -> Piece:
    """A small lamp with a shade."""
    h, w = r.uniform(0.3, 0.55), r.uniform(0.15, 0.32)
    glow = Material(hsv(0.1, r.uniform(0, 0.4), 0.9), PLAIN, emission=r.choice((0.0, 0.0, 3.0)))
    foot = metal(r) if r.random() < 0.5 else plain(r, any_colour(r))
    parts = (
        Part(CYLINDER, (0, 0, 0), (w * 0.6, 0.02, w * 0.6), foot),
        Part(CYLINDER, (0, 0, 0), (0.03, h - 0.1, 0.03), foot),
        Part(r.choice((CYLINDER, BASKET)), (0, h - 0.18, 0), (w, 0.18, w), glow),
    )
    return Piece("lamp", (w, h, w), parts)


def tray(r: Random, stock: Stock) -> Piece:
    """A crate, box or tray, sometimes with a bag in it."""
    w, h, d = r.uniform(0.2, 0.45), r.uniform(0.05, 0.18), r.uniform(0.15, 0.32)
    parts = [block((0, 0, 0), (w, h, d), plain(r, any_colour(r)))]
    if r.random() < 0.5:
        parts.append(
            Part(
                r.choice((BAG, CUSHION)),
                (0, h * 0.5, 0),
                (w * 0.95, h * 0.6 + 0.08, d * 0.95),
                Material(grey(r.uniform(0.3, 0.95)), PLAIN, gloss=0.5),
            )
        )
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
    "fruit": fruit_bowl,
    "bottle": bottle,
    "paper": paper,
    "book_row": book_row,
    "laptop": laptop,
    "monitor": monitor,
    "table_lamp": table_lamp,
    "tray": tray,
    "ball": ball,
    "small_plant": small_plant,
    "cushion": cushion,
    "bag": bag,
    "carton": carton,
}
