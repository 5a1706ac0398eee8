"""Sums over records are the sums of what the shards say, also where everything was refused."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from mpp.errors import DataError
from mpp.report.tallies import EXAMPLES, Bar, bars, read_reasons, read_tallies


def _write_record(root: Path, split: str, number: int, **fields: Any) -> Path:
    path = root / ".mpp" / split / f"{split}-{number:06d}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"listed": 0, "samples": 0, "refused": 0, "notes": {}} | fields))
    return path


def _write_refused(root: Path, rows: list[tuple[str, str, str]]) -> None:
    names = ("source", "reason", "detail")
    table = pyarrow.table({name: [row[number] for row in rows] for number, name in enumerate(names)})
    (root / ".mpp").mkdir()
    pyarrow.parquet.write_table(table, root / ".mpp/refused.parquet")


def test_records_are_summed_by_split(tmp_path: Path) -> None:
    first = {"formats": {"JPEG": 3}, "modes": {"L": 1, "RGB": 2}, "notes": {"passed": 3}, "labels": {"0": 1, "7": 2}}
    _write_record(tmp_path, "train", 0, listed=4, samples=3, refused=1, **first)
    _write_record(tmp_path, "train", 1, listed=2, samples=2, formats={"PNG": 2}, notes={"passed": 2}, labels={"7": 2})
    _write_record(tmp_path, "test", 0, listed=5, refused=5)
    tallies = read_tallies(tmp_path, {"train": 5})
    assert tallies.keys() == {"train", "test"}
    train = tallies["train"]
    assert (train.listed, train.refused, tallies["test"].refused) == (6, 1, 5)
    assert train.formats == {"JPEG": 3, "PNG": 2} and train.modes == {"L": 1, "RGB": 2} and train.notes == {"passed": 5}
    assert train.labels == {0: 1, 7: 4} and tallies["test"].labels == {}


def test_labels_are_unknown_where_one_record_does_not_count_them(tmp_path: Path) -> None:
    _write_record(tmp_path, "train", 0, samples=3, listed=3, labels={"0": 3})
    _write_record(tmp_path, "train", 1, samples=2, listed=2)
    _write_record(tmp_path, "train", 2, samples=3, listed=3, labels={"0": 3})
    assert read_tallies(tmp_path, {"train": 8})["train"].labels is None


def test_other_files_among_the_records_are_passed_over(tmp_path: Path) -> None:
    _write_record(tmp_path, "train", 0, listed=1)
    (tmp_path / ".mpp/listing").mkdir()
    (tmp_path / ".mpp/listing/train.json").write_text("[]")
    (tmp_path / ".mpp/layout.json").write_text("[]")
    assert read_tallies(tmp_path, {"train": 1}).keys() == {"train"}


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"listed": "a"}'])
def test_a_damaged_record_is_an_error_that_names_it(text: str, tmp_path: Path) -> None:
    _write_record(tmp_path, "train", 0).write_text(text)
    with pytest.raises(DataError, match=r"train-000000\.json: cannot be read"):
        read_tallies(tmp_path, {})


def test_records_that_do_not_add_up_to_the_set_are_an_error(tmp_path: Path) -> None:
    _write_record(tmp_path, "train", 0, listed=3, samples=2, refused=1)
    read_tallies(tmp_path, {"train": 2})
    for taken in ({"train": 3}, {"train": 2, "test": 1}):
        with pytest.raises(DataError, match=r"the records are of \d of \d images"):
            read_tallies(tmp_path, taken)


def test_refusals_are_counted_over_batches_and_the_first_are_named(tmp_path: Path) -> None:
    rows = [(f"{n}.jpg", ("corrupt", "empty", "corrupt")[n % 3], f"detail {n}") for n in range(100_000)]
    rows.append(("last.jpg", "too_large", "only one"))
    _write_refused(tmp_path, rows)
    reasons = read_reasons(tmp_path)
    assert {reason.bar.name: reason.bar.images for reason in reasons} == Counter(reason for _, reason, _ in rows)
    assert [reason.bar.name for reason in reasons] == ["corrupt", "empty", "too_large"]
    for reason in reasons:
        own = [(source, detail) for source, name, detail in rows if name == reason.bar.name]
        assert list(reason.examples) == own[:EXAMPLES]


def test_examples_go_on_in_the_next_batch(tmp_path: Path) -> None:
    rows = [("a", "empty", ""), *[("b", "corrupt", "")] * 100_000, ("c", "empty", "")]
    _write_refused(tmp_path, rows)
    assert read_reasons(tmp_path)[1].examples == (("a", ""), ("c", ""))


def test_a_missing_or_damaged_table_of_refusals_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"refused\.parquet"):
        read_reasons(tmp_path)
    (tmp_path / ".mpp").mkdir()
    (tmp_path / ".mpp/refused.parquet").write_bytes(b"PAR1 and nothing else")
    with pytest.raises(DataError, match=r"refused\.parquet"):
        read_reasons(tmp_path)


def test_bars_are_sorted_and_measured_against_the_whole_and_the_longest() -> None:
    assert bars({"a": 1, "c": 4, "b": 1}, 8) == (
        Bar("c", 4, 0.5, 1),
        Bar("a", 1, 0.125, 0.25),
        Bar("b", 1, 0.125, 0.25),
    )
    assert [bar.share for bar in bars({"a": 1, "b": 3})] == [0.75, 0.25]
    assert bars({}) == ()
