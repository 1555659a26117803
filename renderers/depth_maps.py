"""Depth images: from pixels to points and back, and where one surface ends and another begins.

Depth is the camera's z in metres, (batch, 1, height, width). Everything about edges is done in inverse depth,
because there a plane, however slanted, is an affine function of the pixel's position: what two or three
neighbours cannot explain as a plane is an edge.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pytorch3d.renderer import PerspectiveCameras
from torch import Tensor

from scenediff.renderers.cameras import ndc_to_pixels_intrinsics


def camera_centers(cameras: PerspectiveCameras) -> Tensor:
    """(batch, 3) where the cameras stand in the world."""
    return -(cameras.R @ cameras.T[..., None])[..., 0]


def pixel_grid(size: tuple[int, int], *, to_border: bool = False) -> Tensor:
    """(height, width, 2) coordinates (x, y) of the pixel centres from the top left corner.

    `to_border` moves the outermost ones half a pixel out, onto the image's border.
    """
    height, width = size
    rows, columns = torch.arange(height) + 0.5, torch.arange(width) + 0.5
    if to_border:
        rows[0], rows[-1], columns[0], columns[-1] = 0, height, 0, width
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    return torch.stack([x, y], dim=-1)


def unproject(depth: Tensor, cameras: PerspectiveCameras, *, to_border: bool = False) -> Tensor:
    """World points (batch, height, width, 3) of all pixels.

    Args:
        depth: (batch, 1, height, width) metres along the optical axis.
        cameras: one for each batch element.
        to_border: as in `pixel_grid`.
    """
    size = (depth.shape[-2], depth.shape[-1])
    focal, principal = ndc_to_pixels_intrinsics(cameras, size)
    pixels = pixel_grid(size, to_border=to_border).to(depth)
    plane = (principal[:, None, None] - pixels) / focal[:, None, None]  # +X is left, +Y up
    z = depth[:, 0, ..., None]
    points = torch.cat([plane * z, z], dim=-1)
    return (points - cameras.T[:, None, None]) @ cameras.R.transpose(1, 2)[:, None]


def project(points: Tensor, cameras: PerspectiveCameras, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Pixel coordinates (..., 2), x and y from the top left corner, and depth (...) of world points (..., 3).

    Args:
        points: metres. cameras: exactly one. size: (height, width).
    """
    if len(cameras.R) != 1:
        raise ValueError(f"cameras must hold one camera, got {len(cameras.R)}")
    focal, principal = ndc_to_pixels_intrinsics(cameras, size)
    seen = points @ cameras.R[0] + cameras.T[0]
    depth = seen[..., 2]
    in_front = depth.clamp(min=1e-6)
    return principal[0] - focal[0] * seen[..., :2] / in_front[..., None], depth


def normals(points: Tensor, centers: Tensor) -> Tensor:
    """Unit normals (batch, height, width, 3) of grids of points, turned to the camera centres (batch, 3)."""
    padded = F.pad(points.permute(0, 3, 1, 2), (1, 1, 1, 1), mode="replicate").permute(0, 2, 3, 1)
    along_x = padded[:, 1:-1, 2:] - padded[:, 1:-1, :-2]
    along_y = padded[:, 2:, 1:-1] - padded[:, :-2, 1:-1]
    normal = F.normalize(torch.linalg.cross(along_x, along_y, dim=-1), dim=-1)
    towards = ((centers[:, None, None] - points) * normal).sum(-1, keepdim=True)
    return torch.where(towards < 0, -normal, normal)


def cuts(depth: Tensor, threshold: float = 0.08) -> tuple[Tensor, Tensor]:
    """Where neighbouring pixels belong to different surfaces.

    Args:
        depth: (batch, 1, height, width).
        threshold: relative jump of depth below which neighbours are always joined.

    Returns:
        bool (batch, height, width - 1) between horizontal and (batch, height - 1, width) between vertical
        neighbours.
    """
    inverse = 1 / depth[:, 0]
    return _cuts_along_rows(inverse, threshold), _cuts_along_rows(inverse.mT, threshold).mT


def sharpen_edges(depth: Tensor, blur: int) -> Tensor:
    """Depth without the slopes that a smooth field draws between a near surface and a far one.

    A median over 3x3 pixels removes single outliers; then every pixel that lies on a step of up to `blur`
    pixels' width is moved to the closer one of the two surfaces.

    Args:
        depth: (batch, 1, height, width). blur: width of the slopes, pixels; 0 leaves the depth as it is.
    """
    if blur <= 0:
        return depth
    windows = F.unfold(F.pad(depth, (1, 1, 1, 1), mode="replicate"), 3)
    inverse = 1 / windows.median(dim=1).values.reshape(depth.shape)[:, 0]
    inverse = _sharpen_rows(inverse, blur)
    return 1 / _sharpen_rows(inverse.mT, blur).mT[:, None]


def refine(depth: Tensor, factor: int) -> Tensor:
    """Depth on a grid `factor` times finer: planes stay planes, and nothing is interpolated across a cut."""
    size = (depth.shape[-2] * factor, depth.shape[-1] * factor)
    smooth = 1 / F.interpolate(1 / depth, size, mode="bilinear", align_corners=False)
    stepped = F.interpolate(depth, size, mode="nearest")
    cut = F.interpolate(near_cuts(depth)[:, None].float(), size, mode="nearest") > 0
    return torch.where(cut, stepped, smooth)


def near_cuts(depth: Tensor, radius: int = 1) -> Tensor:
    """bool (batch, height, width): pixels within `radius` of a cut, where depth is least certain."""
    right, down = cuts(depth)
    marked = torch.zeros_like(depth)
    marked[:, 0, :, :-1] += right
    marked[:, 0, :, 1:] += right
    marked[:, 0, :-1] += down
    marked[:, 0, 1:] += down
    if radius > 1:
        marked = F.max_pool2d(marked, 2 * radius - 1, stride=1, padding=radius - 1)
    return marked[:, 0] > 0


def _cuts_along_rows(inverse: Tensor, threshold: float) -> Tensor:
    jump = inverse.diff(dim=-1)
    size = jump.abs() / torch.minimum(inverse[..., 1:], inverse[..., :-1])
    return (size > threshold) & (_unexplained(jump, 1) > 0.5 * jump.abs()) | (size > 4 * threshold)


def _unexplained(jump: Tensor, step: int) -> Tensor:
    """How much of a difference is left after subtracting the differences one step to either side."""
    padded = F.pad(jump, (step, step), mode="replicate")
    before, after = padded[..., : -2 * step], padded[..., 2 * step :]
    return torch.minimum((jump - before).abs(), (jump - after).abs())


def _sharpen_rows(inverse: Tensor, blur: int) -> Tensor:
    reach = (blur + 1) // 2
    padded = F.pad(inverse, (3 * reach, 3 * reach), mode="replicate")
    width = inverse.shape[-1]
    far_left, left, right, far_right = (padded[..., k * reach : k * reach + width] for k in (0, 2, 4, 6))
    jump = right - left
    rest = torch.minimum((jump - (left - far_left)).abs(), (jump - (far_right - right)).abs())
    step = (jump.abs() > 0.08 * torch.minimum(left, right)) & (rest > 0.6 * jump.abs())
    # either surface is continued as a plane up to this pixel, within limits, as its slope is a guess too
    from_left = left + ((left - far_left) / 2).clamp(-0.05 * left, 0.05 * left)
    from_right = right - ((far_right - right) / 2).clamp(-0.05 * right, 0.05 * right)
    closer = torch.where((inverse - left).abs() < (inverse - right).abs(), from_left, from_right)
    return torch.where(step, closer, inverse)
