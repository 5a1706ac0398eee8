"""Expected failures end with their exit code and one message; bugs propagate."""

import subprocess
import sys
from collections.abc import Sequence

import pytest

from mpp import errors
from mpp.errors import DataError, MppError, exit_code_of

CODES = {"ConfigError": 2, "DataError": 3, "CheckpointError": 4, "NumericsError": 5, "HangError": 6}
CODES |= {"DiskError": 7, "MemoryLimitError": 8, "Stopped": 143}


@pytest.mark.parametrize(("name", "code"), CODES.items())
def test_every_kind_of_failure_ends_with_its_own_exit_code(
    name: str, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(argv: Sequence[str]) -> None:
        raise getattr(errors, name)("shard 3: 4 of 20 samples", fix="mpp verify out")

    assert exit_code_of(fail, []) == code
    assert capsys.readouterr().err == "error: shard 3: 4 of 20 samples\n  fix: mpp verify out\n"


def test_the_table_of_codes_names_every_kind() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, MppError)]
    assert {kind.__name__: kind.exit_code for kind in kinds if kind is not MppError} == CODES


def test_success_ends_with_zero_and_hands_the_arguments_over() -> None:
    seen: list[str] = []
    assert exit_code_of(seen.extend, ["a=1", "b"]) == 0
    assert seen == ["a=1", "b"]


def test_without_arguments_those_of_the_process_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["mpp-shard", "in", "out"])
    seen: list[str] = []
    exit_code_of(seen.extend, None)
    assert seen == ["in", "out"]


def test_v_adds_the_traceback_and_is_not_handed_over(capsys: pytest.CaptureFixture[str]) -> None:
    def fail(argv: Sequence[str]) -> None:
        raise DataError(f"got {list(argv)}")

    assert exit_code_of(fail, ["x", "-v"]) == 3
    shown = capsys.readouterr().err
    assert "Traceback" in shown and shown.endswith("error: got ['x']\n")
    exit_code_of(fail, ["x"])
    assert "Traceback" not in capsys.readouterr().err


def test_a_bug_is_not_hidden() -> None:
    def fail(argv: Sequence[str]) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        exit_code_of(fail, [])


def test_ctrl_c_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(argv: Sequence[str]) -> None:
        raise KeyboardInterrupt

    assert exit_code_of(interrupt, []) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_a_reader_that_goes_away_is_no_error() -> None:
    done = subprocess.run(
        f"{sys.executable} -m mpp.pretrain --help | head -1", shell=True, capture_output=True, text=True
    )
    assert done.stdout.startswith("usage: mpp pretrain")
    assert done.stderr == ""
