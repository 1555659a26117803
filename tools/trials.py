"""Trials of a model and what it makes of them: the part of an evaluation that reads data and samples scenes.

A trial is a photo with another view of the same place, and for rendered rooms a third view beyond both.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pytorch3d.renderer import PerspectiveCameras, join_cameras_as_batch
from torch import Tensor
from tqdm import tqdm

from scenediff.datasets.captures import CaptureError, SquareView, centre_square, load_capture
from scenediff.renderers.cameras import perspective_cameras, relative_to
from scenediff.sampling import SEED_STRIDE
from scenediff.tools.metrics import psnr, visible_from

if TYPE_CHECKING:
    from scenediff.datasets.rooms.stream import RoomBatch


@dataclass(frozen=True)
class Views:
    """One view of each of N places.

    Attributes:
        image: (N, 3, size, size) in [-1, 1].
        depth: (N, 1, size, size) metres, 0 where unknown.
        cameras: N cameras in the world of the trial's photo.
    """

    image: Tensor
    depth: Tensor
    cameras: PerspectiveCameras

    def part(self, chosen: slice, device: torch.device | str) -> Views:
        """Some of the places, on a device."""
        names = ("R", "T", "focal_length", "principal_point")
        cameras = perspective_cameras(*(getattr(self.cameras, name)[chosen].to(device) for name in names))
        return Views(self.image[chosen].to(device), self.depth[chosen].to(device), cameras)


@dataclass(frozen=True)
class Trials:
    """Photos, the views to compare with and, for rooms, views beyond both."""

    photo: Views
    target: Views
    novel: Views | None = None

    def visible(self) -> Tensor:
        """(N, 1, size, size) bool: target pixels that the photo sees."""
        return visible_from(self.photo.depth, self.photo.cameras, self.target.depth, self.target.cameras)

    def parts(self, chunk: int, device: torch.device | str) -> Iterator[tuple[int, Trials]]:
        """The trials in chunks on a device, each with the number of its first."""
        for start in range(0, len(self.photo.image), chunk):
            chosen = slice(start, start + chunk)
            novel = self.novel.part(chosen, device) if self.novel else None
            yield start, Trials(self.photo.part(chosen, device), self.target.part(chosen, device), novel)


@dataclass(frozen=True)
class Sampling:
    """How to sample.

    Attributes:
        samples: scenes for each photo.
        steps: denoising steps.
        guidance_scale: None for the model's default.
        seed: of the first sample of the first trial.
        chunk: trials in one batch; None to suit the device.
    """

    samples: int = 8
    steps: int = 25
    guidance_scale: float | None = None
    seed: int = 0
    chunk: int | None = None

    def __post_init__(self) -> None:
        if self.samples < 2:
            raise ValueError(f"samples must be at least 2, got {self.samples}")


@dataclass(frozen=True)
class Outcome:
    """Renderings of sampled scenes of N trials, on the CPU.

    Attributes:
        deterministic: (N, 3, size, size) the one average guess at the target view.
        images, depths: (samples, N, 3 or 1, size, size) at the target view.
        photo_view: (N, 3, size, size) the last sample at the photo's own view.
        novel_images, novel_depths: (samples, N, 3 or 1, size, size) at the novel view; empty without one.
        seconds_per_sample: of sampling alone, in batches.
    """

    deterministic: Tensor
    images: Tensor
    depths: Tensor
    photo_view: Tensor
    novel_images: Tensor
    novel_depths: Tensor
    seconds_per_sample: float


# ---- trials ----------------------------------------------------------------------------------------


def room_trials(seed: int, rooms: int, size: int) -> Trials:
    """Held-out rooms: each group's first view is the photo, the second the target, the third is novel."""
    from scenediff.datasets.rooms.stream import render_groups

    batch = render_groups(seed, rooms, size, split="heldout", views=3)
    return Trials(*group_views(batch, 3))


def group_views(batch: RoomBatch, count: int) -> list[Views]:
    """The first `count` views of every group, in the world of the first one's camera."""
    images = torch.as_tensor(batch.images).permute(0, 1, 4, 2, 3).float() / 127.5 - 1
    depths = torch.as_tensor(batch.depths).float()[:, :, None]
    names = ("rotation", "translation", "focal_length", "principal")
    poses = [torch.as_tensor(getattr(batch, name)).float() for name in names]
    cameras = [perspective_cameras(*(pose[:, view] for pose in poses)) for view in range(count)]
    return [
        Views(images[:, view], depths[:, view], relative_to(camera, cameras[0]))
        for view, camera in enumerate(cameras)
    ]


def capture_trials(folder: str | Path, size: int) -> Trials:
    """The capture's pairs as central squares."""
    pairs = load_capture(folder).pairs
    if not pairs:
        raise CaptureError(f"{folder}: expected pairs.json with at least one pair")
    photos = [centre_square(pair.context, size) for pair in pairs]
    targets = [centre_square(pair.target, size) for pair in pairs]
    world = join_cameras_as_batch([view.cameras for view in photos])
    return Trials(_stack(photos, world, folder), _stack(targets, world, folder))


def _stack(squares: list[SquareView], world: PerspectiveCameras, folder: str | Path) -> Views:
    depths = [square.depth for square in squares if square.depth is not None]
    if len(depths) < len(squares):
        raise CaptureError(f"{folder}: expected depth for every frame of pairs.json")
    cameras = relative_to(join_cameras_as_batch([square.cameras for square in squares]), world)
    return Views(torch.stack([square.image for square in squares]), torch.stack(depths)[:, None], cameras)


# ---- sampling --------------------------------------------------------------------------------------


@torch.no_grad()
def sample_trials(pipeline: Any, trials: Trials, sampling: Sampling, unit: str) -> Outcome:
    """Samples scenes for all trials and renders them, a chunk at a time."""
    chunk = sampling.chunk or _suitable_chunk(pipeline)
    count = len(trials.photo.image)
    outcomes = []
    with tqdm(total=count * sampling.samples, desc="sampling", unit=unit[:-1]) as bar:
        for start, part in trials.parts(chunk, pipeline.device):
            outcomes.append(_sample_chunk(pipeline, part, replace(sampling, seed=sampling.seed + start), bar))
    names = ("deterministic", "photo_view"), ("images", "depths", "novel_images", "novel_depths")
    joined = {
        name: torch.cat([getattr(outcome, name) for outcome in outcomes], dim=dim)
        for dim, group in enumerate(names)
        for name in group
    }
    seconds = sum(outcome.seconds_per_sample * len(outcome.deterministic) for outcome in outcomes) / count
    return Outcome(**joined, seconds_per_sample=seconds)


def _sample_chunk(pipeline: Any, trials: Trials, sampling: Sampling, bar: tqdm) -> Outcome:
    photo, target, novel = trials.photo, trials.target, trials.novel
    size = image_size(target.image)
    guess = pipeline.deterministic(photo.image, photo.cameras).render(target.cameras, size).image.cpu()
    shown, beyond, seconds = [], [], 0.0
    for index in range(sampling.samples):
        start = _now(pipeline)
        scenes = _one_sample(pipeline, trials, sampling, index)
        seconds += _now(pipeline) - start
        shown.append(scenes.render(target.cameras, size))
        if novel is not None:
            beyond.append(scenes.render(novel.cameras, size))
        bar.update(len(photo.image))
    empty = torch.zeros(0, len(guess), 1, *size)
    return Outcome(
        deterministic=guess,
        images=torch.stack([rendering.image.cpu() for rendering in shown]),
        depths=torch.stack([rendering.depth.cpu() for rendering in shown]),
        photo_view=scenes.render(photo.cameras, size).image.cpu(),
        novel_images=torch.stack([rendering.image.cpu() for rendering in beyond]) if beyond else empty,
        novel_depths=torch.stack([rendering.depth.cpu() for rendering in beyond]) if beyond else empty,
        seconds_per_sample=seconds / sampling.samples / len(guess),
    )


def _one_sample(pipeline: Any, trials: Trials, sampling: Sampling, index: int) -> Any:
    """Scenes sampled at the model's own resolution, whatever the photos' or that of the renderings."""
    (scenes,) = pipeline.sample_views(
        trials.photo.image, trials.photo.cameras, trials.target.cameras, 1, steps=sampling.steps,
        guidance_scale=sampling.guidance_scale, seed=sampling.seed + SEED_STRIDE * index,
    )
    return scenes


@torch.no_grad()
def photo_view_psnr(pipeline: Any, trials: Trials, sampling: Sampling) -> float:
    """PSNR of scenes at the photo's own view and resolution."""
    values = []
    chunk = max(1, (sampling.chunk or _suitable_chunk(pipeline)) // 8)
    for start, part in trials.parts(chunk, pipeline.device):
        scenes = _one_sample(pipeline, part, replace(sampling, seed=sampling.seed + start), 0)
        rendering = scenes.render(part.photo.cameras, image_size(part.photo.image))
        values.append(psnr(rendering.image, part.photo.image))
    return torch.cat(values).mean().item()


def _suitable_chunk(pipeline: Any) -> int:
    return 32 if torch.device(pipeline.device).type == "cuda" else 4


def _now(pipeline: Any) -> float:
    """Seconds, after the device has finished what it was given."""
    if torch.device(pipeline.device).type == "cuda":
        torch.cuda.synchronize(pipeline.device)
    return time.perf_counter()


def peak_memory_gb(device: torch.device | str) -> float:
    """The most memory in use so far: on the GPU by tensors, on the CPU by the whole process; 10^9 bytes."""
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def image_size(image: Tensor) -> tuple[int, int]:
    """(height, width) of a batch of images."""
    return image.shape[-2], image.shape[-1]
