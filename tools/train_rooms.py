"""Trains the model of rooms: rendered on the fly, pooled on the device, with checkpoints and sample grids."""

from __future__ import annotations

import json
import logging
import math
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from scenediff.datasets.rooms.pool import DrawConfig, GroupPool, PhotoBatch
from scenediff.datasets.rooms.stream import RoomBatch, RoomStream, joined, render_groups
from scenediff.forward import ForwardModel
from scenediff.losses import LossWeights, Regularizer, TrainingBatch
from scenediff.networks.backbone import ImageNetFeatures
from scenediff.networks.pixel_denoiser import DenoiserConfig
from scenediff.networks.reading import PhotoReading, ReadingBeside
from scenediff.networks.regularizers import (
    DepthSupervision,
    DirectImage,
    KeptRenderings,
    PerceptualImage,
    SampledDepth,
)
from scenediff.pipeline import SamplingDefaults, ScenePipeline, build_model, load, precision_on, rebuilt
from scenediff.renderers.pixel_field import FieldConfig
from scenediff.tools.train_super_resolution import learn_super_resolution
from scenediff.tools.trials import group_views
from scenediff.training import TrainConfig, TrainingStep, train

logger = logging.getLogger(__name__)

CHECKPOINT_FOLDER = "checkpoint"
ROOMS_AT_ONCE, SECONDS_APART = 16, 1.0  # to the pool: a GPU that draws takes as long for one room as for many
VALIDATION_PHOTOS, VALIDATION_SEED = 256, 4_242


@dataclass(frozen=True)
class RoomsRun:
    """One training run of the model of rooms.

    Attributes:
        output: folder of checkpoints, logs and grids.
        init: model to start from, a bundled one's name or a folder.
        resume: go on with the run in `output`, optimizer state and clock included.
        workers: processes that render rooms.
        pool_groups: groups of views kept on the device.
        pool_warmup: groups to wait for before the first step.
        render_seconds: waits at most so long for them, and ends rendering then: training and rendering slow
            each other down on one GPU. 0 renders all the while.
        reading_minutes: length of a first stage that only learns the depth of single photos, fine-tuning the
            image features too; 0 for none.
        reading_factor: photos in a step of it, for each pair in a step of the rest.
        enlarging_minutes: length of a last stage that learns to enlarge sampled views and leaves all else as
            it is, see `learn_super_resolution`; 0 for none.
        view_size: side of the rendered views, pixels; a multiple of the diffusion's.
        data_seed: of the rooms; change it when training goes on from a checkpoint.
        muon: train the U-Net's matrices with `Muon`, which learns faster from scratch; AdamW trains
            everything else.
        depth_supervision: also learn from true depths; False is the method's pure form, images alone.
        grid_rooms: held-out rooms in the sample grids.
        validation_rooms: held-out rooms whose photos are read at every save, beside as many photos that the
            run trains on: what these are read better by was learned by heart.
        train: lengths and rates; without minutes, only the other stages take place.
        loss: weights of the objective.
        depth: weights of the depth terms.
        direct: weight of the target's own image estimate.
        perceptual: weight of that estimate's ImageNet features; 0 for none.
        draw: how batches are made; with photos in them, the image features are fine-tuned in all stages.
        denoiser: sizes of the network. What `init` lacks of its transformer blocks and of telling doubt is
            added to it; otherwise the sizes of `init` stay.
        field_config: sizes of the field.
    """

    output: Path
    init: str | Path | None = None
    resume: bool = False
    workers: int = 14
    pool_groups: int = 60_000
    pool_warmup: int = 4_000
    render_seconds: float = 0.0
    reading_minutes: float = 0.0
    reading_factor: int = 4
    enlarging_minutes: float = 0.0
    view_size: int = 128
    data_seed: int = 1
    muon: bool = False
    depth_supervision: bool = True
    grid_rooms: int = 6
    validation_rooms: int = 64
    train: TrainConfig = field(default_factory=TrainConfig)
    loss: LossWeights = field(default_factory=LossWeights)
    depth: DepthSupervision = field(default_factory=DepthSupervision)
    direct: DirectImage = field(default_factory=DirectImage)
    perceptual: float = 0.0
    draw: DrawConfig = field(default_factory=DrawConfig)
    denoiser: DenoiserConfig = field(default_factory=DenoiserConfig)
    field_config: FieldConfig = field(default_factory=FieldConfig)


def train_rooms(run: RoomsRun, device: torch.device | str) -> dict[str, float]:
    """Trains, and leaves in `run.output`: checkpoint/ (config.json, weights), grid_*.png, log.jsonl, state/.

    Returns:
        figures of the run, the rooms' included.
    """
    pipeline = starting_point(run).to(device)
    heldout = render_groups(
        VALIDATION_SEED, max(run.grid_rooms, run.validation_rooms), run.view_size, "heldout"
    )
    pool = GroupPool(run.pool_groups, device, depth_size=run.draw.size)
    with filling(pool, run) as renderer:

        def next_batch(generator: torch.Generator) -> TrainingBatch:
            renderer.check()
            return pool.draw(run.train.batch_size, run.draw, generator)

        renderer.wait(run.pool_warmup, run.render_seconds or math.inf)
        if run.render_seconds:
            renderer.stop()
        keep = partial(_keep, pool, heldout, run)
        figures = {} if run.resume else learn_reading(pipeline, pool, run)
        if run.train.minutes > 0:
            step = training_step(pipeline, run)
            features = pipeline.denoiser.backbone.fine_tune(run.draw.photos > 0)
            figures |= train(
                step, next_batch, run.train, run.output, resume=run.resume, pretrained=features,
                matrices=hidden_matrices(pipeline, run),
                on_save=lambda steps: keep(pipeline, step, steps),
            )
        if run.enlarging_minutes > 0:
            figures |= learn_super_resolution(pipeline, pool, run, partial(_keep_grid, heldout, run))
    views = pool.written * heldout.images.shape[1]
    return figures | {"groups_rendered": pool.written, "views_rendered": views}


def learn_reading(pipeline: ScenePipeline, pool: GroupPool, run: RoomsRun) -> dict[str, float]:
    """The first stage: depth of single photos; its log is in reading/. Returns its figures."""
    if run.reading_minutes <= 0:
        return {}
    features = pipeline.denoiser.backbone.fine_tune()
    photos = run.reading_factor * run.train.batch_size

    def next_batch(generator: torch.Generator) -> PhotoBatch:
        return pool.draw_photos(photos, run.draw, generator)

    config = replace(
        run.train, minutes=run.reading_minutes, batch_size=photos, save_every_minutes=math.inf
    )
    figures = train(
        photo_reading(pipeline, run), next_batch, config, run.output / "reading", pretrained=features,
        matrices=hidden_matrices(pipeline, run),
    )
    pipeline.denoiser.backbone.fine_tune(False)
    return {f"reading_{name}": value for name, value in figures.items()}


def hidden_matrices(pipeline: ScenePipeline, run: RoomsRun) -> list[torch.nn.Parameter]:
    """What `Muon` trains in the run: the weights within the U-Net, not those that it reads or is read by."""
    return [p for p in pipeline.denoiser.unet.parameters() if p.ndim > 1] if run.muon else []


class BackgroundRenderer:
    """Renders rooms into a pool in a thread of its own until it is stopped."""

    def __init__(self, pool: GroupPool, run: RoomsRun):
        self.pool, self.run = pool, run
        self._stopping, self._started = threading.Event(), time.perf_counter()
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._work, name="rooms", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        try:
            run = self.run
            gpu = self.pool.device.index or 0
            with RoomStream(
                run.workers, size=run.view_size, seed=run.data_seed, device_index=gpu
            ) as stream:
                rooms: list[RoomBatch] = []
                added = time.perf_counter()
                for room in stream:
                    rooms.append(room)
                    if len(rooms) == ROOMS_AT_ONCE or time.perf_counter() - added > SECONDS_APART:
                        self.pool.add(joined(rooms))
                        rooms, added = [], time.perf_counter()
                    if self._stopping.is_set():
                        return
        except Exception as error:
            self._error = error

    def wait(self, groups: int, seconds: float) -> None:
        """Until there are so many groups, or so many seconds have passed since the start."""
        while self.pool.filled < min(groups, self.pool.capacity):
            self.check()
            if time.perf_counter() - self._started > seconds and self.pool.filled:
                break
            time.sleep(0.2)
        waited = time.perf_counter() - self._started
        logger.warning("%d groups of views after %.0f s", self.pool.filled, waited)

    def check(self) -> None:
        """Raises what went wrong in the worker processes."""
        if self._error is not None:
            raise self._error

    def stop(self) -> None:
        """Ends the worker processes."""
        self._stopping.set()
        self._thread.join(60)


@contextmanager
def filling(pool: GroupPool, run: RoomsRun) -> Iterator[BackgroundRenderer]:
    """Renders rooms into the pool in the background, on the pool's GPU."""
    renderer = BackgroundRenderer(pool, run)
    try:
        yield renderer
    finally:
        renderer.stop()


def sample_grid(pipeline: ScenePipeline, rooms: RoomBatch, samples: int = 3, steps: int = 12) -> Image.Image:
    """Rows of photo, target, deterministic render, samples, true and sampled depth."""
    size = pipeline.defaults.size
    photo, target = (views.part(slice(None), pipeline.device) for views in group_views(rooms, 2))
    square = (size, size)
    deterministic = pipeline.deterministic(photo.image, photo.cameras).render(target.cameras, square)
    drawn = pipeline.sample_views(
        photo.image, photo.cameras, target.cameras, samples, steps=steps, size=square
    )
    frames = [scene.render(target.cameras, square) for scene in drawn]
    columns = [
        photo.image, target.image, deterministic.image, *(frame.image for frame in frames),
        _grey(target.depth), _grey(deterministic.depth), *(_grey(frame.depth) for frame in frames[:2]),
    ]
    fitted = [torch.nn.functional.interpolate(column, size=(128, 128)) for column in columns]
    rows = torch.cat([column.clamp(-1, 1) for column in fitted], dim=3)  # (rooms, 3, 128, columns * 128)
    pixels = ((rows.permute(0, 2, 3, 1).flatten(0, 1) + 1) * 127.5).round().byte().cpu().numpy()
    return Image.fromarray(pixels)


def _grey(depth: Tensor) -> Tensor:
    """Depth (batch, 1, h, w) as a grey picture in [-1, 1]: 0.4 m is white, 8 m black."""
    return (1 - (depth.clamp(0.4, 8) / 0.4).log() / torch.tensor(20.0).log() * 2).expand(-1, 3, -1, -1)


def photo_reading(pipeline: ScenePipeline, run: RoomsRun) -> PhotoReading:
    """The score of the depth that the run's model reads from photos."""
    return PhotoReading(pipeline.denoiser, run.draw.size, run.depth)


def training_step(pipeline: ScenePipeline, run: RoomsRun) -> TrainingStep:
    """The model with the run's objective, ready to train."""
    forward: ForwardModel = pipeline.renderer
    regularizers: list[Regularizer] = [run.direct]
    if run.perceptual:
        features = ImageNetFeatures().load_imagenet().to(pipeline.device)
        regularizers.append(PerceptualImage(features, run.perceptual))
    if run.depth_supervision:
        forward = rendered = KeptRenderings(pipeline.renderer)
        reading = ReadingBeside(photo_reading(pipeline, run))
        regularizers += [run.depth, reading, SampledDepth(rendered)]
    return TrainingStep(
        pipeline.denoiser, forward, pipeline.scheduler, run.loss, regularizers
    ).train()


def starting_point(run: RoomsRun) -> ScenePipeline:
    """The run's initial model: a checkpoint, or an untrained one with the pretrained image features."""
    if run.init is not None:
        pipeline = load(run.init)
        if not isinstance(pipeline, ScenePipeline):
            raise ValueError(f"{run.init} is of another architecture; only models of rooms train on rooms")
        return grown(pipeline, run.denoiser)
    denoiser, scheduler = build_model(run.denoiser, run.field_config)
    denoiser.backbone.load_imagenet()
    return ScenePipeline(denoiser, scheduler, SamplingDefaults(size=run.draw.size))


def grown(pipeline: ScenePipeline, wanted: DenoiserConfig) -> ScenePipeline:
    """The model with the wanted transformer blocks and doubt that it lacks; at first they change nothing."""
    old = pipeline.denoiser.config
    config = replace(
        old, transformers=max(old.transformers, wanted.transformers),
        tells_doubt=old.tells_doubt or wanted.tells_doubt,
    )
    if config == old:
        return pipeline
    larger = rebuilt(pipeline, config)
    added = larger.denoiser.state_dict().keys() - pipeline.denoiser.state_dict().keys()
    logger.warning("added to the model: %d tensors", len(added))
    return larger


def _keep(
    pool: GroupPool, heldout: RoomBatch, run: RoomsRun, pipeline: ScenePipeline, step: TrainingStep,
    steps: int,
) -> None:
    """The model, a grid of its samples and how it reads photos, of a run that goes on."""
    step.eval()
    _keep_grid(heldout, run, pipeline, f"grid_{steps:07d}.png")
    if run.depth_supervision and run.validation_rooms:
        line = {"step": steps, **reading_errors(pipeline, pool, heldout, run)}
        with (run.output / "validation.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
        logger.warning("depth of photos: %s", line)
    step.train()
    logger.warning("saved at step %d: %s", steps, asdict(run.train))


def _keep_grid(heldout: RoomBatch, run: RoomsRun, pipeline: ScenePipeline, name: str) -> None:
    """The model and a grid of its samples."""
    pipeline.save(run.output / CHECKPOINT_FOLDER)
    sample_grid(pipeline, heldout.first(run.grid_rooms)).save(run.output / name)


@torch.no_grad()
def reading_errors(
    pipeline: ScenePipeline, pool: GroupPool, heldout: RoomBatch, run: RoomsRun
) -> dict[str, float]:
    """The depth error of photos that the run trains on and of held-out ones, drawn as in training."""
    unseen = GroupPool(len(heldout), pool.device, depth_size=run.draw.size)
    unseen.add(heldout)
    reading = photo_reading(pipeline, run)
    errors = {}
    for name, source in (("reading_trained", pool), ("reading_heldout", unseen)):
        generator = torch.Generator(pool.device).manual_seed(VALIDATION_SEED)
        photos = source.draw_photos(VALIDATION_PHOTOS, run.draw, generator)
        with precision_on(pipeline.device):
            errors[name] = round(float(reading(photos)["reading"]), 4)
    return errors
