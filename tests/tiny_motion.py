"""An untrained model of motion of a few thousand parameters, and short clips for it."""

from __future__ import annotations

from pathlib import Path

import imageio_ffmpeg
import numpy as np
import torch

from scenediff.motion_pipeline import MotionPipeline, MotionSampling, build_motion_model
from scenediff.networks.motion_denoiser import MotionConfig

NETWORK = MotionConfig(channels=(16, 32), blocks=1, embedding=16, radius=2)


def tiny_motion(**defaults) -> MotionPipeline:
    """Every weight is random, also those that begin as zeros, so that everything has an effect."""
    torch.manual_seed(0)
    denoiser, scheduler = build_motion_model(NETWORK)
    for name, parameter in denoiser.named_parameters():
        is_norm = "norm" in name and name.endswith("weight")
        torch.nn.init.normal_(parameter, mean=1.0 if is_norm else 0.0, std=0.15)
    return MotionPipeline(denoiser, scheduler, MotionSampling(**{"steps": 2, "size": 32, **defaults}))


def moving_square(
    count: int = 12, size: tuple[int, int] = (48, 64), side: int = 10, step: int = 3, seed: int = 0
) -> np.ndarray:
    """(count, height, width, 3) uint8: a bright square goes to and fro over a smooth, resting background."""
    height, width = size
    rng = np.random.default_rng(seed)
    row = int(rng.integers(4, height - side - 4))
    frames = np.empty((count, height, width, 3), np.uint8)
    frames[:] = (40 + 30 * np.linspace(0, 1, width))[:, None].astype(np.uint8)
    way = width - side
    for n in range(count):
        place = abs((n * step + way) % (2 * way) - way)
        frames[n, row : row + side, place : place + side] = (250, 200, 120)
    return frames


def write_clip(path: Path, frames: np.ndarray, *more: str, fps: float = 10) -> Path:
    """Writes frames with ffmpeg without loss where the suffix is .avi or .mkv; returns the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    exact = path.suffix in (".avi", ".mkv")
    codec, pixels = ("ffv1", "bgr0") if exact else ("libx264", "yuv420p")
    writer = imageio_ffmpeg.write_frames(
        str(path), (frames.shape[2], frames.shape[1]), fps=fps, codec=codec, pix_fmt_in="rgb24",
        pix_fmt_out=pixels, quality=None, macro_block_size=1, ffmpeg_log_level="error",
        output_params=[*([] if exact else ["-crf", "10"]), *more],
    )
    writer.send(None)
    for frame in frames:
        writer.send(np.ascontiguousarray(frame))
    writer.close()
    return path
