"""Flows as files and pictures: bytes by their formats' formulas, other decoders, known colours."""

from __future__ import annotations

import math
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from scenediff.tools.flow_files import (
    FlowFileError,
    flow_colors,
    read_flo,
    read_kitti_png,
    write_flo,
    write_kitti_png,
)

SIZE = (5, 7)


@pytest.fixture
def cv2():
    """OpenCV, which many read flows with; not a dependency."""
    return pytest.importorskip("cv2")


def random_flow(length: float = 20.0) -> Tensor:
    return length * torch.randn(2, *SIZE)


# --- .flo ----------------------------------------------------------------------------------------


def test_flo_bytes(tmp_path: Path) -> None:
    """Of a flow of two columns and one row: PIEH, 2, 1, then u v u v."""
    write_flo(torch.tensor([[[1.5, -2.0]], [[0.25, 8.0]]]), tmp_path / "a.flo")
    data = (tmp_path / "a.flo").read_bytes()
    assert data == b"PIEH" + struct.pack("<ii4f", 2, 1, 1.5, 0.25, -2.0, 8.0)
    assert struct.unpack("<f", data[:4])[0] == 202021.25


def test_flo_round_trip_is_exact(tmp_path: Path) -> None:
    flow = random_flow()
    write_flo(flow, tmp_path / "a.flo")
    assert torch.equal(read_flo(tmp_path / "a.flo"), flow)


def test_opencv_reads_and_writes_the_same_flo(cv2, tmp_path: Path) -> None:
    flow = random_flow()
    write_flo(flow, tmp_path / "a.flo")
    assert np.array_equal(cv2.readOpticalFlow(str(tmp_path / "a.flo")), flow.permute(1, 2, 0).numpy())
    cv2.writeOpticalFlow(str(tmp_path / "b.flo"), flow.permute(1, 2, 0).contiguous().numpy())
    assert (tmp_path / "a.flo").read_bytes() == (tmp_path / "b.flo").read_bytes()


def test_foreign_flo_files(tmp_path: Path) -> None:
    whole = b"PIEH" + struct.pack("<ii", 2, 1) + bytes(16)
    for data in (
        b"", b"PIEH", whole[:-1], whole + b"\0", b"HEIP" + whole[4:],
        b"PIEH" + struct.pack("<ii", -2, -1) + bytes(16), b"PIEH" + struct.pack("<ii", 0, 5),
    ):  # fmt: skip
        (tmp_path / "bad.flo").write_bytes(data)
        with pytest.raises(FlowFileError, match=r"bad\.flo"):
            read_flo(tmp_path / "bad.flo")
    (tmp_path / "good.flo").write_bytes(whole)
    assert torch.equal(read_flo(tmp_path / "good.flo"), torch.zeros(2, 1, 2))


# --- KITTI ---------------------------------------------------------------------------------------


def test_opencv_decodes_kitti_pngs_by_the_formula(cv2, tmp_path: Path) -> None:
    """(value - 2^15) / 64 in red and green, validity in blue."""
    flow, valid = random_flow(), torch.rand(SIZE) < 0.7
    write_kitti_png(flow, valid, tmp_path / "a.png")
    pixels = cv2.imread(str(tmp_path / "a.png"), cv2.IMREAD_UNCHANGED)[..., ::-1]  # it reads BGR
    assert pixels.dtype == np.uint16
    assert pixels.shape == (*SIZE, 3)
    assert np.array_equal(pixels[..., 2], valid.numpy().astype(np.uint16))
    decoded = torch.from_numpy((pixels[..., :2].astype(np.float64) - 2**15) / 64).permute(2, 0, 1)
    assert (decoded - flow)[:, valid].abs().max() <= 1 / 128 + 1e-4  # half a step; float32 at 2^15
    assert not pixels[~valid.numpy()].any()


def test_kitti_round_trip(tmp_path: Path) -> None:
    """Exact for multiples of a 64th; nothing is known of invalid pixels, whatever they held."""
    flow, valid = (random_flow() * 64).round() / 64, torch.rand(SIZE) < 0.7
    flow[:, ~valid] = torch.nan
    write_kitti_png(flow, valid, tmp_path / "a.png")
    got, known = read_kitti_png(tmp_path / "a.png")
    assert torch.equal(known, valid)
    assert torch.equal(got[:, valid], flow[:, valid])
    assert not got[:, ~valid].any()


def test_no_flow_is_known_as_such(cv2, tmp_path: Path) -> None:
    write_kitti_png(torch.zeros(2, *SIZE), torch.ones(SIZE, dtype=torch.bool), tmp_path / "a.png")
    pixels = cv2.imread(str(tmp_path / "a.png"), cv2.IMREAD_UNCHANGED)
    assert (pixels[..., 1:] == 2**15).all()


def test_long_flows_are_clamped(tmp_path: Path) -> None:
    """At 0 a value would mean "unknown" to some readers."""
    flow = torch.tensor([[[-1e6, -512.0, 511.0, 1e6]], [[0.0] * 4]])
    write_kitti_png(flow, torch.ones(1, 4, dtype=torch.bool), tmp_path / "a.png")
    got, known = read_kitti_png(tmp_path / "a.png")
    assert known.all()
    assert got[0, 0].tolist() == [-512 + 1 / 64, -512 + 1 / 64, 511.0, 512 - 1 / 64]


def test_it_reads_what_opencv_writes(cv2, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(1, 2**16, (*SIZE, 3)).astype(np.uint16)
    pixels[0, :, 0] = 0  # blue: not valid
    cv2.imwrite(str(tmp_path / "a.png"), pixels)
    flow, valid = read_kitti_png(tmp_path / "a.png")
    assert not valid[0].any()
    assert valid[1:].all()
    wanted = (pixels[..., [2, 1]].astype(np.float32) - 2**15) / 64
    assert np.array_equal(flow[:, 1:].permute(1, 2, 0).numpy(), wanted[1:])


def test_foreign_pngs(tmp_path: Path) -> None:
    path = tmp_path / "bad.png"
    write_kitti_png(random_flow(), torch.ones(SIZE, dtype=torch.bool), path)
    half = path.read_bytes()[:60]
    for data in (b"", b"no picture", half):
        path.write_bytes(data)
        with pytest.raises(FlowFileError, match=r"bad\.png"):
            read_kitti_png(path)
    for picture in (Image.new("RGB", (4, 3)), Image.new("I;16", (4, 3)), Image.new("L", (4, 3))):
        picture.save(path)
        with pytest.raises(FlowFileError, match=r"bad\.png has no 16-bit RGB"):
            read_kitti_png(path)


@pytest.mark.parametrize("shape", [(3, 5, 7), (5, 7), (1, 2, 5, 7)])
def test_wrong_shapes(tmp_path: Path, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"flow must be \(2, height, width\)"):
        write_flo(torch.zeros(shape), tmp_path / "a.flo")
    with pytest.raises(ValueError, match=r"flow must be \(2, height, width\)"):
        write_kitti_png(torch.zeros(shape), torch.ones(5, 7, dtype=torch.bool), tmp_path / "a.png")
    assert not list(tmp_path.iterdir())


# --- colours -------------------------------------------------------------------------------------


def color_of(degrees: float, length: float = 1.0, longest: float = 1.0) -> list[float]:
    """RGB in [0, 1] of a flow to that angle, from right towards down."""
    angle = math.radians(degrees)
    flow = length * torch.tensor([math.cos(angle), math.sin(angle)]).view(2, 1, 1)
    return ((flow_colors(flow, longest)[:, 0, 0] + 1) / 2).tolist()


def test_known_directions() -> None:
    """The wheel has 55 steps; its six pure colours are at 0, 15, 21, 25, 36 and 49 of them."""
    assert color_of(0) == pytest.approx([1, 0, 0], abs=1e-5)  # right
    for step, color in ((15, [1, 1, 0]), (21, [0, 1, 0]), (25, [0, 1, 1]), (36, [0, 0, 1]), (49, [1, 0, 1])):
        assert color_of(360 * step / 55) == pytest.approx(color, abs=1e-4)
    red, green, blue = color_of(90)  # down: nearly yellow
    assert (red, blue) == pytest.approx((1, 0), abs=1e-5)
    assert 0.85 < green < 1
    red, green, blue = color_of(180)  # left: cyan, a little bluer
    assert (red, blue) == pytest.approx((0, 1), abs=1e-5)
    assert 0.7 < green < 1
    red, green, blue = color_of(270)  # up: violet
    assert (green, blue) == pytest.approx((0, 1), abs=1e-5)
    assert 0.3 < red < 0.5


def test_no_motion_is_white_and_half_of_the_longest_half_as_deep() -> None:
    assert color_of(0, length=0.0) == [1, 1, 1]
    assert color_of(0, length=0.5) == pytest.approx([1, 0.5, 0.5], abs=1e-5)
    assert color_of(0, length=2.0, longest=4.0) == pytest.approx([1, 0.5, 0.5], abs=1e-5)


def test_longer_flows_are_darker() -> None:
    assert color_of(0, length=3.0) == pytest.approx([0.75, 0, 0], abs=1e-5)


def test_by_default_the_longest_has_full_colour() -> None:
    flow = torch.zeros(2, *SIZE)
    flow[0, 2, 3] = 8.0
    shown = flow_colors(flow)
    assert shown[:, 2, 3].tolist() == pytest.approx([1, -1, -1], abs=1e-5)
    assert (shown.flatten(1).sum(1) < 3 * SIZE[0] * SIZE[1]).all()
    assert torch.equal(flow_colors(torch.zeros(2, *SIZE)), torch.ones(3, *SIZE))


def test_batches_keep_their_shape_and_the_wheel_has_no_gap() -> None:
    flow = torch.randn(2, 3, 2, *SIZE)
    assert flow_colors(flow).shape == (2, 3, 3, *SIZE)
    assert torch.equal(flow_colors(flow, 3.0)[1, 2], flow_colors(flow[1, 2], 3.0))
    around = torch.tensor([color_of(degrees) for degrees in range(-1, 361)])
    assert around.diff(dim=0).abs().max() < 0.06  # a step of the wheel, 6.5 degrees, is at most a quarter
