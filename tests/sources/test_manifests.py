"""Manifests name images by path or URL, with labels and splits, and every mistake has its line."""

import io
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from mpp.config import dump, resolve
from mpp.errors import ConfigError, DataError
from mpp.sources import manifests
from mpp.sources.entries import UNKNOWN, Entry
from mpp.sources.manifests import Manifest, open_manifest, spool_list

Corpus = Callable[..., Path]
Jpeg = Callable[[int], bytes]
ROWS = [{"path": "a/1.jpg", "label": "cat", "split": "train"}, {"path": "b/2.jpg", "label": "dog", "split": "val"}]


def opened(file: Path, labels: str = "auto", image: str | None = None) -> Manifest:
    return resolve(Manifest, dump(open_manifest(file, file.parent, labels, image)))


def entries(file: Path, labels: str = "auto", image: str | None = None) -> list[Entry]:
    return list(opened(file, labels, image).entries())


def write(file: Path, rows: list[dict[str, object]]) -> Path:
    if file.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    elif file.suffix == ".jsonl":
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        comma = "," if file.suffix == ".csv" else "\t"
        lines = [comma.join(rows[0]), *(comma.join(map(str, row.values())) for row in rows)]
        file.write_text("\n".join(lines))
    return file


@pytest.mark.parametrize("kind", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_every_kind_of_manifest_lists_and_reads_the_same(corpus: Corpus, jpeg: Jpeg, kind: str) -> None:
    root = corpus("a/1.jpg", "b/2.jpg")
    file = write(root / f"list{kind}", list(ROWS))
    assert entries(file) == [
        Entry("train", b"a/1.jpg", "a/1.jpg", len(jpeg(0)), "cat"),
        Entry("validation", b"b/2.jpg", "b/2.jpg", len(jpeg(1)), "dog"),
    ]
    assert opened(file).read("validation", b"b/2.jpg") == jpeg(1)
    assert opened(file).describe() == f"manifest {file}, columns 'path', 'label', 'split'"
    assert [entry.label for entry in entries(file, "none")] == [None, None]


@pytest.mark.parametrize("column", ["path", "file_name", "file", "image", "url", "filename"])
def test_the_column_of_paths_is_known_by_its_name(tmp_path: Path, column: str) -> None:
    file = write(tmp_path / "list.csv", [{"id": "7", column: "1.jpg"}])
    assert [entry.source for entry in entries(file)] == ["1.jpg"]
    assert [entry.source for entry in entries(file, image="id")] == ["7"]


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (["10", "9"], [10, 9]),
        (["10", "nine"], ["10", "nine"]),
        (["10", ""], [10, None]),
        (["10", "-1"], [10, None]),
        (["01a", "1"], ["01a", "1"]),
    ],
)
def test_labels_of_digits_alone_are_numbers_and_may_be_missing(
    tmp_path: Path, labels: list[str], expected: list[object]
) -> None:
    rows: list[dict[str, object]] = [{"path": f"{n}.jpg", "class": label} for n, label in enumerate(labels)]
    file = write(tmp_path / "list.csv", rows)
    assert [entry.label for entry in entries(file)] == expected
    if None in expected:
        with pytest.raises(DataError, match=r"list\.csv:3: no label in 'class'"):
            entries(file, "class")
    else:
        assert [entry.label for entry in entries(file, "class")] == expected


def test_numbers_of_json_and_parquet_are_labels_and_other_values_are_not(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [{"path": "1.jpg", "label": 3}, {"path": "2.jpg", "label": None}]
    for kind in (".jsonl", ".parquet"):
        assert [entry.label for entry in entries(write(tmp_path / f"list{kind}", rows))] == [3, None]
    for value in (True, 0.5, ["x"]):
        file = write(tmp_path / "list.jsonl", [{"path": "1.jpg", "label": value}])
        with pytest.raises(DataError, match=r"list\.jsonl:1: label .* is no name and no whole number"):
            entries(file)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"path": "1.jpg"}\n{"path": ""}\n', r":2: column 'path' is empty"),
        ('{"path": "1.jpg"}\n{"path": null}\n', r":2: column 'path' is empty"),
        ('{"path": "1.jpg"}\n{"path": 7}\n', r":2: column 'path' is 7, expected a path"),
        ('{"path": "1.jpg"}\n{"path": "a\\u0000b"}\n', r":2: column 'path' is a\\x00b, expected a path"),
        ('{"path": "1.jpg"}\n{"path": "\\ud800"}\n', r":2: column 'path' is \\ud800, expected a path"),
        ('{"path": "1.jpg"}\n{"id": 2}\n', r":2: no column 'path'"),
        ('{"path": "1.jpg", "split": "../x"}\n', r":1: split '\.\./x' is no name"),
        ('{"path": "1.jpg", "split": 3}\n', r":1: split 3 is no name"),
    ],
)
def test_a_row_that_cannot_be_used_is_named_by_its_line(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "list.jsonl"
    file.write_text(text)
    with pytest.raises(DataError, match=message):
        entries(file)


def test_columns_that_are_missing_or_several_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no column of paths among id, name"):
        opened(write(tmp_path / "a.csv", [{"id": 1, "name": "x"}]))
    both = write(tmp_path / "b.csv", [{"path": "x", "url": "y", "label": 1, "class": 2}])
    with pytest.raises(ConfigError, match="path and url could both be the image column"):
        opened(both)
    with pytest.raises(ConfigError, match="label and class could both be the labels column"):
        opened(both, image="url")
    with pytest.raises(ConfigError, match="labels=folders: no such column"):
        opened(both, "folders", "url")


def test_urls_are_read_from_where_they_are_and_shown_without_secrets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = "https://me:sesame@host/a.jpg?token=sesame"
    file = write(tmp_path / "list.csv", [{"url": url}, {"url": "b.jpg"}])
    listed, local = entries(file)
    assert listed == Entry("train", url.encode(), "https://host/a.jpg?token=...", UNKNOWN, None)
    monkeypatch.setattr(manifests, "read_url", lambda url: f"read {url}".encode())
    assert opened(file).read("train", listed.place) == f"read {url}".encode()
    with pytest.raises(FileNotFoundError):
        opened(file).read("train", local.place)


@pytest.mark.parametrize("url", ["pipe:touch marker", "ssh://host/a.jpg", "simplecache::s3://b/a.jpg"])
def test_schemes_that_are_not_read_are_refused_with_their_line(tmp_path: Path, url: str) -> None:
    file = write(tmp_path / "list.csv", [{"path": "a.jpg"}, {"path": url}])
    with pytest.raises(ConfigError, match=r"list\.csv:3: .*: is not read"):
        entries(file)
    assert os.listdir(tmp_path) == ["list.csv"]


def test_a_list_on_standard_input_is_kept_to_be_read_again(
    corpus: Corpus, jpeg: Jpeg, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    root = corpus("a.jpg", "b c.jpg", os.fsdecode(b"\xff.jpg"))
    text = io.TextIOWrapper(io.BytesIO(b"a.jpg\nb c.jpg\n\xff.jpg\n" + os.fsencode(root / "a.jpg")))
    monkeypatch.setattr(sys, "stdin", text)
    spool_list(tmp_path / "spool" / "standard-input.txt")
    manifest = open_manifest(tmp_path / "spool" / "standard-input.txt", root, "auto", None)
    listed = list(manifest.entries())
    assert [entry.source for entry in listed] == ["a.jpg", "b c.jpg", "\\xff.jpg", str(root / "a.jpg")]
    assert [manifest.read("train", entry.place) for entry in listed] == [jpeg(0), jpeg(1), jpeg(2), jpeg(0)]
    assert os.listdir(tmp_path / "spool") == ["standard-input.txt"]


def test_a_manifest_without_rows_is_named(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("path\n")
    with pytest.raises(DataError, match="no rows"):
        entries(tmp_path / "list.csv")


def test_columns_are_found_whatever_their_letters_and_may_be_missing_in_json_rows(tmp_path: Path) -> None:
    file = tmp_path / "list.csv"
    file.write_text("Path,Label,SPLIT\n1.jpg,cat,train\n2.jpg,dog,test\n3.jpg,dog,\n")
    assert [entry[::4] for entry in entries(file)] == [("train", "cat"), ("test", "dog"), ("train", "dog")]
    file = tmp_path / "list.jsonl"
    file.write_text('{"path": "1.jpg"}\n{"path": "2.jpg", "label": "cat", "split": "test"}\n')
    assert [entry[::4] for entry in entries(file)] == [("train", None), ("test", "cat")]
    with pytest.raises(DataError, match=r"list\.jsonl:1: no label in 'label'"):
        entries(file, "Label")


@pytest.mark.parametrize("name", ["list.csv", "standard-input.txt"])
def test_labels_can_come_from_a_mapping_file(corpus: Corpus, jpeg: Jpeg, tmp_path: Path, name: str) -> None:
    root = corpus("a/1.jpg", "2.jpg")
    (root / name).write_text(("path\n" if name == "list.csv" else "") + "a/1.jpg\n2.jpg\n")
    (tmp_path / "labels.csv").write_text("1.jpg,cat\n2.jpg,dog\n")
    found = opened(root / name, str(tmp_path / "labels.csv"))
    assert [entry.label for entry in found.entries()] == ["cat", "dog"]
    assert found.describe().endswith(f"labels from {tmp_path / 'labels.csv'}")
    with pytest.raises(ConfigError, match=r"labels=none\.csv: no such file"):
        opened(root / name, "none.csv")


def test_backslashes_are_slashes_where_the_file_as_written_is_not_there(corpus: Corpus, jpeg: Jpeg) -> None:
    root = corpus("sub/1.jpg", "as\\written.jpg")
    file = write(root / "list.csv", [{"path": "sub\\1.jpg"}, {"path": "as\\written.jpg"}, {"path": "gone\\1.jpg"}])
    listed = entries(file)
    assert [entry.source for entry in listed] == ["sub/1.jpg", "as\\written.jpg", "gone\\1.jpg"]
    assert [opened(file).read("train", entry.place) for entry in listed[:2]] == [jpeg(0), jpeg(1)]


def test_urls_that_are_none_are_listed_and_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_bytes(b"url\nhttp://[::1/a.jpg\nhttp://127.0.0.1:1/a.jpg?x=\xe9\n")
    listed = entries(tmp_path / "list.csv")
    assert [entry.source for entry in listed] == ["http://...", "http://127.0.0.1:1/a.jpg?x=..."]
    with pytest.raises(OSError, match=r"http://\.\.\.: \w+"):
        opened(tmp_path / "list.csv").read("train", listed[0].place)
