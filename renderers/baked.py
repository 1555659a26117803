"""A sampled scene made cheap to draw: a few key views with depth, blended for any camera near them.

The field itself costs a second a frame on a CPU; a baked scene costs some hundredths. It is what videos, the
viewer, meshes and points are made of. How well it stands for the field is measured by `baked_psnr`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from pytorch3d.renderer import PerspectiveCameras
from pytorch3d.transforms import so3_exp_map, so3_log_map
from torch import Tensor

from scenediff.renderers.cameras import perspective_cameras
from scenediff.renderers.depth_maps import camera_centers, sharpen_edges
from scenediff.renderers.layers import Drawer, KeyView, make_drawer

DEPTH_RANGE = (0.05, 50.0)  # metres; what lies outside is a failure of the field
TARGET_SCALE, WIDE_SCALE = 0.9, 0.5  # of the photo's key view in pixels: what a CPU has time for
TARGET_WIDENING = 1.1  # of the targets' image planes, so that frames beside the target are covered
WIDE_WIDENING = 1.5  # of the views between, which cover what the photo and the targets miss
WIDE_HANDICAP = 0.3  # radians, as they are coarser


class SceneLike(Protocol):
    """The part of `scenediff.Scene` that baking needs; `render` returns image, depth and opacity."""

    @property
    def photo_cameras(self) -> PerspectiveCameras: ...

    @property
    def photo_size(self) -> tuple[int, int]: ...

    @property
    def photo(self) -> Tensor: ...

    @property
    def target_cameras(self) -> list[PerspectiveCameras]: ...

    def render(self, cameras: PerspectiveCameras, size: tuple[int, int]) -> Any: ...


@dataclass(frozen=True)
class Frames:
    """N drawn frames, with the attributes of a field's rendering.

    Attributes:
        image: (N, 3, H, W) in [-1, 1].
        depth: (N, 1, H, W) metres along the optical axis.
        opacity: (N, 1, H, W) in [0, 1]; 0 where no key view has seen anything and the colour was filled in.
    """

    image: Tensor
    depth: Tensor
    opacity: Tensor


class BakedScene:
    """Key views and what draws them; `render` has the signature of a scene's.

    Attributes:
        keys: the key views, the photo's own first.
        photo_depth: (1, 1, H, W) the field's depth at the photo's view as rendered, edges not sharpened.
    """

    def __init__(self, keys: Sequence[KeyView], photo_depth: Tensor, drawer: Drawer | None = None) -> None:
        if not keys:
            raise ValueError("keys must hold at least one key view, got none")
        self.keys = tuple(keys)
        self.photo_depth = photo_depth
        self._drawer = make_drawer(self.keys) if drawer is None else drawer

    @torch.no_grad()
    def render(self, cameras: PerspectiveCameras, size: tuple[int, int]) -> Frames:
        """Frames of N cameras at a (height, width)."""
        frames, cameras = [], cameras.cpu()  # the key views are there, wherever the field was
        for n in range(len(cameras.R)):
            camera = one_camera(cameras, n)
            frames.append(fill_holes(*self._drawer.draw(camera, size)))
        image, depth, opacity = (torch.stack(parts) for parts in zip(*frames, strict=True))
        return Frames(image, depth[:, None], opacity[:, None])

    def close(self) -> None:
        """Frees the drawer (an OpenGL context); the key views stay."""
        self._drawer.close()

    def __enter__(self) -> BakedScene:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


@torch.no_grad()
def bake(
    scene: SceneLike, *, short_side: int = 256, edge_blur: float | None = None, photo_colors: bool = True,
    progress: Callable[[str], None] = lambda stage: None,
) -> BakedScene:
    """Renders the key views of a scene: the photo's view, the targets, and a wider one between.

    Args:
        scene: rendered once per key view; together 4.2 short_side^2 pixels for a 4:3 photo and two targets.
        short_side: of the photo's key view, pixels (its long side: at most 1.5 times that).
        edge_blur: width, in this view's pixels, over which the field smears depth edges; by default
            short_side / 64, as the bundled model's features have 64 pixels.
        photo_colors: whether the photo's own pixels, else the field's rendering, are its key view's picture.
        progress: called with "view 1/3", ... before each.
    """
    if short_side < 16:
        raise ValueError(f"short_side must be at least 16 pixels, got {short_side}")
    blur = short_side / 64 if edge_blur is None else edge_blur
    views = key_cameras(scene, short_side)
    keys: list[KeyView] = []
    photo_depth = torch.empty(0)
    for cameras, size, handicap in views:
        progress(f"view {len(keys) + 1}/{len(views)}")
        rendering = scene.render(cameras, size)
        depth = rendering.depth.float().nan_to_num(DEPTH_RANGE[1]).clamp(*DEPTH_RANGE).cpu()
        is_photo = not keys
        if is_photo:
            photo_depth = depth
        keys.append(KeyView(
            cameras=cameras.cpu(), depth=sharpen_edges(depth, round(blur * min(size) / short_side)),
            opacity=rendering.opacity.float().cpu(),
            image=(scene.photo if is_photo and photo_colors else rendering.image).float().cpu(),
            from_photo=is_photo,
            handicap=handicap,
        ))
    return BakedScene(keys, photo_depth)


def key_cameras(
    scene: SceneLike, short_side: int
) -> list[tuple[PerspectiveCameras, tuple[int, int], float]]:
    """Cameras, sizes and handicaps of the key views, the photo's first."""
    views = [(scene.photo_cameras, scaled_size(scene.photo_size, short_side), 0.0)]
    size = scaled_size(scene.photo_size, round(TARGET_SCALE * short_side))
    views += [(widened(target, TARGET_WIDENING), size, 0.0) for target in scene.target_cameras]
    for target in scene.target_cameras[:2]:
        between = interpolate_cameras(scene.photo_cameras, target, 0.5)
        size = scaled_size(scene.photo_size, round(WIDE_SCALE * short_side))
        views.append((widened(between, WIDE_WIDENING), size, WIDE_HANDICAP))
    return views


def scaled_size(size: tuple[int, int], short_side: int, longest: float = 1.5) -> tuple[int, int]:
    """(height, width) of the same shape, both even, with the given short side.

    For longer shapes than `longest` to 1, it is the long side that becomes `longest * short_side`.
    """
    scale = min(short_side / min(size), longest * short_side / max(size))
    height, width = (2 * max(1, round(side * scale / 2)) for side in size)
    return height, width


def one_camera(cameras: PerspectiveCameras, n: int) -> PerspectiveCameras:
    """The n-th camera as a batch of one."""
    parts = (cameras.R, cameras.T, cameras.focal_length, cameras.principal_point)
    return perspective_cameras(*(part[n : n + 1] for part in parts))


def widened(cameras: PerspectiveCameras, factor: float) -> PerspectiveCameras:
    """The same cameras with an image plane `factor` times as wide and high, centred on the axis."""
    return perspective_cameras(cameras.R, cameras.T, cameras.focal_length / factor)


def interpolate_cameras(
    first: PerspectiveCameras, second: PerspectiveCameras, amount: float
) -> PerspectiveCameras:
    """Between two cameras (batch 1): centre and intrinsics linearly, rotation along the shortest turn."""
    turn = so3_log_map(first.R.transpose(1, 2) @ second.R)
    rotation = first.R @ so3_exp_map(amount * turn)
    center = torch.lerp(camera_centers(first), camera_centers(second), amount)
    return perspective_cameras(
        rotation, -(center[:, None] @ rotation)[:, 0],
        torch.lerp(first.focal_length, second.focal_length, amount),
        torch.lerp(first.principal_point, second.principal_point, amount),
    )


def fill_holes(color: Tensor, depth: Tensor, cover: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Fills uncovered pixels with what lies around them, the farther the more (a hole shows what is behind).

    Pull and push over an image pyramid: each level averages its covered pixels, holes take the next level's.
    """
    if bool(cover.all()):
        return color, depth, cover
    if not bool(cover.any()):
        return color, torch.full_like(depth, DEPTH_RANGE[1]), cover
    farness = (depth / depth.max()) ** 4 + 1e-6
    values = torch.cat([color, depth[None]])[None]
    filled = _pull_push(values, (farness * cover)[None, None])[0][0]
    filled = torch.where(cover[None] > 0, values[0], filled)
    return filled[:3], filled[3], cover


def _pull_push(values: Tensor, mass: Tensor) -> tuple[Tensor, Tensor]:
    """Values (1, C, H, W) with those of no mass (1, 1, H, W) filled in, and the mass that they then have."""
    height, width = values.shape[-2:]
    if max(height, width) <= 1:
        return values, mass
    pad = (0, width % 2, 0, height % 2)
    coarse_mass = F.avg_pool2d(F.pad(mass, pad), 2)
    coarse = F.avg_pool2d(F.pad(values * mass, pad), 2) / coarse_mass.clamp(min=1e-12)
    coarse, coarse_mass = _pull_push(coarse, coarse_mass)
    stacked = torch.cat([coarse * coarse_mass, coarse_mass], dim=1)
    finer = F.interpolate(stacked, scale_factor=2, mode="bilinear", align_corners=False)[..., :height, :width]
    filled, filled_mass = finer[:, :-1] / finer[:, -1:].clamp(min=1e-12), finer[:, -1:]
    # halved, so that what is close counts more than what came a long way
    return torch.where(mass > 0, values, filled), torch.where(mass > 0, mass, filled_mass / 2)


@torch.no_grad()
def baked_psnr(
    scene: SceneLike, baked: BakedScene, cameras: PerspectiveCameras, size: tuple[int, int]
) -> float:
    """PSNR in dB of baked frames against the field's own, over all pixels of all cameras; inf if equal."""
    difference = baked.render(cameras, size).image - scene.render(cameras, size).image.float().cpu()
    return float(10 * torch.log10(4 / difference.square().mean()))
