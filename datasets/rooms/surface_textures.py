"""Procedural tileable textures of walls, floors, ceilings, fabrics and woods.

Every texture is a function of a random generator and a size, and returns an image (size, size, 3) in 0..1.
All of them repeat without a seam: noise is made in the Fourier domain, patterns divide the size evenly.
"""

from __future__ import annotations

import numpy as np

Colour = tuple[int, int, int]


def fractal_noise(
    rng: np.random.Generator, size: int, exponent: float = 1.0, stretch: float = 1.0, finest: float = 0.0
) -> np.ndarray:
    """Periodic noise (size, size), mean 0 and deviation 1, with amplitudes falling as frequency ** -exponent.

    stretch: how many times longer features are along x than along y; finest: cut-off, in pixels.
    """
    u, v = np.meshgrid(np.fft.fftfreq(size) * stretch, np.fft.fftfreq(size))
    frequency = np.hypot(u, v)
    frequency[0, 0] = 1.0
    spectrum = np.fft.fft2(rng.normal(size=(size, size))) * frequency**-exponent
    spectrum[0, 0] = 0.0
    noise = np.fft.ifft2(spectrum * np.exp(-((frequency * finest) ** 2))).real
    return (noise - noise.mean()) / noise.std()


def tinted(colour: Colour, lightness: np.ndarray) -> np.ndarray:
    """A plain colour times a lightness map (size, size) around 1."""
    return np.array(colour) / 255 * lightness[..., None]


def paint(rng: np.random.Generator, size: int, colour: Colour, roughness: float = 0.012) -> np.ndarray:
    """Painted plaster: slow uneven tone and a fine roller grain."""
    tone = fractal_noise(rng, size, 1.4) * roughness
    grain = fractal_noise(rng, size, 0.3, finest=1.5) * roughness
    return tinted(colour, 1 + tone + grain)


def stucco(rng: np.random.Generator, size: int, colour: Colour, depth: float = 0.06) -> np.ndarray:
    """Rough plaster, lit from above."""
    height = fractal_noise(rng, size, 1.3, finest=4)
    return tinted(colour, 1 + depth * (np.roll(height, 3, 0) - height) * 2 + 0.015 * fractal_noise(rng, size))


def concrete(rng: np.random.Generator, size: int, colour: Colour) -> np.ndarray:
    """Cloudy cement with pores."""
    pores = fractal_noise(rng, size, 0.4, finest=2) > 2.6
    return tinted(
        colour, 1 + 0.06 * fractal_noise(rng, size, 1.5) + 0.015 * rng.normal(size=(size, size)) - 0.2 * pores
    )


def grain(rng: np.random.Generator, size: int, warp: float = 0.5) -> np.ndarray:
    """Wood grain along x, mean 0 and about deviation 1: bent year rings, fibres and pores."""
    rows = np.arange(size)[:, None] / size
    bend = fractal_noise(rng, size, 1.8, stretch=6)
    rings = np.sin(2 * np.pi * (5 * rows + warp * bend)) + 0.5 * np.sin(2 * np.pi * (14 * rows + 1.4 * bend))
    fibres = fractal_noise(rng, size, 0.6, stretch=24)
    return 0.5 * rings + 0.6 * fibres + 0.5 * fractal_noise(rng, size, 1.5, stretch=5)


def wood(rng: np.random.Generator, size: int, colour: Colour, contrast: float = 0.09) -> np.ndarray:
    """One plain sheet of wood."""
    lightness = 1 + contrast * grain(rng, size)
    return _warm(tinted(colour, lightness), lightness)


def _warm(image: np.ndarray, lightness: np.ndarray) -> np.ndarray:
    """Dark wood is redder than light wood."""
    return image * (1 + (1 - lightness)[..., None] * np.array([0.1, -0.05, -0.25]))


def boards(
    rng: np.random.Generator,
    size: int,
    colour: Colour,
    rows: int,
    columns: int = 1,
    variety: float = 0.10,
    gap: float = 0.35,
    upright: bool = False,
) -> np.ndarray:
    """Boards along x (or upright), `rows` of them side by side and `columns` in a row, with dark joints."""
    y, x = np.indices((size, size)) / size
    row = np.floor(y * rows).astype(int)
    shift = rng.permutation(rows) / rows if columns > 1 else np.zeros(rows)
    place = (x * columns + shift[row]) % columns
    board = row * columns + np.floor(place).astype(int)
    across, along = (y * rows) % 1, place % 1
    joint = np.minimum(np.minimum(across, 1 - across) / rows, np.minimum(along, 1 - along) / columns) * size
    if columns == 1:
        joint = np.minimum(across, 1 - across) / rows * size
    image = _board_wood(rng, size, colour, board, rows * columns, variety)
    image = image * (1 - gap * np.exp(-((joint / 1.8) ** 2)))[..., None]
    return image.transpose(1, 0, 2) if upright else image


def _board_wood(
    rng: np.random.Generator, size: int, colour: Colour, board: np.ndarray, count: int, variety: float
) -> np.ndarray:
    """Wood whose tone and piece of grain change from board to board, (size, size) board numbers given."""
    texture = grain(rng, size)
    y, x = np.indices((size, size))
    dx, dy = rng.integers(0, size, (2, count))
    lightness = 1 + 0.08 * texture[(y + dy[board]) % size, (x + dx[board]) % size]
    lightness *= (1 + variety * rng.normal(size=count).clip(-2, 2))[board]
    hue = 1 + 0.025 * rng.normal(size=(count, 1)).clip(-2, 2) * (variety > 0.05) * np.array([1.0, 0.1, -1.4])
    return _warm(tinted(colour, lightness), lightness) * hue[board]


def herringbone(
    rng: np.random.Generator, size: int, colour: Colour, cells: int = 16, length: int = 4
) -> np.ndarray:
    """Herringbone parquet of blocks one cell wide and `length` cells long; 2 * length divides `cells`."""
    y, x = np.indices((size, size)) * cells / size
    column, row = np.floor(x).astype(int), np.floor(y).astype(int)
    step = (column - row) % (2 * length)
    flat = step < length
    start = np.where(flat, column - step, row + step - 2 * length + 1) % cells
    number = np.where(flat, row * cells + start, cells * cells + column * cells + start)
    across = np.where(flat, y, x) % 1
    along = np.where(flat, x - (column - step), y - (row + step - 2 * length + 1))
    joint = np.minimum(np.minimum(across, 1 - across), np.minimum(along, length - along)) * size / cells
    level = _board_wood(rng, size, colour, number, 2 * cells * cells, 0.1)
    upright = _board_wood(rng, size, colour, number.T, 2 * cells * cells, 0.1).transpose(1, 0, 2)
    image = np.where(flat[..., None], level, upright * 0.94)
    return image * (1 - 0.4 * np.exp(-((joint / 1.4) ** 2)))[..., None]


def basket_parquet(
    rng: np.random.Generator, size: int, colour: Colour, squares: int = 4, strips: int = 5
) -> np.ndarray:
    """Squares of parallel strips, turned by a right angle from one to the next; `squares` is even."""
    y, x = np.indices((size, size)) * squares / size
    turned = (np.floor(x) + np.floor(y)).astype(int) % 2 == 1
    across = np.where(turned, x, y) % 1 * strips
    number = (np.floor(y) * squares + np.floor(x)).astype(int) * strips + np.floor(across).astype(int)
    level = _board_wood(rng, size, colour, number, squares * squares * strips, 0.1)
    upright = _board_wood(rng, size, colour, number.T, squares * squares * strips, 0.1).transpose(1, 0, 2)
    joint = np.minimum(across % 1, 1 - across % 1) / strips
    joint = np.minimum(joint, np.minimum(np.minimum(x % 1, 1 - x % 1), np.minimum(y % 1, 1 - y % 1)))
    image = np.where(turned[..., None], upright * 0.93, level)
    return image * (1 - 0.4 * np.exp(-((joint * size / squares / 1.4) ** 2)))[..., None]


def tiles(
    rng: np.random.Generator,
    size: int,
    colours: tuple[Colour, ...],
    rows: int,
    columns: int,
    bond: float = 0.0,
    grout: Colour = (200, 198, 192),
    joint: float = 0.05,
    variety: float = 0.03,
    mottle: float = 0.02,
    checker: bool = False,
) -> np.ndarray:
    """Tiles or bricks with grout; `bond` shifts every second row by that part of a tile.

    joint: width of the grout as a part of the tile's height; mottle: uneven tone within a tile.
    """
    y, x = np.indices((size, size)) / size
    row = np.floor(y * rows).astype(int)
    place = (x * columns + bond * (row % 2)) % columns
    column = np.floor(place).astype(int)
    number = row * columns + column
    pick = (row + column) % len(colours) if checker else rng.integers(0, len(colours), rows * columns)[number]
    tone = 1 + variety * rng.normal(size=rows * columns).clip(-1.5, 1.5)[number]
    image = np.array(colours)[pick] / 255 * (tone + mottle * fractal_noise(rng, size, 1.2))[..., None]
    across, along = (y * rows) % 1, place % 1
    edge = np.minimum(np.minimum(across, 1 - across), np.minimum(along, 1 - along) * rows / columns)
    body = np.clip((edge - joint / 2) * size / rows / 1.5, 0, 1)[..., None]
    rim = 1 - 0.12 * np.exp(-(((edge - joint / 2) * rows * 2) ** 2) * 40)
    mortar = tinted(grout, 1 + 0.05 * fractal_noise(rng, size, 0.5))
    return body * image * rim[..., None] + (1 - body) * mortar


def stones(
    rng: np.random.Generator, size: int, colour: Colour, count: int = 40, variety: float = 0.15
) -> np.ndarray:
    """Rubble or crazy paving: Voronoi cells of random points."""
    nearest, gap = _voronoi(rng, size, count)
    tone = 1 + variety * rng.normal(size=count).clip(-2, 2)[nearest] + 0.08 * fractal_noise(rng, size, 1.1)
    hue = 1 + 0.05 * rng.normal(size=(count, 1)).clip(-2, 2) * np.array([1.0, 0.2, -1.2])
    body = np.clip((gap - 0.012) * 60, 0, 1)[..., None]
    return body * tinted(colour, tone) * hue[nearest] + (1 - body) * tinted((150, 145, 138), tone * 0 + 0.85)


def _voronoi(rng: np.random.Generator, size: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Number of the nearest of `count` random points at each pixel, and how much farther the second is."""
    y, x = np.indices((size, size)) / size
    points = rng.uniform(size=(count, 2))
    best, second, nearest = (
        np.full((2, size, size), np.inf)[0],
        np.full((size, size), np.inf),
        np.zeros_like(x, int),
    )
    for number, (px, py) in enumerate(points):
        distance = np.hypot((x - px + 0.5) % 1 - 0.5, (y - py + 0.5) % 1 - 0.5)
        closer = distance < best
        second = np.where(closer, best, np.minimum(second, distance))
        best, nearest = np.where(closer, distance, best), np.where(closer, number, nearest)
    return nearest, second - best


def marble(rng: np.random.Generator, size: int, colour: Colour, vein: Colour) -> np.ndarray:
    """Polished stone with veins along the zero lines of bent noise."""
    field = fractal_noise(rng, size, 1.7)
    veins = np.exp(-np.abs(field) * 9) * (0.4 + 0.3 * fractal_noise(rng, size, 1.5)).clip(0, 1)
    base = tinted(colour, 1 + 0.03 * fractal_noise(rng, size, 1.6))
    return base * (1 - veins[..., None]) + veins[..., None] * np.array(vein) / 255


def terrazzo(rng: np.random.Generator, size: int, colour: Colour) -> np.ndarray:
    """Stone chips in cement."""
    nearest, gap = _voronoi(rng, size, 150)
    chips = (rng.uniform(size=150) < 0.6)[nearest] & (gap > 0.018)
    tones = np.array([[225, 220, 210], [120, 110, 105], [190, 150, 120], [90, 95, 100], [235, 235, 230]])
    picked = tones[rng.integers(0, 5, 150)][nearest] / 255
    return np.where(chips[..., None], picked, tinted(colour, 1 + 0.02 * fractal_noise(rng, size)))


def carpet(rng: np.random.Generator, size: int, colour: Colour, depth: float = 0.12) -> np.ndarray:
    """Pile: dense tufts, brushed areas."""
    tufts = fractal_noise(rng, size, -0.3, finest=2.2) * depth
    return tinted(colour, 1 + tufts + 0.05 * fractal_noise(rng, size, 1.4)) * (
        1 + 0.02 * rng.normal(size=(size, size, 3))
    )


def linoleum(rng: np.random.Generator, size: int, colour: Colour) -> np.ndarray:
    """Marbled flecks drawn out along one direction."""
    flecks = fractal_noise(rng, size, 0.8, stretch=3) * 0.05
    return tinted(colour, 1 + flecks) * (1 + 0.015 * rng.normal(size=(size, size, 3)))


def weave(
    rng: np.random.Generator, size: int, warp: tuple[Colour, ...], weft: tuple[Colour, ...], threads: int = 64
) -> np.ndarray:
    """Cloth: warp and weft threads over and under, each set of colours in bands of equal width."""
    y, x = np.indices((size, size)) * threads / size
    over = (np.floor(x) + np.floor(y)).astype(int) % 2 == 0
    warp_band = (np.floor(x) * len(warp) // threads).astype(int)
    weft_band = (np.floor(y) * len(weft) // threads).astype(int)
    colour = np.where(over[..., None], np.array(warp)[warp_band], np.array(weft)[weft_band]) / 255
    thread = np.where(over, np.sin(np.pi * (x % 1)), np.sin(np.pi * (y % 1)))
    slub = (
        1
        + 0.04 * fractal_noise(rng, size, 0.8, stretch=12)
        + 0.04 * fractal_noise(rng, size, 0.8, stretch=12).T
    )
    return colour * (0.78 + 0.22 * thread)[..., None] * slub[..., None]


def leather(rng: np.random.Generator, size: int, colour: Colour) -> np.ndarray:
    """Grained hide: small cells with creases."""
    height = fractal_noise(rng, size, 0.2, finest=5)
    creases = np.exp(-np.abs(height) * 3)
    return tinted(colour, 1 - 0.18 * creases + 0.06 * fractal_noise(rng, size, 1.5))


def striped_paper(
    rng: np.random.Generator, size: int, colours: tuple[Colour, ...], repeats: int = 4
) -> np.ndarray:
    """Wallpaper with upright stripes."""
    place = np.arange(size) * repeats * len(colours) // size % len(colours)
    stripes = np.array(colours)[place] / 255 * np.ones((size, 1, 1))
    return stripes * paint(rng, size, (255, 255, 255), 0.01)


def ornament_paper(
    rng: np.random.Generator, size: int, ground: Colour, figure: Colour, repeats: int = 4
) -> np.ndarray:
    """Wallpaper with a mirrored curly figure, as on damask, repeated in a half drop."""
    cell = size // repeats
    noise = fractal_noise(rng, cell, 1.6, finest=3)
    noise = noise + noise[:, ::-1]
    figure_mask = np.tile(np.clip((np.abs(noise) - 0.7) * -4, 0, 1) * (noise > -0.4), (repeats, repeats))
    odd = np.arange(size) // cell % 2 == 1
    figure_mask[:, odd] = np.roll(figure_mask[:, odd], cell // 2, axis=0)
    base = paint(rng, size, ground, 0.008)
    return base + figure_mask[..., None] * (np.array(figure) - np.array(ground)) / 255


def dotted_paper(
    rng: np.random.Generator, size: int, ground: Colour, figures: tuple[Colour, ...], repeats: int = 6
) -> np.ndarray:
    """Wallpaper with small petalled motifs in staggered rows."""
    y, x = np.indices((size, size)) * repeats / size
    x = x + 0.5 * (np.floor(y).astype(int) % 2)
    number = (np.floor(y).astype(int) * repeats + np.floor(x).astype(int) % repeats) % (repeats * repeats)
    dx, dy = x % 1 - 0.5, y % 1 - 0.5
    petals = rng.integers(3, 7)
    radius = 0.26 + 0.12 * np.cos(petals * np.arctan2(dy, dx) + rng.uniform(0, 6))
    inside = np.clip((radius - np.hypot(dx, dy)) * size / repeats / 2, 0, 1)[..., None]
    colour = np.array(figures)[rng.integers(0, len(figures), repeats * repeats)][number] / 255
    return paint(rng, size, ground, 0.008) * (1 - inside) + inside * colour


def ceiling_panels(rng: np.random.Generator, size: int, colour: Colour) -> np.ndarray:
    """Acoustic ceiling panels with pin holes."""
    holes = fractal_noise(rng, size, 0.0, finest=2) > 2.0
    image = tiles(rng, size, (colour,), 2, 2, grout=(190, 190, 190), joint=0.03, variety=0.01, mottle=0.005)
    return image * (1 - 0.25 * holes)[..., None]
