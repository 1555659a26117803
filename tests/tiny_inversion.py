"""A generator and a denoiser of a few thousand parameters, and pictures for them."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from scenediff.inversion_pipeline import InversionPipeline, InversionSampling, build_inversion
from scenediff.networks.latent_denoiser import LatentConfig
from scenediff.renderers.stylegan2 import Generator, GeneratorConfig, to_public

SIZES = GeneratorConfig(16, 12, 2, (16, 16, 8))
NETWORK = LatentConfig((16, 32), blocks=1, token_layers=1, heads=2, embedding=16)


def tiny_generator(seed: int = 0) -> Generator:
    """Every weight is random, also those that begin as zeros, so that everything has an effect."""
    torch.manual_seed(seed)
    generator = Generator(SIZES)
    for name, parameter in generator.named_parameters():
        if name.endswith(("noise.weight", ".bias")):
            torch.nn.init.normal_(parameter, mean=1.0 if "modulation" in name else 0.0, std=0.2)
    with torch.no_grad():
        for name, parameter in generator.named_parameters():
            if "to_rgb" in name and name.endswith("conv.weight"):
                parameter.mul_(0.2)  # images about within [-1, 1]
    generator.estimate_mean(1024)
    return generator.eval()


def tiny_inversion(**defaults) -> InversionPipeline:
    """An untrained model of which every weight has an effect."""
    denoiser, scheduler = build_inversion(tiny_generator(), NETWORK)
    for name, parameter in denoiser.named_parameters():
        if not name.startswith("renderer."):
            is_norm = "norm" in name and name.endswith("weight")
            torch.nn.init.normal_(parameter, mean=1.0 if is_norm else 0.0, std=0.15)
    defaults = {"steps": 3, "timesteps": (999, 500, 100), **defaults}
    return InversionPipeline(denoiser, scheduler, InversionSampling(**defaults))


def generator_file(path, seed: int = 0, **changes: object):
    """A checkpoint in the public layout; returns its path."""
    generator = tiny_generator(seed)
    weights = to_public(generator)
    torch.save({"g_ema": weights, "latent_avg": generator.latent_avg, **changes}, path)
    return path


def pictures(count: int = 8, size: int = 16, seed: int = 0) -> Tensor:
    """(count, 3, size, size) uint8 blobs of colour."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 255, (count, 4, 4, 3), dtype=np.uint8)
    fine = [np.asarray(Image.fromarray(one).resize((size, size), Image.Resampling.BICUBIC)) for one in coarse]
    return torch.from_numpy(np.stack(fine)).permute(0, 3, 1, 2).contiguous()
