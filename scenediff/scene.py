"""A sampled scene: the signal with everything that is needed to render it again, anywhere."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from pytorch3d.renderer import PerspectiveCameras
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize
from torch import Tensor

from scenediff.renderers.cameras import CameraView, perspective_cameras
from scenediff.renderers.pixel_field import FieldSignal, PixelFieldRenderer, Rendering
from scenediff.renderers.volume_field import VolumeFieldRenderer
from scenediff.scene_kinds import KINDS, PhotoVolume, SceneKind, kind_of

FORMAT = "scenediff-scene-1"


class SceneError(ValueError):
    """A scene file that can't be read."""


@dataclass(frozen=True)
class Scene:
    """One sample from the distribution of scenes behind a photo.

    The world is the photo's camera: PyTorch3D axes (+X left, +Y up, +Z forward), metres.

    Attributes:
        signal: the field, with a batch of one; its first view is the photo, the others the sampled targets.
        renderer: the forward model that draws it.
        metadata: how it was made (seed, steps, ...); anything that JSON can hold.
    """

    signal: FieldSignal | PhotoVolume
    renderer: PixelFieldRenderer | VolumeFieldRenderer
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def kind(self) -> SceneKind:
        """What scenes of this kind of field have in common."""
        return KINDS[kind_of(self.signal)]

    @property
    def photo(self) -> Tensor:
        """(1, 3, height, width) the photo in [-1, 1]."""
        return self.kind.photo(self.signal)

    @property
    def photo_size(self) -> tuple[int, int]:
        """(height, width) of the photo that the scene keeps."""
        return self.photo.shape[-2], self.photo.shape[-1]

    @property
    def photo_cameras(self) -> PerspectiveCameras:
        """The photo's own camera, at the world's origin; a batch of one."""
        return self.kind.cameras(self.signal)[0]

    @property
    def target_cameras(self) -> list[PerspectiveCameras]:
        """The cameras of the sampled target views, in turn; batches of one."""
        return self.kind.cameras(self.signal)[1:]

    @torch.no_grad()
    def render(self, cameras: PerspectiveCameras, size: tuple[int, int]) -> Rendering:
        """What cameras see of the scene.

        Args:
            cameras: PyTorch3D cameras (NDC) in the scene's world, any number.
            size: (height, width) of the frames.
        """
        if len(cameras.R) == 0:
            return self.kind.render(self.renderer, self.signal, CameraView(cameras, size))
        frames = [
            self.kind.render(self.renderer, self.signal, CameraView(_nth_camera(cameras, index), size))
            for index in range(len(cameras.R))
        ]
        parts = ("image", "depth", "opacity", "features")
        return Rendering(*(torch.cat([getattr(frame, part) for frame in frames]) for part in parts))

    def to(self, device: torch.device | str) -> Scene:
        """The scene on another device."""
        signal = self.kind.map(self.signal, lambda tensor: tensor.to(device))
        return Scene(signal, self.renderer.to(device), self.metadata)

    def save(self, path: str | Path) -> None:
        """Writes one safetensors file, in float32 where it matters and half precision for feature maps."""
        tensors, settings = self.kind.pack(self.renderer, self.signal)
        header = {
            "format": FORMAT,
            "kind": kind_of(self.signal),
            "field": settings,
            "metadata": json.dumps(self.metadata, sort_keys=True),
        }
        kept = {name: value.detach().cpu().clone().contiguous() for name, value in tensors.items()}
        Path(path).write_bytes(_in_order(serialize(kept, metadata=header)))

    @classmethod
    def load(cls, path: str | Path, device: torch.device | str = "cpu") -> Scene:
        """Reads what `save` wrote.

        Raises:
            SceneError: the file is missing, unreadable or not a scene.
        """
        try:
            with safe_open(str(path), framework="pt", device=str(device)) as file:
                header = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            message = f"{path}: not a readable scene file ({error}); expected a scene.safetensors"
            raise SceneError(message) from error
        if header.get("format") != FORMAT:
            raise SceneError(f"{path}: format {header.get('format')!r}, but this version reads {FORMAT!r}")
        try:
            kind = KINDS[header.get("kind", "pixel")]  # the first files had no other
            renderer, signal = kind.unpack(tensors, header["field"])
            metadata = json.loads(header["metadata"])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise SceneError(f"{path}: parts of the scene are missing or don't fit ({error!r})") from error
        renderer.chunk_rays = kind.rays_at_a_time(rays_at_a_time(device))
        return cls(signal, renderer.to(device), metadata)


def _in_order(data: bytes) -> bytes:
    """The same safetensors file with its header's keys sorted: the library writes them in a random order."""
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.dumps(json.loads(data[8:start]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # the format wants the tensors aligned
    return len(header).to_bytes(8, "little") + header + data[start:]


def rays_at_a_time(device: torch.device | str) -> int:
    """Rays to render in one go: little enough for a CPU's cache, much enough to keep a GPU busy."""
    return 2048 if torch.device(device).type == "cpu" else 131_072


def _nth_camera(cameras: PerspectiveCameras, index: int) -> PerspectiveCameras:
    one = slice(index, index + 1)
    return perspective_cameras(
        cameras.R[one], cameras.T[one], cameras.focal_length[one], cameras.principal_point[one]
    )
