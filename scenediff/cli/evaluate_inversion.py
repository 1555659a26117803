"""`scenediff eval inversion`: the figures of a model that inverts a generator."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from scenediff.cli.errors import UserError, user_errors
from scenediff.cli.evaluate import evaluation_folder
from scenediff.cli.options import (
    MODELS_OWN,
    Device,
    EvaluationFolder,
    check_at_least,
    check_steps,
    resolve_device,
    say_json,
)

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class EvalInversion:
    """Measures inversion on images of the generator's own and on renders of furniture never trained on.

    Beside the samples it measures the deterministic encoder, and optimisation of the codes with its time.
    """

    checkpoint: str = "furniture"
    """Name of a bundled model, or a folder with a trained one."""
    patch: Annotated[int, tyro.conf.arg(metavar="PIXELS")] = 24
    """Side of the patches."""
    patches: int = 64
    """Patches of each of the two kinds of images."""
    samples: int = 16
    """Images sampled for each patch, 2 or more."""
    steps: Annotated[int | None, MODELS_OWN] = None
    """Denoising steps."""
    guidance_scale: Annotated[float | None, MODELS_OWN] = None
    """1 samples the model's own distribution; above 1 the patch counts for more."""
    distribution: int = 1024
    """Images in each of the sets whose distributions are compared; 0 to leave that out."""
    optimised: int = 4
    """Patches that are inverted by optimisation too; 0 to leave that out."""
    images: Annotated[
        Path | None, tyro.conf.arg(metavar="FOLDER|ZIP", help_behavior_hint="(default: held-out furniture)")
    ] = None
    """Real pictures to measure on, those that training holds out."""
    no_real: bool = False
    """Measure on the generator's own images alone."""
    seed: int = 0
    """Of everything random."""
    device: Device = "auto"
    """Where to compute; auto takes a CUDA GPU if there is one."""
    output: EvaluationFolder = None
    """Folder for the figures and for pictures of what was compared."""
    overwrite: bool = False
    """Replace a folder that an earlier evaluation has written."""

    def run(self) -> None:
        """Checks everything, then samples and measures."""
        for option, lowest in (("patch", 1), ("patches", 2), ("samples", 2), ("optimised", 0), ("seed", 0)):
            check_at_least(f"--{option}", getattr(self, option), lowest)
        check_steps(self.steps)
        check_at_least("--distribution", self.distribution, 2 if self.distribution else 0)
        with evaluation_folder(self.output, overwrite=self.overwrite) as folder:
            self._measure(folder)

    def _measure(self, folder: Path | None) -> None:
        with user_errors():
            from scenediff.inversion_pipeline import load_inversion

            pipeline = load_inversion(self.checkpoint, resolve_device(self.device))
            size = pipeline.renderer.size
            if self.patch > size:
                raise UserError(f"--patch must be at most the generator's {size} pixels, got {self.patch}")
            renders = self._real_images(size)
        from scenediff.tools.evaluate_inversion import InversionTrials, evaluate_inversion

        trials = InversionTrials(
            self.patch, self.patches, self.samples, self.steps, self.guidance_scale, self.distribution,
            self.optimised, seed=self.seed,
        )  # fmt: skip
        say_json(evaluate_inversion(pipeline, trials, renders, folder))

    def _real_images(self, size: int) -> Tensor | None:
        if self.no_real:
            return None
        if self.images is not None:
            from scenediff.datasets.patches import find_images, load_images

            return load_images(find_images(self.images).part("heldout"), size, limit=self.patches)
        import torch

        from scenediff.datasets.rooms.showroom import Showing, render_furniture

        pictures = render_furniture(self.patches, Showing(size, seed=77 + self.seed, split="heldout"))
        return torch.from_numpy(pictures).permute(0, 3, 1, 2)
