"""The full-size architecture at a tiny size, with random weights that all matter."""

from __future__ import annotations

import torch
from pytorch3d.transforms import random_rotations

from scenediff.dit_pipeline import build_denoiser
from scenediff.forward import Observation
from scenediff.networks.dit import DitConfig
from scenediff.networks.dit_denoiser import DitDenoiser
from scenediff.renderers.cameras import PinholeView
from scenediff.renderers.volume_field import VolumeConfig

SIZE = (12, 16)
ENCODER = DitConfig(width=16, depth=2, heads=2, channels=8, stem=8, target_inputs=7 + 4)
POSED_ENCODER = DitConfig(
    width=16, depth=2, heads=2, channels=8, stem=8, target_inputs=7 + 4, absolute_poses=True
)
FIELD = VolumeConfig(
    width=8, map_channels=8, feature_channels=4, near=0.5, far=4.0, background=(0.2, 0.5, 0.8), coarse=10,
    fine=6, context_samples=7,
)


def tiny_dit(encoder: DitConfig = ENCODER, field: VolumeConfig = FIELD) -> DitDenoiser:
    torch.manual_seed(0)
    denoiser = build_denoiser(encoder, field)
    torch.nn.init.normal_(denoiser.encoder.label)
    return denoiser


def random_view(batch: int = 2, size: tuple[int, int] = SIZE) -> PinholeView:
    """Cameras near the origin that look anywhere."""
    matrices = torch.eye(4).repeat(batch, 1, 1)
    matrices[:, :3, :3], matrices[:, :3, 3] = random_rotations(batch), 0.3 * torch.randn(batch, 3)
    intrinsics = torch.tensor([[0.9, 0.0, 0.5], [0.0, 1.1, 0.45], [0.0, 0.0, 1.0]]).repeat(batch, 1, 1)
    return PinholeView(matrices, intrinsics, size, pose=torch.randn(batch, 4, 4))


def random_context(views: int = 2, batch: int = 2) -> list[Observation]:
    return [Observation(torch.rand(batch, 3, *SIZE) * 2 - 1, random_view(batch)) for _ in range(views)]
