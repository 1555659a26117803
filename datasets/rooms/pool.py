"""A pool of rendered rooms on the training device: batches are drawn from it without work of the host."""

from __future__ import annotations

import random
import threading
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from scenediff.datasets.photometric import photograph
from scenediff.datasets.rooms.stream import RoomBatch
from scenediff.forward import Observation
from scenediff.losses import TrainingBatch
from scenediff.renderers.cameras import CameraView, perspective_cameras, relative_to

SMALLEST_CROP = 0.45  # side of the smallest part, as a share of the view's


@dataclass(frozen=True)
class DrawConfig:
    """How training batches are drawn from groups of views.

    Attributes:
        size: resolution of the diffusion, pixels; the photo keeps the pool's.
        target_rays, novel_rays: rays of the target and of the novel view that are scored.
        context_as_novel: share of elements whose novel view is the photo's own.
        two_contexts: share of batches with a second context view.
        photos: further photos of a batch, for each of its pairs, whose depths alone are learned.
        cropped_photos: share of these that show a part of the view alone, as if seen through a longer lens
            or cut out.
        cropped_contexts: share of first context views that do.
        photometric: strength of the photographic effects.
        coarse_photos: share of photos that are given with few pixels.
        coarse_size: how few, along a side; 0 for as many as the diffusion has.
    """

    size: int = 64
    target_rays: int = 1536
    novel_rays: int = 1536
    context_as_novel: float = 0.2
    two_contexts: float = 0.15
    photos: int = 0
    cropped_photos: float = 0.0
    cropped_contexts: float = 0.0
    photometric: float = 1.0
    coarse_photos: float = 0.0
    coarse_size: int = 0


@dataclass(frozen=True)
class PhotoBatch:
    """Single photos and their depths: (batch, 1, size, size), metres, 0 where unknown."""

    photo: Observation
    depth: Tensor


@dataclass(frozen=True)
class RoomTruth:
    """What optional regularizers need.

    Attributes:
        context_depth, target_depth: true depths, (batch, 1, size, size), metres.
        scored_depths: (batch, 1, rays, 1) depths of the scored rays of the target and of the novel view.
        photos: further photos, or None.
    """

    context_depth: Tensor
    target_depth: Tensor
    scored_depths: tuple[Tensor, Tensor]
    photos: PhotoBatch | None = None


class GroupPool:
    """A ring of view groups in the device's memory.

    Args:
        capacity: groups that it holds; older ones are overwritten.
        device: where batches are drawn.
        depth_size: resolution at which depths are kept.
    """

    def __init__(self, capacity: int, device: torch.device | str, depth_size: int = 64):
        self.capacity, self.device, self.depth_size = capacity, torch.device(device), depth_size
        self.filled, self.written = 0, 0
        self._lock = threading.Lock()
        self._dice = random.Random(0)  # on the host: a question to the device would wait for it
        self._tensors: dict[str, Tensor] = {}

    def add(self, batch: RoomBatch) -> None:
        """Copies groups into the ring."""
        depths = torch.from_numpy(np.ascontiguousarray(batch.depths)).to(self.device)
        new = {
            "images": torch.from_numpy(np.ascontiguousarray(batch.images)).to(self.device),
            "depths": median_pool(depths.float(), depths.shape[-1] // self.depth_size).half(),
            "rotation": torch.from_numpy(np.array(batch.rotation)).to(self.device),
            "translation": torch.from_numpy(np.array(batch.translation)).to(self.device),
            "focal_length": torch.from_numpy(np.array(batch.focal_length)).to(self.device),
            "principal": torch.from_numpy(np.array(batch.principal)).to(self.device),
        }
        count = len(depths)
        with self._lock:
            if not self._tensors:
                self._tensors = {
                    name: torch.empty(self.capacity, *value.shape[1:], dtype=value.dtype, device=self.device)
                    for name, value in new.items()
                }
            late = max(0, count - self.capacity)  # so many would be overwritten at once
            slots = (self.written + torch.arange(late, count, device=self.device)) % self.capacity
            for name, value in new.items():
                self._tensors[name][slots] = value[late:]
            self.written += count
            self.filled = min(self.capacity, self.written)

    def draw(self, batch: int, config: DrawConfig, generator: torch.Generator) -> TrainingBatch:
        """A batch of context, target and novel views in random roles, the context's camera as the world.

        Args:
            generator: of the pool's device.
        """
        if not self.filled:
            raise ValueError("the pool is empty: add groups before drawing from it")
        with self._lock:
            group = torch.randint(self.filled, (batch,), generator=generator, device=self.device)
            views = self._tensors["images"].shape[1]
            if views < 3:
                raise ValueError(f"groups need at least 3 views, got {views}")
            two = views > 3 and self._dice.random() < config.two_contexts
            order = torch.rand(batch, views, generator=generator, device=self.device).argsort(1)[:, : 3 + two]
            picked = {name: value[group[:, None], order] for name, value in self._tensors.items()}
        picked = _mirrored(picked, torch.rand(batch, generator=generator, device=self.device) < 0.5)
        if config.cropped_contexts:
            picked = _some_cropped(picked, config.cropped_contexts, generator)
        images = _normalised(picked["images"])  # (batch, roles, 3, S, S)
        sensors = (0, 3) if two else (0,)
        images = photograph(images, sensor_views=sensors, generator=generator, strength=config.photometric)
        for sensor in sensors:
            images[:, sensor] = _some_coarse(images[:, sensor], config, generator)
        photos = self.draw_photos(batch * config.photos, config, generator) if config.photos else None
        return _assemble(images, picked, photos, two, config, generator)

    def draw_photos(self, batch: int, config: DrawConfig, generator: torch.Generator) -> PhotoBatch:
        """Single views in the role of the photo."""
        if not self.filled:
            raise ValueError("the pool is empty: add groups before drawing from it")
        with self._lock:
            group = torch.randint(self.filled, (batch,), generator=generator, device=self.device)
            views = self._tensors["images"].shape[1]
            view = torch.randint(views, (batch,), generator=generator, device=self.device)
            picked = {name: value[group, view][:, None] for name, value in self._tensors.items()}
        picked = _mirrored(picked, torch.rand(batch, generator=generator, device=self.device) < 0.5)
        if config.cropped_photos:
            picked = _some_cropped(picked, config.cropped_photos, generator)
        images = _normalised(picked["images"])
        images = photograph(images, generator=generator, strength=config.photometric)[:, 0]
        images = _some_coarse(images, config, generator)
        camera = _cameras(picked, 0)
        size = (images.shape[-2], images.shape[-1])
        photo = Observation(images, CameraView(relative_to(camera, camera), size))
        return PhotoBatch(photo, picked["depths"].float())


def _normalised(images: Tensor) -> Tensor:
    """(batch, views, height, width, 3) uint8 -> (batch, views, 3, height, width) in [-1, 1]."""
    return images.permute(0, 1, 4, 2, 3).float() / 127.5 - 1


def median_pool(depth: Tensor, factor: int) -> Tensor:
    """(..., height, width) -> coarser by `factor`: each block's lower median, which mixes no two surfaces."""
    if factor <= 1:
        return depth
    blocks = depth.unfold(-2, factor, factor).unfold(-2, factor, factor)
    return blocks.flatten(-2).median(dim=-1).values


def _some_coarse(images: Tensor, config: DrawConfig, generator: torch.Generator) -> Tensor:
    """Images (batch, 3, S, S), some of which lose what few pixels do not show."""
    if not config.coarse_photos:
        return images
    size = images.shape[-1]
    few = functional.avg_pool2d(images, size // (config.coarse_size or config.size))
    blurred = functional.interpolate(few, size=(size, size), mode="bilinear", align_corners=False)
    chosen = torch.rand(len(images), generator=generator, device=images.device) < config.coarse_photos
    return torch.where(chosen[:, None, None, None], blurred, images)


def _some_cropped(picked: dict[str, Tensor], share: float, generator: torch.Generator) -> dict[str, Tensor]:
    """The first views of a share of elements (batch, views, ...) become square parts, as large as before."""
    device, count = picked["images"].device, len(picked["images"])
    chosen, side, *places = torch.rand(4, count, generator=generator, device=device)
    side = torch.where(chosen < share, SMALLEST_CROP + (1 - SMALLEST_CROP) * side, torch.ones_like(side))
    middle = torch.stack([(1 - side) * (2 * place - 1) for place in places], dim=-1)  # NDC, (batch, 2)
    images = picked["images"][:, 0].permute(0, 3, 1, 2).float()
    cropped = functional.grid_sample(
        images, _crop_grid(middle, side, images.shape[-1]), align_corners=False, padding_mode="border"
    )
    depths = picked["depths"][:, :1]
    nearest = functional.grid_sample(
        depths.float(), _crop_grid(middle, side, depths.shape[-1]), mode="nearest", align_corners=False
    )
    first = {
        "images": cropped.round().to(torch.uint8).permute(0, 2, 3, 1)[:, None],
        "depths": nearest.to(depths.dtype),
        "focal_length": picked["focal_length"][:, :1] / side[:, None],
        "principal": (picked["principal"][:, :1] - middle[:, None]) / side[:, None, None],
    }
    return picked | {name: torch.cat([part, picked[name][:, 1:]], dim=1) for name, part in first.items()}


def _crop_grid(middle: Tensor, side: Tensor, size: int) -> Tensor:
    """(batch, size, size, 2) where `grid_sample` finds the pixels of squares with such middles (NDC)."""
    steps = (2 * torch.arange(size, device=side.device) + 1) / size - 1  # rightwards and down, unlike NDC
    across = side[:, None] * steps - middle[:, :1]
    down = side[:, None] * steps - middle[:, 1:]
    return torch.stack(torch.broadcast_tensors(across[:, None], down[:, :, None]), dim=-1)


def _assemble(
    images: Tensor, picked: dict[str, Tensor], photos: PhotoBatch | None, two: bool, config: DrawConfig,
    generator: torch.Generator,
) -> TrainingBatch:
    batch, _, _, size, _ = images.shape
    coarse = functional.avg_pool2d(images[:, 1:3].flatten(0, 1), size // config.size).unflatten(0, (batch, 2))
    world = _cameras(picked, 0)
    cameras = [relative_to(_cameras(picked, role), world) for role in range(images.shape[1])]
    own = torch.rand(batch, generator=generator, device=images.device) < config.context_as_novel
    context_coarse = functional.avg_pool2d(images[:, 0], size // config.size)
    novel_image = torch.where(own[:, None, None, None], context_coarse, coarse[:, 1])
    novel_cameras = _select(own, cameras[0], cameras[2])
    depths = picked["depths"].float()  # (batch, roles, size, size)
    novel_depth = torch.where(own[:, None, None], depths[:, 0], depths[:, 2])
    scored_target, target_rays = _random_rays(
        coarse[:, 0], depths[:, 1, None], cameras[1], config.target_rays, generator
    )
    novel, novel_rays = _random_rays(
        novel_image, novel_depth[:, None], novel_cameras, config.novel_rays, generator
    )
    square = (config.size, config.size)
    context = [
        Observation(images[:, role], CameraView(cameras[role], (size, size)))
        for role in ((0, 3) if two else (0,))
    ]
    return TrainingBatch(
        context=context,
        target=Observation(coarse[:, 0], CameraView(cameras[1], square)),
        scored_target=scored_target,
        novel=novel,
        truth=RoomTruth(depths[:, 0, None], depths[:, 1, None], (target_rays, novel_rays), photos),
    )


def _random_rays(
    image: Tensor, depth: Tensor, cameras, count: int, generator: torch.Generator
) -> tuple[Observation, Tensor]:
    """Some pixels of images, and the depths (batch, 1, rays, 1) there, of maps as large or coarser."""
    batch, channels, height, width = image.shape
    order = torch.rand(batch, height * width, generator=generator, device=image.device)
    index = order.topk(min(count, height * width), dim=1).indices
    pixels = torch.stack([index // width, index % width], dim=-1)
    values = image.flatten(2).gather(2, index[:, None].expand(-1, channels, -1))[..., None]
    factor, columns = height // depth.shape[2], depth.shape[3]
    coarse = index // width // factor * columns + index % width // factor  # where depths have the pixels
    depths = depth.flatten(2).gather(2, coarse[:, None])[..., None]
    return Observation(values, CameraView(cameras, (height, width), pixels)), depths


def _cameras(picked: dict[str, Tensor], role: int):
    return perspective_cameras(
        picked["rotation"][:, role], picked["translation"][:, role], picked["focal_length"][:, role],
        picked["principal"][:, role],
    )


def _select(condition: Tensor, first, second):
    def choose(name: str) -> Tensor:
        a, b = getattr(first, name), getattr(second, name)
        return torch.where(condition.view(-1, *[1] * (a.ndim - 1)), a, b)

    return perspective_cameras(choose("R"), choose("T"), choose("focal_length"), choose("principal_point"))


def _mirrored(picked: dict[str, Tensor], flip: Tensor) -> dict[str, Tensor]:
    """Left and right exchanged, in images and geometry, for the chosen elements."""
    mirror = picked["rotation"].new_tensor([-1.0, 1.0, 1.0])

    def where(flipped: Tensor, value: Tensor) -> Tensor:
        return torch.where(flip.view(-1, *[1] * (value.ndim - 1)), flipped, value)

    return {
        "images": where(picked["images"].flip(3), picked["images"]),
        "depths": where(picked["depths"].flip(3), picked["depths"]),
        # x_cam = x_world R + T with both worlds mirrored: M R M and T M
        "rotation": where(picked["rotation"] * mirror[:, None] * mirror, picked["rotation"]),
        "translation": where(picked["translation"] * mirror, picked["translation"]),
        "focal_length": picked["focal_length"],
        "principal": where(picked["principal"] * mirror[:2], picked["principal"]),
    }
