"""Images that a manifest names by path or URL: CSV, TSV, JSON lines, parquet, or a list on standard input."""

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import Field

from mpp.config import config
from mpp.errors import ConfigError, DataError
from mpp.sources.entries import UNKNOWN, Entry
from mpp.sources.files import file_size, printable, read_file
from mpp.sources.labels import find_mapping, labeller
from mpp.sources.mappings import MAPPINGS, is_number
from mpp.sources.remote import check_scheme, read_url, redact, scheme_of
from mpp.sources.rows import LABELS, PATHS, Row, column_names, one_column, read_rows
from mpp.sources.splits import DEFAULT, split_name

SPLIT = "split"


@config
class Manifest:
    """A file with the path of an image in every row, and perhaps its label and its split."""

    kind: Literal["manifest"] = "manifest"
    file: Path = Field(description="absolute path of the manifest")
    base: Path = Field(description="folder that relative paths start from")
    image: str = Field(description="column of the paths")
    label: str | None = Field(None, description="column of the labels")
    split: str | None = Field(None, description="column of the splits")
    otherwise: str = Field(DEFAULT, description="split of rows that name none")
    mapping: str | None = Field(None, description="absolute path of a mapping file, in place of a column of labels")
    must_label: bool = Field(False, description="whether a row without a label is an error")
    numbered: bool = Field(False, description="whether labels that are text stand for whole numbers")

    def entries(self) -> Iterator[Entry]:
        """Yield every row's image; ``place`` is its path or URL.

        Raises ``DataError`` with the line of a row that lacks something, ``ConfigError`` for a URL that is not read.
        """
        schemes: set[str] = set()
        empty, mapped = True, labeller(self.mapping or "none")
        for row in read_rows(self.file, [name for name in (self.image, self.label, self.split) if name]):
            empty = False
            where = f"{self.file}:{row.line}"
            written = self._path(row, where)
            scheme = scheme_of(written)
            if scheme is not None and scheme not in schemes:
                _check_scheme(scheme, where)
                schemes.add(scheme)
            path, size = (written, UNKNOWN) if scheme else self._local(written)
            shown = redact(path) if scheme else printable(path)
            label = mapped(written, None) if self.mapping else self._label(row, where)
            yield Entry(self._split(row, where), os.fsencode(path), shown, size, label)
        if empty:
            raise DataError(f"{self.file}: no rows", fix="name another SOURCE")

    def classes(self) -> None:
        """Return None: a manifest does not name numbers."""

    def describe(self) -> str:
        """Name the manifest and its columns."""
        columns = [self.image, *(name for name in (self.label, self.split) if name)]
        mapping = f", labels from {self.mapping}" if self.mapping else ""
        return f"manifest {self.file}, column{'s' * (len(columns) > 1)} {', '.join(map(repr, columns))}{mapping}"

    def read(self, split: str, place: bytes) -> bytes:
        """Read a file or a URL; raise ``OSError`` where that is impossible or it is above ``MAX_FILE_BYTES``."""
        path = os.fsdecode(place)
        return read_url(path) if scheme_of(path) else read_file(self.base / path)

    def _local(self, path: str) -> tuple[str, int]:
        """Return a path and its file's size; backslashes that name nothing are taken for slashes if that does."""
        size, slashed = file_size(self.base / path), path.replace("\\", "/")
        if size == UNKNOWN and slashed != path and (found := file_size(self.base / slashed)) != UNKNOWN:
            return slashed, found
        return path, size

    def _path(self, row: Row, where: str) -> str:
        if self.image not in row.values:
            raise DataError(f"{where}: no column {self.image!r}", fix="mend this line")
        path = row.values[self.image]
        if not isinstance(path, str) or not _is_path(path):
            shown = printable(str(path)) if path else "empty"
            raise DataError(f"{where}: column {self.image!r} is {shown}, expected a path")
        return path

    def _split(self, row: Row, where: str) -> str:
        name = row.values.get(self.split) if self.split else None
        return self.otherwise if name is None or name == "" else split_name(name, where)

    def _label(self, row: Row, where: str) -> str | int | None:
        """Return a row's label, None where it is missing: not there, empty, null or below 0."""
        if self.label is None:
            return None
        label = row.values.get(self.label)
        if isinstance(label, bool) or not isinstance(label, str | int | None):
            raise DataError(f"{where}: label {label!r} is no name and no whole number")
        if label is None or label == "" or label == "-1" or (isinstance(label, int) and label < 0):
            if self.must_label:
                raise DataError(f"{where}: no label in {self.label!r}", fix="labels=none")
            return None
        if isinstance(label, int):
            return label
        return int(label) if self.numbered else printable(label)


def open_manifest(file: Path, base: Path, labels: str, image: str | None, *, otherwise: str = DEFAULT) -> Manifest:
    """Open a manifest after looking at its columns.

    ``labels`` is auto, none, a column or a mapping file; ``otherwise`` is the split of rows that name none. Raises
    ``ConfigError`` for columns that are not there, ``DataError`` for a file that cannot be read.
    """
    names = PATHS[:1] if file.suffix.lower() == ".txt" else column_names(file)
    path = one_column(names, PATHS, image, str(file), "image")
    if path is None:
        raise ConfigError(f"{file}: no column of paths among {', '.join(map(printable, names))}", fix="image=COLUMN")
    mapping = find_mapping(labels) if labels not in names and labels.lower().endswith(MAPPINGS) else None
    asked = None if labels == "auto" else labels
    label = None if mapping or labels == "none" else one_column(names, LABELS, asked, str(file), "labels")
    return Manifest(
        file=file,
        base=base,
        image=path,
        label=label,
        split=one_column(names, (SPLIT,), None, str(file), "split"),
        otherwise=otherwise,
        mapping=mapping,
        must_label=labels not in ("auto", "none"),
        numbered=label is not None and _all_numbers(file, label),
    )


def spool_list(file: Path) -> None:
    """Copy standard input into ``file``, so that it can be read again and by other processes."""
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_suffix(".part")
    with open(unfinished, "wb") as target:
        shutil.copyfileobj(sys.stdin.buffer, target)
    os.replace(unfinished, file)


def _all_numbers(file: Path, column: str) -> bool:
    """Say whether the labels that are text are all digits: then they are numbers, which keep their order."""
    labels = (row.values.get(column) for row in read_rows(file, [column]))
    return all(is_number(label) or label in ("", "-1") for label in labels if isinstance(label, str))


def _is_path(text: str) -> bool:
    try:
        return bool(os.fsencode(text)) and "\0" not in text
    except UnicodeEncodeError:
        return False


def _check_scheme(scheme: str, where: str) -> None:
    try:
        check_scheme(scheme)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
