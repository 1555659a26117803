"""Camera conventions: directions by hand, PyTorch3D's own projections, round trips on non-square images."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch3d.renderer import PerspectiveCameras
from pytorch3d.transforms import quaternion_to_matrix, random_rotations
from torch import Tensor

from scenediff.renderers.cameras import (
    CameraView,
    cam_to_world,
    from_pinhole,
    look_ahead,
    mirrored,
    ndc_to_pixels_intrinsics,
    opengl_to_pytorch3d,
    perspective_cameras,
    pixels_to_ndc_intrinsics,
    points_to_opengl,
    points_to_z_up,
    pytorch3d_to_opengl,
    pytorch3d_to_z_up,
    relative_to,
    resized,
    to_pinhole,
    z_up_to_pytorch3d,
)
from scenediff.renderers.rays import ray_bundle
from scenediff.renderers.volume_field import pinhole_rays

CAMERA_TENSORS = ("R", "T", "focal_length", "principal_point")
SIZES = [(60, 90), (90, 60), (50, 50)]

sizes = st.tuples(st.integers(8, 400), st.integers(8, 400))
numbers = st.floats(-3, 3, allow_nan=False, width=32)


@st.composite
def opengl_poses(draw: st.DrawFn) -> Tensor:
    """(1, 4, 4) camera-to-world matrices in float64."""
    quaternion = torch.tensor([draw(numbers) for _ in range(4)], dtype=torch.float64)
    norm = quaternion.norm()
    quaternion = quaternion / norm if norm > 0.1 else torch.tensor([1.0, 0, 0, 0], dtype=torch.float64)
    pose = torch.eye(4, dtype=torch.float64)
    pose[:3, :3] = quaternion_to_matrix(quaternion)
    pose[:3, 3] = torch.tensor([draw(numbers) for _ in range(3)], dtype=torch.float64)
    return pose[None]


@st.composite
def intrinsics(draw: st.DrawFn, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Focal lengths and principal points (1, 2) in pixels."""
    focal = [draw(st.floats(0.3, 4)) * max(size) for _ in range(2)]
    principal = [draw(st.floats(0.2, 0.8)) * size[1], draw(st.floats(0.2, 0.8)) * size[0]]
    return torch.tensor([focal], dtype=torch.float64), torch.tensor([principal], dtype=torch.float64)


def pixels_of(points: Tensor, cameras: PerspectiveCameras, size: tuple[int, int]) -> Tensor:
    """(..., 2) column and row where PyTorch3D, which computes them in float32, draws world points."""
    cameras = perspective_cameras(*(getattr(cameras, name).float() for name in CAMERA_TENSORS))
    return cameras.transform_points_screen(points.float(), image_size=torch.tensor([size]))[..., :2].to(
        points
    )


def photo_camera(size: tuple[int, int]) -> PerspectiveCameras:
    """An unrotated OpenGL camera at the origin: 45 pixels of focal length, in the middle."""
    middle = torch.tensor([[size[1] / 2, size[0] / 2]])
    return opengl_to_pytorch3d(torch.eye(4)[None], torch.tensor([[45.0, 45.0]]), middle, size)


@pytest.mark.parametrize("size", SIZES)
def test_named_directions_of_an_opengl_camera(size: tuple[int, int]) -> None:
    height, width = size
    camera = photo_camera(size)
    ahead, right, up = torch.tensor([[0.0, 0, -5], [1.0, 0, -5], [0.0, 1, -5]])
    pixels = pixels_of(torch.stack([ahead, right, up]), camera, size)
    assert torch.allclose(pixels[0], torch.tensor([width / 2, height / 2]), atol=1e-3)
    assert torch.allclose(
        pixels[1], torch.tensor([width / 2 + 45 / 5, height / 2]), atol=1e-3
    )  # right of the middle
    assert torch.allclose(
        pixels[2], torch.tensor([width / 2, height / 2 - 45 / 5]), atol=1e-3
    )  # above the middle
    local = camera.get_world_to_view_transform().transform_points(torch.stack([ahead, right, up]))
    assert torch.allclose(local, torch.tensor([[0.0, 0, 5], [-1.0, 0, 5], [0.0, 1, 5]]))  # +X left, +Z ahead


def test_a_turned_opengl_camera_by_hand() -> None:
    """Yaw by +90 degrees about +Y makes an OpenGL camera look along world -X; its right is then world -Z."""
    pose = torch.tensor([[0.0, 0, 1, 2], [0, 1, 0, 3], [-1, 0, 0, 4], [0, 0, 0, 1]])[None]
    camera = opengl_to_pytorch3d(pose, torch.tensor([[45.0, 45.0]]), torch.tensor([[45.0, 30.0]]), (60, 90))
    assert torch.allclose(camera.get_camera_center(), torch.tensor([[2.0, 3.0, 4.0]]), atol=1e-6)
    pixels = pixels_of(torch.tensor([[-3.0, 3, 4], [-3.0, 3, 3], [-3.0, 4, 4]]), camera, (60, 90))
    assert torch.allclose(pixels, torch.tensor([[45.0, 30], [54.0, 30], [45.0, 21]]), atol=1e-3)


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_opengl_projections_follow_the_pinhole_formula_and_return(data: st.DataObject) -> None:
    size = data.draw(sizes)
    focal, principal = data.draw(intrinsics(size))
    pose = data.draw(opengl_poses())
    cameras = opengl_to_pytorch3d(pose, focal, principal, size)
    local = torch.tensor(
        [[0.3, -0.2, -1.5], [-0.8, 0.4, -3.0]], dtype=torch.float64
    )  # before the OpenGL camera
    world = local @ pose[0, :3, :3].T + pose[0, :3, 3]
    expected = torch.stack([local[:, 0], -local[:, 1]], -1) / -local[:, 2:] * focal + principal
    assert torch.allclose(
        pixels_of(world, cameras, size), expected, atol=0.01
    )  # pixels, of up to 1600, in float32
    assert torch.allclose(pytorch3d_to_opengl(cameras), pose, atol=1e-9)
    back = ndc_to_pixels_intrinsics(cameras, size)
    assert torch.allclose(back[0], focal, rtol=1e-9)
    assert torch.allclose(back[1], principal, rtol=1e-9)


@pytest.mark.parametrize("size", SIZES)
def test_intrinsics_agree_with_pytorch3d_pixel_cameras(size: tuple[int, int]) -> None:
    focal, principal = torch.tensor([[40.0, 55.0]]), torch.tensor([[20.0, 37.0]])
    in_pixels = PerspectiveCameras(
        focal_length=focal, principal_point=principal, in_ndc=False, image_size=torch.tensor([size])
    )
    ndc_focal, ndc_principal = pixels_to_ndc_intrinsics(focal, principal, size)
    in_ndc = perspective_cameras(torch.eye(3)[None], torch.zeros(1, 3), ndc_focal, ndc_principal)
    points = torch.tensor([[0.2, 0.1, 2.0], [-0.6, 0.5, 1.3]])
    assert torch.allclose(
        pixels_of(points, in_ndc, size), in_pixels.transform_points_screen(points)[..., :2], atol=1e-3
    )
    # by hand: +X is left, so a point at x = 0.2, z = 2 lies 40 * 0.1 pixels left of the principal point
    assert torch.allclose(pixels_of(points, in_ndc, size)[0], torch.tensor([16.0, 34.25]), atol=1e-3)


@given(opengl_poses(), opengl_poses())
@settings(max_examples=30, deadline=None)
def test_a_change_of_world_changes_no_image(first: Tensor, second: Tensor) -> None:
    size, focal, principal = (60, 90), torch.tensor([[50.0, 55.0]]), torch.tensor([[40.0, 33.0]])
    reference, camera = (
        opengl_to_pytorch3d(pose, focal.double(), principal.double(), size) for pose in (first, second)
    )
    moved, origin = relative_to(camera, reference), relative_to(reference, reference)
    points = torch.tensor([[0.4, -0.3, 2.0], [-0.2, 0.8, 3.0]], dtype=torch.float64)  # in the camera's frame
    world = (points - camera.T) @ camera.R[0].T
    in_reference = world @ reference.R[0] + reference.T
    assert torch.allclose(in_reference @ moved.R[0] + moved.T, points, atol=1e-9)
    assert torch.allclose(origin.R[0], torch.eye(3, dtype=torch.float64), atol=1e-9)
    assert torch.allclose(origin.T[0], torch.zeros(3, dtype=torch.float64), atol=1e-9)
    assert torch.equal(moved.focal_length, camera.focal_length)
    assert torch.equal(moved.principal_point, camera.principal_point)


@pytest.mark.parametrize("new_size", [(60, 90), (30, 45), (64, 88), (80, 40)])
def test_resizing_moves_points_with_the_pixels(new_size: tuple[int, int]) -> None:
    cameras = perspective_cameras(
        torch.eye(3)[None], torch.zeros(1, 3), torch.tensor([[1.3, 1.1]]), torch.tensor([[0.2, -0.1]])
    )
    points = torch.tensor([[0.4, -0.3, 2.0], [-0.2, 0.8, 3.0]])
    scale = torch.tensor([new_size[1] / 90, new_size[0] / 60])
    after = pixels_of(points, resized(cameras, (60, 90), new_size), new_size)
    assert torch.allclose(after, pixels_of(points, cameras, (60, 90)) * scale, atol=1e-3)


def test_one_reference_serves_a_batch() -> None:
    cameras = perspective_cameras(random_rotations(3), torch.randn(3, 3), torch.ones(3))
    reference = perspective_cameras(random_rotations(1), torch.randn(1, 3), torch.ones(1))
    together = relative_to(cameras, reference)
    for index in range(3):
        one = slice(index, index + 1)
        alone = relative_to(perspective_cameras(cameras.R[one], cameras.T[one], torch.ones(1)), reference)
        assert torch.allclose(together.R[one], alone.R, atol=1e-6)
        assert torch.allclose(together.T[one], alone.T, atol=1e-6)


def test_camera_to_world_inverts_pytorch3d_world_to_view() -> None:
    cameras = perspective_cameras(random_rotations(4), torch.randn(4, 3), torch.ones(4))
    points = torch.randn(4, 5, 3)
    local = cameras.get_world_to_view_transform().transform_points(points)
    matrix = cam_to_world(cameras)
    assert torch.allclose(
        local @ matrix[:, :3, :3].transpose(1, 2) + matrix[:, None, :3, 3], points, atol=1e-5
    )
    assert torch.allclose(matrix[:, :3, 3], cameras.get_camera_center(), atol=1e-5)
    assert torch.equal(matrix[:, 3], torch.tensor([0.0, 0, 0, 1]).expand(4, 4))


@pytest.mark.parametrize("fov", [20.0, 60.0, 90.0, 120.0])
@pytest.mark.parametrize("size", SIZES)
def test_the_field_of_view_spans_the_shorter_side(fov: float, size: tuple[int, int]) -> None:
    height, width = size
    reach = math.tan(math.radians(fov / 2))
    edge = torch.tensor([[0.0, reach, 1.0]]) if height <= width else torch.tensor([[-reach, 0.0, 1.0]])
    column, row = pixels_of(edge, look_ahead(1, fov), size)[0].tolist()
    assert (row if height <= width else column) == pytest.approx(0 if height <= width else width, abs=1e-3)
    assert (column if height <= width else row) == pytest.approx(max(size) / 2, abs=1e-3)


@pytest.mark.parametrize("fov", [0.0, 180.0, -5.0])
def test_impossible_fields_of_view_are_refused(fov: float) -> None:
    with pytest.raises(ValueError, match="fov_degrees must lie in"):
        look_ahead(1, fov)


def test_points_turn_to_opengl_and_back() -> None:
    left_up_ahead = torch.tensor([[[1.0, 2.0, 3.0]]])
    assert points_to_opengl(left_up_ahead).tolist() == [[[-1.0, 2.0, -3.0]]]
    assert torch.equal(points_to_opengl(points_to_opengl(left_up_ahead)), left_up_ahead)


def test_views_know_their_number() -> None:
    assert len(CameraView(look_ahead(3, 60.0), (4, 5))) == 3
    square = perspective_cameras(torch.eye(3)[None], torch.zeros(1, 3), torch.tensor([2.0]))
    assert square.focal_length.tolist() == [[2.0, 2.0]]
    assert square.principal_point.tolist() == [[0.0, 0.0]]
    assert square.in_ndc()


def odd_cameras(batch: int = 3) -> PerspectiveCameras:
    """Cameras anywhere, with different focal lengths along the axes and principal points off the centre."""
    focal, principal = torch.rand(batch, 2) + 1, 0.2 * torch.randn(batch, 2)
    return perspective_cameras(random_rotations(batch), torch.randn(batch, 3), focal, principal)


@pytest.mark.parametrize("size", SIZES)
def test_mirrored_cameras_see_mirrored_points_on_the_other_side(size: tuple[int, int]) -> None:
    cameras, points = odd_cameras(), torch.randn(3, 20, 3) * 2
    other = mirrored(cameras)
    assert torch.allclose(torch.linalg.det(other.R), torch.ones(3), atol=1e-5)
    seen = pixels_of(points * torch.tensor([-1.0, 1.0, 1.0]), other, size)
    expected = pixels_of(points, cameras, size) * torch.tensor([-1.0, 1.0]) + torch.tensor([size[1], 0.0])
    ahead = (points @ cameras.R + cameras.T[:, None])[..., 2].abs() > 0.2  # elsewhere float32 leaves little
    assert ahead.sum() > 15
    assert torch.allclose(seen[ahead], expected[ahead], atol=1e-2, rtol=1e-4)


@pytest.mark.parametrize("size", SIZES)
def test_pinhole_views_have_the_same_pixels(size: tuple[int, int]) -> None:
    """Image coordinates 0 and 1 are the centres of the first and the last pixel."""
    view = CameraView(odd_cameras(), size)
    pinhole = to_pinhole(view)
    points = torch.randn(3, 20, 3) * 2
    turned = torch.cat([-points[..., :2], points[..., 2:], torch.ones(3, 20, 1)], dim=-1)
    local = turned @ torch.linalg.inv(pinhole.cam_to_world).mT
    image = local[..., :3] @ pinhole.intrinsics.mT
    height, width = size
    pixels = image[..., :2] / image[..., 2:] * torch.tensor([width - 1, height - 1]) + 0.5
    expected = pixels_of(points, view.cameras, size)
    ahead = image[..., 2] > 0.2  # elsewhere float32 leaves little of the quotient
    assert ahead.sum() > 15
    assert torch.allclose(pixels[ahead], expected[ahead], atol=2e-2, rtol=1e-4)


@pytest.mark.parametrize("size", SIZES)
def test_pinhole_rays_are_those_of_the_cameras(size: tuple[int, int]) -> None:
    pixels = torch.stack([torch.randint(side, (3, 7)) for side in size], dim=-1)
    view = CameraView(odd_cameras(), size, pixels)
    origins, directions = pinhole_rays(to_pinhole(view))
    bundle = ray_bundle(view)
    flip = torch.tensor([-1.0, -1.0, 1.0])
    expected = torch.nn.functional.normalize(bundle.directions, dim=-1) * flip
    assert torch.allclose(directions, expected, atol=1e-5)
    assert torch.allclose(origins, bundle.origins[:, :1] * flip, atol=1e-5)


@pytest.mark.parametrize("size", SIZES)
def test_pinhole_views_turn_back(size: tuple[int, int]) -> None:
    cameras = odd_cameras()
    back = from_pinhole(to_pinhole(CameraView(cameras, size)))
    assert back.size == size
    for name in CAMERA_TENSORS:
        assert torch.allclose(getattr(back.cameras, name), getattr(cameras, name), atol=1e-5), name


def test_pinhole_views_repeat_whole_batches() -> None:
    view = to_pinhole(CameraView(odd_cameras(), (4, 6), torch.randint(4, (3, 5, 2))), torch.randn(3, 4, 4))
    twice = view.repeated(2)
    assert len(twice) == 6
    for name in ("cam_to_world", "intrinsics", "pose", "pixels"):
        assert torch.equal(getattr(twice, name), torch.cat([getattr(view, name)] * 2)), name


def test_the_z_up_world_by_hand() -> None:
    left_up_ahead = torch.tensor([[1.0, 0, 0], [0, 2.0, 0], [0, 0, 3.0]])
    expected = torch.tensor([[-1.0, 0, 0], [0, 0, 2.0], [0, 3.0, 0]])  # right, ahead, up
    assert torch.equal(points_to_z_up(left_up_ahead), expected)
    assert torch.equal(points_to_z_up(expected), left_up_ahead)
    photo = pytorch3d_to_z_up(look_ahead(1, 60))[0]
    right, up, back = photo[:3, :3].T
    assert right.tolist() == [1, 0, 0]
    assert up.tolist() == [0, 0, 1]
    assert back.tolist() == [0, -1, 0]  # it looks along +Y


@pytest.mark.parametrize("rows", [3, 4])
@pytest.mark.parametrize("size", SIZES)
def test_z_up_cameras_round_trip_and_see_the_same(size: tuple[int, int], rows: int) -> None:
    cameras = perspective_cameras(random_rotations(3), torch.randn(3, 3), torch.rand(3, 2) + 1)
    matrices = pytorch3d_to_z_up(cameras)
    again = z_up_to_pytorch3d(matrices[:, :rows], *ndc_to_pixels_intrinsics(cameras, size), size)
    for name in CAMERA_TENSORS:
        assert torch.allclose(getattr(again, name), getattr(cameras, name), atol=1e-5), name
    points = torch.randn(5, 3)
    places = torch.cat([points_to_z_up(points), torch.ones(5, 1)], dim=1)
    seen = (places @ matrices.inverse().transpose(1, 2))[..., :3]  # OpenGL's camera axes
    flip = seen.new_tensor([-1.0, 1.0, -1.0])
    assert torch.allclose(seen * flip, points @ cameras.R + cameras.T[:, None], atol=1e-4)
