"""A choice takes the best score, and of equals the cheapest; one among one costs nothing."""

import json
from dataclasses import asdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpp.errors import NumericsError
from mpp.evaluation.choosing import Choice, Point, best_of, ends, no_choice

POINTS = st.builds(
    Point, st.sampled_from([0.001, 0.003, 0.01, 0.03]), st.integers(1, 5).map(lambda number: 100 * number)
)
SCORES = st.dictionaries(POINTS, st.sampled_from([0.0, 50.0, 62.5, 100.0]), min_size=1)


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
