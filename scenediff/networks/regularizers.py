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
    """

    context: float = 0.1
    target: float = 0.05
    rendered: float = 0.05

    def __call__(
        self, signal: FieldSignal, encoded: EncodedContext, batch: TrainingBatch, level_weight: Tensor
    ) -> dict[str, Tensor]:
        present = signal.views[0].present
        shown = present / present.mean().clamp(min=1e-3)
        truth = batch.truth
        context = _log_error(signal.views[0].log_depth, truth.context_depth)
        target = _log_error(signal.views[-1].log_depth, truth.target_depth)
        rendered = _log_error(encoded.extras.depth.float().log(), truth.target_depth)
        return {
            "depth_context": self.context * (shown * context).mean(),
            "depth_target": self.target * (level_weight * target).mean(),
            "depth_rendered": self.rendered * (shown * rendered).mean(),
        }


def _log_error(log_depth: Tensor, truth: Tensor) -> Tensor:
    known = truth > 0
    error = torch.where(known, (log_depth - truth.clamp(min=1e-3).log()).abs(), 0)
    return error.flatten(1).sum(1) / known.flatten(1).sum(1).clamp(min=1)
