"""Rows come with their line, from every kind of table, and a line that is no row is named."""

import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from mpp.errors import ConfigError, DataError
from mpp.sources import rows
from mpp.sources.rows import Row, column_names, one_column, read_rows

EXPECTED = [{"path": "a b.jpg", "label": "x"}, {"path": "日,本.jpg", "label": "y"}]


def write(folder: Path, kind: str) -> Path:
    file = folder / f"list{kind}"
    if kind == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(EXPECTED), file)
    elif kind == ".jsonl":
        file.write_text("".join(json.dumps(row) + "\n" for row in EXPECTED))
    elif kind == ".tsv":
        file.write_text("path\tlabel\na b.jpg\tx\n日,本.jpg\ty\n")
    else:
        file.write_bytes('\ufeffpath,label\r\na b.jpg,x\r\n\r\n"日,本.jpg",y\r\n'.encode())
    return file


@pytest.mark.parametrize("kind", rows.TABLES)
def test_every_kind_of_table_gives_the_same_rows(tmp_path: Path, kind: str) -> None:
    file = write(tmp_path, kind)
    assert column_names(file) == ("path", "label")
    assert [row.values for row in read_rows(file, ["path", "label"])] == EXPECTED


def test_rows_know_their_line_in_the_file(tmp_path: Path) -> None:
    assert [row.line for row in read_rows(write(tmp_path, ".csv"))] == [2, 4]
    assert [row.line for row in read_rows(write(tmp_path, ".parquet"), ["path"])] == [1, 2]
    text = tmp_path / "list.txt"
    text.write_bytes(b"a.jpg\r\n\n b.jpg \n\xff\rc.jpg")
    found = [Row(1, {"path": "a.jpg"}), Row(3, {"path": " b.jpg "}), Row(4, {"path": "\udcff\rc.jpg"})]
    assert list(read_rows(text)) == found


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("x.csv", "path,label\na.jpg,1\nb.jpg\n", "x.csv:3: 1 values, expected 2"),
        ("x.csv", 'path\n"a.jpg\nb.jpg\n', r"x\.csv:3: unexpected end of data"),
        ("x.csv", "path\n" + "a" * 200_000, r"x\.csv:2: field larger than field limit"),
        ("x.tsv", "path\tlabel\na.jpg\t1\t2\n", "x.tsv:2: 3 values, expected 2"),
        ("x.jsonl", '{"path": "a"}\n{"path": \n', "x.jsonl:2: no JSON"),
        ("x.jsonl", '{"path": "a"}\n["a"]\n', "x.jsonl:2: list, expected an object"),
        ("x.jsonl", '{"path": "a"}\n' + "[" * 100_000 + "\n", "x.jsonl:2: no JSON"),
    ],
)
def test_a_line_that_is_no_row_is_named(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message):
        list(read_rows(tmp_path / name))


def test_a_line_without_an_end_is_not_read_into_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "LONGEST_LINE", 100)
    (tmp_path / "x.jsonl").write_text('{"path": "' + "a" * 1000 + '"}\n')
    (tmp_path / "x.csv").write_text("path\n" + "a," * 1000)
    for name, line in (("x.jsonl", 1), ("x.csv", 2)):
        with pytest.raises(DataError, match=rf"{name}:{line}: more than 100 characters"):
            list(read_rows(tmp_path / name))


def test_files_that_are_empty_missing_or_no_parquet_are_named(tmp_path: Path) -> None:
    (tmp_path / "x.csv").touch()
    (tmp_path / "x.jsonl").touch()
    (tmp_path / "x.parquet").write_text("PAR1")
    for name in ("x.csv", "x.jsonl"):
        with pytest.raises(DataError, match="no rows"):
            column_names(tmp_path / name)
    with pytest.raises(DataError, match="cannot be read"):
        column_names(tmp_path / "x.parquet")
    with pytest.raises(DataError, match="No such file"):
        column_names(tmp_path / "missing.csv")


def test_a_column_is_the_one_asked_for_or_the_only_known_one() -> None:
    assert one_column(("id", "url"), rows.PATHS, None, "x.csv", "image") == "url"
    assert one_column(("id", "url"), rows.PATHS, "id", "x.csv", "image") == "id"
    assert one_column(("id",), rows.PATHS, None, "x.csv", "image") is None
    with pytest.raises(ConfigError, match=r"path and url could both be the image column"):
        one_column(("path", "url"), rows.PATHS, None, "x.csv", "image")
    assert one_column(("ID", "Url"), rows.PATHS, None, "x.csv", "image") == "Url"
    assert one_column(("Id", "ID"), rows.PATHS, "ID", "x.csv", "image") == "ID"
    with pytest.raises(ConfigError, match=r"image=id: no such column in x\.csv; there are Id, ID"):
        one_column(("Id", "ID"), rows.PATHS, "id", "x.csv", "image")
    with pytest.raises(ConfigError, match=r"image=pic: no such column in x\.csv; there are path, url"):
        one_column(("path", "url"), rows.PATHS, "pic", "x.csv", "image")


def test_the_columns_of_json_lines_are_those_of_all_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.jsonl").write_text('{"path": "1.jpg"}\n{"label": 1, "path": "2.jpg"}\n')
    assert column_names(tmp_path / "x.jsonl") == ("path", "label")
    monkeypatch.setattr(rows, "MOST_COLUMNS", 1)
    with pytest.raises(DataError, match=r"x\.jsonl:2: more than 1 columns"):
        column_names(tmp_path / "x.jsonl")


def test_semicolons_are_known_by_the_header_and_empty_rows_are_skipped(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_bytes(b"\xef\xbb\xbfpath;label\r\na, b.jpg;3\r\n;\r\n")
    assert list(read_rows(tmp_path / "x.csv")) == [Row(2, {"path": "a, b.jpg", "label": "3"})]
    (tmp_path / "y.csv").write_text('path,a;b\n1.jpg,3\n"",\n')
    assert list(read_rows(tmp_path / "y.csv")) == [Row(2, {"path": "1.jpg", "a;b": "3"})]
