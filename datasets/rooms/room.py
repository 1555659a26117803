"""The records that describe one furnished room and the cameras in it.

World axes: x and z along the floor, y up, metres, the origin in the middle of the main room's floor.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

MESH_COLOURS = -2  # a texture layer: the mesh's own colours and textures
PLAIN = -1  # a texture layer: no texture, the tint alone
FLOATS_PER_INSTANCE = 28


Colour = tuple[float, float, float]
"""Linear light: red, green, blue."""


class Material(NamedTuple):
    """What a part is made of. Colours are linear light in 0..1, lengths are metres."""

    tint: Colour = (1.0, 1.0, 1.0)
    layer: int = MESH_COLOURS
    repeat: tuple[float, float] = (0.0, 0.0)
    """Metres that one repeat of the texture covers, laid on along the part's axes; 0: the mesh's own uv."""
    gloss: float = -1.0
    """0 matt to 1 polished; negative: the mesh's own."""
    emission: float = 0.0
    """Radiance added, as a multiple of the surface's colour."""
    speckle: float = 0.0
    """Strength of random specks of `grain` metres (carpet, plaster)."""
    grain: float = 0.01
    rib: float = 0.0
    """Period of dark grooves across the part (tambour doors, radiators); 0: none; negative: level ones."""


class Light(NamedTuple):
    """A lamp or a patch of sky: intensity falls with the square of the distance beyond `radius`."""

    position: tuple[float, float, float]
    direction: tuple[float, float, float]
    intensity: Colour
    radius: float
    exponent: float
    """Of the cosine to `direction`: 0 shines everywhere, 1 is a flat panel, more is a spot."""
    far: bool = False
    """The sun: no falloff, and shadows by parallel rays."""


class Panel(NamedTuple):
    """A bright rectangle that glossy things mirror."""

    centre: tuple[float, float, float]
    half_width: tuple[float, float, float]
    half_height: tuple[float, float, float]
    radiance: Colour


@dataclass(frozen=True, eq=False)
class Room:
    """A furnished room.

    Attributes:
        kind: "office", "kitchen", ...
        size: (width x, height y, depth z) of the main part.
        mesh: (N,) int32, each instance's mesh: the pack's assets, then the unit shapes.
        instances: (N, 28) float32: object-to-world rows (12); tint, emission; layer, repeat (2), gloss;
            speckle, grain, rib, object number; texture offset (2), unused (2).
        boxes: (B, 6) float32 axis-aligned boxes (low xyz, high xyz) that nothing else may enter.
        box_object: (B,) int32, the object that each box belongs to; walls, floors and the like come first.
        stands_on: (B,) int32, the object on or in which a box's object stands; -1: the floor or a wall.
        structure: number of structural objects.
        focus: (F, 4) float32 points worth looking at, and the size of what stands there.
        areas: floor rectangles (x0, z0, x1, z1) of the main part and its annexes.
        lights, panels: what shines.
        ambient: (6, 3) float32 mean radiance that arrives from +x, -x, +y, -y, +z, -z.
    """

    kind: str
    size: tuple[float, float, float]
    mesh: np.ndarray
    instances: np.ndarray
    boxes: np.ndarray
    box_object: np.ndarray
    stands_on: np.ndarray
    structure: int
    focus: np.ndarray
    areas: tuple[tuple[float, float, float, float], ...]
    lights: tuple[Light, ...]
    panels: tuple[Panel, ...]
    ambient: np.ndarray


@dataclass(frozen=True, eq=False)
class Views:
    """Cameras as arrays with any leading shape, in PyTorch3D's convention (x_cam = x_world @ R + T)."""

    rotation: np.ndarray
    """(..., 3, 3) float32."""
    translation: np.ndarray
    """(..., 3) float32."""
    focal_length: np.ndarray
    """(...) float32, NDC of the image's shorter side."""
    principal: np.ndarray
    """(..., 2) float32, NDC."""

    @property
    def centres(self) -> np.ndarray:
        """(..., 3) camera positions in the world."""
        return -np.einsum("...ij,...j->...i", self.rotation, self.translation)

    def __getitem__(self, index: Any) -> Views:
        return Views(
            self.rotation[index],
            self.translation[index],
            self.focal_length[index],
            self.principal[index],
        )
