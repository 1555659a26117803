"""What one view of a field shows that other views of it have seen already."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from scenediff.renderers.bilinear import sample_map
from scenediff.renderers.cameras import CameraView
from scenediff.renderers.pixel_field import FieldSignal, FieldView, behind_surfaces, prefilter
from scenediff.renderers.rays import ray_bundle


@dataclass(frozen=True)
class Seen:
    """What other views saw of the surfaces that a view shows.

    Attributes:
        share: (batch, 1, height, width) in [0, 1], how surely they did.
        image: (batch, 3, height, width) in [-1, 1], the colour there of the view that saw it most surely.
    """

    share: Tensor
    image: Tensor


def seen_before(views: Sequence[FieldView], view: CameraView, depth: Tensor, tolerance: float) -> Seen:
    """Looks up the surface points of a view in other views.

    The share is 1 where a point's depth in another view is what that view predicts, falls with the ratio of
    the two, and is 0 outside the view's frame, behind it, or where it was dropped. Of several views the
    surest counts.

    Args:
        views: the views that may have seen it, with predicted depths.
        view: the view in question, of whole images.
        depth: (batch, 1, height, width) metres along its optical axis.
        tolerance: difference of log depths at which the share has fallen to 1/e.
    """
    shares, colours = [], []
    with torch.autocast(depth.device.type, enabled=False):  # half precision would miss by pixels
        bundle = ray_bundle(view)
        points = bundle.origins + bundle.directions * depth.float().flatten(2).transpose(1, 2)
        for other in prefilter(FieldSignal(tuple(views)), min(view.size)).views:
            grid, behind, shown = behind_surfaces(other, points)
            shares.append(shown * torch.exp(-(behind / tolerance).square()))
            colours.append(sample_map(other.image.float(), grid))
    share, surest = torch.stack(shares).max(0)  # (batch, rays)
    index = surest[None, ..., None].expand(-1, -1, -1, 3)
    colour = torch.stack(colours).gather(0, index)[0]
    return Seen(share[:, None].unflatten(-1, view.size), colour.transpose(1, 2).unflatten(-1, view.size))
