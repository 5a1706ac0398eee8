"""The masked-image objectives of others that tools/bench_step.py measures beside mpp, from their own environment.

    PEERS/bin/python tools/bench_step_peers.py NAME SIZE THREADS

All get normalised floats, prepared once; half of the patches are corrupted; the loss is theirs.
"""

import torch
import torch.nn.functional as F
from bench_step_loops import Size, Step, serve, update
from torch import Tensor, nn


def images(size: Size) -> Tensor:
    """Return a batch of noise, normalised as if it were photographs."""
    return torch.randn(size.batch, 3, size.image, size.image).clamp(-2, 2)


def encoder(size: Size) -> nn.Module:
    """Return the ViT of vit_pytorch."""
    from vit_pytorch import ViT

    return ViT(
        image_size=size.image,
        patch_size=size.patch,
        num_classes=10,
        dim=size.width,
        depth=size.depth,
        heads=size.heads,
        mlp_dim=4 * size.width,
    )


def vit_pytorch_mpp(size: Size) -> Step:
    """The only public masked patch prediction: 3-bit mean colours."""
    from vit_pytorch.mpp import MPP

    model = MPP(
        transformer=encoder(size),
        patch_size=size.patch,
        dim=size.width,
        mask_prob=0.5,
        random_patch_prob=0.1,
        replace_prob=0.8,
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
    )
    batch = images(size)
    return update(model, lambda: model(batch))


def vit_pytorch_simmim(size: Size) -> Step:
    """SimMIM of vit_pytorch: pixels of the masked patches by L1."""
    from vit_pytorch.simmim import SimMIM

    model = SimMIM(encoder=encoder(size), masking_ratio=0.5)
    batch = images(size)
    return update(model, lambda: model(batch))


def hf_masked_image(size: Size) -> Step:
    """ViTForMaskedImageModeling of transformers, as its run_mim.py trains it."""
    from transformers import ViTConfig, ViTForMaskedImageModeling

    settings = ViTConfig(
        hidden_size=size.width,
        num_hidden_layers=size.depth,
        num_attention_heads=size.heads,
        intermediate_size=4 * size.width,
        image_size=size.image,
        patch_size=size.patch,
        encoder_stride=size.patch,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    model, batch = ViTForMaskedImageModeling(settings), images(size)
    patches = (size.image // size.patch) ** 2

    def loss() -> Tensor:
        order = torch.rand(size.batch, patches).argsort(1)
        found: Tensor = model(pixel_values=batch, bool_masked_pos=order < patches // 2).loss
        return found

    return update(model, loss)


class TimmMaskedPatches(nn.Module):
    """A plain timm ViT with a vectorised 3-bit mean colour head, as one would write it in an afternoon."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        from timm.models.vision_transformer import VisionTransformer

        self.side = size.patch
        self.vit = VisionTransformer(
            img_size=size.image,
            patch_size=size.patch,
            embed_dim=size.width,
            depth=size.depth,
            num_heads=size.heads,
            num_classes=0,
        )
        self.mask_token = nn.Parameter(torch.zeros(size.width))
        self.head = nn.Linear(size.width, 512)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Return the cross-entropy over the corrupted patches."""
        tokens = self.vit.patch_embed(images_BCHW)
        count = tokens.shape[1]
        order = torch.rand(tokens.shape[:2]).argsort(1)
        corrupted, masked = order < count // 2, order < int(0.4 * count)
        other = (order < int(0.45 * count)) & ~masked
        tokens = torch.where(other[..., None], tokens[:, torch.randperm(count)], tokens)
        tokens = torch.where(masked[..., None], self.mask_token, tokens)
        features = self.vit.norm(self.vit.blocks(self.vit._pos_embed(tokens)))[:, 1:]
        colors = F.avg_pool2d(images_BCHW, self.side).flatten(2).transpose(1, 2) * 0.25 + 0.5
        bins = (colors * 8).floor().clamp(0, 7).long()
        labels = bins[..., 0] * 64 + bins[..., 1] * 8 + bins[..., 2]
        return F.cross_entropy(self.head(features[corrupted]), labels[corrupted])


def timm_masked_patches(size: Size) -> Step:
    """A plain timm ViT with a vectorised head."""
    model, batch = TimmMaskedPatches(size), images(size)
    return update(model, lambda: model(batch))


CONTESTANTS = {
    "vit_pytorch MPP": vit_pytorch_mpp,
    "vit_pytorch SimMIM": vit_pytorch_simmim,
    "HF ViTForMaskedImageModeling": hf_masked_image,
    "timm with a head": timm_masked_patches,
}

if __name__ == "__main__":
    serve(CONTESTANTS)
