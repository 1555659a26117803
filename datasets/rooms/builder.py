"""Puts pieces into a room, keeps them apart, and turns the result into arrays."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from typing import NamedTuple

import numpy as np

from .materials import Stock
from .pieces import Box, Part, Piece
from .room import Light, Panel, Room

Span = tuple[float, float, float, float]


@dataclass(eq=False)
class Wall:
    """One side of the main room. `u` runs along it from -length/2 to length/2, `off` into the room."""

    centre: tuple[float, float]
    yaw: float
    """Turns a piece's front (+z) into the room."""
    length: float
    taken: list[Span] = field(default_factory=list)
    """Rectangles (u0, y0, u1, y1) already used by openings, furniture and pictures."""
    open: bool = False
    """Whether an annex lies behind."""

    def point(self, u: float, off: float) -> tuple[float, float]:
        """World (x, z)."""
        c, s = math.cos(self.yaw), math.sin(self.yaw)
        return self.centre[0] + u * c + off * s, self.centre[1] - u * s + off * c

    def is_free(self, u0: float, y0: float, u1: float, y1: float) -> bool:
        """Whether a rectangle lies on the wall and touches nothing on it."""
        if u0 < -self.length / 2 or u1 > self.length / 2:
            return False
        return all(u1 <= a or u0 >= c or y1 <= b or y0 >= d for a, b, c, d in self.taken)


class Hole(NamedTuple):
    """A rectangular opening of a wall: a window, or a passage to an annex."""

    u0: float
    y0: float
    u1: float
    y1: float
    is_window: bool


class Placed(NamedTuple):
    """A piece that stands in the room."""

    piece: Piece
    x: float
    y: float
    z: float
    yaw: float
    number: int


class Builder:
    """A room that is being furnished."""

    def __init__(self, r: Random, stock: Stock, kind: str, size: tuple[float, float, float]) -> None:
        self.r, self.stock, self.kind, self.size = r, stock, kind, size
        width, _, depth = size
        self.walls = (
            Wall((0.0, -depth / 2), 0.0, width),
            Wall((width / 2, 0.0), -math.pi / 2, depth),
            Wall((0.0, depth / 2), math.pi, width),
            Wall((-width / 2, 0.0), math.pi / 2, depth),
        )
        self.areas: list[Span] = [(-width / 2, -depth / 2, width / 2, depth / 2)]
        self.rows: list[tuple[float, ...]] = []
        self.boxes: list[Box] = []
        self.box_object: list[int] = []
        self.stands_on: list[int] = []
        self.keep_free: list[Box] = []
        self.placed: list[Placed] = []
        self.lights: list[Light] = []
        self.panels: list[Panel] = []
        self.albedo: dict[str, tuple[float, float, float]] = {}
        self.objects = 0
        self.structure = 0

    # ------------------------------------------------------------------------------------ placing

    def new_object(self) -> int:
        """A fresh object number."""
        self.objects += 1
        return self.objects - 1

    def add_parts(self, parts: Sequence[Part], x: float, y: float, z: float, yaw: float, number: int) -> None:
        """Draw parts at a place, without asking whether it is free."""
        c, s = math.cos(yaw), math.sin(yaw)
        shapes, uniform = self.stock.shapes, self.r.random
        for part in parts:
            px, py, pz = part.at
            m = part.material
            mesh = shapes[part.mesh] if isinstance(part.mesh, str) else part.mesh
            self.rows.append(
                (
                    mesh,
                    x + px * c + pz * s,
                    y + py,
                    z - px * s + pz * c,
                    yaw + part.yaw,
                    part.tilt,
                    *part.size,
                    *m.tint,
                    m.emission,
                    m.layer,
                    *m.repeat,
                    m.gloss,
                    m.speckle,
                    m.grain,
                    m.rib,
                    number,
                    uniform(),
                    uniform(),
                )
            )

    def add(self, piece: Piece, x: float, y: float, z: float, yaw: float, below: int = -1) -> Placed:
        """Place a piece and reserve its boxes; `below` is the object that it stands on."""
        number = self.new_object()
        self.add_parts(piece.parts, x, y, z, yaw, number)
        for box in turned_boxes(piece.occupied(), x, y, z, yaw):
            self.boxes.append(box)
            self.box_object.append(number)
            self.stands_on.append(below)
        placed = Placed(piece, x, y, z, yaw, number)
        self.placed.append(placed)
        return placed

    def fits(self, boxes: Sequence[Box], margin: float = 0.0, *, below: int = -1) -> bool:
        """Whether boxes lie inside the main room and touch nothing.

        What stands on an object `below` may touch that one, and may reach over the free areas before doors.
        """
        x0, z0, x1, z1 = self.areas[0]
        height = self.size[1]
        if below < 0:
            others = self.boxes + self.keep_free
        else:
            others = [box for box, owner in zip(self.boxes, self.box_object, strict=True) if owner != below]
        for a in boxes:
            if a[0] < x0 or a[2] < z0 or a[3] > x1 or a[5] > z1 or a[4] > height:
                return False
            low = (a[0] - margin, a[1], a[2] - margin)
            high = (a[3] + margin, a[4], a[5] + margin)
            for b in others:
                if (
                    low[0] < b[3]
                    and b[0] < high[0]
                    and low[2] < b[5]
                    and b[2] < high[2]
                    and low[1] < b[4]
                    and b[1] < high[1]
                ):
                    return False
        return True

    def try_add(
        self, piece: Piece, x: float, y: float, z: float, yaw: float, margin: float = 0.0
    ) -> Placed | None:
        """Place a piece if it fits."""
        if self.fits(turned_boxes(piece.occupied(), x, y, z, yaw), margin):
            return self.add(piece, x, y, z, yaw)
        return None

    def along_wall(
        self, piece: Piece, *, tries: int = 8, wall: Wall | None = None, lift: float = 0.0, gap: float = 0.01
    ) -> Placed | None:
        """Stand a piece with its back to a wall, or hang it `lift` metres above the floor."""
        w, h, d = piece.size
        for _ in range(tries):
            side = wall or self.r.choice(self.walls)
            reach = side.length / 2 - w / 2 - 0.02
            if reach < 0:
                continue
            u = self.r.choice((-reach, reach)) if self.r.random() < 0.25 else self.r.uniform(-reach, reach)
            if not side.is_free(u - w / 2, lift, u + w / 2, lift + h):
                continue
            x, z = side.point(u, d / 2 + gap)
            placed = self.try_add(piece, x, lift, z, side.yaw)
            if placed:
                side.taken.append((u - w / 2, lift, u + w / 2, lift + h))
                return placed
        return None

    def on_floor(
        self, piece: Piece, *, tries: int = 8, margin: float = 0.0, aligned: bool = False
    ) -> Placed | None:
        """Stand a piece anywhere."""
        x0, z0, x1, z1 = self.areas[0]
        for _ in range(tries):
            yaw = self.r.randrange(4) * math.pi / 2 if aligned else self.r.uniform(0, 2 * math.pi)
            x, z = self.r.uniform(x0 + 0.1, x1 - 0.1), self.r.uniform(z0 + 0.1, z1 - 0.1)
            placed = self.try_add(piece, x, 0.0, z, yaw, margin)
            if placed:
                return placed
        return None

    # ------------------------------------------------------------------------------------- result

    def finish(self, ambient: np.ndarray) -> Room:
        """The finished room as arrays."""
        rows = np.array(self.rows, np.float64)
        boxes = np.array(self.boxes, np.float32).reshape(-1, 6)
        owner = np.array(self.box_object, np.int32)
        furniture = boxes[owner >= self.structure]
        focus = np.concatenate(
            [
                (furniture[:, :3] + furniture[:, 3:]) / 2,
                np.linalg.norm(furniture[:, 3:] - furniture[:, :3], axis=1)[:, None],
            ],
            1,
        )
        return Room(
            self.kind,
            self.size,
            rows[:, 0].astype(np.int32),
            _instances(rows),
            boxes,
            owner,
            np.array(self.stands_on, np.int32),
            self.structure,
            focus.astype(np.float32),
            tuple(self.areas),
            tuple(self.lights),
            tuple(self.panels),
            ambient.astype(np.float32),
        )


def turned_boxes(boxes: Sequence[Box], x: float, y: float, z: float, yaw: float) -> list[Box]:
    """Axis-aligned boxes around boxes turned about the y axis and moved."""
    c, s = math.cos(yaw), math.sin(yaw)
    ac, as_ = abs(c), abs(s)
    result = []
    for x0, y0, z0, x1, y1, z1 in boxes:
        cx, cz, hx, hz = (x0 + x1) / 2, (z0 + z1) / 2, (x1 - x0) / 2, (z1 - z0) / 2
        wx, wz = x + cx * c + cz * s, z - cx * s + cz * c
        ex, ez = hx * ac + hz * as_ - 1e-6, hx * as_ + hz * ac - 1e-6
        result.append((wx - ex, y + y0, wz - ez, wx + ex, y + y1, wz + ez))
    return result


def _instances(rows: np.ndarray) -> np.ndarray:
    """(N, 28) instance records from the builder's rows."""
    count = len(rows)
    yaw, tilt = rows[:, 4], rows[:, 5]
    cy, sy, ct, st = np.cos(yaw), np.sin(yaw), np.cos(tilt), np.sin(tilt)
    zero = np.zeros(count)
    turn = np.stack([cy, zero, sy, zero, zero + 1, zero, -sy, zero, cy], 1).reshape(-1, 3, 3)
    lean = np.stack([zero + 1, zero, zero, zero, ct, -st, zero, st, ct], 1).reshape(-1, 3, 3)
    matrix = np.concatenate([turn @ lean * rows[:, None, 6:9], rows[:, 1:4, None]], 2)
    instances = np.zeros((count, 28), np.float32)
    instances[:, :12] = matrix.reshape(-1, 12)
    instances[:, 12:26] = rows[:, 9:23]
    return instances
