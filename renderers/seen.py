"""What one view of a field shows that other views of it have seen already."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from pytorch3d.renderer import RayBundle
from torch import Tensor

from scenediff.renderers.bilinear import sample_map
from scenediff.renderers.cameras import CameraView
from scenediff.renderers.pixel_field import (
    FieldSignal,
    FieldView,
    PixelFieldRenderer,
    Rendering,
    behind_surfaces,
    prefilter,
    project,
)
from scenediff.renderers.rays import along, ray_bundle

REACH, STEPS = 0.6, 32  # how far along rays surfaces are looked for, in log depth either way; in how many
TOLERANCE = 0.2  # difference of log depths at which a scene takes a surface of the photo with a share of 1/e
CPU_RAYS = 4096  # at a time: what they are looked up in stays in the caches
STEEPEST = 0.1  # a larger change of log depth within a step is no surface, but the edge of one


@dataclass(frozen=True)
class Seen:
    """What other views saw of the surfaces that a view shows.

    Attributes:
        share: (batch, 1, height, width) in [0, 1], how surely they did.
        image: (batch, 3, height, width) in [-1, 1], the colour there of the view that saw it most surely.
        log_depth: (batch, 1, height, width) where that view says that the surface is, along this view's
            optical axis, metres.
    """

    share: Tensor
    image: Tensor
    log_depth: Tensor


def seen_before(views: Sequence[FieldView], view: CameraView, depth: Tensor, tolerance: float) -> Seen:
    """Looks for the surfaces that other views saw along the rays of a view, near the depths that it shows.

    A rendered depth is an average of what a field holds for possible; the surface of a depth map is one of
    them, and sharp. The share is 1 where it is at the rendered depth, falls with the ratio of the two, and is
    0 where there is none within the other view's frame, or the view was dropped. Of several views the surest
    counts.

    Args:
        views: the views that may have seen it, with predicted depths.
        view: the view in question.
        depth: (batch, 1, height, width) metres along its optical axis; (batch, 1, rays, 1) of chosen pixels.
        tolerance: difference of log depths at which the share has fallen to 1/e.
    """
    with torch.autocast(depth.device.type, enabled=False):  # half precision would miss by pixels
        bundle = ray_bundle(view)
        log_depth = depth.float().flatten(1).log()  # (batch, rays)
        others = prefilter(FieldSignal(tuple(views)), min(view.size)).views
        step = CPU_RAYS if depth.device.type == "cpu" else log_depth.shape[1]
        parts = []
        for start in range(0, log_depth.shape[1], step):
            part = slice(start, start + step)
            rays = RayBundle(*(values[:, part] for values in bundle))
            parts.append(_seen_along(others, rays, log_depth[:, part], tolerance))
        share, surface, colour = (torch.cat(values, dim=1) for values in zip(*parts, strict=True))
    size = depth.shape[-2:]
    share, surface = (values[:, None].unflatten(-1, size) for values in (share, surface))
    return Seen(share, colour.transpose(1, 2).unflatten(-1, size), surface)


def _seen_along(
    views: Sequence[FieldView], bundle: RayBundle, log_depth: Tensor, tolerance: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Shares and log depths of surfaces (batch, rays), and their colours (batch, rays, 3)."""
    found = []
    for view in views:
        surface, there = nearest_surface(view, bundle, log_depth)
        points = along(bundle.origins, bundle.directions, surface.exp()[..., None])[:, :, 0]
        grid, _ = project(points, view.cameras, view.photo_size)
        share = there * torch.exp(-((surface - log_depth) / tolerance).square())
        found.append((share, surface, sample_map(view.image.float(), grid)))
    shares, surfaces, colours = (torch.stack(parts) for parts in zip(*found, strict=True))
    share, surest = shares.max(0)
    surface = surfaces.gather(0, surest[None])[0]
    colour = colours.gather(0, surest[None, ..., None].expand(-1, -1, -1, 3))[0]
    return share, surface, colour


@torch.no_grad()
def render_scene(renderer: PixelFieldRenderer, signal: FieldSignal, view: CameraView) -> Rendering:
    """What a view shows of a finished scene: the field, but what the photo saw as sharp as the photo.

    A field blends the pixels that its points meet along a ray, which blurs. Where the ray enters the surface
    that the photo saw, near the depth that the field has, colour and depth are that surface's.

    Args:
        signal: its first view is the photo.
        view: one camera for each field, whole images or chosen pixels.
    """
    rendering = renderer.render_all(signal, view)
    if len(view) == 0:
        return rendering
    seen = seen_before(signal.views[:1], view, rendering.depth, TOLERANCE)
    share = seen.share * rendering.opacity.clamp(0, 1)
    log_depth = torch.lerp(rendering.depth.float().log(), seen.log_depth, share)
    image = torch.lerp(rendering.image.float(), seen.image, share)
    return replace(rendering, image=image, depth=log_depth.exp())


def nearest_surface(view: FieldView, bundle: RayBundle, log_depth: Tensor) -> tuple[Tensor, Tensor]:
    """Where rays enter the surface that a view predicts, nearest to given depths.

    Steps along each ray find where it passes from the front of the surface to behind it, as relief mapping
    does (Policarpo et al. 2005, Sec. 4), and the crossing is interpolated between them.

    Args:
        log_depth: (batch, rays) of the bundle's rays.

    Returns:
        log depths (batch, rays) of the surface, the given ones where there is none; 1 where there is, else 0.
    """
    steps = torch.linspace(-REACH, REACH, STEPS + 1, device=log_depth.device)
    tried = log_depth[..., None] + steps  # (batch, rays, steps + 1)
    points = along(bundle.origins, bundle.directions, tried.exp())
    _, offset, shown = behind_surfaces(view, points.flatten(1, 2))
    offset, shown = offset.view(tried.shape), shown.view(tried.shape) > 0
    before, behind = offset[..., :-1], offset[..., 1:]
    crossing = (before < 0) & (behind >= 0) & (behind - before < STEEPEST) & shown[..., :-1] & shown[..., 1:]
    share = (-before / (behind - before).clamp(min=1e-6)).clamp(0, 1)
    places = torch.lerp(steps[:-1], steps[1:], share)
    distance, index = torch.where(crossing, places.abs(), torch.inf).min(-1, keepdim=True)
    there = distance[..., 0].isfinite()
    return log_depth + torch.where(there, places.gather(-1, index)[..., 0], 0), there.float()
