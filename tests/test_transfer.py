"""``mpp transfer`` as a person types it: one JSON line a result, one message for bad input."""

import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from mpp.training.backbone import BACKBONE
from mpp.transfer import main

FAST = ["steps=2", "global_batch=16", "stream.workers=0", "view.crop=pad"]


@pytest.fixture
def words(tiny_run: Path, tiny_shards: Path, tmp_path: Path) -> list[str]:
    """A command line of two steps into tmp_path/results."""
    return [*FAST, f"backbone={tiny_run}", f"shards={tiny_shards}", f"out={tmp_path / 'results'}"]


def test_every_transfer_adds_one_line(words: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 0
    assert "of 31 images" in capfd.readouterr().out
    assert main([*words, "seed=1"]) == 0
    lines = (tmp_path / "results" / "results.jsonl").read_text().splitlines()
    results = [json.loads(line) for line in lines]
    assert [(result["seed"], result["test_images"], result["images_seen"]) for result in results] == [
        (0, 31, 32),
        (1, 31, 32),
    ]
    assert results[0]["origin"].startswith("masked_patches, 2 steps")


@pytest.mark.parametrize(
    ("wrong", "code", "message"),
    [
        (["bakcbone=run"], 2, "did you mean backbone?"),
        (["labels_per_class=few"], 2, "labels_per_class"),
        (["shards=missing"], 3, "no shards here"),
        (["test_split=val"], 3, "no split 'val'"),
        (["labels_per_class=21"], 3, "has 20 labelled images"),
        (["backbone=missing"], 4, "no backbone at missing"),
    ],
)
def test_bad_input_is_one_message_with_its_exit_code_and_no_folder(
    words: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str], wrong: list[str], code: int, message: str
) -> None:
    assert main([*words, *wrong]) == code
    assert_one_message(capfd.readouterr().err, message)
    assert not (tmp_path / "results").exists()


def test_shards_without_labels_are_refused(
    words: list[str], bare_tiny_shards: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main([*words, f"shards={bare_tiny_shards}"]) == 3
    assert_one_message(capfd.readouterr().err, "carries no labels")
    assert not (tmp_path / "results").exists()


def broken(kind: str, weights: bytes) -> bytes:
    """Return a backbone file that is none."""
    flipped = weights[:-1] + bytes([weights[-1] ^ 1])
    return {"text": b"weights", "empty": b"", "cut": weights[:-8], "flipped bit": flipped}[kind]


@pytest.mark.parametrize("kind", ["text", "empty", "cut", "flipped bit"])
def test_a_file_that_is_no_backbone_is_refused(
    words: list[str], tiny_run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], kind: str
) -> None:
    file = tmp_path / "weights"
    file.write_bytes(broken(kind, (tiny_run / BACKBONE).read_bytes()))
    assert main([*words, f"backbone={file}"]) == 4
    assert_one_message(capfd.readouterr().err, str(file))
    assert not (tmp_path / "results").exists()


def test_a_folder_of_images_is_no_backbone(
    words: list[str], tiny_shards: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main([*words, f"backbone={tiny_shards}"]) == 4
    assert_one_message(capfd.readouterr().err, f"no backbone at {tiny_shards}")
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    ("number", "code", "message"),
    [(signal.SIGTERM, 143, "error: stopped by SIGTERM"), (signal.SIGINT, 130, "interrupted")],
)
def test_a_signal_ends_a_transfer_with_one_message_and_no_result(
    words: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str], number: signal.Signals, code: int, message: str
) -> None:
    before, results = signal.getsignal(signal.SIGTERM), tmp_path / "results" / "results.jsonl"

    def stop() -> None:
        deadline = time.monotonic() + 120
        while not results.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.2)  # into the training, whose steps would take minutes
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=stop, daemon=True)
    thread.start()
    assert main([*words, "steps=10000", "stream.workers=1"]) == code
    thread.join()
    error = capfd.readouterr().err
    assert error.startswith(message) and "Traceback" not in error and "Exception" not in error
    assert results.read_text() == ""
    assert signal.getsignal(signal.SIGTERM) is before


def assert_one_message(error: str, message: str) -> None:
    assert error.startswith("error: ") and error.count("error: ") == 1
    assert message in error and "fix: " in error and "Traceback" not in error
