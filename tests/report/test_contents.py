"""The contents say which pictures there are, and of each that is missing why."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import yaml

from mpp.evaluation.verdict import ArmFacts, Comparison
from mpp.report.contents import COST_ACCURACY, LABEL_CURVE, RECONSTRUCTIONS, TRAINING_CURVES, draw_contents

Compared = Callable[..., Comparison]
VALUES = {"masked": [60.0, 61.0], "scratch": [50.0, 51.5]}


def with_runs(comparison: Comparison, *runs: Path) -> Comparison:
    arms = tuple(replace(arm, runs=runs if arm.kind == "masked" else ()) for arm in comparison.arms)
    return replace(comparison, arms=arms)


def test_a_masked_run_gives_curves_and_reconstructions(compared: Compared, tiny_run: Path, tmp_path: Path) -> None:
    contents = draw_contents(with_runs(compared({5: VALUES}), tiny_run))
    assert list(contents.pictures) == [LABEL_CURVE, COST_ACCURACY, TRAINING_CURVES, RECONSTRUCTIONS]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(contents.pictures)
    assert contents.missing == ()
    (ending,) = contents.endings
    assert (ending.arm, ending.step, "uniform_loss" in ending.baselines) == ("masked", 2, True)


def test_without_runs_there_are_two_pictures(compared: Compared, tmp_path: Path) -> None:
    contents = draw_contents(compared({5: VALUES}))
    assert sorted(path.name for path in tmp_path.iterdir()) == [COST_ACCURACY, LABEL_CURVE] == sorted(contents.pictures)
    assert contents.endings == contents.missing == ()


def test_a_run_that_is_gone_is_said_and_its_old_pictures_go(compared: Compared, tmp_path: Path) -> None:
    for name in (RECONSTRUCTIONS, TRAINING_CURVES):
        (tmp_path / name).write_bytes(b"of an earlier report")
    contents = draw_contents(with_runs(compared({5: VALUES}), tmp_path / "gone"))
    assert sorted(path.name for path in tmp_path.iterdir()) == [COST_ACCURACY, LABEL_CURVE] == sorted(contents.pictures)
    assert len(contents.missing) == 2
    assert contents.missing[0].startswith("gone is not among the training curves: ")
    assert contents.missing[1].startswith("no reconstructions of masked: ") and "no config.yaml" in contents.missing[1]


def test_an_unknown_cost_is_said_and_where_none_is_known_there_is_no_plot(compared: Compared) -> None:
    comparison = compared({5: VALUES})
    rows = tuple(replace(row, pretraining=None) if row.arm == "masked" else row for row in comparison.rows)
    contents = draw_contents(replace(comparison, rows=rows))
    assert COST_ACCURACY in contents.pictures
    assert contents.missing == ("not among the costs: masked, of whose pretraining the cost is not known",)
    outside = replace(comparison, rows=rows[:1], arms=(ArmFacts("masked", "masked", "", None, ()),), against="masked")
    assert COST_ACCURACY not in draw_contents(outside).pictures


def test_settings_are_yaml_without_secrets_and_the_command_is_quoted(compared: Compared, tmp_path: Path) -> None:
    settings = {"transfer": {"steps": 200, "rates": (0.1, 0.2)}, "hub_token": "hf_sentinel"}
    contents = draw_contents(compared({5: VALUES}, settings=settings))
    assert yaml.safe_load(contents.settings) == {"transfer": {"steps": 200, "rates": [0.1, 0.2]}, "hub_token": "***"}
    assert contents.command == f"mpp compare --config {tmp_path}/config.yaml out=ANOTHER_FOLDER"
    (tmp_path / "a b; rm").mkdir()
    spaced = draw_contents(replace(compared({5: VALUES}), folder=tmp_path / "a b; rm"))
    assert f"'{tmp_path}/a b; rm/config.yaml'" in spaced.command
