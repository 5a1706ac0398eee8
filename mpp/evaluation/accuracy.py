"""How many images of a split a model gets right: each counted once over all processes, in all and by class.

Shapes: B images, K classes.
"""

from collections.abc import Iterator
from typing import Literal, NamedTuple, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor

from mpp.stream.batches import Batch
from mpp.stream.device import OnDevice

Metric = Literal["top1", "mean_per_class"]


class Accuracy(NamedTuple):
    """Accuracies in percent, and the number of images; ``top1_per_class`` is the mean over classes with images."""

    top1: float
    top5: float
    top1_per_class: float
    images: int

    def by(self, metric: Metric) -> float:
        """Return the accuracy that ``metric`` names."""
        return self.top1 if metric == "top1" else self.top1_per_class


class Classifier(Protocol):
    """What gives scores [B, K] for uint8 images [B, 3, H, W]."""

    def scores(self, images_BCHW: Tensor) -> Tensor:
        """Return the scores."""


@torch.no_grad()
def count_hits(model: Classifier, batches: Iterator[Batch], num_classes: int, accelerator: Accelerator) -> Accuracy:
    """Return the accuracies of a model, in evaluation mode, on labelled batches; all processes call this together."""
    device = accelerator.device
    hits_K, images_K = (torch.zeros(num_classes, dtype=torch.int64, device=device) for _ in range(2))
    among_five = torch.zeros((), dtype=torch.int64, device=device)
    for batch in OnDevice(batches, device):
        with accelerator.autocast():
            scores_BK = model.scores(batch.images)
        assert batch.labels is not None
        real = batch.ids >= 0
        labels, best = batch.labels[real], scores_BK[real].topk(min(5, num_classes), dim=1).indices
        hits = best == labels[:, None]
        hits_K += torch.bincount(labels[hits[:, 0]], minlength=num_classes)
        images_K += torch.bincount(labels, minlength=num_classes)
        among_five += hits.sum()
    sums = accelerator.reduce(torch.cat([hits_K, images_K, among_five[None]]).double(), reduction="sum")
    by_class, images, five = sums[:num_classes], sums[num_classes:-1], float(sums[-1])
    seen, count = images > 0, float(images.sum())
    return Accuracy(
        100 * float(by_class.sum()) / count,
        100 * five / count,
        100 * float((by_class[seen] / images[seen]).mean()),
        int(count),
    )
