"""Procedural pictures: posters and paintings for walls, and views out of windows.

Every picture is a function of a random generator and a size, and returns an image (size, size, 3) in 0..1. It
is meant to be stretched to the size in metres given beside it.
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable
from functools import partial

import numpy as np

Picture = Callable[[np.random.Generator, int], np.ndarray]


def palette(rng: np.random.Generator, count: int) -> np.ndarray:
    """(count, 3) colours that go together: one or two hues, many lightnesses."""
    hue, spread = rng.uniform(), rng.choice([0.04, 0.1, 0.5])
    colours = [
        colorsys.hls_to_rgb(
            (hue + spread * rng.choice([0, 1]) + 0.02 * rng.normal()) % 1, light, rng.uniform(0.1, 0.75)
        )
        for light in rng.permutation(np.linspace(0.15, 0.9, count))
    ]
    return np.array(colours)


def clouds(rng: np.random.Generator, size: int, exponent: float = 1.7, stretch: float = 1.0) -> np.ndarray:
    """Smooth noise (size, size), mean 0, deviation 1; `stretch` draws it out along x."""
    u, v = np.meshgrid(np.fft.fftfreq(size) * stretch, np.fft.fftfreq(size))
    frequency = np.hypot(u, v)
    frequency[0, 0] = np.inf
    noise = np.fft.ifft2(np.fft.fft2(rng.normal(size=(size, size))) * frequency**-exponent).real
    return noise / noise.std()


def ridge(rng: np.random.Generator, size: int, roughness: float = 1.3) -> np.ndarray:
    """A random skyline (size,), mean 0, deviation 1."""
    frequency = np.arange(size // 2 + 1, dtype=float)
    frequency[0] = np.inf
    phases = np.exp(2j * np.pi * rng.uniform(size=len(frequency)))
    line = np.fft.irfft(phases * frequency**-roughness, size)
    return line / line.std()


def gradient(top: np.ndarray, bottom: np.ndarray, size: int) -> np.ndarray:
    """(size, size, 3) from one colour to another, top to bottom."""
    t = np.linspace(0, 1, size)[:, None, None]
    return np.ones((size, size, 1)) * ((1 - t) * top + t * bottom)


def over(image: np.ndarray, mask: np.ndarray, colour: np.ndarray) -> np.ndarray:
    """The image with a colour, or another image, laid over it where `mask` (size, size) is 1."""
    return image + mask[..., None] * (colour - image)


def grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates x, y (size, size) in 0..1, y downward."""
    y, x = (np.indices((size, size)) + 0.5) / size
    return x, y


def soft(distance: np.ndarray, width: float = 0.004) -> np.ndarray:
    """1 where a signed distance is negative, 0 where positive, with a soft edge."""
    return np.clip(0.5 - distance / width, 0, 1)


def landscape(rng: np.random.Generator, size: int, layers: int = 5, water: bool = False) -> np.ndarray:
    """Hazy mountain ranges below a sky, the nearer the darker; maybe mirrored in a lake."""
    x, y = grid(size)
    hue, warm = rng.uniform(0.5, 0.68), rng.uniform()
    far = np.array(colorsys.hls_to_rgb(rng.uniform(0.04, 0.12) if warm < 0.5 else hue, 0.82, 0.6))
    near = np.array(colorsys.hls_to_rgb(rng.choice([hue, 0.3, 0.38]), 0.15, 0.4))
    image = gradient(np.array(colorsys.hls_to_rgb(hue, 0.6, 0.5)), far, size)
    image = over(image, 0.35 * np.clip(clouds(rng, size, 1.6, 2.5), 0, 1), np.ones(3))
    sun = soft(np.hypot(x - rng.uniform(0.2, 0.8), y - 0.3) - 0.05)
    image = over(image, sun * (warm < 0.6), np.array([1.0, 0.95, 0.8]))
    horizon = 0.62 if water else 1.0
    for layer in range(layers):
        depth = (layer + 1) / layers
        base = horizon * (0.45 + 0.5 * depth**1.3)
        line = base - 0.07 * depth**0.5 * (1.2 - 0.5 * depth) * ridge(rng, size, 1.1 + 0.4 * rng.uniform())
        colour = far * (1 - depth) * 0.9 + near * depth
        texture = 1 + 0.08 * depth * clouds(rng, size, 1.0)
        image = over(image, soft(line[None] - y), colour * texture[..., None])
    if water:
        rows = np.clip((2 * horizon - y[:, 0]) * size, 0, size - 1).astype(int)
        mirrored = image[rows] * 0.8 + 0.02 * clouds(rng, size, 0.8, 20.0)[..., None]
        image = np.where((y > horizon)[..., None], mirrored, image)
    return image


def sea(rng: np.random.Generator, size: int) -> np.ndarray:
    """Sea and sky with a low sun."""
    x, y = grid(size)
    low = np.array(colorsys.hls_to_rgb(rng.uniform(0.0, 0.14), rng.uniform(0.6, 0.8), 0.8))
    high = np.array(colorsys.hls_to_rgb(rng.uniform(0.55, 0.75), rng.uniform(0.3, 0.6), 0.5))
    horizon, sun = rng.uniform(0.45, 0.65), rng.uniform(0.25, 0.75)
    image = gradient(high, low, size)
    image = over(image, 0.5 * np.clip(clouds(rng, size, 1.6, 4.0) - 0.2, 0, 1), low * 0.7 + 0.3)
    image = over(image, soft(np.hypot(x - sun, (y - horizon + 0.08)) - 0.06), np.array([1.0, 0.93, 0.75]))
    waves = clouds(rng, size, 1.0, 12.0)
    glitter = np.clip(waves * np.exp(-(((x - sun) / (0.05 + 0.4 * (y - horizon))) ** 2)), 0, 1)
    water = high * 0.6 * (1 + 0.12 * waves[..., None]) + glitter[..., None] * low
    return np.where((y > horizon)[..., None], water, image)


def colour_field(rng: np.random.Generator, size: int) -> np.ndarray:
    """Large soft-edged blocks of colour, one above the other."""
    x, y = grid(size)
    colours = palette(rng, 4)
    image = np.ones((size, size, 1)) * colours[0]
    edges = np.sort(rng.uniform(0.1, 0.9, 2))
    wobble = 0.012 * clouds(rng, size, 1.2)
    for top, bottom, colour in (
        (0.06, edges[0], colours[1]),
        (edges[0] + 0.04, edges[1], colours[2]),
        (edges[1] + 0.04, 0.94, colours[3]),
    ):
        inside = np.maximum(np.maximum(0.07 - x, x - 0.93), np.maximum(top - y, y - bottom)) + wobble
        image = over(image, 0.9 * soft(inside, 0.03), colour)
    return image * (1 + 0.04 * clouds(rng, size, 1.0))[..., None]


def primary_blocks(rng: np.random.Generator, size: int) -> np.ndarray:
    """Rectangles between black bars, a few of them in plain colours."""
    x, y = grid(size)
    columns = np.concatenate([[0], np.sort(rng.uniform(0.1, 0.9, rng.integers(2, 5))), [1]])
    rows = np.concatenate([[0], np.sort(rng.uniform(0.1, 0.9, rng.integers(2, 5))), [1]])
    column, row = np.searchsorted(columns, x) - 1, np.searchsorted(rows, y) - 1
    colours = np.array(
        [[0.93, 0.91, 0.85]] * 5 + [[0.8, 0.12, 0.1], [0.1, 0.25, 0.6], [0.95, 0.8, 0.15], [0.1, 0.1, 0.1]]
    )
    image = colours[rng.integers(0, len(colours), (8, 8))][row, column]
    bars = np.minimum(np.abs(x[..., None] - columns).min(-1), np.abs(y[..., None] - rows).min(-1))
    return over(image, soft(bars - 0.011), np.full(3, 0.08))


def circles(rng: np.random.Generator, size: int) -> np.ndarray:
    """Overlapping discs, rings and bars on a plain ground."""
    x, y = grid(size)
    colours = palette(rng, 6)
    image = np.ones((size, size, 1)) * (colours[0] * 0.2 + 0.75)
    for _ in range(rng.integers(4, 12)):
        radius = rng.uniform(0.04, 0.25)
        distance = np.hypot(x - rng.uniform(), y - rng.uniform()) - radius
        if rng.uniform() < 0.3:
            distance = np.abs(distance) - 0.012
        if rng.uniform() < 0.25:
            angle = rng.uniform(0, np.pi)
            distance = (
                np.abs((x - rng.uniform()) * np.cos(angle) + (y - rng.uniform()) * np.sin(angle)) - 0.02
            )
        image = over(image, 0.85 * soft(distance), colours[rng.integers(1, 6)])
    return image


def strokes(rng: np.random.Generator, size: int) -> np.ndarray:
    """Thick paint drawn out along a bent flow."""
    colours = palette(rng, 6)
    bend = clouds(rng, size, 2.2)
    rows = np.clip(np.arange(size)[:, None] + 0.12 * size * bend, 0, size - 1).astype(int)
    paint = clouds(rng, size, 1.1, rng.choice([0.05, 0.12, 3.0]))[rows, np.arange(size)[None]]
    level = (paint - paint.min()) / np.ptp(paint) * 4.99
    low = np.floor(level).astype(int)
    mix = np.clip((level - low) * 3 - 1, 0, 1)[..., None]
    return (colours[low] * (1 - mix) + colours[low + 1] * mix) * (1 + 0.05 * clouds(rng, size, 0.6))[
        ..., None
    ]


def lettering(rng: np.random.Generator, size: int) -> np.ndarray:
    """A poster: a big sign or picture and lines of large and small type."""
    x, y = grid(size)
    colours = palette(rng, 4)
    ground, ink = (
        (colours[0] * 0.3 + 0.65, colours[1] * 0.35)
        if rng.uniform() < 0.6
        else (colours[0] * 0.4, colours[1] * 0.3 + 0.7)
    )
    image = np.ones((size, size, 1)) * ground
    top = rng.uniform(0.08, 0.5)
    if top > 0.3:
        motif = _pick(rng, circles, strokes, landscape)(rng, size)
        box = np.maximum(np.maximum(0.1 - x, x - 0.9), np.maximum(0.08 - y, y - top))
        image = over(image, soft(box), motif)
        top += 0.05
    while top < 0.9:
        height = rng.choice([0.015, 0.02, 0.05, 0.09], p=[0.35, 0.25, 0.25, 0.15])
        image = over(image, _type_line(rng, x, y, top, height), colours[2] if height > 0.04 else ink)
        top += height * rng.uniform(1.4, 2.2)
    return image


def _type_line(
    rng: np.random.Generator, x: np.ndarray, y: np.ndarray, top: float, height: float
) -> np.ndarray:
    """Coverage of one line of make-believe letters: each a few strokes of a seven-segment-like cell."""
    width = 0.65 * height
    count = int(rng.uniform(0.4, 0.8) / width)
    place = (x - 0.1) / width
    letter = np.clip(np.floor(place).astype(int), 0, count - 1)
    u, v = (place - letter) / 0.8, (y - top) / height
    parts = rng.uniform(size=(count, 6)) < 0.55
    blank = rng.uniform(size=count) < 0.15
    bars = [
        np.abs(u - 0.12),
        np.abs(u - 0.88),
        np.abs(v - 0.1),
        np.abs(v - 0.5),
        np.abs(v - 0.9),
        np.abs(u - v),
    ]
    cover = sum(((bar < 0.13) & parts[letter, n]) for n, bar in enumerate(bars)) > 0
    inside = (u > 0) & (u < 1) & (v > 0) & (v < 1) & (place >= 0) & (place < count) & ~blank[letter]
    return (cover & inside).astype(float)


def botanical(rng: np.random.Generator, size: int) -> np.ndarray:
    """Leaves on a stem, on paper."""
    x, y = grid(size)
    image = (
        np.ones((size, size, 1)) * np.array([0.95, 0.93, 0.87]) * (1 + 0.015 * clouds(rng, size))[..., None]
    )
    hue, pairs = rng.uniform(0.2, 0.42), int(rng.integers(4, 9))
    bend = rng.normal(0, 0.12)
    stem = 0.5 + bend * np.sin(3 * (1 - y))
    image = over(image, soft(np.maximum(np.abs(x - stem) - 0.005, 0.12 - y)), np.array([0.25, 0.3, 0.15]))
    for n in range(pairs):
        level = 0.85 - 0.68 * n / pairs
        for side in (-1, 1):
            angle = rng.normal(0.7, 0.12) * side
            length, width = 0.3 * (1 - 0.6 * n / pairs), 0.09 * (1 - 0.5 * n / pairs)
            dx, dy = x - (0.5 + bend * np.sin(3 * (1 - level))), level - y
            along, across = dx * np.sin(angle) + dy * np.cos(angle), dx * np.cos(angle) - dy * np.sin(angle)
            t = np.clip(along / length, 0, 1)
            leaf = np.abs(across) - width * np.sin(np.pi * t**0.8) * 0.7
            colour = np.array(colorsys.hls_to_rgb(hue + rng.normal(0, 0.02), rng.uniform(0.25, 0.45), 0.45))
            mask = soft(leaf) * (along > 0) * (along < length)
            image = over(image, mask, colour * (1 - 0.25 * soft(np.abs(across) - 0.002))[..., None])
    return image


def contours(rng: np.random.Generator, size: int) -> np.ndarray:
    """A map-like pattern of height lines."""
    colours = palette(rng, 3)
    height = clouds(rng, size, 2.3) * 3
    line = np.abs(height % 1 - 0.5)
    image = np.ones((size, size, 1)) * (0.25 * colours[0] + 0.7)
    return over(image, soft(line - 0.08, 0.06), colours[1] * 0.6)


def skyline(rng: np.random.Generator, size: int, night: bool = False) -> np.ndarray:
    """Rows of house fronts with windows before a sky, far ones paler."""
    x, y = grid(size)
    sky = np.array([0.04, 0.06, 0.14]) if night else np.array([0.62, 0.76, 0.9])
    haze = np.array([0.35, 0.25, 0.25]) if night else np.array([0.9, 0.92, 0.92])
    image = gradient(sky, haze, size)
    if not night:
        image = over(image, 0.5 * np.clip(clouds(rng, size, 1.6, 2.5), 0, 1), np.ones(3))
    for layer in range(3):
        depth = (layer + 1) / 3
        edges = np.sort(rng.uniform(0, 1, 6 + 10 // (layer + 1)))
        house = np.searchsorted(edges, x)
        tops = 0.75 - rng.uniform(0.05, 0.45, len(edges) + 1) * (1.1 - 0.35 * layer)
        body = np.array([0.12, 0.12, 0.16]) if night else rng.uniform(0.35, 0.8, 3)
        tone = rng.uniform(0.75, 1.15, len(edges) + 1)[house][..., None]
        colour = haze * (1 - depth) * 0.8 + body * tone * (0.2 + 0.8 * depth)
        columns, rows = 60 / (1 + layer), 48 / (1 + layer)
        pane = ((x * columns) % 1 > 0.35) & ((y * rows) % 1 > 0.4)
        lit = rng.uniform(size=(80, 80))[(y * rows).astype(int), (x * columns).astype(int)] < (
            0.35 if night else 0.9
        )
        glass = np.array([1.0, 0.8, 0.45]) if night else colour * 0.6
        front = over(colour * np.ones((size, size, 1)), (pane & lit) * (0.5 + 0.5 * depth), glass)
        image = over(image, (y > tops[house]).astype(float), front)
    return image


def facade(rng: np.random.Generator, size: int) -> np.ndarray:
    """The house across the street: storeys of windows with frames, sills and some curtains."""
    x, y = grid(size)
    wall = np.array(
        colorsys.hls_to_rgb(rng.uniform(0.02, 0.16), rng.uniform(0.45, 0.8), rng.uniform(0.1, 0.5))
    )
    image = wall * (1 + 0.04 * clouds(rng, size, 1.0))[..., None]
    columns, rows = rng.integers(3, 6), rng.integers(3, 5)
    u, v = (x * columns) % 1, (y * rows) % 1
    number = (np.floor(y * rows) * columns + np.floor(x * columns)).astype(int)
    box = np.maximum(np.abs(u - 0.5) - 0.27, np.abs(v - 0.5) - 0.34)
    image = over(image, soft(box - 0.045, 0.02), np.array([0.92, 0.92, 0.9]))
    glass = (
        rng.uniform(0.08, 0.45, columns * rows)[number][..., None] * np.array([0.85, 1.0, 1.15])
        + 0.25 * (1 - v)[..., None]
    )
    curtain = (rng.uniform(size=columns * rows) < 0.4)[number] & (np.abs(u - 0.5) > 0.12)
    image = over(image, soft(box, 0.02), np.where(curtain[..., None], 0.8, glass))
    bars = np.minimum(np.abs(u - 0.5), np.abs(v - 0.38))
    image = over(image, soft(bars - 0.015, 0.01) * soft(box, 0.02), np.array([0.92, 0.92, 0.9]))
    return over(image, soft(np.maximum(np.abs(u - 0.5) - 0.36, np.abs(v - 0.89) - 0.02), 0.01), wall * 0.7)


def trees(rng: np.random.Generator, size: int, season: str = "summer", dense: bool = False) -> np.ndarray:
    """Foliage against the sky, above a lawn; dense: foliage everywhere."""
    y = grid(size)[1]
    hues = {"summer": (0.2, 0.36), "autumn": (0.02, 0.13), "spring": (0.18, 0.28), "winter": (0.08, 0.1)}
    lowest, highest = hues[season]
    image = gradient(np.array([0.5, 0.7, 0.92]), np.array([0.9, 0.94, 0.97]), size)
    image = over(image, 0.7 * np.clip(clouds(rng, size, 1.6, 2.0), 0, 1), np.ones(3))
    lawn = (
        np.array(colorsys.hls_to_rgb(0.26, 0.38, 0.45)) if season != "winter" else np.array([0.9, 0.92, 0.95])
    )
    for layer in range(5):
        line = (0.25 if dense else 0.5) + 0.08 * layer - 0.13 * ridge(rng, size, 0.9)
        leaf = clouds(rng, size, 0.9)
        light = 0.22 + 0.05 * layer + 0.09 * leaf - 0.25 * np.clip(y - line[None], 0, 0.5)
        saturation = 0.1 if season == "winter" else 0.5
        low, high = (np.array(colorsys.hls_to_rgb(hue, 0.5, saturation)) for hue in (lowest, highest))
        hue_mix = np.clip(0.5 + 0.3 * clouds(rng, size, 1.5), 0, 1)[..., None]
        colour = (low * hue_mix + high * (1 - hue_mix)) * 2 * np.clip(light, 0.02, 0.6)[..., None]
        edge = y - line[None] - 0.03 * leaf
        image = over(image, soft(-edge) * (1.0 if season != "winter" else 0.6), colour)
    ground = y > (0.9 if dense else 0.8)
    return np.where(ground[..., None], lawn * (1 + 0.12 * clouds(rng, size, 0.5, 2.5))[..., None], image)


def bare_sky(
    rng: np.random.Generator, size: int, top: tuple[float, ...], bottom: tuple[float, ...], cloud: float
) -> np.ndarray:
    """Sky with some clouds above a low, distant tree line."""
    y = grid(size)[1]
    image = gradient(np.array(top), np.array(bottom), size)
    image = over(image, cloud * np.clip(clouds(rng, size, 1.7, 2.0) + 0.2, 0, 1), np.ones(3) * 0.97)
    line = 0.86 + 0.02 * ridge(rng, size, 0.8)
    return over(
        image, soft(line[None] - y), np.array(bottom) * 0.25 * (1 + 0.2 * clouds(rng, size, 0.8))[..., None]
    )


def photo_grey(rng: np.random.Generator, size: int) -> np.ndarray:
    """A black-and-white print with a vignette."""
    motif = _pick(rng, landscape, sea, facade, partial(trees, dense=True), skyline)(rng, size)
    x, y = grid(size)
    grey = motif.mean(-1, keepdims=True)
    grey = np.clip((grey - grey.mean()) * 1.3 + 0.5, 0, 1) * np.array([1.0, 0.98, 0.95])
    return grey * (1.05 - 0.9 * ((x - 0.5) ** 2 + (y - 0.5) ** 2))[..., None]


def still_life(rng: np.random.Generator, size: int) -> np.ndarray:
    """Shaded fruit and jars on a table before a dark wall."""
    x, y = grid(size)
    image = (
        gradient(palette(rng, 3)[0] * 0.5, palette(rng, 3)[0] * 0.6, size)
        * (1 + 0.1 * clouds(rng, size, 1.3))[..., None]
    )
    image = over(
        image, soft(0.7 - y), np.array([0.45, 0.3, 0.2]) * (1 + 0.1 * clouds(rng, size, 1.0, 10.0))[..., None]
    )
    for _ in range(rng.integers(4, 9)):
        radius, px = rng.uniform(0.06, 0.14), rng.uniform(0.15, 0.85)
        tall = rng.choice([1.0, 1.0, 2.0])
        py = rng.uniform(0.72, 0.85) - radius * tall
        dx, dy = (x - px) / radius, (y - py) / (radius * tall)
        shade = np.clip(0.55 - 0.35 * dx - 0.35 * dy, 0.1, 1)
        colour = np.array(colorsys.hls_to_rgb(rng.choice([0.0, 0.06, 0.12, 0.25, 0.6]), 0.5, 0.6))
        image = over(image, soft(np.hypot(dx, dy) - 1, 0.04), colour * 1.5 * shade[..., None])
    return image * (1 + 0.04 * clouds(rng, size, 0.7))[..., None]


def _pick(rng: np.random.Generator, *pictures: Picture) -> Picture:
    return pictures[rng.integers(len(pictures))]


def framed(rng: np.random.Generator, size: int, picture: Picture, aspect: float = 1.0) -> np.ndarray:
    """The picture within a mat (often) and a frame; aspect: width over height of the whole."""
    image = picture(rng, size)
    x, y = grid(size)
    edge = np.minimum(np.minimum(x, 1 - x) * aspect, np.minimum(y, 1 - y)) / min(1.0, aspect)
    frame, mat = rng.uniform(0.025, 0.06), rng.choice([0.0, 0.08, 0.12])
    colour = np.array(
        [[0.1, 0.1, 0.1], [0.9, 0.9, 0.88], [0.5, 0.35, 0.2], [0.3, 0.2, 0.13], [0.68, 0.55, 0.3]]
    )[rng.integers(5)]
    image = over(image, soft(edge - frame - mat), np.full(3, 0.93))
    image = over(
        image,
        soft(edge - frame),
        colour * (0.85 + 0.3 * np.sin(np.pi * np.clip(edge / frame, 0, 1)))[..., None],
    )
    return over(image, 0.5 * soft(np.abs(edge - frame) - 0.004), np.zeros(3))


_POSTERS: dict[str, tuple[Picture, int]] = {
    "landscape": (landscape, 5),
    "lake": (partial(landscape, water=True), 4),
    "sea": (sea, 5),
    "colour_field": (colour_field, 4),
    "blocks": (primary_blocks, 3),
    "circles": (circles, 5),
    "strokes": (strokes, 6),
    "lettering": (lettering, 7),
    "botanical": (botanical, 4),
    "contours": (contours, 2),
    "city": (skyline, 2),
    "city_night": (partial(skyline, night=True), 2),
    "grey": (photo_grey, 6),
    "still_life": (still_life, 3),
    "wood": (partial(trees, season="autumn", dense=True), 2),
    "street": (facade, 2),
}
_SIZES = ((0.4, 0.5), (0.5, 0.7), (0.7, 0.5), (0.9, 0.6), (0.6, 0.6), (0.3, 0.4), (1.2, 0.8), (0.6, 0.9))


_Row = tuple[str, str, tuple[float, float], int, Picture]


def _posters() -> list[_Row]:
    rows: list[_Row] = []
    for name, (picture, count) in _POSTERS.items():
        for number in range(count):
            width, height = _SIZES[len(rows) % len(_SIZES)]
            shown = partial(framed, picture=picture, aspect=width / height) if len(rows) % 4 else picture
            rows.append(("poster", f"{name}_{number}", (width, height), 40, shown))
    return rows


_VIEWS: dict[str, Picture] = {
    "sky_blue": partial(bare_sky, top=(0.3, 0.52, 0.85), bottom=(0.82, 0.9, 0.97), cloud=0.6),
    "sky_grey": partial(bare_sky, top=(0.72, 0.74, 0.77), bottom=(0.86, 0.87, 0.88), cloud=0.8),
    "sky_white": partial(bare_sky, top=(0.95, 0.96, 0.97), bottom=(0.98, 0.98, 0.98), cloud=0.5),
    "sky_dusk": partial(bare_sky, top=(0.16, 0.2, 0.42), bottom=(0.95, 0.6, 0.42), cloud=0.15),
    "night": partial(bare_sky, top=(0.02, 0.03, 0.07), bottom=(0.07, 0.08, 0.14), cloud=0.03),
    "trees": trees,
    "trees_dense": partial(trees, dense=True),
    "trees_autumn": partial(trees, season="autumn"),
    "trees_spring": partial(trees, season="spring", dense=True),
    "trees_winter": partial(trees, season="winter"),
    "street": facade,
    "street_far": partial(skyline),
    "yard": facade,
    "city": skyline,
    "city_night": partial(skyline, night=True),
    "mountains": partial(landscape, layers=6),
    "lake": partial(landscape, water=True),
    "sea": sea,
}

PICTURES: list[_Row] = [
    *_posters(),
    *(("outdoor", name, (6.0, 6.0), 0, view) for name, view in _VIEWS.items()),
]
"""Kind, name, size in metres, gloss and function of every picture."""
