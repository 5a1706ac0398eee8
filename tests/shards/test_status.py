"""The status says what is done, running, failed, refused, and what comes next."""

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from mpp.shards import status, writer
from mpp.shards.options import FinalizeOptions, RunOptions, ShardOptions, StatusOptions
from mpp.shards.outputs import temporary_file
from mpp.shards.sharding import finalize_shards, plan_shards, run_shards
from mpp.shards.status import show_status


def test_from_the_plan_to_the_end(
    corpus: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = corpus(*(f"{number}.jpg" for number in range(12))), str(tmp_path / "out")
    (source / "bad.jpg").write_bytes(b"")

    def shown() -> str:
        capsys.readouterr()
        show_status(StatusOptions(out=out))
        return capsys.readouterr().out

    plan_shards(ShardOptions(source=str(source), out=out, shard_samples=4))
    assert "train: 0 of 4 shards, 0 of 13 images" in shown()
    run_shards(RunOptions(out=out, task="0/2", workers=0))
    text = shown()
    assert "train: 2 of 4 shards, 8 of 13 images" in text
    assert re.search(r"5 images to go, at [\d,]+ images/s about \d+ minutes", text)
    with temporary_file(tmp_path / "out", "train/train-000002.tar") as building:
        building.write_bytes(b"x")
        assert "running: 1, failed: 0" in shown()
        os.utime(building, (1, 1))
        assert "running: 0, failed: 0" in shown()
    monkeypatch.setattr(writer, "accept", broken)
    with pytest.raises(ZeroDivisionError):
        run_shards(RunOptions(out=out, task="1/2", workers=0))
    monkeypatch.undo()
    text = shown()
    assert "running: 0, failed: 1" in text and "train-000002: ZeroDivisionError: no way" in text
    run_shards(RunOptions(out=out, workers=0))
    assert "failed: 0" in shown() and "next: mpp-shard finalize" in shown()
    finalize_shards(FinalizeOptions(out=out, max_refused=1))
    text = shown()
    assert "train: 4 of 4 shards, 13 of 13 images" in text and text.rstrip().endswith("complete")
    assert re.search(r"refused +1 *\n +empty +1", text)


def broken(*_: object) -> None:
    raise ZeroDivisionError("no way")


def test_a_speed_needs_two_shards_of_late(tmp_path: Path, corpus: Callable[..., Path]) -> None:
    out = str(tmp_path / "out")
    plan_shards(ShardOptions(source=str(corpus("1.jpg", "2.jpg", "3.jpg")), out=out, shard_samples=1))
    output = status.open_output(out, None)
    layout = status.open_layout(output)
    for part, known in (("0/3", False), ("1/3", True)):
        run_shards(RunOptions(out=out, task=part, workers=0))
        rate = status._rate(output, layout, status.committed(output, layout, status.shard_places(layout))[0])
        assert (rate is not None) == known
    for record in tmp_path.glob("out/.mpp/train/*.json"):
        os.utime(record, (1, 1))
    assert status._rate(output, layout, status.committed(output, layout, status.shard_places(layout))[0]) is None
