"""report.json holds the comparison without loss, and no number that JSON does not have."""

import json
import math
from collections.abc import Callable
from dataclasses import asdict, replace

import pytest

from mpp.evaluation.verdict import Comparison
from mpp.report import record
from mpp.report.contents import draw_contents
from mpp.report.record import SCHEMA, as_json


@pytest.fixture
def comparison(compared: Callable[..., Comparison]) -> Comparison:
    return compared(
        {5: {"masked": [60.1, 61.2, 62.4], "scratch": [50.0, 51.5, 52.0]}},
        notes=("a <note>",),
        settings={"hub_token": "x"},
    )


def test_every_number_survives_exactly(comparison: Comparison) -> None:
    tree = json.loads(as_json(draw_contents(comparison)))
    assert tree["schema"] == SCHEMA
    for row, stored in zip(comparison.rows, tree["rows"], strict=True):
        expected = json.loads(json.dumps(asdict(row)))
        assert stored == expected | {"told": row.arm == "masked"}
    assert [facts["refused"] for facts in tree["data"]] == [17, 0]
    assert (tree["seeds"], tree["settings_sha256"]) == ([0, 1, 2], comparison.settings_sha256)


def test_every_key_is_documented(comparison: Comparison) -> None:
    tree = json.loads(as_json(draw_contents(comparison)))
    documented = {line.split()[0] for line in (record.__doc__ or "").splitlines() if line and not line[0].isspace()}
    assert tree.keys() - vars(comparison).keys() <= documented
    assert vars(comparison).keys() <= tree.keys()


def test_what_is_no_number_is_null_and_secrets_are_hidden(comparison: Comparison) -> None:
    row = replace(comparison.rows[0], learning_rate=math.nan, top1_by_seed=(math.inf, 1.0))
    text = as_json(draw_contents(replace(comparison, rows=(row, comparison.rows[1]))))
    tree = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} in JSON"))
    assert tree["rows"][0]["learning_rate"] is None and tree["rows"][0]["top1_by_seed"] == [None, 1.0]
    assert tree["settings"] == {"hub_token": "***"}
