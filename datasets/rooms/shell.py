"""The room around the furniture: floor, walls with doors and windows, annexes, columns."""

from __future__ import annotations

import math

from . import materials
from .builder import Builder, Hole, Wall
from .furniture import radiator
from .lighting import add_daylight, add_lamps
from .materials import any_colour, grey, hsv, metal, picture, plain, scaled
from .pieces import Part, Piece, block
from .room import PLAIN, Light, Material
from .shapes import CUBE

THICKNESS = 0.22


def build_shell(b: Builder, *, windows: tuple[int, int], doors: tuple[int, int], annex: float) -> None:
    """Build everything that does not move.

    Args:
        b: the empty room.
        windows, doors: fewest and most of each.
        annex: chance of an opening to a further space.
    """
    r = b.r
    night = r.random() < 0.3
    holes: dict[int, list[Hole]] = {0: [], 1: [], 2: [], 3: []}
    paints = _paints(b)
    if r.random() < annex:
        _plan_annex(b, holes)
    _plan_windows(b, holes, r.randint(*windows))
    trim = plain(
        r,
        grey(r.uniform(0.75, 0.95))
        if r.random() < 0.7
        else hsv(r.uniform(0.05, 0.1), 0.5, r.uniform(0.2, 0.6)),
        0.3,
    )
    _floor_and_ceiling(b)
    skirting = r.choice((0.0, 0.05, 0.08, 0.12))
    for index, wall in enumerate(b.walls):
        _build_wall(b, wall, paints[index], holes[index], trim, skirting)
    _annex_walls(b, holes, paints[0])
    for index, wall in enumerate(b.walls):
        for hole in holes[index]:
            if hole.is_window:
                _window(b, wall, hole, trim, night)
    for _ in range(r.randint(*doors)):
        _door(b, trim)
    if r.random() < 0.3:
        _column(b, r.choice(paints))
    b.structure = b.objects
    add_lamps(b, day=bool(b.panels) and not night)


def _paints(b: Builder) -> list[Material]:
    """One paint for all walls, often another for one of them."""
    r = b.r
    paint = materials.wall_paint(r, b.stock)
    paints = [paint] * 4
    if r.random() < 0.4:
        paints[r.randrange(4)] = materials.wall_paint(r, b.stock)
    b.albedo["walls"] = paint.tint if paint.layer == PLAIN else (0.5, 0.48, 0.45)
    return paints


def _floor_and_ceiling(b: Builder) -> None:
    r = b.r
    covering, white = materials.floor(r, b.stock), materials.ceiling(r, b.stock)
    b.albedo["floor"] = covering.tint if covering.layer == PLAIN else (0.25, 0.2, 0.16)
    b.albedo["ceiling"] = white.tint if white.layer == PLAIN else (0.7, 0.7, 0.7)
    floor_number, ceiling_number = b.new_object(), b.new_object()
    for x0, z0, x1, z1 in b.areas:
        centre, size = ((x0 + x1) / 2, (z0 + z1) / 2), (x1 - x0 + 0.5, z1 - z0 + 0.5)
        b.add_parts(
            [block((0, -0.2, 0), (size[0], 0.2, size[1]), covering)], centre[0], 0, centre[1], 0, floor_number
        )
        b.add_parts(
            [block((0, 0, 0), (size[0], 0.2, size[1]), white)],
            centre[0],
            b.size[1],
            centre[1],
            0,
            ceiling_number,
        )
    if r.random() < 0.28:  # a second covering on one side
        x0, z0, x1, z1 = b.areas[0]
        share = r.uniform(0.25, 0.6)
        along = r.random() < 0.5
        w, d = ((x1 - x0) * share, z1 - z0) if along else (x1 - x0, (z1 - z0) * share)
        other = materials.carpet(r) if r.random() < 0.6 else materials.floor(r, b.stock)
        side = r.choice((-1, 1))
        x, z = (side * ((x1 - x0) - w) / 2, 0.0) if along else (0.0, side * ((z1 - z0) - d) / 2)
        b.add_parts([block((0, 0, 0), (w, 0.006, d), other)], x, 0, z, 0, b.new_object())


def _plan_annex(b: Builder, holes: dict[int, list[Hole]]) -> None:
    """An opening in one wall: as wide as the wall (an L or an alcove), or a doorway to another room."""
    r = b.r
    index = r.randrange(4)
    wall = b.walls[index]
    height = b.size[1]
    if r.random() < 0.5:
        w, top = r.uniform(0.8, 1.1), r.uniform(2.0, 2.15)
    else:
        w, top = (
            min(r.uniform(1.2, 3.5), wall.length - 0.5),
            r.choice((height, height, r.uniform(2.1, height))),
        )
    w = min(w, wall.length - 0.2)
    u = r.uniform(-wall.length / 2 + w / 2, wall.length / 2 - w / 2)
    deep, extra = r.uniform(0.5, 3.0), r.uniform(0.06, 1.5)
    holes[index].append(Hole(u - w / 2, 0.0, u + w / 2, min(top, height), False))
    wall.taken.append((u - w / 2 - 0.05, 0.0, u + w / 2 + 0.05, height))
    wall.open = True
    corners = [
        wall.point(u + s * (w + extra) / 2, o) for s in (-1, 1) for o in (-THICKNESS, -THICKNESS - deep)
    ]
    xs, zs = [c[0] for c in corners], [c[1] for c in corners]
    b.areas.append((min(xs), min(zs), max(xs), max(zs)))
    x, z = wall.point(u, 0.0)
    c, s = abs(math.cos(wall.yaw)), abs(math.sin(wall.yaw))
    ex, ez = w / 2 * c + 0.5 * s, w / 2 * s + 0.5 * c
    b.keep_free.append((x - ex, 0.0, z - ez, x + ex, 2.0, z + ez))


def _plan_windows(b: Builder, holes: dict[int, list[Hole]], count: int) -> None:
    """Windows of one size, preferably side by side on one wall."""
    r = b.r
    closed = [index for index, wall in enumerate(b.walls) if not wall.open]
    index = r.choice(closed)
    w, sill = r.uniform(0.6, 1.8), r.choice((0.0, 0.4, 0.85, 0.9, 1.0, 1.1))
    top = min(b.size[1] - 0.12, max(sill + 0.9, r.uniform(1.95, 2.5)))
    for _ in range(count):
        if r.random() < 0.2:
            index = r.choice(closed)
        wall = b.walls[index]
        reach = wall.length / 2 - w / 2 - 0.1
        if reach < 0:
            continue
        for _ in range(6):
            u = r.uniform(-reach, reach)
            if wall.is_free(u - w / 2 - 0.08, sill, u + w / 2 + 0.08, top):
                holes[index].append(Hole(u - w / 2, sill, u + w / 2, top, True))
                wall.taken.append((u - w / 2 - 0.08, max(sill, 0.0), u + w / 2 + 0.08, top + 0.05))
                break


def _build_wall(
    b: Builder, wall: Wall, paint: Material, holes: list[Hole], trim: Material, skirting: float
) -> None:
    """Boxes around the holes, and a skirting board."""
    number, height = b.new_object(), b.size[1]
    solid = _around(wall.length + 2 * THICKNESS, height, holes)
    parts = [block((u, y, -THICKNESS / 2), (w, h, THICKNESS), paint) for u, y, w, h in solid]
    if skirting:
        parts += [block((u, 0.0, 0.006), (w, skirting, 0.012), trim) for u, y, w, _ in solid if y == 0.0]
    if b.r.random() < 0.08:  # panelling or a darker band
        band = b.r.uniform(0.8, 1.3)
        other = plain(b.r, any_colour(b.r), 0.2) if b.r.random() < 0.6 else materials.wood(b.r, b.stock)
        parts += [block((u, 0.0, 0.003), (w, min(band, h), 0.006), other) for u, y, w, h in solid if y == 0.0]
    b.add_parts(parts, *_origin(wall), wall.yaw, number)


def _around(length: float, height: float, holes: list[Hole]) -> list[tuple[float, float, float, float]]:
    """(u centre, y, width, height) of rectangles that cover a wall except its holes."""
    pieces, u = [], -length / 2
    for hole in sorted(holes):
        pieces.append(((u + hole.u0) / 2, 0.0, hole.u0 - u, height))
        centre, w = (hole.u0 + hole.u1) / 2, hole.u1 - hole.u0
        pieces.append((centre, 0.0, w, hole.y0))
        pieces.append((centre, hole.y1, w, height - hole.y1))
        u = hole.u1
    pieces.append(((u + length / 2) / 2, 0.0, length / 2 - u, height))
    return [piece for piece in pieces if piece[2] > 1e-3 and piece[3] > 1e-3]


def _origin(wall: Wall) -> tuple[float, float, float]:
    return wall.centre[0], 0.0, wall.centre[1]


def _annex_walls(b: Builder, holes: dict[int, list[Hole]], paint: Material) -> None:
    """Three walls around the annex; the main room's wall is the fourth."""
    r, height = b.r, b.size[1]
    for x0, z0, x1, z1 in b.areas[1:]:
        if r.random() < 0.5:
            paint = materials.wall_paint(r, b.stock)
        w, d, x, z = x1 - x0, z1 - z0, (x0 + x1) / 2, (z0 + z1) / 2
        sides = (
            (x, z0 - 0.05, w + 0.2, 0.1),
            (x, z1 + 0.05, w + 0.2, 0.1),
            (x0 - 0.05, z, 0.1, d + 0.2),
            (x1 + 0.05, z, 0.1, d + 0.2),
        )
        wall = next(wall for wall in b.walls if wall.open)
        for sx, sz, sw, sd in sides:
            towards = (sx - x) * math.sin(wall.yaw) + (sz - z) * math.cos(wall.yaw)
            if towards > 0.1:  # the open side
                continue
            b.add_parts([block((0, 0, 0), (sw, height, sd), paint)], sx, 0.0, sz, 0.0, b.new_object())
        if r.random() < 0.75:
            level = r.uniform(1, 10)
            b.lights.append(
                Light((x, height - 0.1, z), (0, -1, 0), (level, level * 0.9, level * 0.8), 0.2, 1.0)
            )


def _window(b: Builder, wall: Wall, hole: Hole, trim: Material, night: bool) -> None:
    """Frame and sill, a view outside, and the light that comes in."""
    r = b.r
    number = b.new_object()
    w, h, u = hole.u1 - hole.u0, hole.y1 - hole.y0, (hole.u0 + hole.u1) / 2
    t, off = 0.05, r.uniform(-0.17, -0.05)
    parts = [block((u + s * (w - t) / 2, hole.y0, off), (t, h, 0.06), trim) for s in (-1, 1)]
    parts += [block((u, y, off), (w, t, 0.06), trim) for y in (hole.y0, hole.y1 - t)]
    for i in range(1, r.choice((1, 1, 2, 2, 3))):
        parts.append(block((hole.u0 + w * i / 2, hole.y0, off), (t, h, 0.05), trim))
    if r.random() < 0.25:
        parts.append(block((u, hole.y0 + h * r.uniform(0.3, 0.7), off), (w, 0.04, 0.05), trim))
    if hole.y0 > 0.3:
        parts.append(block((u, hole.y0 - 0.03, 0.04), (w + 0.1, 0.03, 0.16), trim))
    if r.random() < 0.25:  # a blind that is partly down
        parts.append(
            block(
                (u, hole.y1 - h * r.uniform(0.1, 0.7), -0.02),
                (w, h, 0.01),
                plain(r, any_colour(r))._replace(rib=-0.03),
            )
        )
    sky = 0.03 if night else r.uniform(1.5, 9.0)
    view, _ = picture(r, b.stock, "outdoor")
    parts += _outside(
        b, u, view._replace(emission=sky, tint=(0.05, 0.05, 0.05) if night else (1.0, 1.0, 1.0))
    )
    b.add_parts(parts, *_origin(wall), wall.yaw, number)
    if hole.y0 > 0.75 and r.random() < 0.5:
        b.along_wall(radiator(r, min(w, 1.6)), tries=3, wall=wall)
    add_daylight(b, wall, hole, 0.02 if night else sky)


def _outside(b: Builder, u: float, view: Material) -> list[Part]:
    """A picture some metres behind the window, closed at its sides, above and below."""
    r = b.r
    far, wide = r.uniform(3.0, 8.0), r.uniform(9.0, 16.0)
    high = wide * r.uniform(0.6, 0.8)
    low = r.uniform(-0.45, -0.15) * high
    ground = view._replace(layer=PLAIN, tint=scaled(view.tint, 0.3))
    bright = view._replace(layer=PLAIN)
    parts = [block((u, low, -far), (wide, high, 0.02), view)]
    parts += [block((u + s * wide / 2, low, -far / 2 - 0.15), (0.02, high, far - 0.3), view) for s in (-1, 1)]
    parts.append(block((u, low, -far / 2 - 0.15), (wide, 0.02, far - 0.3), ground))
    parts.append(block((u, low + high, -far / 2 - 0.15), (wide, 0.02, far - 0.3), bright))
    return parts


def _door(b: Builder, trim: Material) -> None:
    """A closed door with frame and handle, parametric or from the pack."""
    r = b.r
    choices = b.stock.indices("door", "door")
    w, h = r.uniform(0.75, 1.0), r.uniform(1.95, 2.15)
    if r.random() < 0.42:
        leaf = plain(r, grey(r.uniform(0.03, 0.25)), r.uniform(0.05, 0.5))
    else:
        leaf = (
            materials.wood(r, b.stock)
            if r.random() < 0.5
            else plain(r, grey(r.uniform(0.6, 0.95)) if r.random() < 0.75 else any_colour(r))
        )
    wall = r.choice(b.walls)
    reach = wall.length / 2 - w / 2 - 0.12
    u = r.uniform(-reach, reach) if reach > 0 else 0.0
    if reach < 0 or not wall.is_free(u - w / 2 - 0.1, 0.0, u + w / 2 + 0.1, h + 0.1):
        return
    wall.taken.append((u - w / 2 - 0.1, 0.0, u + w / 2 + 0.1, h + 0.1))
    number = b.new_object()
    x, z = wall.point(u, 0.0)
    if choices and r.random() < 0.3:
        asset = b.stock.asset(r.choice(choices))
        aw, ah, ad = asset.size
        part = Part(
            b.stock.assets.index(asset),
            (0, 0, max(0.02 - ad / 2, -0.2) + ad * 0.25),
            (w / aw, h / ah, 1.0),
            Material(materials.tinted(r)),
        )
        b.add_parts([part], x, 0.0, z, wall.yaw, number)
    else:
        b.add_parts(_door_parts(b, w, h, leaf, trim), x, 0.0, z, wall.yaw, number)
    c, s = abs(math.cos(wall.yaw)), abs(math.sin(wall.yaw))
    ex, ez = w / 2 * c + 0.75 * s, w / 2 * s + 0.75 * c
    b.keep_free.append((x - ex, 0.0, z - ez, x + ex, 2.0, z + ez))


def _door_parts(b: Builder, w: float, h: float, leaf: Material, trim: Material) -> list[Part]:
    r = b.r
    t = r.uniform(0.05, 0.1)
    frame = trim if r.random() < 0.7 else leaf
    parts = [block((s * (w + t) / 2, 0, 0.012), (t, h + t, 0.035), frame) for s in (-1, 1)]
    parts += [
        block((0, h, 0.012), (w, t, 0.035), frame),
        block((0, 0.005, 0.004), (w - 0.01, h - 0.01, 0.01), leaf),
    ]
    handle, side = metal(r), r.choice((-1, 1))
    parts += [
        block((side * (w / 2 - 0.07), 1.0, 0.012), (0.035, 0.14, 0.01), handle),
        block((side * (w / 2 - 0.12), 1.05, 0.05), (0.13, 0.02, 0.02), handle),
    ]
    style = r.random()
    if style < 0.2:  # glass
        glass = Material(grey(r.uniform(0.4, 0.85)), PLAIN, gloss=0.9)
        parts.append(block((0, 0.25, 0.008), (w * 0.7, h - 0.45, 0.004), glass))
    elif style < 0.45:  # panels
        shade = leaf._replace(tint=scaled(leaf.tint, 0.8))
        parts += [block((0, y, 0.01), (w * 0.7, hh, 0.006), shade) for y, hh in ((0.2, 0.75), (1.1, h - 1.3))]
    if r.random() < 0.3:
        parts.append(
            Part(
                CUBE,
                (r.uniform(-0.1, 0.1), r.uniform(1.3, 1.6), 0.012),
                (0.21, 0.29, 0.003),
                picture(r, b.stock)[0],
            )
        )
    return parts


def _column(b: Builder, paint: Material) -> None:
    """A column, a chimney breast or a low wall."""
    r, height = b.r, b.size[1]
    w, d = r.uniform(0.2, 0.7), r.uniform(0.2, 0.5)
    low = r.random() < 0.25
    if low:
        w, d = r.uniform(0.8, 1.8), r.uniform(0.1, 0.2)
    h = r.uniform(0.9, 1.3) if low else height
    piece = Piece(
        "column",
        (w, h, d),
        (block((0, 0, 0), (w, h, d), paint),),
        (),
        ((-w / 2, -d / 2, w / 2, d / 2, h, 1.0),) if low else (),
    )
    if low or r.random() < 0.3:
        b.on_floor(piece, aligned=True, tries=4)
    else:
        b.along_wall(piece, tries=4, gap=0.0)
