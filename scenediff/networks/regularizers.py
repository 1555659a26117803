"""Optional terms beside the objective, for scenes of both fields, the bundled and the full-size model's."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scenediff.forward import EncodedContext, Observation
from scenediff.losses import TrainingBatch
from scenediff.networks.backbone import ImageNetFeatures, stage_distance, unit_stages
from scenediff.networks.super_resolution import enlarged
from scenediff.renderers.pixel_field import FieldSignal, PixelFieldRenderer
from scenediff.renderers.volume_field import VolumeFieldRenderer, VolumeSignal


@dataclass(frozen=True)
class DirectImage:
    """Scores the target view's own image estimate, which sharpens what the field can blend in.

    Attributes:
        weight: of the term, which also has the noise level's weight.
    """

    weight: float = 0.5

    def __call__(
        self, signal: FieldSignal, encoded: EncodedContext, batch: TrainingBatch, level_weight: Tensor
    ) -> dict[str, Tensor]:
        error = (signal.views[-1].image - batch.target.image).square().flatten(1).mean(1)
        return {"direct": self.weight * (level_weight * error).mean()}


@dataclass(frozen=True)
class PerceptualImage:
    """Scores the features of the target view's own image estimate: means of what is possible lack texture.

    Differences of unit features (Zhang et al. 2018, arXiv:1801.03924, Eq. 1, without weights of channels), of
    images of twice the size, as features have a quarter of an image's pixels along each side at the most.

    Attributes:
        features: frozen, on the model's device.
        weight: of the term, which also has the noise level's weight.
    """

    features: ImageNetFeatures
    weight: float

    def __call__(
        self, signal: FieldSignal, encoded: EncodedContext, batch: TrainingBatch, level_weight: Tensor
    ) -> dict[str, Tensor]:
        with torch.no_grad():
            wanted = unit_stages(self.features(enlarged(batch.target.image)))
        found = unit_stages(self.features(enlarged(signal.views[-1].image)))
        error = stage_distance(found, wanted)
        return {"perceptual": self.weight * (level_weight * error).mean()}


@dataclass(frozen=True)
class DepthSupervision:
    """Scores predicted log depths where the data know the truth; off for training from images alone.

    Attributes:
        context: weight of the photo's depth map.
        target: weight of the target view's depth map, which also has the noise level's weight.
        rendered: weight of the deterministic field's depth at the target view.
        edges: weight, within each of these, of the error's steps between neighbouring pixels: it asks for
            depth edges where the truth has them (Ranftl et al. 2020, arXiv:1907.01341, Sec. 5).
    """

    context: float = 0.5
    target: float = 0.2
    rendered: float = 0.3
    edges: float = 0.5

    def __call__(
        self, signal: FieldSignal, encoded: EncodedContext, batch: TrainingBatch, level_weight: Tensor
    ) -> dict[str, Tensor]:
        shown = _shown(signal)
        truth = batch.truth
        context = self.error(signal.views[0].log_depth, truth.context_depth)
        target = self.error(signal.views[-1].log_depth, truth.target_depth)
        rendered = self.error(encoded.extras.depth.float().log(), truth.target_depth)
        return {
            "depth_context": self.context * (shown * context).mean(),
            "depth_target": self.target * (level_weight * target).mean(),
            "depth_rendered": self.rendered * (shown * rendered).mean(),
        }

    def error(self, log_depth: Tensor, truth: Tensor) -> Tensor:
        """(batch,) errors of (batch, 1, h, w) maps where the truth is known: absolute, and of their steps."""
        error, known = log_errors(log_depth, truth)
        total = mean_where(error.abs(), known)
        for axis in (2, 3):
            both = known.narrow(axis, 1, known.shape[axis] - 1) & known.narrow(axis, 0, known.shape[axis] - 1)
            total = total + self.edges * mean_where(error.diff(dim=axis).abs(), both)
        return total


def log_errors(log_depth: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """Errors of log depths, and where they mean something: true depths, metres, are 0 where unknown."""
    return log_depth - truth.clamp(min=1e-3).log(), truth > 0


def mean_where(values: Tensor, wanted: Tensor) -> Tensor:
    """(batch,) means of the wanted values; 0 where none is."""
    kept = torch.where(wanted, values, 0)
    return kept.flatten(1).sum(1) / wanted.flatten(1).sum(1).clamp(min=1)


def _shown(signal: FieldSignal) -> Tensor:
    """(batch,) weights of mean 1 that leave out the elements whose photo was dropped."""
    present = signal.views[0].present
    return present / present.mean().clamp(min=1e-3)


class KeptRenderings:
    """Forward model that keeps what it rendered of the latest signal, for terms that score its rays.

    The objective renders the views that it scores anyway; so it takes this as its forward model, and terms
    that were made with it read from it what else those renderings hold.

    Args:
        renderer: of either field. options: of its `render_all`.
    """

    def __init__(self, renderer: VolumeFieldRenderer | PixelFieldRenderer, **options: bool):
        self.renderer, self.options = renderer, options
        self._signal: Any = None
        self._kept: list[tuple[Any, Any]] = []

    def render(self, signal: Any, view: Any) -> Tensor:
        """As the renderer's own."""
        rendering = self.renderer.render_all(signal, view, **self.options)
        if signal is not self._signal:
            self._signal, self._kept = signal, []
        self._kept.append((view, rendering))
        return rendering.image

    def of(self, signal: Any, view: Any) -> Any:
        """The rendering of just this view of just this signal."""
        if signal is self._signal:
            for seen, rendering in self._kept:
                if seen is view:
                    return rendering
        raise ValueError("the view was not rendered: the objective's forward model must be this object")


@dataclass(frozen=True)
class SampledDepth:
    """Scores the depths that the sampled field shows along the objective's rays, where the data know them.

    The target's depth map may be right while the field around it is not: in its own view colour alone does
    not tell what floats in front of a surface from the surface.

    Attributes:
        rendered: the objective's forward model.
        target: weight of the target view's rays, which also has the noise level's weight.
        novel: weight of the novel view's rays.
    """

    rendered: KeptRenderings
    target: float = 0.1
    novel: float = 0.2

    def __call__(
        self, signal: FieldSignal, encoded: EncodedContext, batch: TrainingBatch, level_weight: Tensor
    ) -> dict[str, Tensor]:
        shown = _shown(signal)
        weights = (self.target * level_weight, torch.full_like(level_weight, self.novel))
        total = torch.zeros_like(level_weight)
        for scored, truth, weight in zip(_scored(batch), batch.truth.scored_depths, weights, strict=False):
            depth = self.rendered.of(signal, scored.view).depth.float()
            error, known = log_errors(depth.clamp(min=1e-3).log(), truth)
            total = total + weight * mean_where(error.abs(), known)
        return {"depth_sampled": (shown * total).mean()}


@dataclass(frozen=True)
class Distortion:
    """Asks for rays that end in one place (Barron et al. 2022, arXiv:2111.12077, Sec. 4).

    Attributes:
        rendered: the objective's forward model. weight: of the term, a mean over rays.
    """

    rendered: KeptRenderings
    weight: float = 0.005

    def __call__(
        self, signal: VolumeSignal, encoded: EncodedContext, batch: TrainingBatch, level_weight: Tensor
    ) -> dict[str, Tensor]:
        maps = [self.rendered.of(signal, scored.view).distortion for scored in _scored(batch)]
        rays = torch.cat([part.flatten() for part in maps if part is not None])
        return {"distortion": self.weight * rays.mean()}


@dataclass(frozen=True)
class DepthSmoothness:
    """Asks for depth that changes only where the true image does; see `edge_aware_smoothness`.

    Scored views must be whole images or square patches, row by row.

    Attributes:
        rendered: the objective's forward model. weight: of the term, a mean over the scored views.
    """

    rendered: KeptRenderings
    weight: float = 0.002

    def __call__(
        self, signal: VolumeSignal, encoded: EncodedContext, batch: TrainingBatch, level_weight: Tensor
    ) -> dict[str, Tensor]:
        far = self.rendered.renderer.config.far
        terms = []
        for scored in _scored(batch):
            rendering = self.rendered.of(signal, scored.view)
            depth = rendering.distance + (1 - rendering.opacity) * far  # what passes through ends there
            terms.append(edge_aware_smoothness(_patch(depth), _patch(scored.image)))
        return {"depth_smoothness": self.weight * torch.stack(terms).mean()}


def edge_aware_smoothness(depth: Tensor, image: Tensor) -> Tensor:
    """Mean step of depth between neighbours, less where the image has one too (Godard et al. 2017 and 2019).

    arXiv:1609.03677, Eq. 4, on depths in shares of their mean, as arXiv:1806.01260, Sec. 3.3 does.

    Args:
        depth: (batch, 1, height, width) positive. image: (batch, 3, height, width) in [-1, 1].
    """
    share = depth / depth.mean((1, 2, 3), keepdim=True)
    total = depth.new_zeros(())
    for axis in (2, 3):
        edge = image.diff(dim=axis).abs().mean(1, keepdim=True) / 2  # of images in [0, 1]
        total = total + (share.diff(dim=axis).abs() * torch.exp(-edge)).mean()
    return total


def _scored(batch: TrainingBatch) -> list[Observation]:
    """What the objective compares renderings of the sampled signal with."""
    target = batch.scored_target or batch.target
    return [target] if batch.novel is None else [target, batch.novel]


def _patch(values: Tensor) -> Tensor:
    """(batch, channels, side, side) of the pixels of a square patch (batch, channels, side^2, 1)."""
    if values.shape[-1] > 1:
        return values
    side = math.isqrt(values.shape[-2])
    if side * side != values.shape[-2]:
        raise ValueError(f"patches must be square, got {values.shape[-2]} pixels")
    return values[..., 0].unflatten(-1, (side, side))
