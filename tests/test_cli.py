"""``mpp VERB`` finds its entry point, answers quickly and mends typing mistakes."""

import importlib
import resource
import subprocess
import sys
from pathlib import Path

import pytest

import mpp
from mpp.cli import VERBS, main

HELP = {"mpp": ("mpp.cli", "usage: mpp VERB"), "mpp-shard": ("mpp.shard", "usage: mpp-shard SOURCE OUT")}


def _run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)


def test_the_verbs_are_the_entry_points() -> None:
    modules = {file.stem for file in Path(mpp.__file__).parent.glob("*.py")}
    ground = {"config", "disk", "errors", "faults", "plain_yaml", "processes", "redaction"}
    assert modules - {"__init__", "cli"} - ground == {verb.replace("-", "_") for verb in VERBS}


def test_help_has_one_line_for_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for verb, text in VERBS.items():
        assert len([line for line in lines if line.split()[:1] == [verb] and line.endswith(text)]) == 1


def test_no_verb_shows_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert "usage: mpp VERB" in capsys.readouterr().out


def test_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"mpp {mpp.__version__}\n"


@pytest.mark.parametrize(
    ("typed", "answer"), [("pretrian", "did you mean pretrain?"), ("zzz", "known: shard, index, verify")]
)
def test_an_unknown_verb_ends_with_2_and_the_nearest_one(
    typed: str, answer: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([typed, "key=1"]) == 2
    shown = capsys.readouterr().err
    assert f"unknown verb '{typed}'" in shown and answer in shown and "fix: mpp --help" in shown


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_reaches_its_entry_point_with_the_rest_of_the_words(
    verb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[str]] = []
    monkeypatch.setattr(
        importlib.import_module(f"mpp.{verb.replace('-', '_')}"), "main", lambda words: seen.append(words) or 7
    )
    assert main([verb, "a=1", "-v"]) == 7
    assert main(["-v", verb, "b"]) == 7
    assert seen == [["a=1", "-v"], ["-v", "b"]]


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_a_help_page(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([verb, "--help"])
    assert ended.value.code == 0
    assert "settings (key: type = default):" in capsys.readouterr().out


@pytest.mark.parametrize(("module", "usage"), HELP.values(), ids=HELP)
def test_help_comes_without_torch(module: str, usage: str) -> None:
    ask = f"import sys\nfrom {module} import main\ntry: main(['--help'])\nfinally: print('torch' in sys.modules)"
    answer = _run(ask)
    assert answer.stdout.startswith(usage) and answer.stdout.endswith("\nFalse\n")


@pytest.mark.parametrize(("module", "usage"), HELP.values(), ids=HELP)
def test_help_comes_within_half_a_second(module: str, usage: str) -> None:
    def processor_seconds() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        _run(f"from {module} import main; main(['--help'])")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert min(processor_seconds() for _ in range(3)) < 0.5
