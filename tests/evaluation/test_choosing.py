"""A choice takes the best score on held-out labels, and of equals the cheapest; test labels have no part in it."""

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mpp.config import merge, resolve
from mpp.errors import NumericsError
from mpp.evaluation.accuracy import Accuracy
from mpp.evaluation.choosing import Choice, Point, best_of, ends, no_choice
from mpp.evaluation.finetune import Finetuning, Fitted
from mpp.evaluation.labels import read_labels
from mpp.evaluation.recipe import TransferConfig
from mpp.shards.options import ShardOptions
from mpp.shards.sharding import shard_corpus

POINTS = st.builds(
    Point, st.sampled_from([0.001, 0.003, 0.01, 0.03]), st.integers(1, 5).map(lambda number: 100 * number)
)
EARLY = {"steps": 6, "evaluate_every": 2, "learning_rates": [0.001, 0.01], "held_out": 0.2}
SCORES = st.dictionaries(POINTS, st.sampled_from([0.0, 50.0, 62.5, 100.0]), min_size=1)


def settings(tree: dict[str, Any], **changes: Any) -> TransferConfig:
    return resolve(TransferConfig, merge(tree, changes))


@given(SCORES)
def test_no_point_is_better_and_of_equals_none_is_cheaper(scores: dict[Point, float]) -> None:
    best = best_of(scores)
    for point, score in scores.items():
        assert score <= scores[best]
        if score == scores[best]:
            assert (best.steps, best.learning_rate) <= (point.steps, point.learning_rate)


@given(SCORES, st.randoms(use_true_random=False))
def test_the_order_of_trials_does_not_matter(scores: dict[Point, float], random: object) -> None:
    shuffled = list(scores.items())
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert best_of(dict(shuffled)) == best_of(scores)


def test_where_every_rate_diverges_there_is_no_choice() -> None:
    with pytest.raises(NumericsError, match="every learning rate"):
        best_of({})


@pytest.mark.parametrize(
    ("steps", "every", "expected"), [(5, None, [5]), (6, 2, [2, 4, 6]), (5, 2, [2, 4, 5]), (5, 4, [4, 5])]
)
def test_a_trial_is_tested_at_its_end_whatever_lies_between(steps: int, every: int | None, expected: list[int]) -> None:
    assert ends(steps, every) == expected


def test_a_choice_survives_json() -> None:
    choice = Choice(0.01, 200, 2, {str(Point(0.01, 200)): 50.0}, 100, 1e9, 0.5)
    assert Choice(**json.loads(json.dumps(asdict(choice)))) == choice
    assert list(choice.held_out_top1) == ["0.01@200"]
    assert no_choice(0.01, 7) == Choice(0.01, 7, 0, {}, 0, 0.0, 0.0)


def test_the_rate_is_chosen_on_held_out_training_images_alone(
    tree: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    job = Finetuning(settings(tree, learning_rates=[0.3, 0.1, 0.2, 0.4], labels_per_class=10, held_out=0.2))
    scores = {0.1: 50.0, 0.2: 75.0, 0.3: 75.0}
    tested = []

    def fit(self: Finetuning, ids: Any, rate: float, title: str, stops: Sequence[int]) -> Iterator[Any]:
        assert np.array_equal(ids, self.fitted)
        if rate == 0.4:
            raise NumericsError("diverged")
        yield Fitted(3, rate, 0.0)  # type: ignore[arg-type]

    def test(self: Finetuning, task: Any, shards: Any, subset: Any) -> Accuracy:
        tested.append((shards.split, subset.tolist()))
        return Accuracy(scores[task], 100.0, 0.0, len(subset))

    monkeypatch.setattr(Finetuning, "_fit", fit)
    monkeypatch.setattr(Finetuning, "_test", test)
    choice = job.choose()
    assert (choice.learning_rate, choice.steps) == (0.2, 3)  # of two equals the smaller; one that diverges is none
    assert choice.held_out_top1 == {"0.1@3": 50.0, "0.2@3": 75.0, "0.3@3": 75.0}
    assert choice.trials == 4
    assert tested == [("train", job.held_out.tolist())] * 3
    assert len(job.held_out) == 6
    assert not set(job.held_out) & set(job.fitted)


def test_one_rate_needs_no_choice_and_holds_nothing_out(tree: dict[str, Any]) -> None:
    job = Finetuning(settings(tree))
    assert job.choose() == Choice(0.01, 3, 0, {}, 0, 0.0, 0.0)
    assert len(job.fitted) == 60
    assert len(job.held_out) == 0


def chosen_of(job: Finetuning) -> dict[str, Any]:
    """Return a choice as plain values, without what depends on the clock."""
    return {**asdict(job.choose()), "seconds": 0}


def test_the_best_step_of_the_best_rate_is_chosen_and_the_final_run_stops_there(
    tree: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    job = Finetuning(settings(tree, **EARLY))
    choice = job.choose()
    assert list(choice.held_out_top1) == [f"{rate}@{steps}" for rate in ("0.001", "0.01") for steps in (2, 4, 6)]
    best = max(choice.held_out_top1.values())
    assert choice.held_out_top1[f"{choice.learning_rate:g}@{choice.steps}"] == best
    assert (choice.trials, choice.images_seen) == (2, 2 * 6 * 12)
    tested, test = [], Finetuning._test

    def keep(self: Finetuning, task: Any, *split: Any) -> Accuracy:
        tested.append(task.head.weight.detach().clone())
        return test(self, task, *split)

    monkeypatch.setattr(Finetuning, "_test", keep)
    stopped = job.final(replace(choice, steps=2))
    assert choice.flops / choice.images_seen == pytest.approx(stopped.flops / stopped.images_seen)
    assert (stopped.steps, stopped.trials, stopped.images_seen) == (2, 2, 24)
    *_, expected = job._fit(job.chosen, choice.learning_rate, "", [2])
    assert len(tested) == 1 and torch.equal(tested[0], expected.task.head.weight)


def test_one_rate_has_something_to_choose_where_it_is_tested_on_its_way(tree: dict[str, Any]) -> None:
    choice = Finetuning(settings(tree, **{**EARLY, "learning_rates": []})).choose()
    assert list(choice.held_out_top1) == ["0.01@2", "0.01@4", "0.01@6"]
    assert (choice.learning_rate, choice.trials) == (0.01, 1)


def test_labels_of_the_test_split_cannot_influence_the_choice(tree: dict[str, Any], tmp_path: Path) -> None:
    honest = Finetuning(settings(tree, **EARLY))
    images = Path(tree["shards"]).parent / "images"
    shutil.copytree(images, tmp_path / "images")
    shutil.rmtree(tmp_path / "images" / "test")
    for number in range(3):  # the labels of the test split, turned round
        shutil.copytree(images / "test" / f"class{number}", tmp_path / "images" / "test" / f"class{(number + 1) % 3}")
    out = tmp_path / "set"
    shard_corpus(ShardOptions(source=str(tmp_path / "images"), out=str(out), shard_samples=10, workers=0))
    turned = Finetuning(settings(tree, shards=str(out), **EARLY))
    assert read_labels(turned.test).tolist() != read_labels(honest.test).tolist()
    choice = chosen_of(honest)
    assert chosen_of(turned) == choice
    tars = list(out.rglob("*test*.tar"))
    for tar in tars:
        tar.unlink()  # nor is it read
    assert tars and chosen_of(turned) == choice


def test_a_choice_is_a_function_of_the_settings(tree: dict[str, Any]) -> None:
    first, again = (chosen_of(Finetuning(settings(tree, ema=0.5, drop_path=0.2, **EARLY))) for _ in range(2))
    assert first == again


def test_where_every_rate_diverges_it_is_said(tree: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    job = Finetuning(settings(tree, learning_rates=[1e30, 1e35], steps=8))
    with pytest.raises(NumericsError, match="diverged at every learning rate"):
        job.choose()
    assert "rate 1e+30 diverged" in capsys.readouterr().out


def test_the_choice_is_made_by_the_metric(tree: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    scores = iter([Accuracy(90.0, 100.0, 50.0, 12), Accuracy(80.0, 100.0, 60.0, 12)])
    monkeypatch.setattr(Finetuning, "_test", lambda *_: next(scores))
    choice = Finetuning(settings(tree, metric="mean_per_class", learning_rates=[0.1, 0.2])).choose()
    assert (choice.learning_rate, choice.held_out_top1) == (0.2, {"0.1@3": 50.0, "0.2@3": 60.0})
