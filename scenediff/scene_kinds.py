"""What differs between scenes of different fields: where their cameras are, how they are drawn and kept."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch
from pytorch3d.renderer import PerspectiveCameras
from torch import Tensor

from scenediff.renderers.cameras import (
    CameraView,
    PinholeView,
    from_pinhole,
    perspective_cameras,
    to_pinhole,
)
from scenediff.renderers.pixel_field import (
    FieldConfig,
    FieldSignal,
    FieldView,
    PixelFieldRenderer,
    Rendering,
    map_signal,
)
from scenediff.renderers.seen import render_scene
from scenediff.renderers.volume_field import (
    VolumeConfig,
    VolumeFieldRenderer,
    VolumeSignal,
    VolumeView,
    map_volume,
    pinhole_rays,
)

Tensors = dict[str, Tensor]
_VIEW_TENSORS = ("features", "log_depth", "image", "present")
_CAMERA_TENSORS = ("R", "T", "focal_length", "principal_point")
_VOLUME_TENSORS = ("cam_to_world", "intrinsics", "timesteps")
UNUSED = "deterministic."  # the point network that sampled volumes are not decoded with
VOLUME_SHARE = 8  # a dense field has about that many times the samples on a ray


@dataclass(frozen=True)
class PhotoVolume:
    """A densely integrated field with the photo that it was sampled from.

    Attributes:
        volume: the field, of a batch of one; its first view is the photo, the last one the denoised target.
        photo: (1, 3, height, width) in [-1, 1], of the first view's camera.
    """

    volume: VolumeSignal
    photo: Tensor


class SceneKind(Protocol):
    """How scenes of one kind of field are drawn and kept; `signal` has a batch of one."""

    def photo(self, signal: Any) -> Tensor:
        """(1, 3, height, width) in [-1, 1]."""
        ...

    def cameras(self, signal: Any) -> list[PerspectiveCameras]:
        """Those of the photo, then of the sampled targets."""
        ...

    def render(self, renderer: Any, signal: Any, view: CameraView) -> Rendering:
        """What one view shows; of an empty batch of views, frames of the right shape."""
        ...

    def map(self, signal: Any, function: Callable[[Tensor], Tensor]) -> Any:
        """The signal with a function applied to every tensor."""
        ...

    def pack(self, renderer: Any, signal: Any) -> tuple[Tensors, str]:
        """Tensors and settings (JSON) for a file."""
        ...

    def unpack(self, tensors: Tensors, settings: str) -> tuple[Any, Any]:
        """The renderer and the signal of what `pack` made."""
        ...

    def rays_at_a_time(self, rays: int) -> int:
        """How many rays to draw in one go where a pixel-aligned field would draw `rays`."""
        ...


class PixelKind:
    """Scenes of `PixelFieldRenderer`."""

    def photo(self, signal: FieldSignal) -> Tensor:
        return signal.views[0].image

    def cameras(self, signal: FieldSignal) -> list[PerspectiveCameras]:
        return [view.cameras for view in signal.views]

    def render(self, renderer: PixelFieldRenderer, signal: FieldSignal, view: CameraView) -> Rendering:
        if len(view) == 0:
            signal = map_signal(signal, lambda tensor: tensor[:0])
        return render_scene(renderer, signal, view)

    def map(self, signal: FieldSignal, function: Callable[[Tensor], Tensor]) -> FieldSignal:
        return map_signal(signal, function)

    def pack(self, renderer: PixelFieldRenderer, signal: FieldSignal) -> tuple[Tensors, str]:
        """In float32 where it matters and half precision for feature maps."""
        tensors: Tensors = {f"renderer.{name}": value for name, value in renderer.state_dict().items()}
        for index, view in enumerate(signal.views):
            tensors |= {f"views.{index}.{name}": getattr(view, name) for name in _VIEW_TENSORS}
            tensors |= {f"views.{index}.{name}": getattr(view.cameras, name) for name in _CAMERA_TENSORS}
            tensors[f"views.{index}.features"] = view.features.half()
            tensors[f"views.{index}.image"] = view.image.half()
        return tensors, json.dumps(asdict(renderer.config))

    def unpack(self, tensors: Tensors, settings: str) -> tuple[PixelFieldRenderer, FieldSignal]:
        renderer = PixelFieldRenderer(FieldConfig(**json.loads(settings))).eval()
        renderer.load_state_dict(_strip(tensors, "renderer."))
        views = tuple(_pixel_view(_strip(tensors, f"views.{index}.")) for index in range(_count(tensors)))
        return renderer, FieldSignal(views)

    def rays_at_a_time(self, rays: int) -> int:
        return rays


class VolumeKind:
    """Scenes of `VolumeFieldRenderer`; their signals are `PhotoVolume`s."""

    def photo(self, signal: PhotoVolume) -> Tensor:
        return signal.photo

    def cameras(self, signal: PhotoVolume) -> list[PerspectiveCameras]:
        return [_volume_cameras(view) for view in signal.volume.views]

    def render(self, renderer: VolumeFieldRenderer, signal: PhotoVolume, view: CameraView) -> Rendering:
        """Distances become depths; what passes through all samples is taken to end at the far plane."""
        volume, pinholes = signal.volume, to_pinhole(view)
        if len(view) == 0:
            volume = map_volume(volume, lambda tensor: tensor[:0])
        drawn = renderer.render_all(volume, pinholes)
        _, directions = pinhole_rays(pinholes)
        ahead = (directions @ pinholes.cam_to_world[:, :3, 2:3])[..., 0].view_as(drawn.distance)
        depth = (drawn.distance + (1 - drawn.opacity).clamp(min=0) * renderer.config.far) * ahead
        return Rendering(drawn.image, depth, drawn.opacity.clamp(0, 1), drawn.features)

    def map(self, signal: PhotoVolume, function: Callable[[Tensor], Tensor]) -> PhotoVolume:
        return PhotoVolume(map_volume(signal.volume, function), function(signal.photo))

    def pack(self, renderer: VolumeFieldRenderer, signal: PhotoVolume) -> tuple[Tensors, str]:
        """In float32 where it matters and half precision for feature maps."""
        tensors: Tensors = {
            f"renderer.{name}": value for name, value in renderer.state_dict().items()
            if not name.startswith(UNUSED)
        }
        for index, view in enumerate(signal.volume.views):
            tensors |= {f"views.{index}.{name}": getattr(view, name) for name in _VOLUME_TENSORS}
            tensors |= {f"views.{index}.maps.{n}": part.half() for n, part in enumerate(view.maps)}
        tensors["photo"] = signal.photo.half()
        return tensors, json.dumps(asdict(renderer.config))

    def unpack(self, tensors: Tensors, settings: str) -> tuple[VolumeFieldRenderer, PhotoVolume]:
        values = json.loads(settings)
        config = VolumeConfig(**{**values, "background": tuple(values["background"])})
        renderer = VolumeFieldRenderer(config).eval()
        unused = {name: value for name, value in renderer.state_dict().items() if name.startswith(UNUSED)}
        renderer.load_state_dict(unused | _strip(tensors, "renderer."))
        networks = len(renderer.networks(sampled=True))
        views = tuple(
            _volume_view(_strip(tensors, f"views.{index}."), networks) for index in range(_count(tensors))
        )
        return renderer, PhotoVolume(VolumeSignal(views, sampled=True), tensors["photo"].float())

    def rays_at_a_time(self, rays: int) -> int:
        return max(1, rays // VOLUME_SHARE)


KINDS: dict[str, SceneKind] = {"pixel": PixelKind(), "volume": VolumeKind()}


def kind_of(signal: FieldSignal | PhotoVolume) -> str:
    """The name of a signal's kind."""
    return "volume" if isinstance(signal, PhotoVolume) else "pixel"


def _pixel_view(tensors: Mapping[str, Tensor]) -> FieldView:
    cameras = perspective_cameras(*(tensors[name] for name in _CAMERA_TENSORS))
    features, log_depth, image, present = (tensors[name].float() for name in _VIEW_TENSORS)
    return FieldView(cameras, features, log_depth, image, present)


def _volume_view(tensors: Mapping[str, Tensor], networks: int) -> VolumeView:
    maps = tuple(
        tensors[f"maps.{index}"].float().contiguous(memory_format=torch.channels_last)
        for index in range(networks)
    )
    cam_to_world, intrinsics, timesteps = (tensors[name].float() for name in _VOLUME_TENSORS)
    return VolumeView(cam_to_world, intrinsics, timesteps, maps)


def _volume_cameras(view: VolumeView) -> PerspectiveCameras:
    size = (view.maps[0].shape[-2], view.maps[0].shape[-1])
    return from_pinhole(PinholeView(view.cam_to_world, view.intrinsics, size)).cameras


def _count(tensors: Mapping[str, Tensor]) -> int:
    return len({name.split(".")[1] for name in tensors if name.startswith("views.")})


def _strip(tensors: Tensors, prefix: str) -> Tensors:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
