"""The BiT ResNet, the paper's baseline for supervised pretraining, behind the interface of a ViT.

Shapes: B images, N places of the feature map, row by row, D channels, H and W pixels.
"""

from typing import cast

import torch
from torch import Tensor, nn

from mpp.model.families import VitConfig, create_resnet
from mpp.model.vit import VitFeatures


class ResNet(nn.Module):
    """A timm ``ResNetV2`` without its head, for any image size. It has no patches to corrupt.

    Raises ``ConfigError`` for settings that only a ViT has.
    """

    def __init__(self, settings: VitConfig) -> None:
        super().__init__()
        self.settings = settings
        self.timm = create_resnet(settings)
        self.width = int(self.timm.num_features)
        self.register_buffer("mean", 255 * torch.tensor(settings.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(settings.std).view(1, 3, 1, 1), persistent=False)

    def forward(self, images_BCHW: Tensor) -> VitFeatures:
        """Encode uint8 images into the normalised places of the last feature map; there is no class token."""
        mean, std = cast(Tensor, self.mean), cast(Tensor, self.std)
        features_BDhw: Tensor = self.timm.forward_features((images_BCHW - mean) / std)
        return VitFeatures(None, features_BDhw.flatten(2).mT)

    def pooled(self, features: VitFeatures) -> Tensor:
        """Return the image feature [B, D]: the mean over the map."""
        return features.patches_BND.mean(dim=1)
