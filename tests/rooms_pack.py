"""A tiny asset pack for the tests of rooms: boxes, and surfaces of flat colour or stripes."""

from __future__ import annotations

import numpy as np

from scenediff.datasets.rooms.assets import Asset, AssetPack, Support, Surface
from scenediff.datasets.rooms.shapes import unit_shapes

_ASSETS = (
    ("table", "dining_table", "floor", (1.4, 0.75, 0.8)),
    ("desk", "desk", "against_wall", (1.3, 0.74, 0.7)),
    ("chair", "chair", "floor", (0.45, 0.9, 0.5)),
    ("sofa", "sofa", "floor", (1.8, 0.8, 0.9)),
    ("shelf", "shelf", "against_wall", (0.9, 1.8, 0.3)),
    ("mug", "tableware", "top", (0.1, 0.1, 0.1)),
    ("clock", "clock", "wall", (0.3, 0.3, 0.05)),
    ("door", "door", "door", (0.9, 2.0, 0.1)),
    ("rug", "rug", "rug", (1.5, 0.01, 1.0)),
    ("plant", "plant", "floor", (0.5, 1.2, 0.5)),
)
_KINDS = ("wall", "floor", "ceiling", "fabric", "wood", "poster", "outdoor")


def tiny_pack() -> AssetPack:
    """Ten boxes and seven surfaces; texture 0 is red over blue, the others are grey with stripes."""
    cube = unit_shapes()[0]
    rng = np.random.default_rng(0)
    assets = []
    for name, role, placement, size in _ASSETS:
        top = Support(-size[0] / 2, -size[2] / 2, size[0] / 2, size[2] / 2, size[1], 10.0)
        support = (top,) if role in ("dining_table", "desk", "sofa", "shelf") else ()
        colours = np.tile(rng.integers(20, 240, 3), (len(cube.positions), 1)).astype(np.uint8)
        assets.append(
            Asset(
                f"test/{name}",
                name,
                "Test",
                placement,
                role,
                size,
                0.0,
                "scenediff",
                "Apache-2.0",
                "train",
                support,
                cube.positions * np.array(size, np.float32),
                cube.normals,
                cube.uvs,
                colours,
                cube.texture_layer,
                cube.gloss,
                cube.faces,
            )
        )
    textures = np.full((len(_KINDS), 32, 32, 3), 150, np.uint8)
    textures[:, :, ::4] = 90
    textures[0, :16], textures[0, 16:] = (200, 30, 30), (30, 30, 200)
    surfaces = tuple(
        Surface(f"{kind}/test", kind, layer, (1.0, 1.0), 40, "train") for layer, kind in enumerate(_KINDS)
    )
    return AssetPack(tuple(assets), surfaces, textures)
