"""A real stereo pair with measured disparity: the right photo shows what the left one does, from aside."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from pytorch3d.renderer import PerspectiveCameras
from torch import Tensor

from scenediff.renderers.cameras import perspective_cameras, pixels_to_ndc_intrinsics


@dataclass(frozen=True)
class StereoPair:
    """Two rectified photos; the left camera is the world.

    Attributes:
        left, right: (1, 3, height, width) in [-1, 1].
        disparity: (1, 1, height, width) pixels by which the left photo's points lie further left in the right
            one; 0 where unknown.
        focal: of both cameras, pixels. baseline: metres. offset: pixels by which the right camera's principal
            point lies to the right of the left one's.
        principal: (x, y) of the left camera, pixels.
    """

    left: Tensor
    right: Tensor
    disparity: Tensor
    focal: float
    baseline: float
    offset: float
    principal: tuple[float, float]

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the photos."""
        return self.left.shape[-2], self.left.shape[-1]

    @property
    def depth(self) -> Tensor:
        """(1, 1, height, width) metres at the left camera; 0 where unknown."""
        depth = self.focal * self.baseline / (self.disparity + self.offset)
        return torch.where(self.disparity > 0, depth, 0)

    def cameras(self) -> tuple[PerspectiveCameras, PerspectiveCameras]:
        """The left and the right one, PyTorch3D's convention: the right one's centre is at negative x."""
        shifts = torch.tensor([[0.0, 0.0], [self.offset, 0.0]])
        focal, principal = pixels_to_ndc_intrinsics(
            torch.full((2, 2), self.focal), torch.tensor([self.principal]) + shifts, self.size
        )
        translation = torch.tensor([[0.0, 0.0, 0.0], [self.baseline, 0.0, 0.0]])
        both = [
            perspective_cameras(torch.eye(3)[None], translation[[i]], focal[[i]], principal[[i]])
            for i in range(2)
        ]
        return both[0], both[1]


def motorcycle() -> StereoPair:
    """A motorcycle in a garage, of Scharstein et al. 2014 at a quarter of its size, as scikit-image ships it.

    Raises:
        ImportError: scikit-image is not installed.
    """
    from skimage import data

    left, right, disparity = data.stereo_motorcycle()
    known = np.where(np.isfinite(disparity), disparity, 0).astype(np.float32)
    return StereoPair(
        _image(left), _image(right), torch.from_numpy(known)[None, None],
        focal=994.978, baseline=0.193001, offset=31.086, principal=(311.193, 254.877),
    )  # fmt: skip


def _image(pixels: np.ndarray) -> Tensor:
    return torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 127.5 - 1
