"""A photo read twice, as it is and as its mirror image: the mean is better, what differs is unsure.

The mirror image of a room is a room, so whoever understands a photo reads both alike.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from scenediff.forward import Observation
from scenediff.networks.pixel_denoiser import PixelDenoiser
from scenediff.renderers.cameras import CameraView, mirrored
from scenediff.renderers.pixel_field import FieldView

USUAL_DOUBT, USUAL_DISAGREEMENT = 0.055, 0.033  # of rooms that the bundled model was not trained on
LEAST, LARGEST = 0.3, 0.4  # least factor on a photo's doubt, and what the doubt may become


def read_both_ways(denoiser: PixelDenoiser, photo: Observation, short_side: int) -> FieldView:
    """What `read_photo` makes of a photo, with the mean log depth of both ways and its doubt weighed by both.

    Args:
        short_side: of the maps, pixels.
    """
    view = denoiser.read_photo(photo, short_side)
    mirror = CameraView(mirrored(photo.view.cameras), photo.view.size)
    other = denoiser.read_photo(Observation(photo.image.flip(3), mirror), short_side).log_depth.flip(3)
    doubt = None if view.doubt is None else weighed_doubt(view.doubt, disagreement(view.log_depth, other))
    return replace(view, log_depth=torch.lerp(view.log_depth, other, 0.5), doubt=doubt)


def disagreement(first: Tensor, second: Tensor) -> Tensor:
    """(batch,) mean absolute difference of log depths (batch, 1, h, w), their overall scales aside."""
    difference = second - first
    return (difference - difference.mean((1, 2, 3), keepdim=True)).abs().mean((1, 2, 3))


def weighed_doubt(doubt: Tensor, disagreement: Tensor) -> Tensor:
    """(batch,) doubts, less of photos that are read with ease and more of those that are unlike any known.

    A network learns from rooms how far off it is on rooms. What is unlike them it doubts too little, though
    more than these, and it reads it otherwise in the mirror; so both tell how much further off it may be.
    """
    unusual = (doubt / USUAL_DOUBT * disagreement / USUAL_DISAGREEMENT) ** 2
    return (doubt * unusual.clamp(min=LEAST)).clamp(max=LARGEST)
