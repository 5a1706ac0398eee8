"""``mpp doctor`` prints a line for every check, with a fix where one is needed, and ends with the kind of failure."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from mpp.doctor import main
from mpp.training import checkup
from mpp.training.checkup import Finding

FOUND = [
    Finding("versions", "ok", "all of them"),
    Finding("open files", "warn", "12", "ulimit -n 65536"),
    Finding("lock", "fail", "two have it", "a mount with flock", 7),
    Finding("two processes, gloo", "fail", "they did not meet", "lo", 6),
]


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> list[Finding]:
    """What the checks find; the list can be changed."""
    findings = list(FOUND)
    monkeypatch.setattr(checkup, "checkup", lambda out: iter(findings))
    return findings


def test_the_first_failure_gives_the_exit_code(found: list[Finding], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 7
    shown = capsys.readouterr()
    lines = [line.split() for line in shown.out.splitlines()]
    assert lines[0] == ["ok", "versions", "all", "of", "them"]
    assert lines[2] == ["fix:", "ulimit", "-n", "65536"]
    assert "2 of 4 checks failed: lock, two processes, gloo" in shown.err
    del found[2]
    assert main([]) == 6


def test_warnings_are_no_failure(found: list[Finding], capsys: pytest.CaptureFixture[str]) -> None:
    del found[2:]
    assert main(["out=runs"]) == 0
    assert capsys.readouterr().err == ""


def test_json_is_the_list_of_findings(found: list[Finding], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["json=true"]) == 7
    findings = json.loads(capsys.readouterr().out)
    assert [one["status"] for one in findings] == ["ok", "warn", "fail", "fail"]
    assert findings[2] == FOUND[2]._asdict()


def test_help_comes_without_torch() -> None:
    ask = "import sys\nfrom mpp.doctor import main\ntry: main(['--help'])\nfinally: print('torch' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=True)
    assert answer.stdout.startswith("usage: mpp doctor OUT") and answer.stdout.endswith("\nFalse\n")


@pytest.mark.slow
def test_a_folder_that_cannot_be_written_ends_with_7(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["out=/sys"]) == 7
    assert "cannot write" in capsys.readouterr().out and not list(Path.cwd().glob(".mpp-doctor-*"))
