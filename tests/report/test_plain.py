"""Plain values are what JSON and YAML can say, and say it without loss."""

import json
import math
from dataclasses import dataclass
from pathlib import Path

from mpp.report.plain import plain


@dataclass(frozen=True)
class Inner:
    where: Path
    value: float


@dataclass(frozen=True)
class Outer:
    inner: tuple[Inner, ...]
    by_name: dict[int, object]


def test_dataclasses_paths_and_tuples_become_trees_lists_and_text() -> None:
    tree = plain(Outer((Inner(Path("a/b"), 0.1),), {1: None, 2: True}))
    assert tree == {"inner": [{"where": "a/b", "value": 0.1}], "by_name": {"1": None, "2": True}}


def test_numbers_that_are_none_become_null_and_others_survive_json_exactly() -> None:
    values = [math.nan, math.inf, -math.inf, 0.1 + 0.2, 10**20, -0.0]
    assert plain(values[:3]) == [None] * 3
    assert json.loads(json.dumps(plain(values), allow_nan=False))[3:] == values[3:]
