"""``mpp compare`` as a person types it: the table printed and written, one message for bad input."""

import json
import os
import signal
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml

from mpp.compare import main
from mpp.evaluation.choosing import Choice
from mpp.evaluation.finetune import Finetuning, TransferResult


@pytest.fixture
def words(tiny_shards: Path, tiny_vit: dict[str, Any], tmp_path: Path) -> list[str]:
    """A command line of two arms, two steps each, into tmp_path/out."""
    budget = {"steps": 2, "global_batch": 16, "stream": {"workers": 0}}
    tree = {
        "pretrain": {"vit": tiny_vit, **budget},
        "transfer": deepcopy(budget),
        "arms": ["masked", "scratch"],
        "seeds": [0],
    }
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump(tree))
    return ["--config", str(file), f"shards={tiny_shards}", f"out={tmp_path / 'out'}"]


def test_the_table_is_printed_and_written_and_the_same_command_repeats_nothing(
    words: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(words) == 0
    printed = [line for line in capfd.readouterr().out.splitlines() if line.startswith("|")]
    assert [line.split("|")[2].strip() for line in printed[2:]] == ["masked", "scratch"]
    written = json.loads((out / "report.json").read_text())
    assert [row["arm"] for row in written["rows"]] == ["masked", "scratch"]
    assert (out / "report.html").exists() and (out / "report.md").exists()
    records = {path: path.stat().st_mtime_ns for path in (out / "parts").iterdir()}
    assert main(words) == 0
    assert [line for line in capfd.readouterr().out.splitlines() if line.startswith("|")] == printed
    assert {path: path.stat().st_mtime_ns for path in (out / "parts").iterdir()} == records


@pytest.mark.parametrize(
    ("wrong", "code", "message"),
    [
        (["pretrain.stpes=3"], 2, "did you mean pretrain.steps?"),
        (["arms=[maksed]"], 2, "no arm 'maksed'; known: masked"),
        (["pretrain.task.kind=classification"], 2, "the arm masked is masked, its task is classification"),
        (["shards=missing"], 3, "no shards here"),
        (["labelled=missing"], 3, "no shards here"),
        (["test_split=val"], 3, "no split 'val'"),
    ],
)
def test_bad_input_is_one_message_with_its_exit_code_and_no_folder(
    words: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str], wrong: list[str], code: int, message: str
) -> None:
    assert main([*words, *wrong]) == code
    assert_one_message(capfd.readouterr().err, message)
    assert not (tmp_path / "out").exists()


def test_sigterm_ends_a_comparison_with_one_message_and_the_same_command_continues(
    words: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    final = Finetuning.final

    def interrupted(self: Finetuning, choice: Choice) -> TransferResult:
        os.kill(os.getpid(), signal.SIGTERM)
        return final(self, choice)

    monkeypatch.setattr(Finetuning, "final", interrupted)
    assert main(words) == 143
    error = capfd.readouterr().err
    assert error.startswith("error: stopped by SIGTERM") and "Traceback" not in error
    assert (out / "STATUS").read_text() == "interrupted, the same command continues it\n"
    assert not list((out / "parts").glob("final-*")) and list((out / "parts").glob("pretrain-*"))
    monkeypatch.undo()
    assert main(words) == 0
    assert (out / "STATUS").read_text() == "finished\n"


def test_fine_tuning_shards_without_labels_are_refused_before_anything_is_pretrained(
    words: list[str], bare_tiny_shards: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main([*words, f"labelled={bare_tiny_shards}"]) == 3
    assert_one_message(capfd.readouterr().err, "carries no labels")
    assert not (tmp_path / "out").exists()


def assert_one_message(error: str, message: str) -> None:
    assert error.startswith("error: ") and error.count("error: ") == 1
    assert message in error and "fix: " in error and "Traceback" not in error
