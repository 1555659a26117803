"""Optional terms beside the objective, for the scene application."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from scenediff.forward import EncodedContext
from scenediff.losses import TrainingBatch
from scenediff.renderers.pixel_field import FieldSignal


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
        present = signal.views[0].present
        shown = present / present.mean().clamp(min=1e-3)
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
        known = truth > 0
        error = log_depth - truth.clamp(min=1e-3).log()
        total = _mean_where(error.abs(), known)
        for axis in (2, 3):
            both = known.narrow(axis, 1, known.shape[axis] - 1) & known.narrow(axis, 0, known.shape[axis] - 1)
            total = total + self.edges * _mean_where(error.diff(dim=axis).abs(), both)
        return total


def _mean_where(values: Tensor, wanted: Tensor) -> Tensor:
    """(batch,) means of the wanted values; 0 where none is."""
    kept = torch.where(wanted, values, 0)
    return kept.flatten(1).sum(1) / wanted.flatten(1).sum(1).clamp(min=1)
