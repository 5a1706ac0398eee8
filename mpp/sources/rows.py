"""Rows of a table file with their line numbers: CSV, TSV, JSON lines, parquet, or a text file with a path a line.

A file is read as a stream: memory does not grow with it.
"""

import csv
import json
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from mpp.errors import ConfigError, DataError
from mpp.sources.files import printable

TABLES = (".csv", ".tsv", ".jsonl", ".parquet")
PATHS = ("path", "file_name", "file", "image", "url", "filename")
LABELS = ("label", "class")
LONGEST_LINE = 2**20  # characters
MOST_COLUMNS = 1000  # of JSON lines, whose rows may all have others
BATCH = 4096  # rows
DELIMITED = (".csv", ".tsv")


class Row(NamedTuple):
    """One row: its line in the file (of parquet: its number, from 1) and its values by column."""

    line: int
    values: dict[str, Any]


def column_names(file: Path) -> tuple[str, ...]:
    """Return the columns of ``file``: its header, of JSON lines the keys of all of them.

    Raises ``DataError`` for a file that is empty or cannot be read.
    """
    if file.suffix.lower() == ".parquet":
        names: Sequence[str] = parquet_schema(file).names
    elif file.suffix.lower() in DELIMITED:
        names = next(_cells(file), (0, []))[1]
    else:
        names = _keys(file)
    if not names:
        raise DataError(f"{file}: no rows", fix="name another SOURCE")
    return tuple(names)


def _keys(file: Path) -> list[str]:
    names: dict[str, None] = {}
    for row in read_rows(file):
        names.update(dict.fromkeys(row.values))
        if len(names) > MOST_COLUMNS:
            raise DataError(f"{file}:{row.line}: more than {MOST_COLUMNS} columns up to here")
    return list(names)


def read_rows(file: Path, columns: Sequence[str] = (), *, header: Sequence[str] | None = None) -> Iterator[Row]:
    """Yield the rows of ``file``, of a parquet file only the values of ``columns``.

    ``header`` names the columns of a CSV file that has no header. Raises ``DataError`` with the line of what is no row.
    """
    kind = file.suffix.lower()
    if kind in DELIMITED:
        return _delimited_rows(file, header)
    if kind == ".parquet":
        return _parquet_rows(file, columns)
    return _json_rows(file) if kind == ".jsonl" else _text_rows(file)


def one_column(names: Sequence[str], known: Sequence[str], asked: str | None, where: str, option: str) -> str | None:
    """Return the column that was ``asked`` for, or else the one of ``names`` that is ``known``, None where none is.

    Capital and small letters are the same, unless a name fits as it is. Raises ``ConfigError`` where the asked one is
    missing or several are known.
    """
    shown = ", ".join(map(printable, names))
    if asked is not None:
        alike = [asked] * (asked in names) or [name for name in names if name.lower() == asked.lower()]
        if len(alike) != 1:
            raise ConfigError(f"{option}={asked}: no such column in {where}; there are {shown}", fix=f"{option}=COLUMN")
        return alike[0]
    found = [name for name in names if name.lower() in known]
    if len(found) > 1:
        raise ConfigError(f"{where}: {' and '.join(found)} could both be the {option} column", fix=f"{option}=COLUMN")
    return found[0] if found else None


def _open(file: Path, newline: str) -> TextIO:
    try:
        return open(file, newline=newline, encoding="utf-8-sig", errors="surrogateescape")
    except OSError as error:
        raise DataError(f"{file}: {error.strerror}") from None


def _cells(file: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield the line and the cells of every row that is not empty."""
    with _open(file, "") as text:
        lines = (line for _, line in _bounded(text, file))
        first = next(lines, "")
        delimiter = ";" if ";" in first and "," not in first else ","
        if file.suffix.lower() == ".tsv":
            delimiter = "\t"
        reader = csv.reader(chain([first], lines), delimiter=delimiter, strict=True)
        try:
            for cells in reader:
                if any(cells):
                    yield reader.line_num, cells
        except csv.Error as error:
            raise DataError(f"{file}:{reader.line_num}: {error}") from None


def _delimited_rows(file: Path, header: Sequence[str] | None) -> Iterator[Row]:
    for line, cells in _cells(file):
        if header is None:
            header = cells
            continue
        if len(cells) != len(header):
            raise DataError(f"{file}:{line}: {len(cells)} values, expected {len(header)}", fix="mend this line")
        yield Row(line, dict(zip(header, cells, strict=True)))


def _lines(file: Path) -> Iterator[tuple[int, str]]:
    with _open(file, "\n") as text:
        yield from ((number, line) for number, line in _bounded(text, file) if line.strip())


def _bounded(text: TextIO, file: Path) -> Iterator[tuple[int, str]]:
    """Yield the lines of an open file with their numbers; raise ``DataError`` before a line fills the memory."""
    number = 1
    while line := text.readline(LONGEST_LINE + 1):
        if len(line) > LONGEST_LINE:
            raise DataError(f"{file}:{number}: more than {LONGEST_LINE:,} characters in a line")
        yield number, line
        number += 1


def _json_rows(file: Path) -> Iterator[Row]:
    for line, text in _lines(file):
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{file}:{line}: no JSON ({error})", fix="mend this line") from None
        if not isinstance(values, dict):
            raise DataError(f"{file}:{line}: {type(values).__name__}, expected an object with columns")
        yield Row(line, values)


def _text_rows(file: Path) -> Iterator[Row]:
    return (Row(line, {PATHS[0]: text.removesuffix("\n").removesuffix("\r")}) for line, text in _lines(file))


def parquet_schema(file: Path) -> Any:
    """Return the Arrow schema of a parquet file; raise ``DataError`` where it cannot be read."""
    with _parquet_file(file) as table:
        return table.schema_arrow


def _parquet_file(file: Path) -> Any:
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.ParquetFile(file)
    except (OSError, pyarrow.ArrowException) as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{file}: cannot be read ({reason})", fix="mend it, or download it again") from None


def _parquet_rows(file: Path, columns: Sequence[str]) -> Iterator[Row]:
    with _parquet_file(file) as table:
        line = 0
        for batch in table.iter_batches(BATCH, columns=list(columns)):
            for values in batch.to_pylist():
                line += 1
                yield Row(line, values)
