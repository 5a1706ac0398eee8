"""Accuracies as scikit-learn counts them; what fills up a batch and classes without images count for nothing."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import recall_score, top_k_accuracy_score
from torch import Tensor

from mpp.evaluation.accuracy import Accuracy, count_hits
from mpp.stream.batches import Batch


class Table:
    """Gives the rows of a table as scores: an image is its row's number."""

    def __init__(self, scores_NK: Tensor) -> None:
        self.scores_NK = scores_NK

    def scores(self, images_BCHW: Tensor) -> Tensor:
        return self.scores_NK[images_BCHW[:, 0, 0, 0].long()]


def batches(labels: list[int], size: int) -> Iterator[Batch]:
    for first in range(0, len(labels), size):
        rows = torch.arange(first, first + size)
        real = rows < len(labels)
        ids = torch.where(real, rows, -1)
        images = torch.where(real, rows, 0).byte()[:, None, None, None].expand(-1, 3, 2, 2)
        some = torch.tensor([*labels, *[-1] * size])[rows]
        yield Batch(images, torch.where(real, some, -1), ids, torch.zeros_like(ids))


def measured(scores: Tensor, labels: list[int], size: int = 4) -> Accuracy:
    return count_hits(Table(scores), batches(labels, size), scores.shape[1], Accelerator(cpu=True))


@given(st.integers(2, 9), st.integers(0, 3), st.data())
def test_accuracies_are_scikit_learns(num_classes: int, seed: int, data: st.DataObject) -> None:
    labels = data.draw(st.lists(st.integers(0, num_classes - 1), min_size=1, max_size=20))
    scores = torch.randn(len(labels), num_classes, generator=torch.Generator().manual_seed(seed))
    found, guesses = measured(scores, labels), scores.argmax(1).numpy()
    assert found.images == len(labels)
    assert found.top1 == pytest.approx(100 * float(np.mean(guesses == labels)))
    with_images = sorted(set(labels))
    by_class = recall_score(labels, guesses, labels=with_images, average="macro", zero_division=0.0)
    assert found.top1_per_class == pytest.approx(100 * by_class)
    if num_classes > 5:
        five = top_k_accuracy_score(labels, scores.numpy(), k=5, labels=range(num_classes))
        assert found.top5 == pytest.approx(100 * five)


def test_rare_classes_weigh_as_much_as_common_ones_where_the_metric_says_so() -> None:
    scores = torch.eye(4)[[0] * 9 + [0]]  # always class 0; class 2 and 3 have no images
    found = measured(scores, [0] * 9 + [1])
    assert found == Accuracy(top1=90.0, top5=100.0, top1_per_class=50.0, images=10)
    assert (found.by("top1"), found.by("mean_per_class")) == (90.0, 50.0)
