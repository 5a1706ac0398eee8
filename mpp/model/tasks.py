"""The tasks a ViT can be trained on: a batch in, one loss and its metrics out. The training loop knows no more.

Shapes: B images, N patches, M corrupted patches, D width, K outputs.
"""

from typing import Annotated, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from mpp.config import config
from mpp.errors import ConfigError
from mpp.model.encoders import Encoder
from mpp.model.last_block import take
from mpp.model.masking import Corruption, Mask, RandomMask, corrupt
from mpp.model.mixing import Mixing, mix, mixed_cross_entropy
from mpp.model.targets import MeanColor, Target, cut_patches
from mpp.model.vit import Vit
from mpp.stream.batches import Batch


class StepOutput(NamedTuple):
    """The loss [] to minimise and metrics by name, each a scalar tensor []; all are means over the micro-batch."""

    loss: Tensor
    metrics: dict[str, Tensor]


@config
class MaskedPatchesConfig:
    """Masked patch prediction (ViT, section 4.6 and B.1.2)."""

    kind: Literal["masked_patches"] = "masked_patches"
    mask: Mask = RandomMask()
    target: Target = MeanColor()


@config
class ClassificationConfig:
    """Supervised classification with the paper's pretraining head: one hidden layer, tanh (ViT, section 3.1)."""

    kind: Literal["classification"] = "classification"
    mixing: Mixing = Mixing()


TaskConfig = Annotated[MaskedPatchesConfig | ClassificationConfig, Field(discriminator="kind")]


class MaskedPatches(nn.Module):
    """Predict a property of every corrupted patch from its own representation; loss in fp32 on those alone.

    The head is zero at first, so that the first loss of a class target is exactly ln K.
    """

    def __init__(self, vit: Vit, settings: MaskedPatchesConfig, *, seed: int) -> None:
        super().__init__()
        self.vit, self.settings, self.seed = vit, settings, seed
        _check_target(settings.target, vit.patch)
        if vit.timm.attn_pool is not None:
            vit.timm.attn_pool.requires_grad_(False)  # no loss reaches it: it waits, as it is, for labels
        self.mask_token = nn.Parameter(torch.empty(vit.width).normal_(std=0.02))
        self.head = zero_linear(vit.width, settings.target.num_outputs(vit.patch))

    def forward(self, batch: Batch) -> StepOutput:
        """Return the loss and: accuracy, and accuracy without the patches that were kept as they are."""
        patches, predictions, corruption = self.predict(batch)
        loss, hits_BM = self.settings.target.judge(predictions, patches)
        replaced = corruption.counts.masked + corruption.counts.other
        return StepOutput(loss, {"accuracy": hits_BM.mean(), "accuracy_replaced": hits_BM[:, :replaced].mean()})

    def predict(self, batch: Batch) -> tuple[Tensor, Tensor, Corruption]:
        """Return the true patches [B, M, 3, p, q], the predictions [B, M, K] for them, and where they are."""
        corruption = self.settings.mask.draw(batch.ids, self.vit.grid, seed=self.seed, epoch=batch.epochs)
        at_BM = corruption.positions_BM
        features = self.vit(batch.images, lambda tokens: corrupt(tokens, self.mask_token, corruption), at_BM)
        patches = cut_patches(batch.images, self.vit.patch)
        truth = take(patches.flatten(2), at_BM).unflatten(2, patches.shape[2:])
        return truth, self.head(features.patches_BND), corruption


class Classification(nn.Module):
    """Predict the label of an image by cross-entropy, through a head on the pooled feature.

    In training a share ``smoothing`` of every label is spread over all classes.
    """

    def __init__(self, vit: Encoder, head: nn.Module, mixing: Mixing, *, seed: int, smoothing: float = 0.0) -> None:
        super().__init__()
        self.vit, self.head, self.mixing, self.seed, self.smoothing = vit, head, mixing, seed, smoothing

    def forward(self, batch: Batch) -> StepOutput:
        """Return the loss and the accuracy, of a mixed image by its larger part; the batch must carry labels."""
        assert batch.labels is not None
        smoothing = self.smoothing if self.training else 0.0
        if self.training and (self.mixing.mixup or self.mixing.cutmix):
            images, shares_B = mix(batch.images, batch.ids, self.mixing, seed=self.seed, epoch=batch.epochs)
            scores_BK = self.scores(images)
            larger_B = torch.where(shares_B >= 0.5, batch.labels, batch.labels.roll(-1))
            accuracy = (scores_BK.argmax(-1) == larger_B).float().mean()
            loss = mixed_cross_entropy(scores_BK, batch.labels, shares_B, smoothing)
            return StepOutput(loss, {"accuracy": accuracy})
        scores_BK = self.scores(batch.images)
        accuracy = (scores_BK.argmax(-1) == batch.labels).float().mean()
        loss = F.cross_entropy(scores_BK, batch.labels, label_smoothing=smoothing)
        return StepOutput(loss, {"accuracy": accuracy})

    def scores(self, images_BCHW: Tensor) -> Tensor:
        """Return class scores [B, K] in fp32."""
        scores: Tensor = self.head(self.vit.pooled(self.vit(images_BCHW)))
        return scores.float()


def build_task(settings: TaskConfig, vit: Encoder, *, num_classes: int | None, seed: int) -> nn.Module:
    """Return the pretraining task; ``num_classes`` is needed for classification only.

    Raises ``ConfigError`` where the task does not suit the network.
    """
    if isinstance(settings, MaskedPatchesConfig):
        if not isinstance(vit, Vit):
            raise ConfigError(
                f"task.kind={settings.kind}: {vit.settings.name} has no patch tokens to corrupt",
                fix="task.kind=classification, or vit.name=vit_base_r50_s16_224, a ViT on such a network",
            )
        return MaskedPatches(vit, settings, seed=seed)
    assert num_classes is not None
    hidden = nn.Linear(vit.width, vit.width)
    head = nn.Sequential(hidden, nn.Tanh(), zero_linear(vit.width, num_classes))
    return Classification(vit, head, settings.mixing, seed=seed)


def zero_linear(width: int, num_outputs: int) -> nn.Linear:
    """Return a D x K linear layer of zeros (ViT, section 3.2)."""
    layer = nn.Linear(width, num_outputs)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def _check_target(target: Target, patch: tuple[int, int]) -> None:
    side = getattr(target, "side", 1)
    if patch[0] % side or patch[1] % side:
        raise ConfigError(
            f"task.target.side {side} does not divide the patch size {patch}", fix="task.target.side=2 or 1"
        )
