"""Captures: cameras against hand-made matrices, both formats, crops and depth against closed forms."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from scenediff.datasets.captures import CaptureError, area_resize, centre_square, load_capture
from scenediff.renderers.cameras import cam_to_world, pytorch3d_to_opengl

REAL = Path(
    os.environ.get("SCENEDIFF_CAPTURE_DIR", Path(__file__).parents[1] / ".." / "shared" / "real_capture")
)

POSE = [
    [0.0, 0.0, 1.0, 2.0],  # looks along world -X: OpenGL's -Z axis is the third column's opposite
    [0.0, 1.0, 0.0, 1.5],
    [-1.0, 0.0, 0.0, -0.5],
    [0.0, 0.0, 0.0, 1.0],
]


def write_capture(folder: Path, **changes) -> Path:
    """Three 60x40 frames numbered 7, 8 and 12, with depth of half their size."""
    (folder / "images").mkdir(parents=True)
    frames = []
    for position, number in enumerate((7, 8, 12)):
        gradient = np.linspace(0, 255, 60).astype(np.uint8)[None, :, None]
        pixels = np.broadcast_to(gradient, (40, 60, 3)).copy()
        pixels[..., 1] = 10 * number
        Image.fromarray(pixels).save(folder / f"images/{number:04d}.png")
        depth = np.full((20, 30), 1500 + number, np.uint16)
        Image.fromarray(depth).save(folder / f"images/depth_{number:04d}.png")
        pose = np.array(POSE)
        pose[0, 3] += 0.3 * position
        frames.append({
            "file_path": f"images/{number:04d}.png",
            "depth_file_path": f"images/depth_{number:04d}.png",
            "transform_matrix": pose.tolist(),
        })
    document = {"w": 60, "h": 40, "fl_x": 50.0, "fl_y": 48.0, "cx": 31.0, "cy": 19.0, "frames": frames}
    (folder / "transforms.json").write_text(json.dumps({**document, **changes}))
    return folder


def test_poses_and_intrinsics_follow_opengl(tmp_path):
    frame = load_capture(write_capture(tmp_path)).frames[0]
    torch.testing.assert_close(pytorch3d_to_opengl(frame.cameras)[0], torch.tensor(POSE))
    ahead = torch.tensor([[2.0 - 4, 1.5, -0.5]])  # 4 m along the viewing direction, world -X
    torch.testing.assert_close(
        frame.cameras.get_world_to_view_transform().transform_points(ahead), torch.tensor([[0.0, 0, 4]])
    )
    pixels = frame.cameras.transform_points_screen(ahead, image_size=((40, 60),))[0, :2]
    torch.testing.assert_close(pixels, torch.tensor([31.0, 19.0]))
    # a metre towards the camera's right (world -Z here) is fl_x / depth pixels to the right
    right = ahead + torch.tensor([[0.0, 0, -1]])
    moved = frame.cameras.transform_points_screen(right, image_size=((40, 60),))[0, :2]
    torch.testing.assert_close(moved, torch.tensor([31.0 + 50 / 4, 19.0]))


def test_frames_may_have_their_own_intrinsics(tmp_path):
    write_capture(tmp_path)
    document = json.loads((tmp_path / "transforms.json").read_text())
    document["frames"][1]["fl_x"] = 25.0
    (tmp_path / "transforms.json").write_text(json.dumps(document))
    first, second, _ = load_capture(tmp_path).frames
    assert second.cameras.focal_length[0, 0] == pytest.approx(first.cameras.focal_length[0, 0].item() / 2)
    assert second.cameras.focal_length[0, 1] == first.cameras.focal_length[0, 1]


def test_blender_scenes_give_angle_and_names_without_suffix(tmp_path):
    (tmp_path / "train").mkdir()
    pixels = np.zeros((32, 32, 4), np.uint8)
    pixels[:16] = (255, 0, 0, 255)  # opaque red above, transparent below
    Image.fromarray(pixels).save(tmp_path / "train/r_3.png")
    entry = {"file_path": "./train/r_3", "rotation": 0.1, "transform_matrix": POSE}
    document = {"camera_angle_x": math.radians(60), "frames": [entry]}
    (tmp_path / "transforms_train.json").write_text(json.dumps(document))
    (frame,) = load_capture(tmp_path).frames
    assert frame.size == (32, 32)
    assert frame.number == 3
    assert frame.cameras.focal_length[0, 0] == pytest.approx(1 / math.tan(math.radians(30)), rel=1e-6)
    image = frame.load_image()
    assert image[:, 0, 0].tolist() == [1, -1, -1]
    assert image[:, 31, 0].tolist() == [1, 1, 1]
    with pytest.raises(CaptureError, match="no depth"):
        frame.load_depth()
    with pytest.raises(CaptureError, match=r"transforms_test\.json"):
        load_capture(tmp_path, split="test")


def test_centre_square_keeps_points_where_they_were(tmp_path):
    """A world point must fall on the same spot of the scene in the crop as in the whole frame."""
    frame = load_capture(write_capture(tmp_path)).frames[0]
    view = centre_square(frame, 20)
    points = torch.tensor([[-1.0, 1.6, -0.4], [-2.0, 1.2, -0.9]])
    whole = frame.cameras.transform_points_screen(points, image_size=((40, 60),))[..., :2]
    cropped = view.cameras.transform_points_screen(points, image_size=((20, 20),))[..., :2]
    torch.testing.assert_close(cropped, (whole - torch.tensor([10.0, 0.0])) / 2)
    assert view.image.shape == (3, 20, 20)
    # each new pixel is the mean of two old columns of the ramp
    ramp = (torch.linspace(0, 255, 60).byte().float() / 127.5 - 1)[10:50].view(20, 2).mean(1)
    torch.testing.assert_close(view.image[0], ramp.expand(20, 20))
    torch.testing.assert_close(view.depth, torch.full((20, 20), 1.507))


def test_centre_square_of_odd_margins_moves_the_principal_point(tmp_path):
    write_capture(tmp_path, w=61)
    for number in (7, 8, 12):
        path = tmp_path / f"images/{number:04d}.png"
        Image.open(path).resize((61, 40)).save(path)
    frame = load_capture(tmp_path).frames[0]
    view = centre_square(frame, 40)  # 21 columns go: 10 on the left
    ahead = torch.tensor([[-2.0, 1.5, -0.5]])
    pixel = view.cameras.transform_points_screen(ahead, image_size=((40, 40),))[0, :2]
    torch.testing.assert_close(pixel, torch.tensor([21.0, 19.0]))


def test_area_resize_is_the_mean_over_the_area():
    image = torch.rand(3, 36, 30, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        area_resize(image, (12, 10)), torch.nn.functional.avg_pool2d(image[None], 3)[0], atol=1e-6, rtol=0
    )
    uneven = area_resize(image, (7, 11))
    assert uneven.mean() == pytest.approx(image.mean().item(), abs=1e-6)
    half = area_resize(torch.tensor([[0.0, 0.0, 1.0]]), (1, 2))  # the middle pixel is shared
    torch.testing.assert_close(half, torch.tensor([[0.0, 2 / 3]]))


def test_unknown_depth_is_left_out_of_the_median(tmp_path):
    frame = load_capture(write_capture(tmp_path)).frames[0]
    depth = np.zeros((20, 30), np.uint16)
    depth[:, 15:] = 3000
    depth[5, 20] = 9000
    Image.fromarray(depth).save(frame.depth_path)
    values = centre_square(frame, 8).depth
    assert (values[:, :4] == 0).all()  # nothing known in the left half
    torch.testing.assert_close(values[:, 4:], torch.full((8, 4), 3.0))  # an outlier does not move the median


def test_pairs_go_by_number_and_else_by_position(tmp_path):
    write_capture(tmp_path)
    entry = {"baseline_m": 0.6, "angle_deg": 1.0, "in_frame": 0.9, "visible": 0.8}
    (tmp_path / "pairs.json").write_text(json.dumps([{"context": 7, "target": 12, **entry}]))
    (pair,) = load_capture(tmp_path).pairs
    assert (pair.context.number, pair.target.number, pair.visible) == (7, 12, 0.8)
    (tmp_path / "pairs.json").write_text(json.dumps([{"context": 0, "target": 2}]))
    (pair,) = load_capture(tmp_path).pairs
    assert (pair.context.number, pair.target.number) == (7, 12)
    assert math.isnan(pair.visible)
    (tmp_path / "pairs.json").write_text(json.dumps([{"context": 0, "target": 99}]))
    with pytest.raises(CaptureError, match=r"pairs\.json"):
        load_capture(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frames": []}, "frames"),
        ({"frames": ["images/0007.png"]}, "frames"),
        ({"k1": 0.1}, "distortion"),
        ({"fl_x": -1}, "positive"),
        ({"fl_x": "wide"}, "usable number"),
        ({"frames": [{"file_path": "images/0007.png", "transform_matrix": [[1, 2]]}]}, "transform_matrix"),
        ({"frames": [{"file_path": "images/none.png", "transform_matrix": POSE}]}, r"none\.png"),
    ],
)
def test_broken_files_are_named(tmp_path, changes, message):
    with pytest.raises(CaptureError, match=message) as raised:
        load_capture(write_capture(tmp_path, **changes))
    assert "transforms.json" in str(raised.value)


def test_missing_focal_length_and_damaged_json(tmp_path):
    write_capture(tmp_path)
    document = json.loads((tmp_path / "transforms.json").read_text())
    del document["fl_x"]
    (tmp_path / "transforms.json").write_text(json.dumps(document))
    with pytest.raises(CaptureError, match="camera_angle_x"):
        load_capture(tmp_path)
    (tmp_path / "transforms.json").write_text("{")
    with pytest.raises(CaptureError, match="JSON"):
        load_capture(tmp_path)


def test_images_that_contradict_their_intrinsics_are_refused(tmp_path):
    frame = load_capture(write_capture(tmp_path)).frames[0]
    Image.new("RGB", (30, 20)).save(frame.image_path)
    with pytest.raises(CaptureError, match="60x40"):
        frame.load_image()
    frame.image_path.write_bytes(b"nothing")
    with pytest.raises(CaptureError, match="can't be read as an image"):
        frame.load_image()


@pytest.mark.skipif(not (REAL / "transforms.json").exists(), reason="the real capture is not here")
def test_real_capture_pairs_have_the_baselines_they_claim():
    capture = load_capture(REAL)
    assert len(capture.frames) == 112
    assert len(capture.pairs) == 40
    for pair in capture.pairs:
        centres = [cam_to_world(frame.cameras)[0, :3, 3] for frame in (pair.context, pair.target)]
        # baselines are listed to the millimetre
        assert (centres[1] - centres[0]).norm() == pytest.approx(pair.baseline_m, abs=6e-4)
    view = centre_square(capture.pairs[0].context, 64)
    assert (view.depth > 0).float().mean() > 0.8
    assert 0.3 < view.depth[view.depth > 0].median() < 10
