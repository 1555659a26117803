"""How long the full-size model takes, on random weights: a step, a sample, a frame, a training step."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from dataclasses import field as default
from typing import Any

import torch
from diffusers import DDPMScheduler
from torch import Tensor

from scenediff.dit_pipeline import DitPipeline, DitSampling, build_denoiser
from scenediff.forward import Observation
from scenediff.losses import TrainingBatch, forward_model_loss
from scenediff.networks.dit import DitConfig
from scenediff.pipeline import DEFAULT_SCHEDULE
from scenediff.renderers.cameras import CameraView, PinholeView, look_ahead, to_pinhole
from scenediff.renderers.volume_field import VolumeConfig
from scenediff.sampling import DynamicThreshold, sample

PATCH = 24  # side of the scored part of a training view, pixels
LEARNING_RATE = 2e-5
MATRIX_SIDE = 8192


@dataclass(frozen=True)
class BenchOptions:
    """What is measured.

    Attributes:
        size: side of the images, pixels.
        steps: denoising steps of a sample.
        train_batch: pairs in a training step; 0 to measure none.
        repeats: of every measurement, after one to warm up; medians are reported.
        half: bfloat16 for matrix products.
        encoder, field: the model.
    """

    size: int = 128
    steps: int = 50
    train_batch: int = 1
    repeats: int = 3
    half: bool = True
    encoder: DitConfig = default(default_factory=DitConfig)
    field: VolumeConfig = default(default_factory=VolumeConfig)


def bench_paper_scale(options: BenchOptions, device: torch.device | str) -> dict[str, Any]:
    """Seconds of each part, and the share of the device's matrix rate that the published sums amount to."""
    device = torch.device(device)
    with device:
        pipeline = DitPipeline(build_denoiser(options.encoder, options.field), DitSampling(size=options.size))
    pipeline.to(device)
    with torch.autocast(device.type, torch.bfloat16, enabled=options.half):
        figures = _sampling(pipeline, options, device)
        if options.train_batch:
            figures |= _training(pipeline, options, device)
    rate = matrix_rate(device, options.repeats) if device.type == "cuda" else None
    work = step_operations(options.field, options.size)
    return {
        **figures,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "size": options.size,
        "precision": "bfloat16" if options.half else "float32",
        "parameters": sum(value.numel() for value in pipeline.denoiser.parameters()),
        "step_tflop": work / 1e12,
        "matrix_tflops": rate and rate / 1e12,
        "share_of_matrix_rate": rate and work / figures["guided_step_seconds"] / rate,
    }


def step_operations(field: VolumeConfig, size: int, views: int = 2) -> float:
    """Floating-point operations of the field in one guided step, as published: nothing saved or shared."""
    width, encoded = field.width, 3 + 6 * field.octaves
    per_view = (encoded + field.map_channels) * width + 2 * field.view_blocks * width**2
    joint = 2 * field.joint_blocks * width**2 + width * (4 + field.feature_channels)
    evaluations = field.coarse + (field.coarse + field.fine if field.fine else 0)
    return 2 * 2 * size**2 * evaluations * (views * per_view + joint)


def matrix_rate(device: torch.device, repeats: int = 3) -> float:
    """Operations a second of bfloat16 matrix products on a CUDA device."""
    matrix = torch.randn(MATRIX_SIDE, MATRIX_SIDE, device=device, dtype=torch.bfloat16)
    rounds = 20

    def products() -> None:
        for _ in range(rounds):
            matrix @ matrix

    return rounds * 2 * MATRIX_SIDE**3 / median_seconds(products, device, repeats)


def median_seconds(work: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Of `work`, by CUDA events where there are any, after one run to warm up."""
    work()
    return statistics.median(_seconds(work, device) for _ in range(repeats))


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    if device.type != "cuda":
        start = time.perf_counter()
        work()
        return time.perf_counter() - start
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    first.record()
    work()
    last.record()
    torch.cuda.synchronize(device)
    return first.elapsed_time(last) / 1000


def random_view(options: BenchOptions, batch: int, device: torch.device, shift: float = 0.0) -> PinholeView:
    """Cameras that look ahead, beside the origin."""
    view = to_pinhole(CameraView(look_ahead(batch, 60.0, device=device), (options.size,) * 2))
    matrices = view.cam_to_world.clone()
    matrices[:, 0, 3] = shift
    pose = matrices if options.encoder.absolute_poses else None
    return PinholeView(matrices, view.intrinsics, view.size, pose)


def random_image(options: BenchOptions, batch: int, device: torch.device) -> Tensor:
    """(batch, 3, size, size) in [-1, 1]."""
    return torch.rand(batch, 3, options.size, options.size, device=device) * 2 - 1


@torch.no_grad()
def _sampling(pipeline: DitPipeline, options: BenchOptions, device: torch.device) -> dict[str, Any]:
    denoiser, renderer = pipeline.denoiser, pipeline.renderer
    context = [Observation(random_image(options, 1, device), random_view(options, 1, device))]
    target, novel = (random_view(options, 1, device, shift) for shift in (0.5, 0.3))
    noise = torch.randn(1, 3, options.size, options.size, device=device)
    encoded, both = denoiser.encode_pair(context, target)
    noisy, level = noise.repeat(2, 1, 1, 1), torch.full((2,), 500, device=device)

    def step() -> Tensor:
        return renderer.render(denoiser.denoise(noisy, level, encoded, both), both)

    def draw() -> None:
        sample(
            denoiser, renderer, pipeline.make_scheduler(), context, target, noise, steps=options.steps,
            guidance_scale=2.0, temperature=0.85, threshold=DynamicThreshold(),
        )

    figures = {"guided_step_seconds": median_seconds(step, device, options.repeats)}
    signal = denoiser.first_of_pair(denoiser.denoise(noisy, level, encoded, both))
    frame = median_seconds(lambda: renderer.render_all(signal, novel), device, options.repeats)
    return figures | {
        "frame_seconds": frame,
        "sample_seconds": median_seconds(draw, device, options.repeats),
        "sample_steps": options.steps,
    }


def _training(pipeline: DitPipeline, options: BenchOptions, device: torch.device) -> dict[str, Any]:
    """One step of the objective (without LPIPS, whose network is not part of the model) and of AdamW."""
    denoiser, batch = pipeline.denoiser.train(), options.train_batch
    optimizer = torch.optim.AdamW(denoiser.parameters(), lr=LEARNING_RATE, fused=device.type == "cuda")
    scheduler = DDPMScheduler(**DEFAULT_SCHEDULE)
    given = _training_batch(options, device)
    level, noise = torch.full((batch,), 500, device=device), torch.randn_like(given.target.image)

    def step() -> None:
        terms = forward_model_loss(denoiser, pipeline.renderer, scheduler, given, level, noise)
        torch.stack(list(terms.values())).sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    seconds = median_seconds(step, device, options.repeats)
    figures = {"training_step_seconds": seconds, "training_pairs_per_second": batch / seconds}
    if device.type == "cuda":
        figures["training_peak_gib"] = torch.cuda.max_memory_allocated(device) / 2**30
    denoiser.eval()
    return figures | {"training_batch": batch}


def _training_batch(options: BenchOptions, device: torch.device) -> TrainingBatch:
    """One context, the target with a patch of it, and a patch of a novel view."""
    batch, side = options.train_batch, min(PATCH, options.size)
    rows, columns = torch.meshgrid(*[torch.arange(side, device=device)] * 2, indexing="ij")
    pixels = torch.stack([rows, columns], dim=-1).view(1, -1, 2).expand(batch, -1, -1)
    context, target, novel = (random_view(options, batch, device, shift) for shift in (0.0, 0.5, 0.3))

    def patch(view: PinholeView) -> Observation:
        image = random_image(options, batch, device)[:, :, :side, :side].flatten(2)[..., None]
        return Observation(image, replace(view, pixels=pixels))

    return TrainingBatch(
        [Observation(random_image(options, batch, device), context)],
        Observation(random_image(options, batch, device), target),
        scored_target=patch(target), novel=patch(novel),
    )
