"""What several tests of reports need: comparisons made by hand, and a browser to open pages in."""

import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mpp.evaluation.statistics import holm, paired_difference, summarise
from mpp.evaluation.verdict import ArmFacts, Comparison, Cost, DataFacts, Row

Accuracies = Mapping[int | None, Mapping[str, Sequence[float]]]  # percent by labels per class, arm and seed
NOTHING = Cost(0, 0.0, 0.0)


def make_row(arm: str, labels: int | None, top1: Sequence[float], others: Sequence[float] | None = None) -> Row:
    """Return a row of an arm with these accuracies by seed, held against ``others``."""
    return Row(
        arm=arm,
        labels_per_class=labels,
        top1=summarise(top1),
        top1_by_seed=tuple(top1),
        difference=None if others is None else paired_difference(top1, others),
        p_holm=None,
        learning_rate=0.003,
        trials=8,
        pretraining=NOTHING if "scratch" in arm else Cost(153_600, 2.9e15, 1834.2),
        tuning=Cost(102_400, 6.1e14, 412.0),
        finetuning=Cost(12_800, 7.7e13, 51.4),
    )


def make_comparison(folder: Path, accuracies: Accuracies, *, against: str = "scratch", **changes: Any) -> Comparison:
    """Return a comparison of these accuracies; an arm's kind is the first word of its name."""
    rows = [
        make_row(arm, labels, top1, None if arm == against else arms.get(against))
        for labels, arms in accuracies.items()
        for arm, top1 in arms.items()
    ]
    tested = [row for row in rows if row.difference is not None and row.difference.p is not None]
    corrected = iter(holm([row.difference.p for row in tested if row.difference and row.difference.p is not None]))
    rows = [replace(row, p_holm=next(corrected)) if row in tested else row for row in rows]
    names = list(dict.fromkeys(row.arm for row in rows))
    seeds = max(row.top1.n for row in rows)
    facts = {
        "rows": tuple(rows),
        "against": against,
        "arms": tuple(
            ArmFacts(name, name.split("-")[0], f"{name} in words, 1,200 steps", 1_234_567, ()) for name in names
        ),
        "data": (
            DataFacts("shards/pets", "train", "pretraining", 3_312, 17, 37, "ab" * 32),
            DataFacts("shards/pets", "test", "test", 3_669, 0, 37, "cd" * 32),
        ),
        "seeds": tuple(range(seeds)),
        "metric": "top1",
        "warnings": (),
        "notes": (),
        "folder": folder,
        "settings": {"arms": names, "pretrain": {"steps": 1200}},
        "settings_sha256": "0123456789abcdef" * 4,
        "environment": {"python": "3.11.7", "gpus": [], "packages": {"torch": "2.15.0"}},
    }
    return Comparison(**(facts | changes))


@pytest.fixture
def compared(tmp_path: Path) -> Callable[..., Comparison]:
    """Return a function from accuracies to a comparison in ``tmp_path``."""

    def make(accuracies: Accuracies, **changes: Any) -> Comparison:
        return make_comparison(tmp_path, accuracies, **changes)

    return make


@pytest.fixture
def result() -> Callable[..., Row]:
    """Return a function that makes a row."""
    return make_row


@pytest.fixture
def browse(tmp_path: Path) -> Callable[..., tuple[str, str]]:
    """Return a function that opens a page in Chromium: the page and options to (document, what was logged)."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no chromium here to open the page in (Debian: apt-get install chromium)")

    def open_page(page: Path, *options: str) -> tuple[str, str]:
        fixed = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--enable-logging=stderr",
            f"--user-data-dir={tmp_path / 'browser'}",
        ]
        command = [chromium, *fixed, *options, page.as_uri()]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert ended.returncode == 0, ended.stderr
        return ended.stdout, ended.stderr

    return open_page
