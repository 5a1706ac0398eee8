"""The ResNet behind the interface of a ViT: timm's own features, any image size, no memory where none is needed."""

import pytest
import torch

from mpp.config import resolve
from mpp.model.families import VitConfig
from mpp.model.resnet import ResNet

SETTINGS = resolve(VitConfig, {"name": "resnetv2_50x1_bit", "image_size": [8, 8], "pool": "mean"})


@pytest.fixture(scope="module")
def resnet() -> ResNet:
    torch.manual_seed(0)
    return ResNet(SETTINGS).eval()


@torch.no_grad()
@pytest.mark.parametrize(("size", "places"), [((8, 8), 1), ((32, 96), 3), ((40, 64), 4)])
def test_features_equal_timms_at_any_size(resnet: ResNet, size: tuple[int, int], places: int) -> None:
    images = torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    features = resnet(images)
    assert features.class_token_BD is None
    assert features.patches_BND.shape == (2, places, resnet.width)
    pixels = (images - 127.5) / 127.5
    assert torch.equal(features.patches_BND, resnet.timm.forward_features(pixels).flatten(2).transpose(1, 2))
    assert torch.allclose(resnet.pooled(features), resnet.timm(pixels), atol=1e-5)


@torch.no_grad()
def test_an_image_does_not_see_the_others_of_its_micro_batch(resnet: ResNet) -> None:
    images = torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    resnet.train()
    alone, together = resnet(images[:1]).patches_BND, resnet(images).patches_BND[:1]
    resnet.eval()
    assert torch.allclose(alone, together, atol=1e-3)  # many layers of rounding; statistics would differ by tenths


def test_it_is_built_without_memory_where_none_is_there() -> None:
    with torch.device("meta"):
        resnet = ResNet(SETTINGS)
    assert all(value.is_meta for value in [*resnet.parameters(), *resnet.buffers()])
    assert resnet(torch.zeros(2, 3, 64, 64, dtype=torch.uint8, device="meta")).patches_BND.shape == (2, 4, 2048)
