"""Textured meshes drawn by casting a ray for every pixel."""

from __future__ import annotations

import numpy as np
import open3d as o3d
import torch
import torch.nn.functional as F
import trimesh
from pytorch3d.renderer import PerspectiveCameras
from torch import Tensor

from scenediff.tools.fusion import cast_rays


def draw(mesh: trimesh.Trimesh, cameras: PerspectiveCameras, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Image (3, H, W) in [-1, 1], grey where nothing is, and depth (H, W), there infinite."""
    rays = o3d.t.geometry.RaycastingScene()
    rays.add_triangles(np.asarray(mesh.vertices, np.float32), np.asarray(mesh.faces, np.uint32))
    hits = cast_rays(rays, cameras, size)
    depth = torch.from_numpy(hits["t_hit"].numpy())
    face = np.where(depth.isfinite(), hits["primitive_ids"].numpy().astype(np.int64), 0)
    second_third = hits["primitive_uvs"].numpy()
    shares = np.concatenate([1 - second_third.sum(-1, keepdims=True), second_third], axis=-1)
    uv = (np.asarray(mesh.visual.uv)[np.asarray(mesh.faces)[face]] * shares[..., None]).sum(-2)
    place = torch.from_numpy(np.stack([uv[..., 0] * 2 - 1, 1 - uv[..., 1] * 2], axis=-1)).float()
    pixels = torch.from_numpy(np.array(mesh.visual.material.baseColorTexture.convert("RGB")))
    texture = pixels.permute(2, 0, 1)[None] / 127.5 - 1
    image = F.grid_sample(texture, place[None], align_corners=False, padding_mode="border")[0]
    return image.masked_fill(depth.isinf(), 0.0), depth


def psnr(first: Tensor, second: Tensor) -> float:
    """dB between images in [-1, 1]."""
    return float(10 * torch.log10(4 / (first - second).square().mean()))
