"""The procedural surfaces of the asset pack: which there are, and how large they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
from tqdm import tqdm

from .pictures import PICTURES
from .surface_textures import (
    Colour,
    basket_parquet,
    boards,
    carpet,
    ceiling_panels,
    concrete,
    dotted_paper,
    herringbone,
    leather,
    linoleum,
    marble,
    ornament_paper,
    paint,
    stones,
    striped_paper,
    stucco,
    terrazzo,
    tiles,
    weave,
    wood,
)

Texture = Callable[[np.random.Generator, int], np.ndarray]

WHITE, CREAM, BEIGE, GREY, DARK = (
    (240, 238, 233),
    (233, 222, 200),
    (205, 188, 160),
    (165, 165, 163),
    (75, 75, 78),
)
OAK, PINE, WALNUT, CHERRY, EBONY = (181, 138, 92), (214, 176, 122), (112, 76, 50), (150, 82, 52), (66, 52, 44)
ASH, GREY_WOOD, TEAK, BIRCH = (206, 188, 160), (142, 132, 122), (158, 108, 66), (222, 200, 166)


_PAINTS: dict[str, Colour] = {
    "white": WHITE,
    "cream": CREAM,
    "beige": (222, 208, 186),
    "grey": (190, 190, 188),
    "dark_grey": (98, 100, 104),
    "light_blue": (176, 198, 212),
    "navy": (52, 68, 96),
    "sage": (168, 182, 156),
    "forest": (62, 88, 74),
    "yellow": (234, 212, 142),
    "terracotta": (186, 108, 78),
    "rose": (222, 186, 180),
    "lilac": (190, 178, 204),
    "teal": (88, 138, 140),
    "wine": (122, 52, 56),
    "mint": (196, 220, 204),
}
_BRICK_RED = ((150, 78, 58), (165, 92, 68), (135, 68, 54), (120, 66, 56))
_SLATE = ((82, 88, 92), (96, 100, 102), (70, 76, 82))
_TERRACOTTA = ((178, 104, 70), (188, 116, 80), (166, 94, 64))

_Row = tuple[str, str, tuple[float, float], int, Texture]
_TILEABLE: list[_Row] = [
    *(
        ("wall", f"paint_{name}", (2.0, 2.0), 12, partial(paint, colour=colour))
        for name, colour in _PAINTS.items()
    ),
    ("wall", "stucco_white", (1.5, 1.5), 5, partial(stucco, colour=WHITE)),
    ("wall", "stucco_ochre", (1.5, 1.5), 5, partial(stucco, colour=(214, 178, 122))),
    ("wall", "concrete", (2.4, 2.4), 20, partial(concrete, colour=(158, 156, 152))),
    (
        "wall",
        "brick_red",
        (1.0, 1.0),
        5,
        partial(
            tiles, colours=_BRICK_RED, rows=12, columns=4, bond=0.5, joint=0.16, variety=0.06, mottle=0.07
        ),
    ),
    (
        "wall",
        "brick_white",
        (1.0, 1.0),
        10,
        partial(
            tiles,
            colours=((228, 226, 220),),
            rows=12,
            columns=4,
            bond=0.5,
            grout=(205, 203, 198),
            joint=0.14,
            mottle=0.04,
        ),
    ),
    (
        "wall",
        "brick_brown",
        (1.0, 1.0),
        5,
        partial(
            tiles,
            colours=((112, 88, 70), (128, 100, 78), (98, 78, 64)),
            rows=12,
            columns=4,
            bond=0.5,
            joint=0.15,
            variety=0.06,
            mottle=0.07,
        ),
    ),
    ("wall", "rubble", (1.6, 1.6), 5, partial(stones, colour=(158, 148, 132))),
    (
        "wall",
        "metro_tiles",
        (0.6, 0.6),
        150,
        partial(tiles, colours=((238, 238, 234),), rows=6, columns=3, bond=0.5, joint=0.06),
    ),
    (
        "wall",
        "green_tiles",
        (0.6, 0.6),
        150,
        partial(tiles, colours=((70, 112, 96), (78, 122, 104)), rows=6, columns=6, joint=0.07),
    ),
    (
        "wall",
        "blue_mosaic",
        (0.5, 0.5),
        140,
        partial(
            tiles, colours=((86, 128, 160), (120, 160, 184), (168, 196, 208)), rows=16, columns=16, joint=0.12
        ),
    ),
    (
        "wall",
        "beige_tiles",
        (1.2, 1.2),
        110,
        partial(tiles, colours=((214, 200, 176),), rows=4, columns=2, joint=0.03, mottle=0.05),
    ),
    ("wall", "panelling_pine", (1.2, 1.2), 40, partial(boards, colour=PINE, rows=10, upright=True)),
    ("wall", "panelling_walnut", (1.6, 1.6), 50, partial(boards, colour=WALNUT, rows=8, upright=True)),
    (
        "wall",
        "panelling_white",
        (1.0, 1.0),
        40,
        partial(boards, colour=(236, 234, 228), rows=10, upright=True, variety=0.01, gap=0.3),
    ),
    (
        "wall",
        "paper_stripes_blue",
        (1.0, 1.0),
        8,
        partial(striped_paper, colours=((226, 228, 224), (168, 186, 200))),
    ),
    (
        "wall",
        "paper_stripes_warm",
        (0.8, 0.8),
        8,
        partial(striped_paper, colours=((240, 230, 208), (222, 196, 160), (240, 230, 208), (190, 146, 120))),
    ),
    (
        "wall",
        "paper_damask_gold",
        (1.6, 1.6),
        14,
        partial(ornament_paper, ground=(222, 206, 170), figure=(190, 160, 106)),
    ),
    (
        "wall",
        "paper_damask_grey",
        (1.6, 1.6),
        14,
        partial(ornament_paper, ground=(206, 208, 210), figure=(172, 176, 182)),
    ),
    (
        "wall",
        "paper_damask_green",
        (1.6, 1.6),
        14,
        partial(ornament_paper, ground=(84, 106, 92), figure=(128, 148, 122)),
    ),
    (
        "wall",
        "paper_flowers",
        (0.9, 0.9),
        8,
        partial(dotted_paper, ground=(238, 232, 218), figures=((196, 112, 112), (120, 150, 110))),
    ),
    (
        "wall",
        "paper_flowers_dark",
        (0.9, 0.9),
        8,
        partial(dotted_paper, ground=(50, 60, 76), figures=((206, 176, 120), (176, 96, 92))),
    ),
    ("floor", "planks_oak", (2.0, 2.0), 70, partial(boards, colour=OAK, rows=12, columns=2)),
    ("floor", "planks_oak_wide", (2.4, 2.4), 60, partial(boards, colour=(196, 156, 110), rows=10, columns=1)),
    ("floor", "planks_pine", (2.0, 2.0), 60, partial(boards, colour=PINE, rows=14, columns=1)),
    (
        "floor",
        "planks_walnut",
        (2.0, 2.0),
        80,
        partial(boards, colour=WALNUT, rows=14, columns=2, variety=0.14),
    ),
    ("floor", "planks_cherry", (2.0, 2.0), 90, partial(boards, colour=CHERRY, rows=16, columns=2)),
    ("floor", "planks_ebony", (2.0, 2.0), 90, partial(boards, colour=EBONY, rows=12, columns=2)),
    ("floor", "planks_ash", (2.0, 2.0), 60, partial(boards, colour=ASH, rows=12, columns=2, variety=0.06)),
    ("floor", "planks_grey", (2.0, 2.0), 50, partial(boards, colour=GREY_WOOD, rows=12, columns=2)),
    ("floor", "planks_teak", (1.6, 1.6), 80, partial(boards, colour=TEAK, rows=16, columns=2, variety=0.15)),
    (
        "floor",
        "planks_white",
        (2.0, 2.0),
        50,
        partial(boards, colour=(220, 216, 208), rows=12, columns=1, variety=0.03),
    ),
    (
        "floor",
        "laminate_beech",
        (2.0, 2.0),
        90,
        partial(boards, colour=(208, 162, 112), rows=20, columns=3, gap=0.2),
    ),
    ("floor", "herringbone_oak", (1.6, 1.6), 80, partial(herringbone, colour=OAK)),
    ("floor", "herringbone_walnut", (1.2, 1.2), 80, partial(herringbone, colour=WALNUT)),
    ("floor", "herringbone_birch", (1.6, 1.6), 70, partial(herringbone, colour=BIRCH, cells=18, length=3)),
    ("floor", "parquet_oak", (1.2, 1.2), 80, partial(basket_parquet, colour=OAK)),
    ("floor", "parquet_teak", (0.9, 0.9), 90, partial(basket_parquet, colour=TEAK, strips=7)),
    (
        "floor",
        "tiles_white",
        (1.2, 1.2),
        140,
        partial(tiles, colours=((232, 230, 226),), rows=4, columns=4, joint=0.03),
    ),
    (
        "floor",
        "tiles_checker",
        (1.2, 1.2),
        150,
        partial(
            tiles,
            colours=((236, 232, 224), (48, 48, 50)),
            rows=4,
            columns=4,
            joint=0.02,
            mottle=0.04,
            checker=True,
        ),
    ),
    (
        "floor",
        "tiles_terracotta",
        (1.2, 1.2),
        60,
        partial(tiles, colours=_TERRACOTTA, rows=4, columns=4, joint=0.06, variety=0.05, mottle=0.07),
    ),
    (
        "floor",
        "tiles_slate",
        (1.6, 1.6),
        60,
        partial(
            tiles, colours=_SLATE, rows=4, columns=2, bond=0.5, joint=0.03, grout=(140, 140, 138), mottle=0.08
        ),
    ),
    (
        "floor",
        "tiles_beige",
        (1.8, 1.8),
        120,
        partial(tiles, colours=(BEIGE, (196, 178, 150)), rows=4, columns=4, joint=0.02, mottle=0.05),
    ),
    (
        "floor",
        "tiles_grey",
        (2.4, 2.4),
        90,
        partial(tiles, colours=(GREY,), rows=4, columns=2, joint=0.015, mottle=0.05, grout=(130, 130, 130)),
    ),
    ("floor", "marble_white", (1.6, 1.6), 190, partial(marble, colour=(236, 234, 230), vein=(150, 150, 152))),
    ("floor", "marble_dark", (1.6, 1.6), 190, partial(marble, colour=(60, 62, 60), vein=(200, 196, 186))),
    ("floor", "terrazzo", (0.8, 0.8), 150, partial(terrazzo, colour=(206, 202, 194))),
    ("floor", "paving", (1.8, 1.8), 30, partial(stones, colour=(150, 146, 138), count=24, variety=0.1)),
    ("floor", "carpet_beige", (0.8, 0.8), 0, partial(carpet, colour=(196, 180, 154))),
    ("floor", "carpet_grey", (0.8, 0.8), 0, partial(carpet, colour=(138, 138, 140))),
    ("floor", "carpet_blue", (0.8, 0.8), 0, partial(carpet, colour=(70, 86, 118))),
    ("floor", "carpet_red", (0.8, 0.8), 0, partial(carpet, colour=(142, 56, 52))),
    ("floor", "carpet_green", (0.8, 0.8), 0, partial(carpet, colour=(92, 108, 78))),
    ("floor", "concrete", (2.4, 2.4), 60, partial(concrete, colour=(150, 148, 144))),
    ("floor", "concrete_dark", (2.4, 2.4), 80, partial(concrete, colour=(104, 104, 104))),
    ("floor", "linoleum_green", (1.6, 1.6), 60, partial(linoleum, colour=(140, 156, 132))),
    ("floor", "linoleum_sand", (1.6, 1.6), 60, partial(linoleum, colour=(204, 186, 152))),
    ("floor", "linoleum_blue", (1.6, 1.6), 60, partial(linoleum, colour=(126, 144, 164))),
    ("ceiling", "paint_white", (2.0, 2.0), 5, partial(paint, colour=(244, 243, 240))),
    ("ceiling", "paint_cream", (2.0, 2.0), 5, partial(paint, colour=(238, 232, 218))),
    ("ceiling", "stucco", (1.2, 1.2), 3, partial(stucco, colour=(236, 234, 230), depth=0.05)),
    (
        "ceiling",
        "boards_white",
        (1.2, 1.2),
        20,
        partial(boards, colour=(236, 233, 226), rows=10, variety=0.01, gap=0.3),
    ),
    ("ceiling", "boards_pine", (1.2, 1.2), 30, partial(boards, colour=PINE, rows=10)),
    ("ceiling", "panels", (1.2, 1.2), 5, partial(ceiling_panels, colour=(232, 232, 230))),
    ("fabric", "linen", (0.3, 0.3), 0, partial(weave, warp=((206, 194, 170),), weft=((190, 178, 152),))),
    (
        "fabric",
        "cotton_white",
        (0.3, 0.3),
        0,
        partial(weave, warp=((232, 230, 226),), weft=((222, 220, 216),)),
    ),
    ("fabric", "wool_grey", (0.3, 0.3), 0, partial(weave, warp=((120, 122, 124),), weft=((104, 106, 110),))),
    ("fabric", "denim", (0.3, 0.3), 0, partial(weave, warp=((58, 78, 112),), weft=((150, 164, 184),))),
    ("fabric", "mustard", (0.3, 0.3), 0, partial(weave, warp=((204, 160, 62),), weft=((186, 142, 50),))),
    ("fabric", "moss", (0.3, 0.3), 0, partial(weave, warp=((94, 108, 72),), weft=((82, 94, 62),))),
    (
        "fabric",
        "tartan_red",
        (0.4, 0.4),
        0,
        partial(
            weave,
            warp=((150, 36, 40), (30, 50, 40), (150, 36, 40), (220, 210, 190)),
            weft=((150, 36, 40), (30, 50, 40), (150, 36, 40), (220, 210, 190)),
        ),
    ),
    (
        "fabric",
        "check_blue",
        (0.3, 0.3),
        0,
        partial(weave, warp=((236, 236, 232), (90, 120, 164)), weft=((236, 236, 232), (90, 120, 164))),
    ),
    (
        "fabric",
        "stripes",
        (0.4, 0.4),
        0,
        partial(
            weave,
            warp=((230, 224, 210), (70, 84, 100), (230, 224, 210), (180, 90, 70)),
            weft=((230, 224, 210),),
        ),
    ),
    ("fabric", "velvet_teal", (0.6, 0.6), 20, partial(carpet, colour=(36, 92, 98), depth=0.05)),
    ("fabric", "velvet_rose", (0.6, 0.6), 20, partial(carpet, colour=(176, 112, 116), depth=0.05)),
    ("fabric", "leather_brown", (0.5, 0.5), 90, partial(leather, colour=(112, 72, 46))),
    ("fabric", "leather_black", (0.5, 0.5), 100, partial(leather, colour=(46, 44, 44))),
    ("fabric", "leather_cream", (0.5, 0.5), 90, partial(leather, colour=(220, 206, 182))),
    *(
        ("wood", name, (1.0, 1.0), 60, partial(wood, colour=colour))
        for name, colour in {
            "oak": OAK,
            "pine": PINE,
            "walnut": WALNUT,
            "cherry": CHERRY,
            "ebony": EBONY,
            "ash": ASH,
            "teak": TEAK,
            "birch": BIRCH,
            "grey": GREY_WOOD,
            "white": (228, 224, 216),
        }.items()
    ),
]


def procedural_surfaces(size: int, progress: bool = True) -> Iterator[tuple[dict[str, Any], np.ndarray]]:
    """Catalogue record and (size, size, 3) uint8 image of every surface, in a fixed order."""
    table = [*_TILEABLE, *PICTURES]
    for index, (kind, name, metres, gloss, texture) in enumerate(
        tqdm(table, desc="surfaces", disable=not progress)
    ):
        rng = np.random.default_rng([7, index])
        image = texture(rng, 2 * size).reshape(size, 2, size, 2, 3).mean((1, 3))
        record = {"name": f"{kind}/{name}", "kind": kind, "size": list(metres), "gloss": gloss}
        yield record, np.round(255 * np.clip(image, 0, 1)).astype(np.uint8)
