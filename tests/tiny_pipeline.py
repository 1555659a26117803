"""An untrained model of a few thousand parameters, and photos for it."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from scenediff.networks.pixel_denoiser import DenoiserConfig
from scenediff.pipeline import SamplingDefaults, ScenePipeline, build_model
from scenediff.renderers.pixel_field import FieldConfig

DENOISER = DenoiserConfig(channels=(16, 32, 32, 32), blocks=1, embedding=32)
FIELD = FieldConfig(channels=16, feature_channels=3, samples=8, proposal_bins=12)


def tiny_pipeline(**defaults) -> ScenePipeline:
    """Every trainable weight is random, also those that begin as zeros, so that everything has an effect."""
    torch.manual_seed(0)
    denoiser, scheduler = build_model(DENOISER, FIELD)
    for parameter in denoiser.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.08)
    torch.nn.init.normal_(denoiser.renderer.field.output.weight, std=0.5)
    settings = {"steps": 2, "size": 16, **defaults}
    return ScenePipeline(denoiser, scheduler, SamplingDefaults(**settings)).to("cpu")


def random_photo(width: int = 96, height: int = 72, seed: int = 0) -> Image.Image:
    """Smooth blobs of colour."""
    coarse = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
