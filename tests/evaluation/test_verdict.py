"""What a comparison found is plain values: it can be written as JSON and compared."""

import json
from dataclasses import asdict
from pathlib import Path

from mpp.evaluation.statistics import summarise
from mpp.evaluation.verdict import ArmFacts, Comparison, Cost, DataFacts, Row


def test_a_comparison_becomes_json_but_for_its_paths() -> None:
    cost = Cost(images=3, flops=1e9, seconds=0.5)
    row = Row("masked", None, summarise([50.0, 60.0]), (50.0, 60.0), None, None, 0.01, 2, None, cost, cost)
    comparison = Comparison(
        rows=(row,),
        against="masked",
        arms=(ArmFacts("masked", "masked", "mean_color", 7, (Path("run"),)),),
        data=(DataFacts("set", "test", "test", 9, 1, 3, "abc"),),
        seeds=(0, 1),
        metric="top1",
        warnings=("few seeds",),
        notes=(),
        folder=Path("out"),
        settings={"out": "out"},
        settings_sha256="0" * 64,
        environment={"python": "3.11"},
    )
    read = json.loads(json.dumps(asdict(comparison), default=str))
    assert read["rows"][0]["top1"]["mean"] == 55.0 and read["rows"][0]["pretraining"] is None
    assert read["arms"][0]["runs"] == ["run"] and read["data"][0]["refused"] == 1
