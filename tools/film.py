"""What a film shows: the picture, the depth beside it, one picture for each eye, and what is invented."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from pytorch3d.renderer import PerspectiveCameras
from torch import Tensor

from scenediff.renderers.baked import BakedScene, one_camera
from scenediff.renderers.cameras import perspective_cameras
from scenediff.tools.metrics import visible_from
from scenediff.tools.report import color_depth
from scenediff.tools.video import FrameWriter, to_pixels

Layout = Literal["picture", "depth", "stereo"]
LAYOUTS: tuple[Layout, ...] = get_args(Layout)

EYE_DISTANCE = 0.063  # metres, the mean of adults
INVENTED_COLOR = (0.95, -0.15, 0.85)  # magenta, in [-1, 1]: rare in rooms
INVENTED_STRENGTH = 0.55


@dataclass(frozen=True)
class Film:
    """A path through a baked scene and how its frames look.

    Attributes:
        cameras: N cameras. size: (height, width) of one picture, pixels.
        layout: "picture"; "depth" puts the depth in colours on the right; "stereo" puts the left eye's
            picture on the left and the right eye's on the right.
        eye_distance: metres.
    """

    baked: BakedScene
    cameras: PerspectiveCameras
    size: tuple[int, int]
    layout: Layout = "picture"
    eye_distance: float = EYE_DISTANCE

    def __len__(self) -> int:
        return len(self.cameras.R)

    @property
    def frame_size(self) -> tuple[int, int]:
        """(height, width) of a whole frame."""
        height, width = self.size
        return height, width if self.layout == "picture" else 2 * width


def draw(
    film: Film, write: FrameWriter, write_invented: FrameWriter | None = None, *,
    progress: Callable[[int], None] = lambda frame: None,
) -> None:
    """Draws all frames and hands them to a writer; optionally the same ones marked to another.

    Args:
        write_invented: gets the frames in which everything that the photo did not see is magenta.
        progress: called with the number of each frame before it is drawn.
    """
    depth = film.baked.photo_depth
    near, far = depth.quantile(0.02).item(), depth.quantile(0.98).item()
    focus = depth.median().item()
    for n in range(len(film)):
        progress(n)
        camera = one_camera(film.cameras, n)
        eyes = stereo_pair(camera, film.eye_distance, focus) if film.layout == "stereo" else [camera]
        shots = [film.baked.render(eye, film.size) for eye in eyes]
        pictures = [shot.image[0] for shot in shots]
        beside = [color_depth(shots[0].depth[0, 0], near, far)] if film.layout == "depth" else []
        write(to_pixels(torch.cat([*pictures, *beside], dim=2)))
        if write_invented is not None:
            marked = [
                mark_invented(shot.image, invented(film.baked, eye, shot))[0]
                for eye, shot in zip(eyes, shots, strict=True)
            ]
            write_invented(to_pixels(torch.cat([*marked, *beside], dim=2)))


def stereo_pair(camera: PerspectiveCameras, distance: float, focus: float) -> Sequence[PerspectiveCameras]:
    """The left and the right eye's camera of one camera (batch 1).

    The eyes look straight ahead; their images are shifted so that what lies `focus` metres away has no
    parallax and appears on the screen (turned eyes would give vertical parallax).

    Args:
        distance: of the eyes, metres.
    """
    if focus <= 0:
        raise ValueError(f"focus must be positive, got {focus}")
    pair = []
    for side in (0.5, -0.5):  # +X is left
        offset = torch.tensor([[side * distance, 0.0, 0.0]]).to(camera.T)
        shift = camera.focal_length[:, :1] * side * distance / focus
        principal = camera.principal_point + F.pad(shift, (0, 1))
        pair.append(perspective_cameras(camera.R, camera.T - offset, camera.focal_length, principal))
    return pair


def invented(baked: BakedScene, camera: PerspectiveCameras, shot: Any) -> Tensor:
    """(1, 1, H, W) bool: what of a shot of one camera the photo did not see.

    That is what lies outside the photo's frame, behind its surfaces, or was filled in between.

    Args:
        shot: has depth and opacity (1, 1, H, W), as a scene's renderings and frames.
    """
    photo = baked.keys[0]
    seen = visible_from(photo.depth, photo.cameras, shot.depth.cpu(), camera.cpu())
    return ~(seen & (shot.opacity.cpu() > 0.5))


def mark_invented(image: Tensor, mask: Tensor) -> Tensor:
    """An image (N, 3, H, W) in [-1, 1] with a magenta veil over a mask (N, 1, H, W)."""
    veil = image.new_tensor(INVENTED_COLOR)[None, :, None, None].expand_as(image)
    return torch.where(mask, torch.lerp(image, veil, INVENTED_STRENGTH), image)
