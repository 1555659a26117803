"""Flow fields as files and pictures: Middlebury .flo, KITTI's 16-bit PNG, and the colour wheel.

Flows are (2, height, width), pixels, x to the right and y down.
"""

from __future__ import annotations

import math
import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

FLO_TAG = b"PIEH"  # 202021.25 as a little-endian float32
KITTI_SCALE, KITTI_ZERO = 64.0, 32768  # (value - 2^15) / 64, of the KITTI flow benchmark's development kit
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# Steps from each hue to the next of the colour wheel of Baker et al. 2011 (A Database and Evaluation
# Methodology for Optical Flow): red, yellow, green, cyan, blue, magenta and back
WHEEL = ((15, (255, 0, 0)), (6, (255, 255, 0)), (4, (0, 255, 0)), (11, (0, 255, 255)), (13, (0, 0, 255)),
         (6, (255, 0, 255)))  # fmt: skip


class FlowFileError(ValueError):
    """A file that holds no flow."""


def write_flo(flow: Tensor, path: str | Path) -> None:
    """Writes Middlebury's .flo: tag, width, height, then x and y of each pixel, little-endian."""
    _check_flow(flow)
    height, width = flow.shape[1:]
    values = flow.permute(1, 2, 0).contiguous().cpu().numpy().astype("<f4")
    Path(path).write_bytes(FLO_TAG + struct.pack("<ii", width, height) + values.tobytes())


def read_flo(path: str | Path) -> Tensor:
    """(2, height, width) of a .flo file.

    Raises:
        FlowFileError: the file is no .flo or incomplete.
    """
    data = Path(path).read_bytes()
    if data[:4] != FLO_TAG or len(data) < 12:
        raise FlowFileError(f"{path} is no .flo file")
    width, height = struct.unpack("<ii", data[4:12])
    if width <= 0 or height <= 0 or len(data) != 12 + 8 * width * height:
        raise FlowFileError(f"{path}: {len(data)} bytes are not a flow of {width}x{height}")
    values = np.frombuffer(data, "<f4", offset=12).reshape(height, width, 2).astype(np.float32)
    return torch.from_numpy(values).permute(2, 0, 1).contiguous()


def write_kitti_png(flow: Tensor, valid: Tensor, path: str | Path) -> None:
    """Writes KITTI's 16-bit RGB PNG: x and y in 64ths of a pixel around 2^15, and 1 where valid.

    Pillow writes no 16-bit colour, so the file, four chunks, is put together here.

    Args:
        valid: (height, width) bool. Values beyond +-512 pixels are clamped.
    """
    _check_flow(flow)
    coded = (flow * KITTI_SCALE + KITTI_ZERO).round().clamp(1, 65535)
    coded = torch.cat([torch.where(valid, coded, 0), valid[None].to(coded)])
    rows = coded.permute(1, 2, 0).cpu().numpy().astype(">u2")
    lines = b"".join(b"\0" + row.tobytes() for row in rows)  # each begins with its filter: none
    header = struct.pack(">IIBBBBB", flow.shape[2], flow.shape[1], 16, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(lines, 9)), (b"IEND", b""))
    parts = [
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    ]
    Path(path).write_bytes(PNG_SIGNATURE + b"".join(parts))


def read_kitti_png(path: str | Path) -> tuple[Tensor, Tensor]:
    """(2, height, width) flow, 0 where unknown, and (height, width) bool validity of a KITTI PNG.

    Raises:
        FlowFileError: it is no 16-bit RGB PNG.
    """
    from torchvision.io import ImageReadMode, decode_png

    try:
        pixels = decode_png(torch.frombuffer(bytearray(Path(path).read_bytes()), dtype=torch.uint8),
                            ImageReadMode.UNCHANGED)  # fmt: skip
    except (RuntimeError, ValueError) as error:  # the latter of an empty file
        raise FlowFileError(f"{path} is no PNG") from error
    if pixels.dtype != torch.uint16 or len(pixels) != 3:
        raise FlowFileError(f"{path} has no 16-bit RGB pixels")
    coded = pixels.float()
    valid = coded[2] > 0
    return torch.where(valid, (coded[:2] - KITTI_ZERO) / KITTI_SCALE, 0), valid


def flow_colors(flow: Tensor, longest: float | None = None) -> Tensor:
    """Pictures (*, 3, height, width) in [-1, 1] of flows (*, 2, height, width) by the colour wheel.

    Directions have hues (right red, down yellow, left cyan, up violet), no motion is white.

    Args:
        longest: length drawn in full colour, pixels; longer ones are darkened. By default the flow's own.
    """
    flow = flow.float().cpu()
    x, y = flow.unbind(-3)
    length = torch.hypot(x, y)
    length = length / max(float(length.max()) if longest is None else longest, 1e-6)
    wheel = _wheel()
    place = (torch.atan2(y, x) / (2 * math.pi)) % 1 * len(wheel)
    low = place.floor().long() % len(wheel)
    color = torch.lerp(wheel[low], wheel[(low + 1) % len(wheel)], (place - place.floor())[..., None])
    within = 1 - length.clamp(max=1)[..., None] * (1 - color)
    shown = torch.where(length[..., None] <= 1, within, 0.75 * color)
    return shown.movedim(-1, -3) * 2 - 1


def _wheel() -> Tensor:
    """(55, 3) colours in [0, 1] around the wheel."""
    parts = []
    for (count, start), (_, end) in zip(WHEEL, (*WHEEL[1:], WHEEL[0]), strict=True):
        share = torch.arange(count)[:, None] / count
        parts.append(torch.lerp(torch.tensor(start).float(), torch.tensor(end).float(), share))
    return torch.cat(parts) / 255


def _check_flow(flow: Tensor) -> None:
    if flow.ndim != 3 or len(flow) != 2:
        raise ValueError(f"flow must be (2, height, width), got {tuple(flow.shape)}")
