"""Cameras: the one convention used inside the package, and every conversion to and from others.

Inside, a camera is a PyTorch3D `PerspectiveCameras` with `in_ndc=True`:

- world and camera axes are right-handed; camera +X points LEFT in the image, +Y up, +Z into the scene;
- points are row vectors, `x_camera = x_world @ R + T`;
- NDC coordinates run from +1 (left, top) to -1 (right, bottom) along the SHORTER side of the image, and
  proportionally further along the longer side; `focal_length` and `principal_point` are in these units;
- pixel centres lie at half-integers: pixel (row i, column j) has its centre at (j + 0.5, i + 0.5);
- lengths are metres; depth is the camera's z.

Sizes are (height, width) everywhere.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from pytorch3d.renderer import PerspectiveCameras
from torch import Tensor


@dataclass(frozen=True)
class CameraView:
    """A batch of views of a scene: cameras, and what part of their images is wanted.

    Attributes:
        cameras: PyTorch3D `PerspectiveCameras` in NDC, one for each batch element.
        size: (height, width) of the images, pixels.
        pixels: None for whole images, else (batch, rays, 2) integer (row, column) of the pixels to render;
            renderings then have the size (rays, 1).
    """

    cameras: PerspectiveCameras
    size: tuple[int, int]
    pixels: Tensor | None = None

    def __len__(self) -> int:
        return self.cameras.R.shape[0]


@dataclass(frozen=True)
class PinholeView:
    """A batch of views in the convention of the full-size model.

    Camera axes are OpenCV's (+X right, +Y down, +Z ahead); image coordinates run from 0 at the centre of the
    first pixel to 1 at the centre of the last one, along either side.

    Attributes:
        cam_to_world: (batch, 4, 4) for column vectors.
        intrinsics: (batch, 3, 3): (u, v, 1) is proportional to `intrinsics` times a point of the camera.
        size: (height, width) of the images, pixels.
        pose: (batch, 4, 4) absolute camera-to-world matrices, for networks that are conditioned on them.
        pixels: as in `CameraView`.
    """

    cam_to_world: Tensor
    intrinsics: Tensor
    size: tuple[int, int]
    pose: Tensor | None = None
    pixels: Tensor | None = None

    def __len__(self) -> int:
        return len(self.cam_to_world)

    def repeated(self, count: int) -> PinholeView:
        """All views, then all of them again, `count` times."""

        def again(part: Tensor) -> Tensor:
            return part.repeat(count, 1, 1)

        return PinholeView(
            again(self.cam_to_world), again(self.intrinsics), self.size,
            None if self.pose is None else again(self.pose),
            None if self.pixels is None else again(self.pixels),
        )


def perspective_cameras(
    rotation: Tensor, translation: Tensor, focal_length: Tensor, principal_point: Tensor | None = None
) -> PerspectiveCameras:
    """PyTorch3D cameras in NDC from (batch, 3, 3), (batch, 3), (batch,) or (batch, 2) and (batch, 2)."""
    if focal_length.ndim == 1:
        focal_length = focal_length[:, None].expand(-1, 2)
    if principal_point is None:
        principal_point = torch.zeros_like(focal_length)
    return PerspectiveCameras(
        R=rotation, T=translation, focal_length=focal_length, principal_point=principal_point,
        device=rotation.device, in_ndc=True,
    )


def look_ahead(batch: int, fov_degrees: float, *, device: torch.device | str = "cpu") -> PerspectiveCameras:
    """Cameras at the world's origin that look along +Z with +Y up.

    Args:
        batch: number of cameras.
        fov_degrees: field of view of the image's SHORTER side.
    """
    if not 0 < fov_degrees < 180:
        raise ValueError(f"fov_degrees must lie in (0, 180), got {fov_degrees}")
    rotation = torch.eye(3, device=device).expand(batch, 3, 3)
    focal = 1 / math.tan(math.radians(fov_degrees) / 2)
    translation = torch.zeros(batch, 3, device=device)
    return perspective_cameras(rotation, translation, torch.full((batch,), focal, device=device))


def relative_to(cameras: PerspectiveCameras, reference: PerspectiveCameras) -> PerspectiveCameras:
    """The same cameras in a world whose frame is the reference camera's (batch or one reference)."""
    # x_ref = x R_r + T_r and x_cam = x R_c + T_c, hence x_cam = (x_ref - T_r) R_r^T R_c + T_c
    rotation = reference.R.transpose(1, 2) @ cameras.R
    translation = cameras.T - (reference.T[:, None] @ rotation)[:, 0]
    return perspective_cameras(rotation, translation, cameras.focal_length, cameras.principal_point)


def mirrored(cameras: PerspectiveCameras) -> PerspectiveCameras:
    """Cameras (PyTorch3D axes) that see a world mirrored in x as the mirror images of what these ones see.

    A world point (x, y, z) that these cameras show at NDC (u, v) is at (-x, y, z), shown at (-u, v).
    """
    mirror = cameras.R.new_tensor([-1.0, 1.0, 1.0])
    # x_cam = x_world R + T with both worlds mirrored: M R M and T M
    return perspective_cameras(
        cameras.R * mirror[:, None] * mirror, cameras.T * mirror, cameras.focal_length,
        cameras.principal_point * mirror[:2],
    )


def cam_to_world(cameras: PerspectiveCameras) -> Tensor:
    """(batch, 4, 4) column-vector camera-to-world matrices with PyTorch3D's camera axes."""
    matrix = torch.zeros(len(cameras.R), 4, 4, dtype=cameras.R.dtype, device=cameras.R.device)
    matrix[:, :3, :3] = cameras.R  # row-vector world-to-camera == column-vector camera-to-world rotation
    matrix[:, :3, 3] = -(cameras.R @ cameras.T[..., None])[..., 0]
    matrix[:, 3, 3] = 1
    return matrix


def opengl_to_pytorch3d(
    cam_to_world_gl: Tensor, focal_pixels: Tensor, principal_pixels: Tensor, size: tuple[int, int]
) -> PerspectiveCameras:
    """Cameras from OpenGL camera-to-world matrices (+X right, +Y up, -Z forward; nerfstudio, Blender).

    Args:
        cam_to_world_gl: (batch, 4, 4) or (batch, 3, 4), column vectors.
        focal_pixels: (batch, 2) fx, fy. principal_pixels: (batch, 2) cx, cy from the image's top left corner.
        size: (height, width), pixels.
    """
    flip = torch.diag(cam_to_world_gl.new_tensor([-1.0, 1.0, -1.0]))
    rotation = cam_to_world_gl[:, :3, :3] @ flip
    translation = -(cam_to_world_gl[:, None, :3, 3] @ rotation)[:, 0]
    focal, principal = pixels_to_ndc_intrinsics(focal_pixels, principal_pixels, size)
    return perspective_cameras(rotation, translation, focal, principal)


def pytorch3d_to_opengl(cameras: PerspectiveCameras) -> Tensor:
    """(batch, 4, 4) OpenGL camera-to-world matrices; inverse of `opengl_to_pytorch3d`'s pose."""
    flip = torch.diag(cameras.R.new_tensor([-1.0, 1.0, -1.0, 1.0]))
    return cam_to_world(cameras) @ flip


def pixels_to_ndc_intrinsics(
    focal: Tensor, principal: Tensor, size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """(batch, 2) focal lengths and principal points from pixels to PyTorch3D's NDC units."""
    height, width = size
    half = min(height, width) / 2
    centre = principal.new_tensor([width / 2, height / 2])
    return focal / half, (centre - principal) / half


def ndc_to_pixels_intrinsics(cameras: PerspectiveCameras, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """(batch, 2) focal lengths and principal points in pixels; inverse of `pixels_to_ndc_intrinsics`."""
    height, width = size
    half = min(height, width) / 2
    centre = cameras.principal_point.new_tensor([width / 2, height / 2])
    return cameras.focal_length * half, centre - cameras.principal_point * half


def to_pinhole(view: CameraView, pose: Tensor | None = None) -> PinholeView:
    """The same views, pixel for pixel, in a world whose axes are OpenCV's too."""
    flip = torch.diag(view.cameras.R.new_tensor([-1.0, -1.0, 1.0, 1.0]))
    matrices = flip @ cam_to_world(view.cameras) @ flip
    focal, principal = ndc_to_pixels_intrinsics(view.cameras, view.size)
    height, width = view.size
    last = focal.new_tensor([width - 1, height - 1])
    intrinsics = torch.zeros_like(matrices[:, :3, :3])
    intrinsics[:, [0, 1], [0, 1]] = focal / last
    intrinsics[:, :2, 2] = (principal - 0.5) / last
    intrinsics[:, 2, 2] = 1
    return PinholeView(matrices, intrinsics, view.size, pose, view.pixels)


def from_pinhole(view: PinholeView) -> CameraView:
    """Inverse of `to_pinhole`; a skew of the intrinsics is lost."""
    flip = torch.diag(view.cam_to_world.new_tensor([-1.0, -1.0, 1.0]))
    rotation = flip @ view.cam_to_world[:, :3, :3] @ flip
    position = view.cam_to_world[:, :3, 3] @ flip
    height, width = view.size
    last = view.intrinsics.new_tensor([width - 1, height - 1])
    focal, principal = pixels_to_ndc_intrinsics(
        view.intrinsics[:, [0, 1], [0, 1]] * last, view.intrinsics[:, :2, 2] * last + 0.5, view.size
    )
    translation = -(position[:, None] @ rotation)[:, 0]
    return CameraView(perspective_cameras(rotation, translation, focal, principal), view.size, view.pixels)


def resized(
    cameras: PerspectiveCameras, size: tuple[int, int], new_size: tuple[int, int]
) -> PerspectiveCameras:
    """Cameras of the same images after resizing from one (height, width) to another, of any shape."""
    (height, width), (new_height, new_width) = size, new_size
    scale = min(size) / min(new_size)
    wider, higher = scale * new_width / width, scale * new_height / height

    def stretched(lengths: Tensor) -> Tensor:  # no tensor of factors: the host would wait for its copy
        return torch.stack([lengths[:, 0] * wider, lengths[:, 1] * higher], dim=1)

    return perspective_cameras(
        cameras.R, cameras.T, stretched(cameras.focal_length), stretched(cameras.principal_point)
    )


def pytorch3d_to_z_up(cameras: PerspectiveCameras) -> Tensor:
    """(batch, 4, 4) OpenGL camera-to-world matrices in the Z-up world of `points_to_z_up`."""
    return _z_up_matrix(cameras.R) @ pytorch3d_to_opengl(cameras)


def z_up_to_pytorch3d(
    cam_to_world_gl: Tensor, focal_pixels: Tensor, principal_pixels: Tensor, size: tuple[int, int]
) -> PerspectiveCameras:
    """Inverse of `pytorch3d_to_z_up`; arguments as for `opengl_to_pytorch3d`."""
    matrices = _z_up_matrix(cam_to_world_gl)[: cam_to_world_gl.shape[1], : cam_to_world_gl.shape[1]]
    return opengl_to_pytorch3d(matrices @ cam_to_world_gl, focal_pixels, principal_pixels, size)


def points_to_z_up(points: Tensor) -> Tensor:
    """World points (..., 3) from PyTorch3D's axes of the photo's camera to +X right, +Y ahead, +Z up.

    That is the world of nerfstudio's data sets, and Blender's after it has imported a GLB. Its own inverse.
    """
    return points @ _z_up_matrix(points)[:3, :3]


def _z_up_matrix(like: Tensor) -> Tensor:
    """(4, 4) half a turn about the axis between up and ahead: its own inverse and transpose."""
    return like.new_tensor([[-1, 0, 0, 0], [0, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 1]])


def points_to_opengl(points: Tensor) -> Tensor:
    """World points (..., 3) from PyTorch3D's axes of the photo's camera to OpenGL/glTF's (-Z ahead)."""
    return points * points.new_tensor([-1.0, 1.0, -1.0])
