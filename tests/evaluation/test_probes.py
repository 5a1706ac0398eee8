"""Probes agree with independent ones: a direct solve in numpy, scikit-learn's neighbours and logistic regression."""

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from mpp.errors import DataError
from mpp.evaluation.labels import choose_labels, split_held_out
from mpp.evaluation.probes import fewshot, fit_fewshot, fit_logistic, linear, nearest

CPU = torch.device("cpu")
Array = NDArray[Any]


@pytest.fixture(scope="module")
def digits() -> tuple[Array, Array, Array, Array]:
    """Handwritten digits as features: train [1000, 64] and labels, test [797, 64] and labels."""
    images, labels = load_digits(return_X_y=True)
    images, labels = images.astype(np.float32), labels.astype(np.int64)
    return images[:1000], labels[:1000], images[1000:], labels[1000:]


def direct_scores(train: Array, labels: Array, test: Array, num_classes: int) -> Array:
    """Ridge regression to {-1, 1} by one solve in the width, whatever the shape."""
    mean, std = train.astype(np.float64).mean(0), train.astype(np.float64).std(0)
    x, other = (np.c_[(some - mean) / (std + 1e-5), np.full(len(some), 100.0)] for some in (train, test))
    targets = np.where(labels[:, None] == np.arange(num_classes), 1.0, -1.0)
    return np.asarray(other @ np.linalg.solve(x.T @ x + 1024 * np.eye(x.shape[1]), x.T @ targets))


@pytest.mark.parametrize("count", [20, 64, 65, 400])
def test_few_shot_scores_are_those_of_a_direct_solve(digits: tuple[Array, ...], count: int) -> None:
    train, labels, test, _ = digits
    varied = train.std(0) > 0.5  # a pixel that is always black in few images would be blown up in others
    noise = np.random.default_rng(0).normal(size=train.shape).astype(np.float32)
    few, other = (train + noise)[:count][:, varied], test[:, varied]
    scores = fit_fewshot(few, labels[:count], 10).scores(other)
    np.testing.assert_allclose(scores, direct_scores(few, labels[:count], other, 10), atol=1e-4)


@given(st.integers(2, 30), st.integers(1, 30), st.integers(0, 5))
def test_few_shot_is_the_direct_solve_for_every_shape(count: int, width: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    train, test = random.normal(size=(count, width)), random.normal(size=(7, width))
    labels = random.integers(0, 3, count)
    scores = fit_fewshot(train, labels, 3).scores(test)
    np.testing.assert_allclose(scores, direct_scores(train, labels, test, 3), atol=1e-4)


def test_few_shot_draws_by_its_seed_and_gets_better_with_shots(digits: tuple[Array, ...]) -> None:
    train, labels, test, truth = digits
    by_shots = {}
    for shots in (1, 5, 10, 25):
        drawn = [fewshot(train, labels, test, 10, shots=shots, seed=seed) for seed in (0, 1, 2)]
        again = fewshot(train, labels, test, 10, shots=shots, seed=1)
        assert (again == drawn[1]).all() and (drawn[0] != drawn[1]).any()
        by_shots[shots] = np.mean([(some == truth).mean() for some in drawn])
        few = choose_labels(labels, 10, shots, 0)
        assert np.bincount(labels[few]).tolist() == [shots] * 10
        assert set(choose_labels(labels, 10, 1, 0)) <= set(few)
        scores = direct_scores(train[few], labels[few], test, 10)
        assert (scores.argmax(1) == drawn[0]).mean() > 0.99
    assert by_shots[1] < by_shots[5] < by_shots[10] < by_shots[25]
    assert by_shots[25] > 0.8


def test_fewer_images_than_shots_are_refused(digits: tuple[Array, ...]) -> None:
    train, labels, test, _ = digits
    with pytest.raises(DataError, match="class 3 has 4 labelled images"):
        rare = np.r_[np.flatnonzero(labels != 3), np.flatnonzero(labels == 3)[:4]]
        fewshot(train[rare], labels[rare], test, 10, shots=5, seed=0)


@pytest.mark.parametrize("k", [1, 5, 20])
def test_neighbours_are_scikit_learns(digits: tuple[Array, ...], k: int) -> None:
    train, labels, test, _ = digits
    found = nearest(train, labels, test, 10, k=k, temperature=0.07, device=CPU)
    reference = {"metric": "cosine", "algorithm": "brute", "n_neighbors": k}
    exact, other = train.astype(np.float64), test.astype(np.float64)
    plain = KNeighborsClassifier(**reference).fit(exact, labels).predict(other)
    weighted = KNeighborsClassifier(**reference, weights=lambda far: np.exp((1 - far) / 0.07)).fit(exact, labels)
    assert (found.plain == plain).all()
    assert (found.weighted == weighted.predict(other)).all()


def test_neighbours_are_the_same_in_many_small_parts(
    digits: tuple[Array, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    train, labels, test, _ = digits
    whole = nearest(train, labels, test, 10, k=20, temperature=0.07, device=CPU)
    monkeypatch.setattr("mpp.evaluation.probes._AT_ONCE", 7000)
    parts = nearest(train, labels, test, 10, k=20, temperature=0.07, device=CPU)
    assert (whole.plain == parts.plain).all() and (whole.weighted == parts.weighted).all()


@given(st.lists(st.integers(0, 2), min_size=3, max_size=12), st.integers(1, 3))
def test_of_equally_similar_images_the_first_vote_and_of_equal_votes_the_first_class_wins(
    labels: list[int], k: int
) -> None:
    train = np.ones((len(labels), 4), np.float32)
    found = nearest(train, np.array(labels), train[:1], 3, k=k, temperature=0.07, device=CPU)
    expected = np.bincount(labels[:k], minlength=3).argmax()
    assert found.plain.tolist() == found.weighted.tolist() == [expected]


def sklearn_top1(train: Array, labels: Array, test: Array, truth: Array, l2: float) -> float:
    mean, std = train.mean(0), train.std(0) + 1e-5
    model = LogisticRegression(C=1 / (l2 * len(train)), max_iter=5000, tol=1e-6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return 100 * float(model.fit((train - mean) / std, labels).score((test - mean) / std, truth))


@pytest.mark.parametrize("l2", [1e-4, 1e-2, 1.0])
def test_the_linear_probe_is_scikit_learns_logistic_regression(digits: tuple[Array, ...], l2: float) -> None:
    train, labels, test, truth = digits
    found = linear(train, labels, test, 10, grid=(l2,), held_out=0.1, seed=0, device=CPU)
    top1 = 100 * float(np.mean(found.predictions == truth))
    assert abs(top1 - sklearn_top1(*(digits), l2)) <= 0.3
    assert (found.l2, found.held_out_top1) == (l2, {})


def test_the_l2_is_the_best_on_held_out_labels_and_test_has_no_say(digits: tuple[Array, ...]) -> None:
    train, labels, test, truth = digits
    grid = (1e-5, 1e-3, 1e-1, 10.0)
    found = linear(train, labels, test, 10, grid=grid, held_out=0.2, seed=0, device=CPU)
    best = max(found.held_out_top1.values())
    assert found.l2 == max(l2 for l2, top1 in found.held_out_top1.items() if top1 == best)
    assert abs(100 * float(np.mean(found.predictions == truth)) - sklearn_top1(*digits, found.l2)) <= 0.3
    other = linear(train, labels, test[:1], 10, grid=grid[::-1], held_out=0.2, seed=0, device=CPU)
    assert (other.l2, other.held_out_top1) == (found.l2, found.held_out_top1)


def test_held_out_accuracies_are_of_weights_that_never_saw_those_images(digits: tuple[Array, ...]) -> None:
    random = np.random.default_rng(0)
    noise, labels = random.normal(size=(200, 300)), np.arange(200) % 4  # nothing to learn, but all can be remembered
    found = linear(noise, labels, noise, 4, grid=(1e-6, 1e-3), held_out=0.5, seed=0, device=CPU)
    assert (found.predictions == labels).mean() == 1
    assert max(found.held_out_top1.values()) < 45


@given(st.lists(st.integers(2, 9), min_size=1, max_size=5), st.sampled_from([0.1, 0.3, 0.5]), st.integers(0, 3))
def test_fitted_and_held_out_images_are_disjoint_and_are_all(counts: list[int], share: float, seed: int) -> None:
    labels = np.repeat(np.arange(len(counts)), counts)
    ids = np.arange(len(labels))
    fitted, held = split_held_out(ids, labels, share, seed)
    assert sorted([*fitted, *held]) == ids.tolist()
    assert set(labels[fitted]) == set(labels[held]) == set(labels)


def test_logistic_regression_in_parts_ends_where_the_gradient_is_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mpp.evaluation.probes._FIT_ROWS", 17)
    random = torch.Generator().manual_seed(0)
    x = torch.randn(60, 5, generator=random, dtype=torch.float64)
    y = torch.arange(60) % 3
    weights = fit_logistic(x, y, 3, 0.01).requires_grad_(True)
    loss = torch.nn.functional.cross_entropy(x @ weights[:-1] + weights[-1], y) + 0.005 * weights[:-1].square().sum()
    loss.backward()
    assert weights.grad is not None and float(weights.grad.abs().max()) < 1e-5
