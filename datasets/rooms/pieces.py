"""Pieces: what a room is furnished with, as parts, occupied boxes and places where things can stand.

A piece stands at its own origin (x and z centred, base at y = 0, front toward +z), in metres.
"""

from __future__ import annotations

from random import Random
from typing import NamedTuple

from . import materials
from .assets import Asset
from .materials import Stock
from .room import Material
from .shapes import CUBE

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
    elevation: float = 0.0
    """Usual height of the base above the floor."""

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
        (
            s.x0 * stretch[0],
            s.z0 * stretch[2],
            s.x1 * stretch[0],
            s.z1 * stretch[2],
            s.y * scale,
            s.clearance * scale,
        )
        for s in asset.support
    )
    return Piece(asset.role, size, parts, _asset_boxes(asset, size), supports, asset.elevation)


def _asset_boxes(asset: Asset, size: tuple[float, float, float]) -> tuple[Box, ...]:
    w, h, d = size
    if asset.role == "dining_table" and 0.6 < h < 1.2:
        slab = (-w / 2, 0.8 * h, -d / 2, w / 2, h, d / 2)
        return slab, (-0.3 * w, 0.0, -0.25 * d, 0.3 * w, 0.8 * h, 0.25 * d)
    if asset.role == "chair" and h > 0.7:
        return chair_boxes(w, h, d, 0.5)
    return ()


def chair_boxes(w: float, h: float, d: float, seat: float) -> tuple[Box, ...]:
    """A chair's seat, which may go under a table, and its back, which may not."""
    return (-w / 2, 0.0, -d / 2, w / 2, seat, d / 2), (-w / 2, seat, -d / 2, w / 2, h, -0.2 * d)
