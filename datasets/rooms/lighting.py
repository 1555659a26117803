"""What shines in a room: windows, the sun, ceiling lamps, and the light that they bounce around."""

from __future__ import annotations

import math

import numpy as np

from .builder import Builder, Hole, Wall
from .materials import any_colour, grey, metal, plain, scaled
from .pieces import Part, block
from .room import PLAIN, Colour, Light, Material, Panel
from .shapes import BASKET, CYLINDER, SPHERE


def add_daylight(b: Builder, wall: Wall, hole: Hole, sky: float) -> None:
    r = b.r
    w, h, u = hole.u1 - hole.u0, hole.y1 - hole.y0, (hole.u0 + hole.u1) / 2
    x, z = wall.point(u, -0.02)
    inward = (math.sin(wall.yaw), 0.0, math.cos(wall.yaw))
    along = (math.cos(wall.yaw) * w / 2, 0.0, -math.sin(wall.yaw) * w / 2)
    warm = r.uniform(-0.12, 0.12)
    tint = (0.95 + warm, 1.0, 1.08 - warm)
    b.panels.append(Panel((x, (hole.y0 + hole.y1) / 2, z), along, (0.0, h / 2, 0.0), scaled(tint, 0.6 * sky)))
    if sky < 0.1:
        return
    down = (inward[0] * 0.95, -0.3, inward[2] * 0.95)
    level = sky * w * h * 0.8
    b.lights.insert(0, Light((x, hole.y0 + 0.6 * h, z), down, scaled(tint, level), math.sqrt(w * h) / 2, 1.0))
    if r.random() < 0.18 and not any(light.far for light in b.lights):
        turn = wall.yaw + r.uniform(-0.8, 0.8)
        rise = r.uniform(0.3, 1.0)
        sun = (math.sin(turn) * math.cos(rise), -math.sin(rise), math.cos(turn) * math.cos(rise))
        strength = sky * r.uniform(2.0, 6.0)
        b.lights.insert(0, Light((0, 0, 0), sun, (strength, strength * 0.88, strength * 0.7), 0.0, 0.0, True))


def add_lamps(b: Builder, *, day: bool) -> None:
    """Ceiling lamps of one kind in a grid, on or off."""
    r = b.r
    width, height, depth = b.size
    on = r.random() < (0.5 if day else 1.0)
    level = r.uniform(4, 14) * math.sqrt(width * depth / 16) if on else 0.0
    warm = r.random()
    colour = (1.0, 0.78 + 0.2 * warm, 0.5 + 0.48 * warm)
    columns, rows = max(1, round(width / r.uniform(2.5, 4.5))), max(1, round(depth / r.uniform(2.5, 4.5)))
    if r.random() < 0.15:
        columns = rows = 1
    style = r.choice(("panel", "panel", "disc", "ball", "spots", "pendant", "bare"))
    each = level / math.sqrt(columns * rows)
    drop = r.uniform(0.3, 0.9) if style == "pendant" else 0.0
    lights = []
    for i in range(columns):
        for j in range(rows):
            x, z = (i + 0.5) / columns * width - width / 2, (j + 0.5) / rows * depth - depth / 2
            radius = _lamp(b, style, x, z, drop, each, colour)
            position = (x, height - drop - 0.35 if style in ("ball", "pendant") else height - 0.12, z)
            exponent = {"ball": 0.0, "spots": r.choice((3.0, 8.0)), "bare": 0.0}.get(style, 1.0)
            lights.append(Light(position, (0.0, -1.0, 0.0), scaled(colour, each), radius, exponent))
    if on:
        r.shuffle(lights)
        b.lights[1:1] = lights[:1]
        b.lights.extend(lights[1:])


def _lamp(b: Builder, style: str, x: float, z: float, drop: float, level: float, colour: Colour) -> float:
    """The lamp as one sees it; returns the radius of its light."""
    r, height = b.r, b.size[1]
    glow = Material(colour, PLAIN, emission=min(level * 2.0, 30.0))
    if style == "panel":
        w, d = r.choice(((0.6, 0.6), (1.2, 0.3), (1.2, 0.15)))
        parts = [block((0, -0.03, 0), (w, 0.03, d), glow)]
        radius = 0.3
        b.panels.append(
            Panel(
                (x, height - 0.04, z),
                (w / 2, 0, 0),
                (0, 0, d / 2),
                scaled(colour, level / (w * d)),
            )
        )
    elif style == "disc":
        parts, radius = [Part(CYLINDER, (0, -0.08, 0), (0.4, 0.08, 0.4), glow)], 0.2
    elif style == "ball":
        parts, radius = [Part(SPHERE, (0, -0.3, 0), (0.28, 0.28, 0.28), glow)], 0.15
    elif style == "spots":
        parts = [Part(CYLINDER, (0.15 * k, -0.12, 0), (0.07, 0.1, 0.07), metal(r)) for k in (-1, 1)]
        parts += [Part(CYLINDER, (0.15 * k, -0.125, 0), (0.06, 0.006, 0.06), glow) for k in (-1, 1)]
        parts.append(block((0, -0.03, 0), (0.8, 0.03, 0.03), plain(r, grey(0.05))))
        radius = 0.08
    elif style == "pendant":
        shade = plain(r, any_colour(r))
        parts = [Part(CYLINDER, (0, -drop, 0), (0.01, drop, 0.01), plain(r, grey(0.1)))]
        parts += [
            Part(BASKET, (0, -drop - 0.01, 0), (0.4, -0.22, 0.4), shade),
            Part(SPHERE, (0, -drop - 0.2, 0), (0.11, 0.11, 0.11), glow),
        ]
        radius = 0.15
    else:
        parts, radius = [Part(SPHERE, (0, -0.1, 0), (0.08, 0.1, 0.08), glow)], 0.1
    b.add_parts(parts, x, height, z, 0.0, b.new_object())
    return radius


def ambient_light(b: Builder) -> np.ndarray:
    """(6, 3) radiance bounced to a surface from +x, -x, +y, -y, +z, -z: the lights' flux, spread evenly."""
    r = b.r
    width, height, depth = b.size
    area = 2 * (width * height + depth * height + width * depth)
    walls, floor, ceiling = (np.array(b.albedo[name]) for name in ("walls", "floor", "ceiling"))
    mean = np.clip(0.5 * walls + 0.22 * floor + 0.22 * ceiling + 0.02, 0.05, 0.75)
    flux = np.zeros(3)
    for light in b.lights:
        spread = math.pi if light.exponent else 4 * math.pi
        flux += np.array(light.intensity) * (
            1.0 if light.far else spread * 2 / (1 + light.exponent) if light.exponent > 1 else spread
        )
    bounced = flux * mean / (area * (1 - mean)) / math.pi
    bounced = np.maximum(bounced * r.uniform(0.25, 1.0), flux.mean() * 0.0004)
    near = {"walls": walls, "floor": floor, "ceiling": ceiling}
    sides = ["walls", "walls", "ceiling", "floor", "walls", "walls"]
    gains = np.array([(near[side] / mean.mean() + 0.3) ** 0.6 * r.uniform(0.75, 1.25) for side in sides])
    return bounced * gains.clip(0.3, 1.8)
