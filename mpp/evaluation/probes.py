"""What frozen features are worth: few-shot least squares, nearest neighbours, logistic regression.

Pure functions of features, labels and integers. Few-shot solves in float64 on the CPU: its constant column of 100 puts
eigenvalues of 1e8 beside a ridge of 1e3, of which float32 keeps too little, and its matrices are small. The other two
go over all training images; they compute on ``device``, in float64 on a CPU and in float32 on a GPU, where float64 is
slow or wanting.

Shapes: N training and T test images, D width, K classes, k neighbours.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from mpp.evaluation.labels import choose_labels, split_held_out
from mpp.stream.order import Ints

Floats = NDArray[np.float64] | NDArray[np.float32]
FEWSHOT_L2 = 2.0**10
_BIAS = 100.0
_LEAST_STD = 1e-5
_AT_ONCE = 2**24  # similarities of test with train images, or votes
_FIT_ROWS = 2**16  # training images at once
_MOST_ITERATIONS = 500


class FewshotModel(NamedTuple):
    """Whitening [1, D] and weights [D + 1, K], the last row that of the constant."""

    mean: NDArray[np.float64]
    std: NDArray[np.float64]
    weights: NDArray[np.float64]

    def scores(self, features: Floats) -> NDArray[np.float64]:
        """Return class scores [T, K]."""
        white = (np.asarray(features, np.float64) - self.mean) / self.std
        return np.asarray(white @ self.weights[:-1] + _BIAS * self.weights[-1])


class Neighbours(NamedTuple):
    """Predictions [T] of the same k neighbours: votes weighted by exp(cosine / T), and plain votes."""

    weighted: Ints
    plain: Ints


class LinearProbe(NamedTuple):
    """Predictions [T], the L2 chosen and the held-out accuracy of every L2 of the grid in percent."""

    predictions: Ints
    l2: float
    held_out_top1: dict[float, float]


def fit_fewshot(features: Floats, labels: Ints, num_classes: int, l2: float = FEWSHOT_L2) -> FewshotModel:
    """Solve ridge regression to {-1, 1}^K on whitened features (ViT, section 4.1; big_vision ``fewshot_lsr``)."""
    x = np.asarray(features, np.float64)
    mean, std = x.mean(0, keepdims=True), x.std(0, keepdims=True) + _LEAST_STD
    x = np.pad((x - mean) / std, ((0, 0), (0, 1)), constant_values=_BIAS)
    y = 2.0 * np.eye(num_classes)[labels] - 1.0
    if x.shape[0] >= x.shape[1]:  # the smaller of x'x and xx'
        eigenvalues, vectors = np.linalg.eigh(x.T @ x)
        left, right = vectors, vectors.T @ (x.T @ y)
    else:
        eigenvalues, vectors = np.linalg.eigh(x @ x.T)
        left, right = x.T @ vectors, vectors.T @ y
    return FewshotModel(mean, std, (left / (eigenvalues + l2)) @ right)


def fewshot(
    train: Floats, labels: Ints, test: Floats, num_classes: int, *, shots: int, seed: int, l2: float = FEWSHOT_L2
) -> Ints:
    """Return predictions [T] from ``shots`` images of each class, drawn by ``seed``.

    More shots of the same seed hold the images of fewer. Raises ``DataError`` for a class with fewer images.
    """
    chosen = choose_labels(labels, num_classes, shots, seed)
    scores = fit_fewshot(train[chosen], labels[chosen], num_classes, l2).scores(test)
    return np.asarray(scores.argmax(1), np.int64)


def nearest(
    train: Floats, labels: Ints, test: Floats, num_classes: int, *, k: int, temperature: float, device: torch.device
) -> Neighbours:
    """Return predictions by the k most similar training images, by cosine (DINO, arXiv:2104.14294, with T = 0.07).

    Of equally similar images the first ones count, of classes with equally many votes the first: no chance is left.
    """
    train_ND, test_TD = (F.normalize(_matrix(some, device), dim=1) for some in (train, test))
    labels_N = torch.from_numpy(labels).to(device)
    weighted, plain = [], []
    for rows in test_TD.split(max(1, _AT_ONCE // max(len(train_ND), k * num_classes))):
        similar = rows @ train_ND.T
        chosen = _first_highest(similar, k)
        votes = F.one_hot(labels_N[chosen], num_classes)  # [rows, k, K]
        weights = ((similar.gather(1, chosen) - 1) / temperature).exp()
        weighted.append((weights[..., None] * votes).sum(1).cpu().numpy().argmax(1))
        plain.append(votes.sum(1).cpu().numpy().argmax(1))
    return Neighbours(np.concatenate(weighted).astype(np.int64), np.concatenate(plain).astype(np.int64))


def linear(
    train: Floats,
    labels: Ints,
    test: Floats,
    num_classes: int,
    *,
    grid: Sequence[float],
    held_out: float,
    seed: int,
    device: torch.device,
) -> LinearProbe:
    """Choose the L2 of logistic regression on a held-out share of train, fit on all of train, predict test.

    Features are whitened by the mean and deviation of train. Of equally good L2 the largest is taken.
    """
    ids = np.arange(len(labels), dtype=np.int64)
    fitted, held = split_held_out(ids, labels, held_out, seed) if len(grid) > 1 else (ids, ids[:0])
    train_ND, test_TD = _matrix(train, device), _matrix(test, device)
    mean, std = train_ND.mean(0), train_ND.std(0, correction=0) + _LEAST_STD
    train_ND, test_TD = (train_ND - mean) / std, (test_TD - mean) / std
    y = torch.from_numpy(labels).to(device)
    strongest_first = sorted(grid, reverse=True)
    scores: dict[float, float] = {}
    weights: Tensor | None = None
    for l2 in strongest_first if len(grid) > 1 else ():
        weights = fit_logistic(train_ND[fitted], y[fitted], num_classes, l2, start=weights)
        scores[l2] = 100 * float(np.mean(_predicted(train_ND[held], weights) == labels[held]))
    best = max(strongest_first, key=lambda l2: scores.get(l2, 0.0))  # the first of the best
    weights = fit_logistic(train_ND, y, num_classes, best)
    return LinearProbe(_predicted(test_TD, weights), best, scores)


def fit_logistic(
    features_ND: Tensor, labels_N: Tensor, num_classes: int, l2: float, start: Tensor | None = None
) -> Tensor:
    """Return weights [D + 1, K], the bias last, of least mean cross-entropy + l2 / 2 |weights without bias|^2.

    scikit-learn's C is 1 / (l2 N). L-BFGS over all images, from ``start`` or zeros.
    """
    count, width = features_ND.shape
    weights = features_ND.new_zeros(width + 1, num_classes) if start is None else start.clone()
    weights.requires_grad_(True)
    optimizer = torch.optim.LBFGS([weights], max_iter=_MOST_ITERATIONS, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        total = 0.5 * l2 * weights[:-1].square().sum()
        total.backward()
        for x, y in zip(features_ND.split(_FIT_ROWS), labels_N.split(_FIT_ROWS), strict=True):
            loss = F.cross_entropy(x @ weights[:-1] + weights[-1], y, reduction="sum") / count
            loss.backward()
            total = total + loss.detach()
        return total.detach()

    optimizer.step(closure)
    return weights.detach()


def _predicted(features: Tensor, weights: Tensor) -> Ints:
    scores = features @ weights[:-1] + weights[-1]
    return np.asarray(scores.cpu().numpy().argmax(1), np.int64)


def _first_highest(values: Tensor, k: int) -> Tensor:
    """Return the places [T, k] of the k highest values of every row, ascending; of equal values the first ones."""
    lowest = values.topk(k, dim=1).values[:, -1:]
    above, equal = values > lowest, values == lowest
    wanted = above | (equal & (equal.cumsum(1) <= k - above.sum(1, keepdim=True)))
    return wanted.nonzero()[:, 1].view(len(values), k)


def _matrix(features: Floats, device: torch.device) -> Tensor:
    return torch.from_numpy(np.asarray(features)).to(device, torch.float64 if device.type == "cpu" else torch.float32)
