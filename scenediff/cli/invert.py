"""`scenediff invert`: a patch of an image in, full images that contain it out."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from scenediff.cli.errors import user_errors
from scenediff.cli.folders import output_folder
from scenediff.cli.options import (
    MODELS_OWN,
    Device,
    OutputFolder,
    check_at_least,
    check_steps,
    resolve_device,
    say,
)
from scenediff.cli.record import Timings, progress_bar, versions

if TYPE_CHECKING:
    from torch import Tensor

    from scenediff.inversion_pipeline import Inversion
    from scenediff.renderers.stylegan2 import GeneratorForward

RUN_FILE = "run.json"
FILES = re.compile(r"run\.json|grid\.png|variation\.png|latents\.safetensors|(image|patch)_\d+\.png")
OPTIMISER_STEPS = 1000
MIDDLE = tyro.conf.arg(metavar="PIXELS", help_behavior_hint="(default: in the middle)")


@dataclass(frozen=True)
class Invert:
    """Samples full images that contain a patch, as latent codes of a StyleGAN2 generator.

    The folder gets each sample's image and its patch as rendered again, a grid of all, where they vary, their
    codes (latents.safetensors, w_plus) and run.json, which tells how all was made.
    """

    patch: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="PATCH")]
    """Image of the patch, pixel for pixel as the generator would show it."""
    output: OutputFolder
    """Folder to write."""
    num_samples: Annotated[int, tyro.conf.arg(aliases=["-n"], metavar="N")] = 16
    """Images to draw."""
    top: Annotated[int | None, MIDDLE] = None
    """Row of the whole image where the patch begins."""
    left: Annotated[int | None, MIDDLE] = None
    """Column where it begins."""
    generator: Annotated[
        Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="(default: the checkpoint's own)")
    ] = None
    """StyleGAN2 checkpoint in the usual PyTorch layout (g_ema). To sample, it must have the sizes of the
    checkpoint's generator, from which it was fine-tuned; by optimisation, any generator will do."""
    checkpoint: str = "furniture"
    """Name of a bundled model, or a folder with a trained one."""
    method: Literal["sample", "optimise"] = "sample"
    """Sample by diffusion, or optimise codes from random starts, which is slow but needs no trained model."""
    steps: Annotated[int | None, MODELS_OWN] = None
    """Denoising steps, or steps of the optimisation (1000 by default)."""
    guidance_scale: Annotated[float | None, MODELS_OWN] = None
    """1 samples the model's own distribution; above 1 the patch counts for more."""
    seed: int = 0
    """Of the first sample; the others take the numbers after it."""
    device: Device = "auto"
    """Where to compute; auto takes a CUDA GPU if there is one."""
    overwrite: bool = False
    """Replace a folder that an earlier run has written."""

    def run(self) -> None:
        """Checks everything, then inverts and writes."""
        self._check()
        timings = Timings()
        with output_folder(self.output, overwrite=self.overwrite, is_ours=is_inversion_folder) as folder:
            with timings.stage("model"), user_errors():
                from scenediff.datasets.patches import read_patch

                patch = read_patch(self.patch)[0]
                inverter = self._load(patch)
            with timings.stage("inverting"), progress_bar("inverting") as progress:
                inversion = inverter(progress)
            with timings.stage("writing"):
                from scenediff.tools.inversion_outputs import write_inversion

                samples = write_inversion(inversion, patch, folder)
            record = self._record(inversion, samples) | {"timings_seconds": timings.rounded()}
            (folder / RUN_FILE).write_text(json.dumps(record, indent=2) + "\n")
        say(f"wrote {self.output}")

    def _check(self) -> None:
        check_at_least("--num-samples", self.num_samples, 1)
        if self.method == "optimise":
            check_at_least("--steps", self.steps, 1)
        else:
            check_steps(self.steps)
        check_at_least("--guidance-scale", self.guidance_scale, 0)
        for option in ("top", "left", "seed"):
            check_at_least(f"--{option}", getattr(self, option), 0)

    def _load(self, patch: Tensor) -> Any:
        """What inverts the patch; a function of a progress callback. Everything is checked here."""
        from scenediff.inversion_pipeline import load_inversion, place_patch
        from scenediff.tools.generator_files import load_generator

        device = resolve_device(self.device)
        replacement = load_generator(self.generator) if self.generator is not None else None
        if self.method == "optimise" and replacement is not None:
            from scenediff.renderers.stylegan2 import GeneratorForward

            renderer = GeneratorForward(replacement).to(device)
            place_patch(patch, renderer.size, self.top, self.left)
            return lambda progress: self._optimise(renderer, patch, progress)
        pipeline = load_inversion(self.checkpoint, device)
        place_patch(patch, pipeline.renderer.size, self.top, self.left)
        if self.method == "optimise":
            return lambda progress: self._optimise(pipeline.renderer, patch, progress)
        if replacement is not None:
            pipeline.replace_generator(replacement)
        return lambda progress: pipeline(
            patch, self.top, self.left, self.num_samples, steps=self.steps,
            guidance_scale=self.guidance_scale, seed=self.seed, progress=progress,
        )  # fmt: skip

    def _optimise(self, renderer: GeneratorForward, patch: Tensor, progress: Any) -> Inversion:
        from scenediff.forward import Observation
        from scenediff.inversion_pipeline import place_patch, show
        from scenediff.tools.metrics import EfficientNetLite0
        from scenediff.tools.projector import ProjectorConfig, project

        device = renderer.generator.latent_avg.device
        view = place_patch(patch, renderer.size, self.top, self.left).to(device).repeated(self.num_samples)
        known = Observation(patch.to(device).expand(self.num_samples, -1, -1, -1), view)
        config = ProjectorConfig(steps=self.steps or OPTIMISER_STEPS, seed=self.seed)
        network = EfficientNetLite0().to(device)
        found = project(renderer, known, config, network, progress=progress)
        return show(renderer.generator, found.w_plus, view)

    def _record(self, inversion: Inversion, samples: list[dict[str, Any]]) -> dict[str, Any]:
        height, width = inversion.view.size
        return {
            "patch": {
                "file": self.patch.name, "size": [height, width],
                "top": int(inversion.view.top[0]), "left": int(inversion.view.left[0]),
            },
            "checkpoint": self.checkpoint,
            "generator": self.generator.name if self.generator is not None else None,
            "method": self.method,
            "steps": self.steps,
            "seed": self.seed,
            "samples": samples,
            "versions": versions(),
        }  # fmt: skip


def is_inversion_folder(folder: Path) -> bool:
    """Whether a folder holds nothing but what this command writes."""
    names = [entry.name for entry in folder.iterdir() if not entry.name.startswith(".")]
    return RUN_FILE in names and all(FILES.fullmatch(name) for name in names)
