"""Rows of a table file with their line numbers: CSV, TSV, JSON lines, parquet, or a text file with a path a line.

A file is read as a stream: memory does not grow with it.
"""

import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from mpp.errors import ConfigError, DataError

TABLES = (".csv", ".tsv", ".jsonl", ".parquet")
PATHS = ("path", "file_name", "file", "image", "url", "filename")
LABELS = ("label", "class")
LONGEST_LINE = 2**20  # characters
BATCH = 4096  # rows
DELIMITERS = {".csv": ",", ".tsv": "\t"}


class Row(NamedTuple):
    """One row: its line in the file (of parquet: its number, from 1) and its values by column."""

    line: int
    values: dict[str, Any]


def column_names(file: Path) -> tuple[str, ...]:
    """Return the columns of ``file``: its header, of JSON lines the keys of the first.

    Raises ``DataError`` for a file that is empty or cannot be read.
    """
    if file.suffix.lower() == ".parquet":
        names: Sequence[str] = parquet_schema(file).names
    elif file.suffix.lower() in DELIMITERS:
        names = next(_cells(file), (0, []))[1]
    else:
        names = list(next(read_rows(file), Row(0, {})).values)
    if not names:
        raise DataError(f"{file}: no rows", fix="name another SOURCE")
    return tuple(names)


def read_rows(file: Path, columns: Sequence[str] = (), *, header: Sequence[str] | None = None) -> Iterator[Row]:
    """Yield the rows of ``file``, of a parquet file only the values of ``columns``.

    ``header`` names the columns of a CSV file that has no header. Raises ``DataError`` with the line of what is no row.
    """
    kind = file.suffix.lower()
    if kind in DELIMITERS:
        return _delimited_rows(file, header)
    if kind == ".parquet":
        return _parquet_rows(file, columns)
    return _json_rows(file) if kind == ".jsonl" else _text_rows(file)


def one_column(names: Sequence[str], known: Sequence[str], asked: str | None, where: str, option: str) -> str | None:
    """Return the column that was ``asked`` for, or else the one of ``names`` that is ``known``, None where none is.

    Raises ``ConfigError`` where the asked one is missing or several are known.
    """
    shown = ", ".join(map(str, names))
    if asked is not None:
        if asked not in names:
            raise ConfigError(f"{option}={asked}: no such column in {where}; there are {shown}", fix=f"{option}=COLUMN")
        return asked
    found = [name for name in names if name in known]
    if len(found) > 1:
        raise ConfigError(f"{where}: {' and '.join(found)} could both be the {option} column", fix=f"{option}=COLUMN")
    return found[0] if found else None


def _open(file: Path, newline: str) -> TextIO:
    try:
        return open(file, newline=newline, encoding="utf-8-sig", errors="surrogateescape")
    except OSError as error:
        raise DataError(f"{file}: {error.strerror}") from None


def _cells(file: Path) -> Iterator[tuple[int, list[str]]]:
    with _open(file, "") as lines:
        reader = csv.reader(lines, delimiter=DELIMITERS[file.suffix.lower()], strict=True)
        try:
            for cells in reader:
                if cells:
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
    with _open(file, "\n") as lines:
        for number in range(1, 2**63):
            text = lines.readline(LONGEST_LINE + 1)
            if len(text) > LONGEST_LINE:
                raise DataError(f"{file}:{number}: more than {LONGEST_LINE:,} characters in a line")
            if not text:
                return
            if text.strip():
                yield number, text


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
        raise DataError(f"{file}: cannot be read ({' '.join(str(error).split())[:200]})") from None


def _parquet_rows(file: Path, columns: Sequence[str]) -> Iterator[Row]:
    with _parquet_file(file) as table:
        line = 0
        for batch in table.iter_batches(BATCH, columns=list(columns)):
            for values in batch.to_pylist():
                line += 1
                yield Row(line, values)
