"""Catalogues of Sweet Home 3D furniture libraries (.sh3f): which models to take, and what each one is.

A library is a zip file with `PluginFurnitureCatalog.properties` (Latin-1; keys `name#7`, `width#7`, ...;
sizes in centimetres) and the OBJ models that it names.
"""

from __future__ import annotations

import re
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

CATALOG_FILE = "PluginFurnitureCatalog.properties"
MAX_EXTENT = 4.0
LICENCES = {
    "BlendSwap-CC-0": "CC0-1.0",
    "BlendSwap-CC-BY": "CC-BY-3.0",
    "KatorLegaz": "CC-BY-3.0-US",
    "Scopia": "CC-BY-3.0",
}
"""Libraries that a pack is made from, and the licence (SPDX) of their models."""

_INDOOR_CATEGORIES = frozenset(
    [
        "Bathroom",
        "Bedroom",
        "Doors and windows",
        "Kitchen",
        "Lights",
        "Living room",
        "Miscellaneous",
        "Office",
    ]
)
_INDOORS_FROM_EXTERIOR = re.compile(
    r"bench|flowerBox|relaxChair|foldingChair|cafe-chair|cafe-table|painted-bench|rattanArmchair|"
    r"rattanSofa|rattanTable|ext_chair|silla_teca|spray-bottle"
)
_UNWANTED_MODELS = re.compile(
    # thin or tiny things that vanish at photo sizes
    r"comb|com_bath2_peineta|ruler|textMarker|pencil\d|knife|kitchenKnife|fork|spoon|lipStick|butter|iphone|"
    r"mobile|cardGame|bague|montre.*|keys|billet.*|housePuzzle|sunglasses|glasses|headphones|cissors_swap|"
    r"stapler|"
    r"induction.*|numberLock|tape-measure|flashlight|clothes-hanger|wire-coathanger|kitchen_tool\d|"
    # clothes and food lying about
    r"suit|robe|blouson|jupe.*|pantalon-shadows|short-shadows|gant-textured|chaussette|casque|chapeau|"
    r"casquette|bootie|mocassin|sneakers|woman_shoes|slippers|hanging-clothes\d|hotDog|hamburger|sushi_tray|"
    r"steak|"
    r"frenchFries|deepFryerWithFrenchFries|roasted-chicken|birthday_cake|mamadeira|cendrier|ashtray|"
    # tools and things of workshops, streets, gyms, offices
    r"pince-coupante|perceuse-electrique|marteau|meuleuse-electrique|scie-egoine|tournevis|pelle|mower|cone|"
    r"rouleau-de-ruban-adhesif|chimney|round-chimney|furnace|pallet|fence|barrel|ammoBox|.*railing.*|"
    r"workbench|punching-ball|abdominalBench|fitnessTower|treadmill|indoor-bike|wheelchair|hospital-bed|"
    r"showerDoor|"
    r"shippingContainer|emergencySign|fireExtinguisher|lockedLocker|CCTV|surveillanceCamera|smoke-detector|"
    r"garage-door2?|elevator.*|screen-door|window-shutter|intercom.*|entry-bell.*|potty|urinal|small-urinal|"
    r"propane-stove|technicalTable\d|flipper|campingLamp|farola1|candelabre|classic-lamppost|park-light|"
    r"porch-light|shopping-basket|shovel|broom|office_furniture1|contemp_living_room|dart_game|wall-hanger|"
    r"clothes-horse|sleepingBag|air-mattress|japanese_style_screen|doll|umbrellaFolded|"
    r"riggedFan|coffeePress|doubleOven|tennisRacket|toiletBrush|clock|knifeStandSwap|kitchenTools|basin|"
    r"islandExtension|"
    # more of what a few others show, and leaves that are cut out by a transparent texture
    r".*plug-Type[ABCG].*|.*RJ-?45.*|.*antenna.*|.*dimmer.*|.*double-switch.*|rounded-.*|bonsai-tree|"
    r"christmas_tree"
)


@dataclass(frozen=True)
class Entry:
    """One model of a library; sizes in metres."""

    library: str
    name: str
    title: str
    category: str
    model: str
    """Path of the OBJ file in the library."""
    size: tuple[float, float, float]
    elevation: float
    rotation: np.ndarray
    """(3, 3) matrix that turns the model's column vectors to y up, front +z."""
    creator: str
    is_opening: bool

    @property
    def licence(self) -> str:
        """SPDX name of the model's licence."""
        return LICENCES[self.library]


def read_library(path: Path) -> list[Entry]:
    """All entries of a library, in its order. ValueError if it is not one, or if an entry lacks a field."""
    if path.stem not in LICENCES:
        raise ValueError(f"{path}: unknown library {path.stem!r}, wanted one of {sorted(LICENCES)}")
    try:
        with zipfile.ZipFile(path) as archive:
            text = archive.read(CATALOG_FILE).decode("latin-1")
    except (zipfile.BadZipFile, KeyError) as error:
        raise ValueError(f"{path} is not a furniture library: no zip file with {CATALOG_FILE}") from error
    records: dict[int, dict[str, str]] = {}
    for key, number, value in re.findall(r"^(\w+)#(\d+)\s*=[ \t]*(.*?)\s*$", text, re.MULTILINE):
        records.setdefault(int(number), {})[key] = value
    entries = [_entry(path, records[number]) for number in sorted(records)]
    return [_renamed(entry, entries[:index]) for index, entry in enumerate(entries)]


def _entry(path: Path, record: dict[str, str]) -> Entry:
    missing = [key for key in ("name", "category", "model", "width", "depth", "height") if key not in record]
    if missing:
        raise ValueError(f"{path}: an entry of the catalogue lacks {missing}: {record}")
    stem = Path(record["model"]).stem
    rotation = [float(word) for word in record.get("modelRotation", "1 0 0 0 1 0 0 0 1").split()]
    width, height, depth = (float(record[key]) / 100 for key in ("width", "height", "depth"))
    return Entry(
        library=path.stem,
        name=f"{path.stem}/{stem}",
        title=re.sub(r"\\u([0-9a-fA-F]{4})", lambda match: chr(int(match[1], 16)), record["name"]),
        category=record["category"],
        model=record["model"].lstrip("/"),
        size=(width, height, depth),
        elevation=float(record.get("elevation", 0)) / 100,
        rotation=np.array(rotation).reshape(3, 3),
        creator=record.get("creator") or path.stem,
        is_opening=record.get("doorOrWindow") == "true",
    )


def _renamed(entry: Entry, earlier: list[Entry]) -> Entry:
    """The entry, numbered if its model's file has the name of an earlier one's."""
    count = sum(other.name == entry.name for other in earlier)
    return Entry(**{**vars(entry), "name": f"{entry.name}-{count + 1}"}) if count else entry


def is_usable(entry: Entry) -> bool:
    """Whether the model belongs into a pack: something found in homes, and not larger than `MAX_EXTENT`."""
    stem = Path(entry.model).stem
    if entry.category == "Exterior":
        suits = _INDOORS_FROM_EXTERIOR.fullmatch(stem) is not None
    else:
        suits = entry.category in _INDOOR_CATEGORIES and _UNWANTED_MODELS.fullmatch(stem) is None
    return suits and min(entry.size) > 0 and max(entry.size) <= MAX_EXTENT


_RULES = (
    # words of title or file name, role, placement ("": by size and elevation, see `role_and_placement`)
    (r"curtain|window-blind", "curtain", "wall"),
    (r"table tennis bat", "toy", "top"),
    (r"knife|chopping|paper towel", "tableware", "top"),
    (r"com_bath3_toalla", "towel", "top"),
    (r"letter tray", "books", "top"),
    (r"carpet|rug\b|bathmat|doormat|tatami", "rug", "rug"),
    (
        r"hanging.?light|hanging-rest|chandelier|pendant|saloon_lamp|^lamp lamp2|ceiling.?lamp|ceilingfan|"
        r"outdoorlamp|"
        r"fluorescent|track-lights",
        "lamp",
        "ceiling",
    ),
    (r"wall ?light|wall ?lamp|spotlight", "lamp", "wall"),
    (r"living_lamp", "lamp", "floor"),
    (r"lamp|lantern|candle", "lamp", "top"),
    (r"towel rack|towel\b|hand towel", "towel", "wall"),
    (r"radiator", "radiator", "against_wall"),
    (r"water heater|water cooler", "appliance", ""),
    (r"air condition", "appliance", "wall"),
    (r"clock|thermometer", "clock", ""),
    (r"mirror", "mirror", "wall"),
    (r"switch|plug|socket", "switch", "wall"),
    (r"frame\d", "picture", "top"),
    (r"aquarium", "decoration", "top"),
    (r"toilet paper|paper dispenser|bathroom-tissue", "toilet_paper", "wall"),
    (r"dressing", "dresser", "against_wall"),
    (r"vanity|washbasin|lavatory|sink", "sink", "against_wall"),
    (r"toilet|bidet", "toilet", "against_wall"),
    (r"shower.*(head|faucet)", "shower", "wall"),
    (r"shower", "shower", "against_wall"),
    (r"bath_|bathtub|islandbath", "bath", "against_wall"),
    (r"washing|dryer", "washing_machine", "against_wall"),
    (
        r"microwave|small oven|toaster|cooker|coffee (maker|brewer|machine|press)|blender|mixer|kettle|"
        r"boiler|sandwich|squeezer|grill|deep fryer|scale|kitchenaid",
        "appliance",
        "top",
    ),
    (r"cooktop|^stove stove", "appliance", "top"),
    (r"oven|stove", "oven", "against_wall"),
    (r"fridge|refriger|freezer", "fridge", "against_wall"),
    (r"hood", "hood", "wall"),
    (r"upper .*cabinet|glass door cabinet", "kitchen_unit", "wall"),
    (r"(high|lower|drawers|sink|glass).* cabinet|island", "kitchen_unit", "against_wall"),
    (r"filing cabinet|\bsafe\b", "dresser", "against_wall"),
    (r"television cabinet|tv stand", "tv_stand", "against_wall"),
    (
        r"remote|video projector|dvd|playstation|joystick|stereo|speaker|radio|mp3|amplifier",
        "electronics",
        "top",
    ),
    (r"wall flat tv", "tv", "wall"),
    (r"\btv\b|television", "tv", "top"),
    (r"laptop|imac|ibook|computer|printer|tablet", "computer", "top"),
    (r"bookcase|bookshelf|shelves|shelving|box_room|office_box", "shelf", "against_wall"),
    (r"bookend|book|newspaper|calendar|magazine", "books", "top"),
    (r"wardrobe|cupboard", "wardrobe", "against_wall"),
    (r"dresser|drawers|chest\b|trunk", "dresser", "against_wall"),
    (r"bedside|nightstand", "nightstand", "against_wall"),
    (r"changing table|clothes rack", "dresser", "against_wall"),
    (r"baby bed|crib|child bed|bunk", "bed", "against_wall"),
    (r"day bed|convertible sofa|sofa|couch", "sofa", "floor"),
    (r"\bbed|futon|lettocloud", "bed", "against_wall"),
    (r"armchair|ottoman|puff|relax|deck chair|lounge", "armchair", "floor"),
    (r"stool|bar chair", "stool", "floor"),
    (r"bench", "bench", "floor"),
    (r"chair|class seat", "chair", "floor"),
    (r"piano", "piano", "against_wall"),
    (r"fireplace", "fireplace", "against_wall"),
    (r"pool table|football table|table tennis|tabletennis", "game_table", "floor"),
    (r"table fan|desk fan|fan\b", "appliance", "top"),
    (r"coffee table|living_room_table|rattan table|ext_table|children table", "coffee_table", "floor"),
    (r"desk", "desk", "against_wall"),
    (r"table", "dining_table", "floor"),
    (r"plant|cactus|tulip|flower|lily|orchid|yucca|ficus|bamboo|spathi|tree|augalas|maceta", "plant", ""),
    (r"vase|pottery|\bjar\b|deer|statue|sculpt", "decoration", ""),
    (r"bottle|flacon|milk|soap|oil servers|spray", "bottle", "top"),
    (
        r"plate|cup\b|glass|bowl|mug|teapot|creamer|sugar|pan\b|tray|jug|pitcher|salt|spice|utensil|"
        r"bread box",
        "tableware",
        "top",
    ),
    (r"apple|bread|cake|fruit|salad", "food", "top"),
    (r"trash|dustbin|recycling|clothes.basket|\bbin\b", "bin", "floor"),
    (r"toy|teddy|bear|ball|biplane|train|car model|rubik|horse|doll|xylophone", "toy", ""),
    (r"guitar|keyboard", "music", ""),
    (r"box|crate|backpack|suitcase|handbag|briefcase|luggage|gift", "box", ""),
)


_WALL_ELEVATIONS = {"hood": 1.6, "towel": 0.9}


def role_and_placement(entry: Entry) -> tuple[str, str]:
    """What the asset is for a layout, and where it goes: the first of `_RULES` that fits its words."""
    stem = Path(entry.model).stem
    words = f"{entry.title} {stem}".lower()
    if entry.is_opening:
        is_window = "window" in words and "french" not in words
        return ("window", "window") if is_window else ("door", "door")
    role, placement = next(((r, p) for pattern, r, p in _RULES if re.search(pattern, words)), ("other", ""))
    return role, placement or _default_placement(entry)


def usual_elevation(entry: Entry, role: str, placement: str) -> float:
    """Height of the base above the floor in metres: the catalogue's, or a usual one on walls."""
    if entry.elevation == 0 and placement == "wall" and entry.size[1] < 1:
        return _WALL_ELEVATIONS.get(role, 1.2)
    return entry.elevation


def _default_placement(entry: Entry) -> str:
    if entry.elevation > 0.15:
        return "wall"
    return "top" if max(entry.size) < 0.6 else "floor"
