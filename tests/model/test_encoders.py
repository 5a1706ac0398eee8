"""The name decides what stands below a task; whatever it is, its features can be pooled."""

from typing import Any

import pytest
import torch

from mpp.config import resolve
from mpp.errors import ConfigError
from mpp.model.encoders import build_encoder
from mpp.model.families import VitConfig
from mpp.model.resnet import ResNet
from mpp.model.vit import Vit


@pytest.mark.parametrize(
    ("settings", "kind"),
    [
        ({"name": "resnetv2_101x1_bit", "pool": "mean"}, ResNet),
        ({"name": "vit_tiny_patch16_224", "pool": "map"}, Vit),
        ({"name": "vit_base_r50_s16_224"}, Vit),
    ],
)
def test_every_network_has_settings_a_width_and_a_pooled_feature(settings: dict[str, Any], kind: type) -> None:
    config = resolve(VitConfig, settings)
    with torch.device("meta"):
        encoder = build_encoder(config)
        assert type(encoder) is kind
        assert encoder.settings == config
        features = encoder(torch.zeros(2, 3, 224, 224, dtype=torch.uint8))
        assert encoder.pooled(features).shape == (2, encoder.width)


def test_a_resnet_that_sees_its_micro_batch_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"vit.name=resnetv2_50x\d_bit"):
        build_encoder(resolve(VitConfig, {"name": "resnetv2_50"}))
