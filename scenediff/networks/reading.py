"""Learning to read depth from single photos, before the whole model trains or beside it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scenediff.forward import EncodedContext, Signal
from scenediff.losses import TrainingBatch, random_drop
from scenediff.networks.pixel_denoiser import PixelDenoiser
from scenediff.networks.regularizers import DepthSupervision, log_errors, mean_where
from scenediff.training import Objective


class PhotoReading(Objective):
    """Scores the log depth that the denoiser reads from photos, in batches of (photo, depth).

    A photo costs about a tenth of what a pair costs the whole objective, and where things are is most of what
    a field has to know, so that some minutes of it go a long way.

    Args:
        denoiser: what is trained, as far as it reads photos.
        size: of the feature map, pixels of the shorter side.
        depth: the error that is minimised; its weights play no part.
        doubt: weight of the likelihood of the photo's overall scale, where the denoiser tells how sure it is.
    """

    def __init__(self, denoiser: PixelDenoiser, size: int, depth: DepthSupervision, doubt: float = 0.05):
        super().__init__()
        self.denoiser, self.size, self.depth, self.doubt = denoiser, size, depth, doubt

    def draw(self, batch: Any, context_dropout: float, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Hidden photos, of which the model is to know what is likely."""
        image = batch.photo.image
        return (random_drop(len(image), context_dropout, generator, image.device),)

    def forward(self, batch: Any, drop: Tensor | None = None) -> dict[str, Tensor]:
        read = self.denoiser.read_photo(batch.photo, self.size, drop)
        terms = {"reading": self.depth.error(read.log_depth, batch.depth).mean()}
        if read.doubt is not None:
            off = scale_error(read.log_depth.detach(), batch.depth)
            terms["doubt"] = self.doubt * laplace_score(off, read.doubt).mean()
        return terms


def scale_error(log_depth: Tensor, truth: Tensor) -> Tensor:
    """(batch,) means of the error of log depths (batch, 1, h, w) where the truth is known: of the scale."""
    return mean_where(*log_errors(log_depth, truth))


def laplace_score(error: Tensor, spread: Tensor) -> Tensor:
    """Negative log likelihood of errors, but for a constant: least where `spread` is their mean size."""
    return error.abs() / spread + spread.log()


@dataclass(frozen=True)
class ReadingBeside:
    """Term that scores the log depth of a batch's further photos (`batch.truth.photos`), where it has any.

    Attributes:
        reading: what scores them.
        weight: of the term.
    """

    reading: PhotoReading
    weight: float = 1.0

    def __call__(
        self, signal: Signal, encoded: EncodedContext, batch: TrainingBatch, level_weight: Tensor
    ) -> dict[str, Tensor]:
        photos = batch.truth.photos
        if photos is None:
            return {}
        return {name: self.weight * term for name, term in self.reading(photos).items()}
