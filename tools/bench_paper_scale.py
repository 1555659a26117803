"""How long the full-size model takes, on random weights: a step, a sample, a frame, a training step."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from dataclasses import field as default
from functools import partial
from typing import Any

import torch
from diffusers import DDPMScheduler
from torch import Tensor

from scenediff.cuda_graphs import RecordedGradients
from scenediff.dit_pipeline import EXACT, DitPipeline, Shortcuts, build_denoiser
from scenediff.forward import Observation
from scenediff.losses import Regularizer, TrainingBatch, forward_model_loss
from scenediff.networks.dit import DitConfig
from scenediff.networks.regularizers import DepthSmoothness, Distortion, KeptRenderings
from scenediff.pipeline import DEFAULT_SCHEDULE
from scenediff.renderers.cameras import CameraView, PinholeView, look_ahead, to_pinhole
from scenediff.renderers.volume_field import VolumeFieldRenderer, VolumeSignal
from scenediff.renderers.volume_network import STANDARD_RGB, PointNetwork, VolumeConfig
from scenediff.renderers.volume_rays import pinhole_rays
from scenediff.sampling import DynamicThreshold, sample

PATCH = 24  # side of the scored part of a training view, pixels
LEARNING_RATE = 2e-5
MATRIX_SIDE = 8192
OCCUPIED, DENSITY = 0.1, 20.0  # share of space with density, and its mean there; see `surfaces`
BATCH_SIZE = 128  # of the images that `BenchOptions.train_batch` counts


@dataclass(frozen=True)
class BenchOptions:
    """What is measured.

    Attributes:
        sizes: sides of the images, pixels.
        steps: denoising steps of a sample.
        train_batch: pairs in a training step at 128 pixels, at others as many pixels; 0 to measure none.
        repeats: of every measurement, after one to warm up; medians are reported.
        half: bfloat16 for matrix products.
        kernels: see `VolumeFieldRenderer.use_kernels`.
        graphs: record the training step as a CUDA graph, as `training.train` does it.
        reference_steps: of the samples that are compared with those in float32; 0 to compare none.
        inexact: whether to measure shortcuts that change the result, and by how much, see `list_shortcuts`.
        encoder, field: the model.
    """

    sizes: tuple[int, ...] = (64, 128)
    steps: int = 50
    train_batch: int = 8
    repeats: int = 3
    half: bool = True
    kernels: bool = True
    graphs: bool = False
    reference_steps: int = 5
    inexact: bool = False
    encoder: DitConfig = default(default_factory=DitConfig)
    field: VolumeConfig = default(default_factory=VolumeConfig)


def bench_paper_scale(options: BenchOptions, device: torch.device | str) -> dict[str, Any]:
    """Seconds of each part, and the share of the device's matrix rate that the published sums amount to."""
    device = torch.device(device)
    torch.manual_seed(0)
    with device:
        pipeline = DitPipeline(build_denoiser(options.encoder, options.field))
    pipeline.renderer.use_kernels(options.kernels)
    pipeline.to(device)
    rate = matrix_rate(device, options.repeats) if device.type == "cuda" else None
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "precision": "bfloat16" if options.half else "float32",
        "parameters": sum(value.numel() for value in pipeline.denoiser.parameters()),
        "matrix_tflops": rate and rate / 1e12,
        "sizes": {str(size): bench_size(pipeline, options, size, device, rate) for size in options.sizes},
    }


def bench_size(
    pipeline: DitPipeline, options: BenchOptions, size: int, device: torch.device, rate: float | None
) -> dict[str, Any]:
    """All measurements with images of one size; `rate` of the device's matrix products, if known."""
    scene = RandomScene(pipeline, options, size, device)
    figures = scene.times()
    work = step_operations(options.field, size)
    figures |= {
        "step_tflop": work / 1e12,
        "share_of_matrix_rate": rate and work / figures["guided_step_seconds"] / rate,
    }
    if options.half and options.reference_steps:
        figures |= scene.agreement()
    if options.inexact:
        figures["inexact"] = scene.shortcuts()
    batch = max(1, round(options.train_batch * (BATCH_SIZE / size) ** 2)) if options.train_batch else 0
    if batch:
        figures |= _training(pipeline, options, size, batch, device)
    return figures


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


def random_view(
    encoder: DitConfig, size: int, batch: int, device: torch.device, shift: float = 0.0
) -> PinholeView:
    """Cameras that look ahead, beside the origin."""
    view = to_pinhole(CameraView(look_ahead(batch, 60.0, device=device), (size, size)))
    matrices = view.cam_to_world.clone()
    matrices[:, 0, 3] = shift
    pose = matrices if encoder.absolute_poses else None
    return PinholeView(matrices, view.intrinsics, view.size, pose)


def random_image(size: int, batch: int, device: torch.device) -> Tensor:
    """(batch, 3, size, size) in [-1, 1]."""
    return torch.rand(batch, 3, size, size, device=device) * 2 - 1


def psnr(image: Tensor, reference: Tensor) -> float:
    """Of images in [-1, 1], decibels."""
    return float(10 * torch.log10(4 / (image.float() - reference.float()).square().mean()))


def list_shortcuts(steps: int, fine: int) -> dict[str, tuple[int, Shortcuts]]:
    """Shortcuts worth comparing with an exact sample of that many steps and fine samples, by name."""
    fewer = {
        f"{count}_fine_samples": (steps, Shortcuts(fine=count)) for count in (fine // 2, fine // 4) if count
    }
    emptier = {f"skip_{share}": (steps, Shortcuts(skip=share)) for share in (0.001, 0.01)}
    shorter = {
        f"{count}_steps_{name}": (count, Shortcuts(scheduler=name))
        for count in (max(1, steps // 5 * part) for part in (2, 1))
        for name in ("dpmsolver++", "ddim")
    }
    every = Shortcuts("dpmsolver++", max(1, fine // 2) if fine else None, 0.001)
    return {**fewer, **emptier, **shorter, "all": (max(1, steps // 5 * 2), every)}


@contextmanager
@torch.no_grad()
def surfaces(scene: RandomScene) -> Iterator[None]:
    """Makes a random field one with empty space and things in it, as trained ones are, for a while.

    Both of its networks get the same weights, so that the second pass finds what the first one found; what
    varies quickly counts for less, so that the first pass can find it; and the density is shifted and
    scaled: about `OCCUPIED` of the space then has any.
    """
    renderer = scene.pipeline.renderer
    networks = renderer.coarse, renderer.fine
    before = [{name: value.clone() for name, value in each.state_dict().items()} for each in networks]
    try:
        octaves = 2.0 ** -torch.arange(renderer.config.octaves, device=scene.device)
        renderer.coarse.position.weight[:, STANDARD_RGB:] *= octaves.repeat_interleave(2 * STANDARD_RGB)
        renderer.fine.load_state_dict(renderer.coarse.state_dict())
        raw = scene.densities()
        empty = float(raw.quantile(1 - OCCUPIED))
        gain = DENSITY / float((raw - empty).clamp(min=0).mean() / OCCUPIED)
        for network in networks:
            _scale_density(network, gain, empty)
        yield
    finally:
        for network, state in zip(networks, before, strict=True):
            network.load_state_dict(state)


def _scale_density(network: PointNetwork, gain: float, empty: float) -> None:
    row = network.output.weight[STANDARD_RGB], network.output.bias[STANDARD_RGB : STANDARD_RGB + 1]
    row[0].mul_(gain)
    row[1].sub_(empty).mul_(gain)


class RandomScene:
    """One photo of noise and the views around it, to sample from.

    Args:
        pipeline, options, size, device: see `bench_size`.
    """

    def __init__(self, pipeline: DitPipeline, options: BenchOptions, size: int, device: torch.device):
        self.pipeline, self.options, self.device = pipeline, options, device
        view = partial(random_view, options.encoder, size, 1, device)
        self.context = [Observation(random_image(size, 1, device), view())]
        self.target, self.novel = view(0.5), view(0.3)
        self.noise = torch.randn(1, 3, size, size, device=device)

    @torch.no_grad()
    def times(self) -> dict[str, Any]:
        """Of a step, its parts, a sample and a frame."""
        denoiser, renderer = self.pipeline.denoiser, self.pipeline.renderer
        noisy, level = self.noise.repeat(2, 1, 1, 1), torch.full((2,), 500, device=self.device)

        def seconds(work: Callable[[], object]) -> float:
            return median_seconds(work, self.device, self.options.repeats)

        with self._precision(self.options.half):
            encoded, both = denoiser.encode_pair(self.context, self.target)
            signal = denoiser.denoise(noisy, level, encoded, both)
            alone = denoiser.first_of_pair(signal)
            return {
                "guided_step_seconds": seconds(
                    lambda: renderer.render(denoiser.denoise(noisy, level, encoded, both), both)
                ),
                "step_encoder_seconds": seconds(lambda: denoiser.denoise(noisy, level, encoded, both)),
                "step_field_seconds": seconds(lambda: renderer.render(signal, both)),
                "context_seconds": seconds(lambda: denoiser.encode_pair(self.context, self.target)),
                "frame_seconds": seconds(lambda: renderer.render(alone, self.novel)),
                "sample_seconds": seconds(self.draw),
                "sample_steps": self.options.steps,
            }

    def densities(self, count: int = 20_000) -> Tensor:
        """(count,) density before its ReLU at points along the target's rays, at a middling noise level."""
        denoiser, renderer = self.pipeline.denoiser, self.pipeline.renderer
        encoded = denoiser.encode(self.context, self.target)
        level = torch.full((1,), 500, device=self.device)
        signal = denoiser.denoise(self.noise, level, encoded, self.target)
        origins, directions = pinhole_rays(self.target)
        chosen = directions[:, torch.randint(directions.shape[1], (count,), device=self.device)]
        near, far = renderer.config.near, renderer.config.far
        distances = near + (far - near) * torch.rand(1, count, 1, device=self.device)
        outputs: list[Tensor] = []
        hook = renderer.coarse.output.register_forward_hook(lambda *call: outputs.append(call[-1]))
        renderer.at_points(signal, origins + distances * chosen)
        hook.remove()
        return outputs[0][0, :, STANDARD_RGB].float()

    @torch.no_grad()
    def agreement(self) -> dict[str, Any]:
        """How far half precision is from float32: of a short sample, and of a novel view of it."""
        steps = self.options.reference_steps
        images = []
        for half in (True, False):
            with self._precision(half):
                signal, image = self.draw(steps)
                images.append((image, self.pipeline.renderer.render(signal, self.novel)))
        (image, frame), (exact_image, exact_frame) = images
        return {
            f"psnr_to_float32_of_{steps}_steps": psnr(image, exact_image),
            f"psnr_to_float32_of_frame_after_{steps}_steps": psnr(frame, exact_frame),
        }

    @torch.no_grad()
    def shortcuts(self) -> dict[str, dict[str, float]]:
        """Seconds of a sample and a frame by each, and how far they are from the exact ones; with `surfaces`.

        Networks that have learned nothing draw another sample with every number of steps: what fewer steps
        cost a trained model, these distances do not tell.
        """
        with surfaces(self), self._precision(self.options.half):  # autocast would keep copies of old weights
            signal, image = self.draw()
            exact = image, self.pipeline.renderer.render(signal, self.novel)
            listed = list_shortcuts(self.options.steps, self.options.field.fine)
            figures = {name: self._measure(exact, *how) for name, how in listed.items()}
            figures["exact"] = self._measure(None, self.options.steps, EXACT)
        return figures

    def draw(
        self, steps: int | None = None, shortcuts: Shortcuts = EXACT
    ) -> tuple[VolumeSignal, Tensor]:
        """A sample and its image at the target view."""
        pipeline = self.pipeline
        return sample(
            pipeline.denoiser, self._renderer(shortcuts), pipeline.make_scheduler(shortcuts.scheduler),
            self.context, self.target, self.noise, steps=steps or self.options.steps, guidance_scale=2.0,
            temperature=0.85, threshold=DynamicThreshold(),
        )

    def _renderer(self, shortcuts: Shortcuts) -> VolumeFieldRenderer:
        return self.pipeline.renderer.faster(shortcuts.fine, shortcuts.skip)

    def _measure(
        self, exact: tuple[Tensor, Tensor] | None, steps: int, shortcuts: Shortcuts
    ) -> dict[str, float]:
        signal, image = self.draw(steps, shortcuts)
        frame = partial(self._renderer(shortcuts).render, signal, self.novel)
        figures = {
            "seconds": median_seconds(partial(self.draw, steps, shortcuts), self.device, 1),
            "frame_seconds": median_seconds(frame, self.device, self.options.repeats),
        }
        if exact is not None:
            figures["psnr_to_exact"] = psnr(image, exact[0])
            figures["frame_psnr_to_exact"] = psnr(frame(), exact[1])
        return figures

    def _precision(self, half: bool) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=half)


def _training(
    pipeline: DitPipeline, options: BenchOptions, size: int, batch: int, device: torch.device
) -> dict[str, Any]:
    """One step of the published objective (without LPIPS, another network's term) and of AdamW."""
    denoiser = pipeline.denoiser.train()
    parameters = list(denoiser.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, fused=device.type == "cuda")
    scheduler = DDPMScheduler(**DEFAULT_SCHEDULE)
    given = _training_batch(options.encoder, size, batch, device)
    level, noise = torch.full((batch,), 500, device=device), torch.randn_like(given.target.image)
    rendered = KeptRenderings(pipeline.renderer, features=False, distortion=True)
    regularizers: list[Regularizer] = [Distortion(rendered), DepthSmoothness(rendered)]

    def gradients(batch: TrainingBatch, level: Tensor, noise: Tensor) -> dict[str, Tensor]:
        optimizer.zero_grad()
        with torch.autocast(device.type, torch.bfloat16, enabled=options.half):
            terms = forward_model_loss(
                denoiser, rendered, scheduler, batch, level, noise, regularizers=regularizers
            )
        torch.stack(list(terms.values())).sum().backward()
        return {name: term.detach() for name, term in terms.items()}

    recorded = options.graphs and device.type == "cuda"
    compute = RecordedGradients(gradients, parameters) if recorded else gradients

    def step() -> None:
        compute(given, level, noise)
        optimizer.step()

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    seconds = median_seconds(step, device, options.repeats)
    figures = {"training_step_seconds": seconds, "training_pairs_per_second": batch / seconds}
    if device.type == "cuda":
        figures["training_peak_gib"] = torch.cuda.max_memory_allocated(device) / 2**30
    denoiser.eval()
    return figures | {"training_batch": batch}


def _training_batch(encoder: DitConfig, size: int, batch: int, device: torch.device) -> TrainingBatch:
    """One context, the target with a patch of it, and a patch of a novel view."""
    side = min(PATCH, size)
    rows, columns = torch.meshgrid(*[torch.arange(side, device=device)] * 2, indexing="ij")
    pixels = torch.stack([rows, columns], dim=-1).view(1, -1, 2).expand(batch, -1, -1)
    context, target, novel = (random_view(encoder, size, batch, device, shift) for shift in (0.0, 0.5, 0.3))

    def patch(view: PinholeView) -> Observation:
        image = random_image(side, batch, device).flatten(2)[..., None]
        return Observation(image, replace(view, pixels=pixels))

    return TrainingBatch(
        [Observation(random_image(size, batch, device), context)],
        Observation(random_image(size, batch, device), target),
        scored_target=patch(target), novel=patch(novel),
    )
