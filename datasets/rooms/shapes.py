"""Unit shapes that parametric furniture is made of: boxes, cylinders, cushions, plants, rows of books, fruit.

Every shape is an `Asset` of size 1 x 1 x 1 with the pack's conventions: x and z centred, base at y = 0. An
instance's scale is therefore its size in metres. Shapes with colours of their own (plants, books, fruit)
carry them at the vertices; the others are white, for their instance's material.
"""

from __future__ import annotations

import itertools

import numpy as np

from .assets import Asset, Level

CUBE, CYLINDER, TAPER, SPHERE, CUSHION, BASKET, BAG = (
    "cube",
    "cylinder",
    "taper",
    "sphere",
    "cushion",
    "basket",
    "bag",
)
PLANTS = tuple(f"plant{index}" for index in range(8))
BOOKS = tuple(f"books{index}" for index in range(8))
FRUITS = tuple(f"fruit{index}" for index in range(6))


def unit_shapes() -> tuple[Asset, ...]:
    """All shapes, always in the same order and with the same geometry."""
    rng = np.random.default_rng(20230)
    meshes = {
        CUBE: _cube(),
        CYLINDER: _revolve([(0, 0), (0.5, 0), (0.5, 1), (0, 1)], 20),
        TAPER: _revolve([(0, 0), (0.36, 0), (0.5, 1), (0, 1)], 20),
        SPHERE: _sphere(16, 10),
        CUSHION: _superellipsoid(0.35),
        BASKET: _revolve([(0, 0), (0.38, 0), (0.5, 1), (0.46, 1), (0.36, 0.12), (0, 0.12)], 20),
        BAG: _crumpled(rng),
    }
    meshes.update({name: _plant(rng, index) for index, name in enumerate(PLANTS)})
    meshes.update({name: _books(rng) for name in BOOKS})
    meshes.update({name: _fruit(rng) for name in FRUITS})
    grids = {CYLINDER: (2, 21, 0), TAPER: (2, 21, 0), BASKET: (2, 21, 0), SPHERE: (11, 17, 0)}
    grids |= {CUSHION: (15, 25, 0), BAG: (13, 21, 0), **dict.fromkeys(FRUITS, (8, 11, 0))}
    grids |= {name: (4, 2, 14 if index % 2 == 0 else 0) for index, name in enumerate(PLANTS)}
    return tuple(_asset(name, grids.get(name), *mesh) for name, mesh in meshes.items())


def _asset(name, grid, positions, normals, uvs, faces, colours=None) -> Asset:
    """`grid`: rows and columns of the grids of vertices that the shape consists of, vertices of no grid."""
    count = len(positions)
    if colours is None:
        colours = np.full((count, 3), 255)
    return Asset(
        name=f"shape/{name}",
        title=name,
        category="Shapes",
        placement="floor",
        role="shape",
        size=(1.0, 1.0, 1.0),
        elevation=0.0,
        creator="scenediff",
        licence="Apache-2.0",
        split="train",
        support=(),
        positions=np.asarray(positions, np.float32),
        normals=np.asarray(normals, np.float32),
        uvs=np.asarray(uvs, np.float32),
        colours=np.asarray(colours, np.uint8),
        texture_layer=np.full(count, -1, np.int16),
        gloss=np.full(count, 20, np.uint8),
        faces=np.asarray(faces, np.int32),
        levels=() if grid is None else tuple(_thinned(positions, normals, faces, grid, n) for n in (2, 4)),
    )


def _thinned(
    positions: np.ndarray,
    normals: np.ndarray,
    faces: np.ndarray,
    grid: tuple[int, int, int],
    step: int,
) -> Level:
    """The level with every `step`-th row and column, and the last ones, of a shape's grids of vertices.

    `grid` is rows, columns, and how many vertices at the end, of a plant's stem, belong to no grid.
    """
    rows, columns, rest = grid
    grids = (len(positions) - rest) // (rows * columns)
    kept = [np.unique([*range(0, count, step), count - 1]) for count in (rows, columns)]
    between = [
        np.stack([np.interp(np.arange(count), some, one) for one in np.eye(len(some))], 1)
        for count, some in zip((rows, columns), kept, strict=True)
    ]
    fine = positions[: grids * rows * columns].reshape(grids, rows, columns, 3)
    coarse = fine[:, kept[0]][:, :, kept[1]]
    moved = np.einsum("ri,cj,gijk->grck", *between, coarse) - fine
    error = np.abs((moved * normals[: grids * rows * columns].reshape(fine.shape)).sum(-1))  # not: slid along
    one = (kept[0][:, None] * columns + kept[1]).ravel()[_grid_faces(len(kept[0]), len(kept[1]))]
    many = (np.arange(grids)[:, None, None] * rows * columns + one).reshape(-1, 3)
    others = faces[faces.min(1) >= grids * rows * columns]
    return Level(np.concatenate([many, others]).astype(np.int32), float(np.quantile(error, 0.98)))


def _cube():
    """Six faces with uv 0..1 each, upright on the four sides and with v toward -z on the top."""
    right = np.array([[1, 0, 0], [-1, 0, 0], [0, 0, -1], [0, 0, 1], [1, 0, 0], [1, 0, 0]], float)
    up = np.array([[0, 1, 0], [0, 1, 0], [0, 1, 0], [0, 1, 0], [0, 0, -1], [0, 0, 1]], float)
    out = np.cross(right, up)
    corner = np.array([[-0.5, -0.5], [0.5, -0.5], [0.5, 0.5], [-0.5, 0.5]])
    positions = (
        corner[:, :1] * right[:, None] + corner[:, 1:] * up[:, None] + 0.5 * out[:, None] + [0, 0.5, 0]
    )
    faces = (np.arange(6)[:, None, None] * 4 + np.array([[0, 1, 2], [0, 2, 3]])).reshape(-1, 3)
    return positions.reshape(-1, 3), np.repeat(out, 4, 0), np.tile(corner + 0.5, (6, 1)), faces


def _grid_faces(rows: int, columns: int) -> np.ndarray:
    i, j = np.meshgrid(np.arange(rows - 1), np.arange(columns - 1), indexing="ij")
    a = (i * columns + j).ravel()
    return np.stack([a, a + 1, a + columns + 1, a, a + columns + 1, a + columns], 1).reshape(-1, 3)


def _revolve(profile, sides: int):
    """A surface of revolution about y; every segment of the (radius, height) profile is shaded on its own."""
    angle = np.linspace(0, 2 * np.pi, sides + 1)
    circle = np.stack([np.cos(angle), np.sin(angle)], 1)
    positions, normals, uvs, faces = [], [], [], []
    for index, ((r0, y0), (r1, y1)) in enumerate(itertools.pairwise(profile)):
        slope = np.array([y1 - y0, r0 - r1]) / np.hypot(y1 - y0, r1 - r0)
        for radius, height, v in ((r0, y0, 0.0), (r1, y1, 1.0)):
            positions.append(
                np.stack([circle[:, 0] * radius, np.full(sides + 1, height), circle[:, 1] * radius], 1)
            )
            normals.append(
                np.stack([circle[:, 0] * slope[0], np.full(sides + 1, slope[1]), circle[:, 1] * slope[0]], 1)
            )
            uvs.append(np.stack([angle / (2 * np.pi), np.full(sides + 1, v)], 1))
        faces.append(_grid_faces(2, sides + 1) + index * 2 * (sides + 1))
    return tuple(np.concatenate(part) for part in (positions, normals, uvs, faces))


def _sphere(columns: int, rows: int):
    polar = np.linspace(0, np.pi, rows + 1)[:, None]
    angle = np.linspace(0, 2 * np.pi, columns + 1)[None]
    normals = np.stack(
        [np.sin(polar) * np.cos(angle), -np.cos(polar) + 0 * angle, np.sin(polar) * np.sin(angle)], -1
    )
    uvs = np.stack([angle / (2 * np.pi) + 0 * polar, polar / np.pi + 0 * angle], -1)
    normals = normals.reshape(-1, 3)
    return normals / 2 + [0, 0.5, 0], normals, uvs.reshape(-1, 2), _grid_faces(rows + 1, columns + 1)


def _superellipsoid(power: float):
    _, sphere, uvs, faces = _sphere(24, 14)
    positions = np.sign(sphere) * np.abs(sphere) ** power
    positions /= np.abs(positions).max(0)
    normals = np.sign(sphere) * np.abs(sphere) ** (2 - power)
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    return positions / 2 + [0, 0.5, 0], normals, uvs, faces


def _smooth_normals(positions, faces):
    corners = positions[faces]
    face_normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normals = np.zeros_like(positions)
    for k in range(3):
        np.add.at(normals, faces[:, k], face_normals)
    return normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-9)


def _fit(positions):
    low, high = positions.min(0), positions.max(0)
    return (positions - (low + high) / 2) / (high - low) + [0, 0.5, 0]


def _crumpled(rng):
    """A plastic bag or a heap of cloth: a sphere pushed in and out."""
    _, sphere, uvs, faces = _sphere(20, 12)
    bumps = sum(
        0.25 / np.sqrt(k) * np.sin(sphere @ rng.normal(0, 1.2 * k, 3) + rng.uniform(0, 6.3))[:, None]
        for k in range(1, 7)
    )
    positions = _fit(sphere * (1 + 0.5 * bumps) * [1, 0.8, 1])
    return positions, _smooth_normals(positions, faces), uvs, faces


def _leaves(base, direction, length, width, bend):
    """Bent leaves: (n, 3) start points and unit directions, (n,) lengths and widths, bent down by `bend`."""
    t = np.array([0.0, 0.35, 0.7, 1.0])
    profile = np.array([0.35, 1.0, 0.8, 0.05])
    side = np.cross(direction, [0.0, 1.0, 0.0])
    side /= np.maximum(np.linalg.norm(side, axis=1, keepdims=True), 1e-6)
    spine = base[:, None] + direction[:, None] * (t * length[:, None])[..., None]
    spine = spine - np.array([0, 1, 0]) * (bend[:, None] * length[:, None] * t**2)[..., None]
    half = side[:, None] * (width[:, None] * profile)[..., None] / 2
    positions = np.stack([spine - half, spine + half], 2)
    tangent = np.gradient(spine, axis=1)
    normals = np.cross(side[:, None], tangent)
    normals = np.repeat((normals / np.linalg.norm(normals, axis=-1, keepdims=True))[:, :, None], 2, 2)
    strip = np.array([[0, 1, 3], [0, 3, 2]])
    faces = np.concatenate([strip + 2 * k for k in range(3)])
    faces = (np.arange(len(base))[:, None, None] * 8 + faces).reshape(-1, 3)
    return positions.reshape(-1, 3), normals.reshape(-1, 3), faces


def _plant(rng, index: int):
    """Leaves without a pot. Even kinds branch from stems up the height, odd ones fan out from the base."""
    count = int(rng.integers(70, 150))
    angle = rng.uniform(0, 2 * np.pi, count)
    if index % 2 == 0:
        height = rng.uniform(0.15, 0.9, count)
        stem = rng.normal(0, 0.05, (count, 2))
        base = np.stack([stem[:, 0], height, stem[:, 1]], 1)
        rise = rng.normal(0.25, 0.35, count)
        length = rng.uniform(0.2, 0.42, count) * (1.1 - 0.5 * np.abs(height - 0.5))
        width = length * rng.uniform(0.12, 0.55)
    else:
        base = np.concatenate(
            [rng.normal(0, 0.04, (count, 1)), np.zeros((count, 1)), rng.normal(0, 0.04, (count, 1))], 1
        )
        rise = np.abs(rng.normal(rng.uniform(0.6, 2.5), 0.7, count))
        length = rng.uniform(0.4, 1.0, count)
        width = length * rng.uniform(0.05, 0.2)
    direction = np.stack([np.cos(angle), rise, np.sin(angle)], 1)
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    bend = rng.uniform(0.05, 0.6, count)
    positions, normals, faces = _leaves(base, direction, length, width, bend)
    green = np.array([rng.uniform(30, 110), rng.uniform(80, 150), rng.uniform(20, 70)])
    colours = np.repeat(green * rng.uniform(0.45, 1.25, (count, 1)), 8, 0)
    if index % 2 == 0:
        stem_mesh = _revolve([(0.02, 0), (0.012, 0.85)], 6)
        faces = np.concatenate([faces, stem_mesh[3] + len(positions)])
        positions = np.concatenate([positions, stem_mesh[0]])
        normals = np.concatenate([normals, stem_mesh[1]])
        colours = np.concatenate([colours, np.full((len(stem_mesh[0]), 3), [90, 70, 45])])
    low = positions[:, 1].min()
    positions = positions - [0, min(low, 0), 0]
    return _fit(positions), normals, np.zeros((len(positions), 2)), faces, np.clip(colours, 0, 255)


def _boxes(low, high, colours):
    """Many axis-aligned boxes with a colour each."""
    cube, normals, uvs, faces = _cube()
    positions = low[:, None] + (cube + np.array([0.5, 0, 0.5])) * (high - low)[:, None]
    offsets = np.arange(len(low))[:, None, None] * len(cube)
    return (
        positions.reshape(-1, 3),
        np.tile(normals, (len(low), 1)),
        np.tile(uvs, (len(low), 1)),
        (faces + offsets).reshape(-1, 3),
        np.repeat(colours, len(cube), 0),
    )


def _books(rng):
    count = int(rng.integers(8, 18))
    edges = np.concatenate([[0], np.cumsum(rng.uniform(0.4, 1.6, count))])
    edges = edges / edges[-1] - 0.5
    low = np.stack([edges[:-1], np.zeros(count), rng.uniform(-0.5, -0.4, count)], 1)
    high = np.stack([edges[1:] - 0.004, rng.uniform(0.6, 1, count), rng.uniform(0.1, 0.5, count)], 1)
    low[0, 2], high[0, 1], high[0, 2], high[-1, 0] = -0.5, 1, 0.5, 0.5
    colours = rng.choice([30, 60, 110, 170, 230], (count, 3)) * rng.uniform(0.6, 1, (count, 1))
    if rng.random() < 0.4:  # a row of files: all alike
        colours[:] = colours[0] * rng.uniform(0.9, 1.1, (count, 1))
        low[:, 2], high[:, 1], high[:, 2] = -0.5, 1, 0.5
    return _boxes(low, high, np.clip(colours, 0, 255))


def _fruit(rng):
    """A heap of fruit, about half as high as wide."""
    sphere, normals, uvs, faces = _sphere(10, 7)
    count = int(rng.integers(9, 26))
    diameter = rng.uniform(0.2, 0.34) if count < 16 else rng.uniform(0.14, 0.22)
    angle, radius = rng.uniform(0, 6.3, count), np.sqrt(rng.uniform(0, 1, count)) * (0.5 - diameter / 2)
    centre = np.stack(
        [radius * np.cos(angle), 0.4 * (1 - 2 * radius) * rng.uniform(0, 1, count), radius * np.sin(angle)], 1
    )
    palette = np.array(
        [[200, 40, 30], [110, 170, 40], [240, 150, 20], [235, 205, 50], [90, 20, 60], [220, 190, 120]]
    )
    colours = palette[rng.choice(len(palette), 3)][rng.integers(0, 3, count)] * rng.uniform(
        0.75, 1.1, (count, 1)
    )
    positions = (centre[:, None] + sphere * diameter).reshape(-1, 3)
    faces = (np.arange(count)[:, None, None] * len(sphere) + faces).reshape(-1, 3)
    colours = np.repeat(np.clip(colours, 0, 255), len(sphere), 0)
    return _fit(positions), np.tile(normals, (count, 1)), np.tile(uvs, (count, 1)), faces, colours
