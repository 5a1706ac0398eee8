"""``mpp bench-stream`` as a person types it."""

from pathlib import Path

import pytest

from mpp.bench_stream import main


def test_stages_the_whole_and_what_bounds_it_are_printed(tiny_shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tiny_shards), "image_size=[8, 8]", "stream.workers=1", "seconds=0.05", "batch=16"]) == 0
    lines = capsys.readouterr().out.splitlines()
    stages = ["stage", "read", "decode", "view", "batch", "a worker, all", "stream, stream.workers=1:", "hand-off:"]
    assert [line.startswith(stage) for line, stage in zip(lines, stages, strict=False)] == [True] * len(stages)
    assert lines[-1].removeprefix("bound by: ") in ("read", "decode", "view", "batch", "hand-off")


def test_bad_input_is_one_message_with_its_exit_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 3
    assert main([str(tmp_path), "stream.worker=1"]) == 2
    assert "no shards here" in (errors := capsys.readouterr().err)
    assert "did you mean stream.workers?" in errors
