"""The main forward model: a radiance field of pixel-aligned features, rendered along PyTorch3D ray bundles.

The signal is a set of views, each with a feature map, a log-depth map and its image. A world point is
projected into every view (pixelNeRF, Yu et al. 2021, arXiv:2012.02190); what the views say there is averaged
with learned weights; a small network turns it into density and colour. Colour is a learned blend of the
field's own colour and the views' pixels (as in IBRNet, Wang et al. 2021, arXiv:2102.13090), so surfaces that
a view saw keep that view's sharpness at any resolution. Samples are placed where the views' depth maps expect
surfaces.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple, cast

import torch
from pytorch3d.renderer import PerspectiveCameras, RayBundle
from torch import Tensor, nn
from torch.nn import functional

from scenediff.renderers.bilinear import sample_map
from scenediff.renderers.cameras import CameraView
from scenediff.renderers.fused_field import (
    BUMPS,
    GATES,
    GEOMETRY,
    HALF_TURNS,
    STEPS,
    decode_points,
    fits,
    pack_camera,
)
from scenediff.renderers.fused_rays import composite_rays, place_on_rays
from scenediff.renderers.rays import along, invert_cdf, log_spaced_edges, ray_bundle, stratified_quantiles


@dataclass(frozen=True)
class FieldView:
    """One view that a field is made of; all tensors share the batch.

    Attributes:
        cameras: PyTorch3D cameras (NDC) of the photo.
        features: (batch, channels, height, width), already through the field's first layer.
        log_depth: (batch, 1, height, width) log of the predicted depth, metres.
        image: (batch, 3, any height, any width) in [-1, 1], of the same cameras.
        present: (batch,) 1 where the view counts, 0 where it was dropped.
        size: (height, width) of the photo that the cameras took, if `image` isn't that: maps and scaled
            images show all of it, but their sides are rounded, and NDC follow the photo's own shape.
        doubt: (batch,) how far off all of `log_depth` together may be, where that is known.
    """

    cameras: PerspectiveCameras
    features: Tensor
    log_depth: Tensor
    image: Tensor
    present: Tensor
    size: tuple[int, int] | None = None
    doubt: Tensor | None = None

    @property
    def photo_size(self) -> tuple[int, int]:
        """(height, width) of the photo."""
        return self.size or (self.image.shape[-2], self.image.shape[-1])

    @cached_property
    def packed_camera(self) -> Tensor:
        """The camera as the fused kernels read it."""
        cameras = self.cameras
        return pack_camera(
            cameras.R, cameras.T, cameras.focal_length, cameras.principal_point, self.present, self.photo_size
        )


@dataclass(frozen=True)
class FieldSignal:
    """A radiance field: the views that it is made of. The first one is the photo."""

    views: tuple[FieldView, ...]


@dataclass(frozen=True)
class Rendering:
    """What cameras see of a field.

    Attributes:
        image: (batch, 3, height, width) in [-1, 1].
        depth: (batch, 1, height, width) expected depth along the optical axis, metres.
        opacity: (batch, 1, height, width) share of the ray that ends before the last sample, in [0, 1].
        features: (batch, channels, height, width).
    """

    image: Tensor
    depth: Tensor
    opacity: Tensor
    features: Tensor


@dataclass(frozen=True)
class FieldConfig:
    """Sizes of the field and of its sampling.

    Attributes:
        channels: width of the feature maps and of the point network.
        feature_channels: features that are rendered beside the colour.
        samples: samples on a ray.
        uniform_share: share of the samples spread evenly over log depth; the rest go where depth maps point.
        proposal_bins: resolution of the placement along the ray.
        near, far: depth range, metres.
    """

    channels: int = 64
    feature_channels: int = 11
    samples: int = 20
    uniform_share: float = 0.4
    proposal_bins: int = 32
    near: float = 0.25
    far: float = 14.0

    def __post_init__(self) -> None:
        if not 0 < self.uniform_share <= 1:  # at 0 a ray that meets no view would have no place for samples
            raise ValueError(f"uniform_share must lie in (0, 1], got {self.uniform_share}")


DENSITY_SCALE = 30.0  # opacity per unit of log depth at softplus 1: a wall needs a jump within a few per cent


class SeenPoints(NamedTuple):
    """What one view has at the projections of world points; all (batch, points, ...).

    Attributes:
        features: (..., channels) of the feature map.
        grid: (..., 2) image positions, see `project`.
        depth: (...) along the view's optical axis, metres.
        log_depth: (..., 1) of the surface that the view predicts there.
        colour: (..., 3) of its image.
        valid: (...) 1 where the view contains the point, else 0.
    """

    features: Tensor
    grid: Tensor
    depth: Tensor
    log_depth: Tensor
    colour: Tensor
    valid: Tensor


class PointLinear(nn.Linear):
    """A linear layer for millions of points of a few channels.

    Its weight's gradient is one product for each batch element, then a sum: a single product over all points
    would keep one multiprocessor busy and all others waiting.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return super().forward(x)
        return torch.baddbmm(self.bias, x, self.weight.t().expand(len(x), -1, -1))


class PixelField(nn.Module):
    """The point network: what each view says about a point -> density, colour and features of the point."""

    def __init__(self, config: FieldConfig):
        super().__init__()
        width = config.channels
        self.geometry = PointLinear(GEOMETRY, width)
        self.view_layers = nn.ModuleList([PointLinear(width, width) for _ in range(2)])
        self.view_gates = PointLinear(width, GATES)  # weights of the view, of its pixel's colour
        self.hidden = PointLinear(width, width)
        self.output = PointLinear(width, 5 + config.feature_channels)
        nn.init.zeros_(self.output.weight[:1])
        nn.init.constant_(self.output.bias[:1], -4.0)  # nearly empty space to begin with

    def weights(self) -> list[Tensor]:
        """Weight and bias of each layer, in the order of their use."""
        layers = [self.geometry, *self.view_layers, self.view_gates, self.hidden, self.output]
        return [part for layer in layers for part in (layer.weight, layer.bias)]

    def describe(self, seen: SeenPoints) -> tuple[Tensor, Tensor]:
        """What a view says: state (batch, points, width), gates (batch, points, 2), 0 where it is blind."""
        geometry = encode_geometry(
            seen.grid, seen.depth, seen.log_depth, seen.valid, seen.features.dtype
        )
        state = add_linear(seen.features, geometry, self.geometry)
        for layer in self.view_layers:
            state = add_linear(state, functional.relu(state), cast(PointLinear, layer))
        logits = self.view_gates(functional.relu(state))[..., :2].float()
        return state, torch.exp(logits.clamp(-8, 8)) * seen.valid[..., None]

    def forward(self, views: list[SeenPoints]) -> tuple[Tensor, Tensor]:
        """Decodes points from what each view sees of them.

        Returns:
            density logits (batch, points) and values (batch, points, 3 + feature_channels), colour first.
        """
        states, gates = zip(*(self.describe(seen) for seen in views), strict=True)
        total = sum(gate[..., :1] for gate in gates) + 1e-4
        state = weighted_sum([(gate[..., :1] / total).to(states[0].dtype) for gate in gates], states)
        state = add_linear(state, functional.relu(state), self.hidden)
        output = self.output(functional.relu(state)).float()
        own_gate = torch.exp(output[..., 4:5].clamp(-8, 8))
        colour = own_gate * torch.tanh(output[..., 1:4])
        colour = colour + sum(gate[..., 1:] * seen.colour for gate, seen in zip(gates, views, strict=True))
        colour = colour / (own_gate + sum(gate[..., 1:] for gate in gates))
        return output[..., 0], torch.cat([colour, output[..., 5:]], dim=-1)


def add_linear(total: Tensor, x: Tensor, layer: nn.Linear) -> Tensor:
    """total + layer(x), all (batch, points, channels); may overwrite `total` where no gradient is wanted.

    On a CPU what costs is memory: one pass of the product over what it adds to, instead of three. oneDNN's
    product of so few channels is also twice as fast as MKL's on processors that are not Intel's.
    """
    if torch.is_grad_enabled() or total.is_cuda:
        return total + layer(x)
    if total.device.type == "cpu" and total.dtype == torch.float32 and torch.backends.mkldnn.is_available():
        return torch.ops.mkldnn._linear_pointwise.binary(x, total, layer.weight, layer.bias, "add")
    total.flatten(0, 1).addmm_(x.flatten(0, 1), layer.weight.t())
    return total.add_(layer.bias)


def weighted_sum(weights: Sequence[Tensor], parts: Sequence[Tensor]) -> Tensor:
    """Sum of weight * part; a pass over memory for each."""
    total = weights[0] * parts[0]
    for weight, part in zip(weights[1:], parts[1:], strict=True):
        total = torch.addcmul(total, weight, part)
    return total


def project(points: Tensor, cameras: PerspectiveCameras, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Image positions and depths of world points (batch, points, 3).

    Returns:
        grid (batch, points, 2), x right and y down, in [-1, 1] from edge to edge; depth (batch, points),
        negative behind the camera, where the grid has no meaning.
    """
    x, y, depth = (cameras.R.mT @ points.mT + cameras.T[..., None]).unbind(1)
    near = depth.clamp(min=1e-3)
    focal, principal = cameras.focal_length[..., None], cameras.principal_point[..., None]
    height, width = size
    short = min(height, width)
    x = (x / near * focal[:, 0] + principal[:, 0]) * (-short / width)
    y = (y / near * focal[:, 1] + principal[:, 1]) * (-short / height)
    return torch.stack([x, y], dim=-1), depth


def encode_geometry(
    grid: Tensor, depth: Tensor, predicted_log_depth: Tensor, valid: Tensor, dtype: torch.dtype
) -> Tensor:
    """(batch, points, GEOMETRY): where a point lies in a view, how far from what is seen there."""
    log_depth = depth.clamp(min=1e-2).log()
    octaves = [log_depth * (torch.pi * turns) for turns in HALF_TURNS]
    offset = (log_depth - predicted_log_depth[..., 0]).clamp(-4, 4)
    steps = [(offset * scale).tanh() for scale in STEPS]
    bumps = [torch.exp(-(offset * scale).square()) for scale in BUMPS]
    x, y = grid.clamp(-2, 2).unbind(-1)
    waves = [wave(octave) for octave in octaves for wave in (torch.sin, torch.cos)]
    parts = [*waves, x, y, x.square() + y.square(), valid, *steps, *bumps, log_depth, offset]
    return torch.stack(parts, dim=-1).to(dtype)


def composite(density_logits: Tensor, log_depth: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Emission-absorption ray marching in log depth (Max 1995; PyTorch3D's EmissionAbsorptionRaymarcher).

    Args:
        density_logits: (batch, rays, samples). log_depth: the same, increasing.
        values: (..., samples, channels).

    Returns:
        accumulated values (batch, rays, channels), expected depth and opacity (batch, rays). The last sample
        is opaque, so every ray ends somewhere; opacity is what ends before it.
    """
    step = log_depth.diff(dim=-1)
    optical = functional.softplus(density_logits[..., :-1]) * (DENSITY_SCALE * step)
    alpha = torch.cat([1 - torch.exp(-optical), torch.ones_like(optical[..., :1])], dim=-1)
    before = torch.exp(-functional.pad(optical.cumsum(-1), (1, 0)))  # transmittance in front of each sample
    weights = alpha * before
    depth = (weights * log_depth.exp()).sum(-1)
    return (weights[..., None] * values).sum(-2), depth, 1 - before[..., -1]


class PixelFieldRenderer(nn.Module):
    """ForwardModel of pixel-aligned fields: `render(signal, view)`; with depth and opacity, `render_all`."""

    def __init__(self, config: FieldConfig | None = None):
        super().__init__()
        self.config = config or FieldConfig()
        self.field = PixelField(self.config)
        self.chunk_rays: int | None = None  # rays computed at a time when no gradient is wanted

    def render(self, signal: FieldSignal, view: CameraView) -> Tensor:
        """(batch, 3, height, width) in [-1, 1]; (batch, 3, rays, 1) for a view of chosen pixels."""
        return self.render_all(signal, view).image

    def render_all(self, signal: FieldSignal, view: CameraView) -> Rendering:
        """Colour, depth, opacity and features of a view.

        Args:
            signal: batch of fields.
            view: one camera for each, in the fields' world.
        """
        signal = rows_first(prefilter(signal, min(view.size)))
        bundle = ray_bundle(view)
        batch, rays = bundle.origins.shape[:2]
        size = view.size if view.pixels is None else (rays, 1)
        if batch == 0:
            return self._assemble([self._empty(signal, rays)], size)
        whole = self.chunk_rays is None or torch.is_grad_enabled()
        per_chunk = rays if whole else max(1, self.chunk_rays // batch)
        parts = []
        for start in range(0, rays, per_chunk):
            chunk = RayBundle(*(part[:, start : start + per_chunk] for part in bundle))
            parts.append(self.march(signal, chunk))
        return self._assemble(parts, size)

    def march(self, signal: FieldSignal, bundle: RayBundle) -> tuple[Tensor, Tensor, Tensor]:
        """Values (batch, rays, 3 + features), depth and opacity (batch, rays) of rays."""
        with torch.autocast(bundle.origins.device.type, enabled=False):
            log_depth = self.place_samples(signal, bundle)  # (batch, rays, samples)
            points = along(bundle.origins, bundle.directions, log_depth.exp())
        logits, values = self.decode(signal, points.flatten(1, 2))
        shape = log_depth.shape
        logits, values = logits.view(shape), values.view(*shape, -1)
        if self.fused(signal):
            return composite_rays(logits, log_depth, values, DENSITY_SCALE)
        return composite(logits, log_depth, values)

    def fused(self, signal: FieldSignal) -> bool:
        """Whether the kernels of `fused_field` and `fused_rays` draw the signal: half precision on a GPU."""
        maps = [view.features for view in signal.views]
        return fits(maps, self.config.channels, 5 + self.config.feature_channels)

    @torch.no_grad()
    def place_samples(self, signal: FieldSignal, bundle: RayBundle) -> Tensor:
        """(batch, rays, samples) log depths: some spread evenly, most near the depths that views predict."""
        config = self.config
        shape = (*bundle.origins.shape[:2], config.samples)
        quantiles = stratified_quantiles(shape, bundle.origins, jitter=self.training)
        if self.fused(signal):
            return place_on_rays(
                bundle.origins, bundle.directions, [view.packed_camera for view in signal.views],
                [view.log_depth for view in signal.views], quantiles, bins=config.proposal_bins,
                near=config.near, far=config.far, uniform_share=config.uniform_share,
            )
        edges = log_spaced_edges(config.near, config.far, config.proposal_bins, bundle.origins)
        centres = (edges[1:] + edges[:-1]) / 2
        width = edges[1] - edges[0]
        points = along(bundle.origins, bundle.directions, centres.exp())
        likely = torch.zeros(points.shape[:-1], dtype=points.dtype, device=points.device)
        for view in signal.views:
            _, offset, shown = behind_surfaces(view, points.flatten(1, 2))
            likely = likely + (shown * torch.exp(-(offset / width).square())).view_as(likely)
        share = config.uniform_share
        total = likely.sum(-1, keepdim=True)
        weights = share / config.proposal_bins + (1 - share) * likely / (total + 1e-3)
        return invert_cdf(edges, weights, quantiles)

    def decode(self, signal: FieldSignal, points: Tensor) -> tuple[Tensor, Tensor]:
        """Density logits (batch, points) and values (batch, points, 3 + features) at world points."""
        if not self.fused(signal):
            return self.field([_look_up(view, points) for view in signal.views])
        views = signal.views
        return decode_points(
            points, [view.features for view in views], [view.log_depth.float() for view in views],
            [view.image.float() for view in views], [view.packed_camera for view in views],
            self.field.weights(),
        )

    def _assemble(self, parts: list[tuple[Tensor, Tensor, Tensor]], size: tuple[int, int]) -> Rendering:
        values, depth, opacity = (torch.cat(group, dim=1) for group in zip(*parts, strict=True))
        image = values.transpose(1, 2).unflatten(-1, size)
        return Rendering(
            image[:, :3],
            depth[:, None].unflatten(-1, size),
            opacity[:, None].unflatten(-1, size),
            image[:, 3:],
        )

    def _empty(self, signal: FieldSignal, rays: int) -> tuple[Tensor, Tensor, Tensor]:
        like = signal.views[0].log_depth
        channels = 3 + self.config.feature_channels
        return like.new_zeros(0, rays, channels), like.new_zeros(0, rays), like.new_zeros(0, rays)


def prefilter(signal: FieldSignal, short_side: int) -> FieldSignal:
    """The signal with images no finer than the frames to be drawn from them, so that they don't alias."""

    def filtered(view: FieldView) -> FieldView:
        height, width = view.image.shape[-2:]
        scale = short_side / min(height, width)
        if scale >= 1:
            return view
        size = (round(height * scale), round(width * scale))
        image = functional.interpolate(
            view.image, size=size, mode="bilinear", antialias=True, align_corners=False
        )
        return replace(view, image=image, size=view.photo_size)

    return FieldSignal(tuple(filtered(view) for view in signal.views))


def rows_first(signal: FieldSignal) -> FieldSignal:
    """The signal with its feature maps as look-ups want them: channels last in memory; done once a frame.

    Where a GPU draws without gradients they are rounded to bfloat16, which the fused kernels read.
    """

    def prepared(features: Tensor) -> Tensor:
        half = features.is_cuda and not torch.is_grad_enabled()
        features = features.to(torch.bfloat16) if half else features
        return features.contiguous(memory_format=torch.channels_last)

    return FieldSignal(tuple(replace(view, features=prepared(view.features)) for view in signal.views))


def map_signal(signal: FieldSignal, function: Callable[[Tensor], Tensor]) -> FieldSignal:
    """The signal with a function of the batch (an index, an expansion, a move) applied to every tensor."""

    def mapped(view: FieldView) -> FieldView:
        old = view.cameras
        cameras = PerspectiveCameras(
            R=function(old.R), T=function(old.T), focal_length=function(old.focal_length),
            principal_point=function(old.principal_point), device=function(old.R).device, in_ndc=True,
        )
        return replace(
            view, cameras=cameras, features=function(view.features), log_depth=function(view.log_depth),
            image=function(view.image), present=function(view.present),
            doubt=None if view.doubt is None else function(view.doubt),
        )

    return FieldSignal(tuple(mapped(view) for view in signal.views))


def behind_surfaces(view: FieldView, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """How far world points (batch, points, 3) lie behind what a view expects to see at their projections.

    Returns:
        grid (batch, points, 2), see `project`; the difference of log depths (batch, points); and (batch,
        points) 1 where the view contains the point, else 0.
    """
    grid, depth = project(points, view.cameras, view.photo_size)
    offset = depth.clamp(min=1e-2).log() - sample_map(view.log_depth.float(), grid)[..., 0]
    return grid, offset, _inside(grid, depth) * view.present[:, None]


def _look_up(view: FieldView, points: Tensor) -> SeenPoints:
    with torch.autocast(points.device.type, enabled=False):
        grid, depth = project(points, view.cameras, view.photo_size)
        return SeenPoints(
            sample_map(view.features, grid), grid, depth, sample_map(view.log_depth.float(), grid),
            sample_map(view.image.float(), grid), _inside(grid, depth) * view.present[:, None],
        )


def _inside(grid: Tensor, depth: Tensor) -> Tensor:
    """(batch, points) 1 where projected points lie within the image and in front of the camera, else 0."""
    x, y = grid.unbind(-1)  # a reduction over these two would cost more than all else here
    return ((x.abs() <= 1) & (y.abs() <= 1) & (depth > 1e-2)).float()
