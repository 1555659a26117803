"""`scenediff motion`: a photo in, ways in which it could move on out."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from scenediff.cli.errors import UserError, user_errors
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

RUN_FILE = "run.json"
FILES = re.compile(r"run\.json|contact_sheet\.png|disagreement\.png|sample_\d+")


@dataclass(frozen=True)
class Motion:
    """Samples ways in which a photo could move on within a moment.

    Each sample gets a folder with its flow as flow.flo and flow_kitti.png (16 bits; from the target's pixels
    to the photo, x right, y down), as a picture by the colour wheel (flow.png) and as a video that plays the
    photo forward and back (motion.mp4). Beside them lie a contact sheet, a map of where the samples disagree
    (disagreement.png) and run.json, which tells how all was made.
    """

    photo: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="PHOTO")]
    """Photo: JPEG, PNG, TIFF, WebP and others, of any size and orientation."""
    output: OutputFolder
    """Folder to write."""
    num_samples: Annotated[int, tyro.conf.arg(aliases=["-n"], metavar="N")] = 8
    """Motions to draw."""
    steps: Annotated[int | None, MODELS_OWN] = None
    """Denoising steps."""
    seed: int = 0
    """Of the first sample; the others take the numbers after it."""
    checkpoint: str = "motion"
    """Name of a bundled model, or a folder with a trained one."""
    frames: int = 24
    """Number of the video's frames."""
    device: Device = "auto"
    """Where to compute; auto takes a CUDA GPU if there is one."""
    overwrite: bool = False
    """Replace a folder that an earlier run has written."""

    def run(self) -> None:
        """Checks everything, then samples and writes."""
        for option, lowest in (("num_samples", 1), ("seed", 0), ("frames", 2)):
            check_at_least(f"--{option.replace('_', '-')}", getattr(self, option), lowest)
        check_steps(self.steps)
        timings = Timings()
        with output_folder(self.output, overwrite=self.overwrite, is_ours=is_motion_folder) as folder:
            with timings.stage("model"), user_errors():
                from scenediff.datasets.images import load_photo
                from scenediff.motion_pipeline import load_motion

                photo = load_photo(self.photo)
                pipeline = load_motion(self.checkpoint, resolve_device(self.device))
            notices = list(photo.notices)
            if min(photo.size) < pipeline.defaults.size:
                notices.append(f"smaller than the model's {pipeline.defaults.size} pixels: enlarged for it")
            for notice in notices:
                say(f"{self.photo}: {notice}")
            with timings.stage("sampling"), progress_bar("sampling") as progress:
                motions = pipeline(
                    photo, self.num_samples, steps=self.steps, seed=self.seed, progress=progress
                )
            with timings.stage("writing"), progress_bar("writing") as progress:
                from scenediff.tools.motion_outputs import write_motions

                names = write_motions(motions, folder, frames=self.frames, progress=progress)
            samples = [{**name, **motion.metadata} for name, motion in zip(names, motions, strict=True)]
            record: dict[str, Any] = {
                "photo": {"file": self.photo.name, "size": list(photo.size), "notices": notices},
                "checkpoint": self.checkpoint, "device": str(pipeline.device), "seed": self.seed,
                "samples": samples, "versions": versions(), "timings_seconds": timings.rounded(),
            }  # fmt: skip
            (folder / RUN_FILE).write_text(json.dumps(record, indent=2) + "\n")
        say(f"wrote {self.output}")


@dataclass(frozen=True)
class DataVideo:
    """Reads clips once and keeps their frames in one file, for machines without ffmpeg and to start at once.

    A fixed camera over a square with pedestrians comes with Debian's package opencv-doc:
    `apt-get download opencv-doc && dpkg -x opencv-doc_*.deb opencv-doc`, then
    `scenediff data video opencv-doc/usr/share/doc/opencv-doc/examples/data/vtest.avi -o clips.npz`.
    """

    clips: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="CLIP|FOLDER")]
    """A video, or a folder of videos that ffmpeg reads."""
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"], metavar="FILE.npz")]
    """File to write."""
    size: int = 128
    """Shorter side of the frames, pixels."""
    overwrite: bool = False
    """Replace an existing file."""

    def run(self) -> None:
        """Checks everything, then reads and writes."""
        check_at_least("--size", self.size, 32)
        if self.output.suffix != ".npz":
            raise UserError(f"--output must end in .npz, got {self.output}")
        from scenediff.cli.folders import output_file

        with output_file(self.output, overwrite=self.overwrite) as path, user_errors():
            from scenediff.datasets.video import load_clips, save_cache

            clips = load_clips(self.clips, self.size)
            save_cache(clips, path)
        say(f"wrote {self.output}: {sum(len(clip.frames) for clip in clips)} frames of {len(clips)} clips")


def is_motion_folder(folder: Path) -> bool:
    """Whether a folder holds nothing but what `motion` writes."""
    names = [entry.name for entry in folder.iterdir() if not entry.name.startswith(".")]
    return RUN_FILE in names and all(FILES.fullmatch(name) for name in names)
