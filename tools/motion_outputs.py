"""What sampled motions are written out as: flows, pictures of them, videos, where they disagree."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from scenediff.motion_pipeline import Motion
from scenediff.networks.pixel_denoiser import resize
from scenediff.renderers.baked import scaled_size
from scenediff.tools.flow_files import flow_colors, write_flo, write_kitti_png
from scenediff.tools.report import Panel, contact_sheet, overlay
from scenediff.tools.video import mp4_writer, to_pixels

FILE_NAMES = {"flow": "flow.flo", "kitti": "flow_kitti.png", "colors": "flow.png", "video": "motion.mp4"}
VISIBLE = 0.5  # of a target pixel arrives from the photo: its flow counts as valid
PANEL_SIDE = 128  # pixels, the shorter side of the contact sheet's pictures


def write_motions(
    motions: Sequence[Motion], folder: Path, *, frames: int = 24, fps: int = 12,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[dict[str, str]]:
    """Writes a folder for each motion, contact_sheet.png and, for two or more, disagreement.png.

    Args:
        frames: of each video, which goes forward and back. fps: frames a second.

    Returns:
        the names of each sample's files.
    """
    longest = max(float(motion.field.flow.norm(dim=1).max()) for motion in motions)
    names = []
    for index, motion in enumerate(motions):
        place = folder / f"sample_{index:02d}"
        place.mkdir(parents=True)
        flow = motion.field.flow[0].cpu()
        write_flo(flow, place / FILE_NAMES["flow"])
        write_kitti_png(flow, motion.field.visible[0, 0].cpu() > VISIBLE, place / FILE_NAMES["kitti"])
        Image.fromarray(to_pixels(flow_colors(flow, longest))).save(place / FILE_NAMES["colors"])
        write_swing(motion, place / FILE_NAMES["video"], frames, fps)
        names.append({"folder": place.name, **FILE_NAMES})
        progress(index + 1, len(motions))
    motion_sheet(motions, longest).save(folder / "contact_sheet.png")
    if len(motions) > 1:
        shown = overlay(motions[0].photo[0].cpu(), spread(motions) / max(longest, 1e-6))
        Image.fromarray(to_pixels(shown)).save(folder / "disagreement.png")
    return names


def write_swing(motion: Motion, path: Path, frames: int, fps: int) -> None:
    """An MP4 that plays the photo forward along its motion and back; odd sizes lose a row or column."""
    height, width = (side - side % 2 for side in motion.photo.shape[-2:])
    with mp4_writer(path, (height, width), fps) as write:
        for index in range(frames):
            moment = (1 - math.cos(2 * math.pi * index / frames)) / 2
            write(to_pixels(motion.render(moment)[0, :, :height, :width]))


def spread(motions: Sequence[Motion]) -> Tensor:
    """(height, width) where samples disagree: root of the summed variances of the flow, pixels."""
    flows = torch.cat([motion.field.flow for motion in motions]).cpu()
    return flows.var(0, unbiased=True).sum(0).sqrt()


def motion_sheet(motions: Sequence[Motion], longest: float) -> Image.Image:
    """The photo and where samples disagree, then for each sample the target, half-way and the flow."""
    photo = motions[0].photo.cpu()
    size = scaled_size((photo.shape[-2], photo.shape[-1]), PANEL_SIDE)
    header = []
    if len(motions) > 1:
        heat = overlay(photo[0], spread(motions) / max(longest, 1e-6))
        header.append(Panel("samples differ", resize(heat[None], size)[0]))
    rows = [
        [
            Panel(f"sample {index}: half-way", resize(motion.render(0.5).cpu(), size)[0]),
            Panel("target", resize(motion.render().cpu(), size)[0]),
            Panel(f"flow, up to {longest:.1f} px", resize(flow_colors(motion.field.flow, longest), size)[0]),
        ]
        for index, motion in enumerate(motions)
    ]
    return contact_sheet(photo, rows, header)
