"""Random materials and the stock of assets that one split of a pack offers."""

from __future__ import annotations

import colorsys
from functools import lru_cache
from random import Random

from .assets import Asset, AssetPack, Surface
from .room import MESH_COLOURS, PLAIN, Colour, Material
from .shapes import unit_shapes


class Stock:
    """What a room of one split can be made of: assets by role and place, surfaces by kind, unit shapes."""

    def __init__(self, pack: AssetPack, split: str) -> None:
        number = {id(asset): index for index, asset in enumerate(pack.assets)}
        chosen = pack.select(split=split) or pack.assets
        self.assets = pack.assets
        self.by_role: dict[tuple[str, str], list[int]] = {}
        for asset in chosen:
            self.by_role.setdefault((asset.role, asset.placement), []).append(number[id(asset)])
        self.by_kind: dict[str, list[Surface]] = {}
        for surface in pack.select_surfaces(split=split) or pack.surfaces:
            self.by_kind.setdefault(surface.kind, []).append(surface)
        self.shapes = {shape.title: len(pack.assets) + index for index, shape in enumerate(unit_shapes())}

    def indices(self, role: str, *placements: str) -> list[int]:
        """The assets of a role in any of the placements."""
        return [index for placement in placements for index in self.by_role.get((role, placement), ())]

    def asset(self, index: int) -> Asset:
        """The asset with a number that `indices` gave."""
        return self.assets[index]


@lru_cache(maxsize=4)
def stock_of(pack: AssetPack, split: str) -> Stock:
    """The stock of a pack's split, made once."""
    return Stock(pack, split)


def hsv(hue: float, saturation: float, value: float) -> Colour:
    """Linear light of an sRGB colour given as hue, saturation, value."""
    red, green, blue = colorsys.hsv_to_rgb(hue % 1.0, saturation, value)
    return red**2.2, green**2.2, blue**2.2


def scaled(colour: Colour, gain: float) -> Colour:
    """A colour times a number."""
    return colour[0] * gain, colour[1] * gain, colour[2] * gain


def grey(value: float) -> Colour:
    """Linear light of an sRGB grey."""
    return (value**2.2,) * 3


def tinted(r: Random, value: float = 1.0, spread: float = 0.12) -> Colour:
    """A gain near `value` with a slight cast, for textures and for an asset's own colours."""
    level = value * r.uniform(1 - 2 * spread, 1 + spread)
    return (level * r.uniform(1 - spread, 1 + spread), level, level * r.uniform(1 - spread, 1 + spread))


def any_colour(r: Random) -> Colour:
    """Colours of things people own: many greys, blacks and whites, some saturated."""
    kind = r.random()
    if kind < 0.27:
        return hsv(r.uniform(0.05, 0.18), r.uniform(0.0, 0.12), r.uniform(0.7, 0.97))
    if kind < 0.55:
        return hsv(r.random(), r.uniform(0.0, 0.15), r.uniform(0.03, 0.3))
    if kind < 0.72:
        return hsv(r.uniform(0.04, 0.13), r.uniform(0.15, 0.6), r.uniform(0.25, 0.85))
    return hsv(r.random(), r.uniform(0.1, 0.9) * r.uniform(0.4, 1.0), r.uniform(0.15, 0.9))


def plain(r: Random, colour: Colour, gloss: float | None = None) -> Material:
    """A uniform colour."""
    return Material(colour, PLAIN, gloss=r.uniform(0.05, 0.5) if gloss is None else gloss)


def metal(r: Random) -> Material:
    """Steel, chrome or painted metal."""
    colour = grey(r.choice((0.05, 0.1, 0.55, 0.7, 0.8))) if r.random() < 0.85 else any_colour(r)
    return Material(colour, PLAIN, gloss=r.uniform(0.4, 0.95))


def textured(r: Random, surface: Surface, tint: Colour, gloss: float | None = None) -> Material:
    """A tileable surface laid on in metres."""
    scale = r.uniform(0.8, 1.3)
    size = (surface.size[0] * scale, surface.size[1] * scale)
    if r.random() < 0.5 and surface.kind in ("floor", "wood"):
        size = (size[1], size[0])
    return Material(tint, surface.texture_layer, size, surface.gloss / 255 if gloss is None else gloss)


def wood(r: Random, stock: Stock) -> Material:
    """Wood of any colour and finish; now and then a plain lacquer."""
    surfaces = stock.by_kind.get("wood")
    if surfaces and r.random() < 0.8:
        return textured(r, r.choice(surfaces), tinted(r, 1.0, 0.15), r.uniform(0.05, 0.7))
    colour = hsv(r.uniform(0.05, 0.11), r.uniform(0.2, 0.65), r.uniform(0.2, 0.85))
    return Material(colour, PLAIN, gloss=r.uniform(0.1, 0.7), speckle=0.1, grain=0.03)


def board(r: Random, stock: Stock) -> Material:
    """Cupboards, desks and shelves: wood, white or grey board, black, a colour."""
    kind = r.random()
    if kind < 0.45:
        return wood(r, stock)
    if kind < 0.68:
        return plain(r, grey(r.uniform(0.7, 0.95)))
    if kind < 0.9:
        return plain(r, grey(r.uniform(0.03, 0.45)))
    return plain(r, any_colour(r))


def fabric(r: Random, stock: Stock) -> Material:
    """Cloth and leather."""
    surfaces = stock.by_kind.get("fabric")
    if surfaces and r.random() < 0.6:
        return textured(r, r.choice(surfaces), tinted(r, 0.9, 0.15), 0.0)
    return Material(
        any_colour(r), PLAIN, gloss=r.choice((0.0, 0.0, 0.3)), speckle=r.uniform(0, 0.3), grain=0.006
    )


def wall_paint(r: Random, stock: Stock) -> Material:
    """Mostly plain light walls; also grey, coloured, dark and textured ones."""
    surfaces = stock.by_kind.get("wall")
    if surfaces and r.random() < 0.3:
        return textured(r, r.choice(surfaces), tinted(r, 0.95))
    kind = r.random()
    if kind < 0.5:
        colour = hsv(r.uniform(0.05, 0.2), r.uniform(0, 0.1), r.uniform(0.75, 0.97))
    elif kind < 0.75:
        colour = hsv(r.random(), r.uniform(0, 0.08), r.uniform(0.35, 0.75))
    elif kind < 0.93:
        colour = hsv(r.random(), r.uniform(0.05, 0.35), r.uniform(0.4, 0.9))
    else:
        colour = hsv(r.random(), r.uniform(0, 0.5), r.uniform(0.1, 0.4))
    return Material(
        colour, PLAIN, gloss=r.uniform(0, 0.25), speckle=r.uniform(0, 0.06), grain=r.uniform(0.004, 0.05)
    )


def carpet(r: Random) -> Material:
    """Needle felt and loop pile: saturated or grey, with specks."""
    if r.random() < 0.55:
        colour = hsv(
            r.choice((0.6, 0.6, 0.6, 0.02, 0.08, r.random())), r.uniform(0.2, 0.85), r.uniform(0.2, 0.6)
        )
    else:
        colour = grey(r.uniform(0.15, 0.7))
    return Material(colour, PLAIN, gloss=0.0, speckle=r.uniform(0.15, 0.6), grain=r.uniform(0.005, 0.02))


def floor(r: Random, stock: Stock) -> Material:
    """Wood, tiles, stone, carpet, linoleum."""
    kind = r.random()
    surfaces = stock.by_kind.get("floor")
    if surfaces and kind < 0.62:
        return textured(r, r.choice(surfaces), tinted(r, 1.0, 0.15), r.uniform(0.05, 0.7))
    if stock.by_kind.get("wood") and kind < 0.77:
        return textured(r, r.choice(stock.by_kind["wood"]), tinted(r, 0.95, 0.15), r.uniform(0.1, 0.7))
    if kind < 0.94:
        return carpet(r)
    colour = hsv(r.random(), r.uniform(0, 0.25), r.uniform(0.25, 0.9))
    return Material(colour, PLAIN, gloss=r.uniform(0.1, 0.8), speckle=r.uniform(0.05, 0.25), grain=0.02)


def ceiling(r: Random, stock: Stock) -> Material:
    """White more often than not."""
    surfaces = stock.by_kind.get("ceiling")
    if surfaces and r.random() < 0.4:
        return textured(r, r.choice(surfaces), tinted(r, 1.0, 0.05))
    if r.random() < 0.8:
        return plain(r, grey(r.uniform(0.8, 0.97)), 0.0)
    return plain(r, hsv(r.random(), r.uniform(0, 0.3), r.uniform(0.3, 0.9)), 0.0)


def picture(r: Random, stock: Stock, kind: str = "poster") -> tuple[Material, float]:
    """A picture for a card's front, and its height over width."""
    surfaces = stock.by_kind.get(kind)
    if not surfaces:
        return plain(r, any_colour(r)), r.choice((0.7, 1.4))
    surface = r.choice(surfaces)
    return Material((1.0, 1.0, 1.0), surface.texture_layer, gloss=r.choice((0.0, 0.2, 0.7))), surface.size[
        1
    ] / surface.size[0]


def recoloured(r: Random, stock: Stock, asset: Asset) -> Material:
    """An asset's own colours slightly off; some furniture in another wood or cloth, or dyed."""
    kind = r.random()
    if asset.role in ("sofa", "armchair", "bed") and kind < 0.3:
        return fabric(r, stock)
    if asset.role in (
        "dining_table",
        "coffee_table",
        "desk",
        "shelf",
        "wardrobe",
        "dresser",
        "nightstand",
        "tv_stand",
    ):
        if kind < 0.3:
            return board(r, stock)
    elif asset.role in ("chair", "stool", "bench") and kind < 0.25:
        return plain(r, grey(r.uniform(0.04, 0.15))) if r.random() < 0.5 else board(r, stock)
    elif asset.role == "kitchen_unit" and kind < 0.3:
        return board(r, stock)
    if kind > 0.93 and asset.role != "plant":
        return Material(scaled(any_colour(r), 1.3), MESH_COLOURS)
    return Material(tinted(r, 1.0, 0.2 if asset.role == "plant" else 0.12), MESH_COLOURS)
