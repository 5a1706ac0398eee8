"""What stands below every task: a ViT or, for labels alone, a ResNet."""

from mpp.model.families import VitConfig, is_resnet
from mpp.model.resnet import ResNet
from mpp.model.vit import Vit

Encoder = Vit | ResNet


def build_encoder(settings: VitConfig) -> Encoder:
    """Return the network that the settings name; raise ``ConfigError`` for settings that do not fit together."""
    return ResNet(settings) if is_resnet(settings) else Vit(settings)
