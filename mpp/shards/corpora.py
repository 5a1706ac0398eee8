"""Where images come from: a folder, or a Hugging Face dataset as parquet files or by its Hub name.

A corpus lists its images once (:class:`Listing`) and then reads any of them by split and number, in any process.
"""

import errno
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import numpy as np

from mpp.errors import ConfigError, DataError
from mpp.shards.images import IMAGE_NAMES, has_signature
from mpp.shards.layout import Int64s, Split

SPLIT_OF = {"train": "train", "val": "validation", "valid": "validation", "validation": "validation", "test": "test"}
MAX_FILE_BYTES = 2**30


@dataclass(frozen=True)
class RawSample:
    """One source image as it was found, and where that was."""

    image: bytes
    source: str


class Reader(Protocol):
    """What source images are read from."""

    def read(self, split: str, item: int) -> RawSample:
        """Return image number ``item`` of the listing of ``split``; raise ``OSError`` where it cannot be read."""
        ...

    def narrow(self, split: str, items: list[int]) -> "Reader":
        """Return a reader for these images alone, which is cheap to send to another process."""
        ...


@dataclass(frozen=True)
class Listing:
    """All images of a corpus by split, the names of the classes, and in words what was found and decided."""

    splits: dict[str, Split]
    classes: tuple[str, ...] | None
    decisions: str
    reader: Reader


@dataclass(frozen=True)
class FolderReader:
    """Reads the files of a listed folder."""

    root: Path
    files: Mapping[str, tuple[str, ...] | dict[int, str]]

    def read(self, split: str, item: int) -> RawSample:
        """Read one file; raise ``OSError`` where that is impossible or the file is above ``MAX_FILE_BYTES``."""
        name = self.files[split][item]
        return RawSample(read_file(self.root / name), printable(name))

    def narrow(self, split: str, items: list[int]) -> "FolderReader":
        """Keep the names of these files."""
        return FolderReader(self.root, {split: {item: self.files[split][item] for item in items}})


@dataclass(frozen=True)
class DatasetReader:
    """Reads the rows of a Hugging Face dataset, whose arrow files every process maps for itself."""

    tables: dict[str, Any]
    image: str

    @cached_property
    def _columns(self) -> dict[str, tuple[list[Any], Int64s]]:
        """The chunks of each split's image column and the row at which each begins."""
        columns = {}
        for split, table in self.tables.items():
            chunks = table.data.column(self.image).chunks
            columns[split] = (chunks, np.cumsum([0] + [len(chunk) for chunk in chunks]))
        return columns

    def read(self, split: str, item: int) -> RawSample:
        """Return one row's original bytes; raise ``OSError`` where a row only names a file that cannot be read."""
        chunks, begins = self._columns[split]
        number = int(np.searchsorted(begins, item, side="right")) - 1
        row = chunks[number][item - int(begins[number])].as_py()
        data, path = (row.get("bytes"), row.get("path")) if isinstance(row, dict) else (row, None)
        if data is None and path:
            data = read_file(Path(path))
        return RawSample(data or b"", f"{split}[{item}]" + (f" {path}" if path else ""))

    def narrow(self, split: str, items: list[int]) -> "DatasetReader":
        """Keep the table of this split, which is sent as the path of its file."""
        return DatasetReader({split: self.tables[split]}, self.image)


def list_corpus(source: str, labels: str, image: str | None) -> Listing:
    """List ``source``, whatever it is.

    ``labels`` is auto, none, folders or a column; ``image`` names a dataset's image column. Raises ``ConfigError``
    for a source that is not there or options that do not fit it, ``DataError`` for one without images.
    """
    root = Path(source)
    if root.is_dir():
        names = list(walk(source))
        images = [name for name in names if _is_image(root, name)]
        tables = [name for name in names if name.lower().endswith(".parquet")]
        if not images and not tables:
            raise DataError(f"{source}: no images and no parquet files under this folder", fix="name another SOURCE")
        return list_dataset(source, labels, image, tables) if not images else list_folder(root, images, labels)
    if root.exists():
        raise ConfigError(f"{source} is a file; SOURCE is a folder or a Hub dataset", fix="name the folder it lies in")
    if re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", source) and not root.parent.exists():
        return list_dataset(source, labels, image, [])
    raise ConfigError(f"{source}: no such folder", fix="name an existing folder, or a Hub dataset as OWNER/NAME")


def walk(folder: str, prefix: str = "", above: frozenset[tuple[int, int]] = frozenset()) -> Iterator[str]:
    """Yield every file under ``folder``, relative, in bytewise order; hidden names are skipped.

    Links to folders are followed unless they lead back into a folder that is being walked (``above``). Raises
    ``DataError`` for a folder that cannot be listed.
    """
    status = os.stat(folder)
    here = (status.st_dev, status.st_ino)
    if here in above:
        return
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: os.fsencode(entry.name))
    except OSError as error:
        raise DataError(f"{folder}: cannot list it, {error.strerror}", fix="make the folder readable") from None
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            yield from walk(entry.path, f"{prefix}{entry.name}/", above | {here})
        elif entry.is_file() or entry.is_symlink():  # a dangling link is listed, and later counted as unreadable
            yield prefix + entry.name


def _is_image(root: Path, name: str) -> bool:
    """Say whether a file counts as an image: by its extension, or without one by its first bytes."""
    extension = PurePosixPath(name).suffix[1:].lower()
    if extension:
        return extension in IMAGE_NAMES
    try:
        with open(root / name, "rb") as file:
            return has_signature(file.read(16))
    except OSError:
        return False


def list_folder(root: Path, names: list[str], labels: str) -> Listing:
    """List image files, relative to ``root``; top folders named as splits are splits."""
    files = _by_split(root, names)
    if labels not in ("auto", "none", "folders"):
        raise ConfigError(f"labels={labels}: a folder of images has no columns", fix="labels=auto, none or folders")
    depth = 1 if _split_name(names[0]) else 0
    folders = {split: [_folder_at(name, depth) for name in group] for split, group in files.items()}
    found = {folder for group in folders.values() for folder in group}
    stray = next((name for split, g in folders.items() for name, f in zip(files[split], g, strict=True) if not f), None)
    if labels == "folders" and stray is not None:
        raise ConfigError(f"labels=folders, but {printable(stray)} lies in no class folder", fix="labels=none")
    classes = None
    if labels == "folders" or (labels == "auto" and stray is None and len(found) > 1):
        classes = tuple(sorted((folder for folder in found if folder), key=os.fsencode))
    numbers = None
    if classes is not None:
        index = dict(zip(classes, range(len(classes)), strict=True))
        numbers = {split: np.array([index[str(f)] for f in group], np.int64) for split, group in folders.items()}
    splits = {
        split: Split(
            tuple(map(printable, group)),
            np.array([_file_size(root / f) for f in group], np.int64),
            None if numbers is None else numbers[split],
        )
        for split, group in files.items()
    }
    shown = None if classes is None else tuple(map(printable, classes))
    why = "" if stray is None or labels != "auto" else f" (e.g. {printable(stray)} lies in no class folder)"
    return Listing(splits, shown, _describe(f"folder {root}", splits, shown, why), FolderReader(root, files))


def _by_split(root: Path, names: list[str]) -> dict[str, tuple[str, ...]]:
    """Group files by top folder where those are splits; raise ``DataError`` where only some files lie in one."""
    groups: dict[str | None, list[str]] = {}
    for name in names:
        groups.setdefault(_split_name(name), []).append(name)
    outside = groups.pop(None, [])
    if outside and groups:
        found = ", ".join(sorted(str(split) for split in groups))
        example = printable(outside[0])
        raise DataError(f"{root}: {example} lies outside the split folders ({found})", fix="move it into one of them")
    return {str(split): tuple(group) for split, group in sorted(groups.items(), key=str)} or {"train": tuple(outside)}


def _split_name(name: str) -> str | None:
    top, slash, _ = name.partition("/")
    return SPLIT_OF.get(top.lower()) if slash else None


def _folder_at(name: str, depth: int) -> str | None:
    parts = name.split("/")
    return parts[depth] if len(parts) > depth + 1 else None


def _file_size(path: Path | str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0


def list_dataset(source: str, labels: str, image: str | None, files: list[str]) -> Listing:
    """List a dataset from parquet ``files`` under the folder ``source``, or from the Hub where there are none."""
    tables = _load(source, files)
    features = next(iter(tables.values())).features
    column = image or _only(_image_columns(features), "image", features)
    if column not in features:
        raise ConfigError(f"image={column}: no such column; there are {', '.join(features)}", fix="image=COLUMN")
    label = _label_column(features, labels)
    classes = _class_names(features, tables, label)
    numbers = None if label is None else {name: _labels(name, table, label) for name, table in tables.items()}
    splits = {}
    for name, table in tables.items():
        sources = tuple(f"{name}[{item}]" for item in range(len(table)))
        splits[name] = Split(sources, _row_sizes(table, column), None if numbers is None else numbers[name])
    what = f"dataset {source}, image column {column!r}"
    return Listing(splits, classes, _describe(what, splits, classes, ""), DatasetReader(tables, column))


def _load(source: str, files: list[str]) -> dict[str, Any]:
    """Open a dataset as one memory-mapped table a split; raise ``DataError`` with the library's reason."""
    import datasets

    datasets.disable_progress_bars()
    try:
        if files:
            groups: dict[str, list[str]] = {}
            for file in files:
                groups.setdefault(_split_of_file(file), []).append(str(Path(source) / file))
            loaded = datasets.load_dataset("parquet", data_files=groups)
        else:
            loaded = datasets.load_dataset(source)
    except Exception as error:  # a network, a file system and many parsers speak through this one call
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        what = "its parquet files cannot be read" if files else "no such folder, and no such dataset on the Hub"
        raise DataError(f"{source}: {what} ({reason})", fix="name another SOURCE") from None
    return {SPLIT_OF.get(name, name): loaded[name] for name in sorted(loaded)}


def _split_of_file(file: str) -> str:
    """Return the split that a parquet file's name or folder begins with, else train."""
    for part in reversed(file.lower().split("/")):
        match = re.match(r"(train|validation|valid|val|test)(?![a-z])", part)
        if match:
            return SPLIT_OF[match[1]]
    return "train"


def _image_columns(features: Any) -> list[str]:
    """Name the columns of type Image, or else those that are built as such columns are stored."""
    typed = [name for name, feature in features.items() if type(feature).__name__ == "Image"]
    return typed or [name for name, feature in features.items() if isinstance(feature, dict) and "bytes" in feature]


def _only(columns: list[str], kind: str, features: Any) -> str:
    if len(columns) == 1:
        return columns[0]
    raise ConfigError(f"{len(columns)} {kind} columns among {', '.join(features)}, expected 1", fix=f"{kind}=COLUMN")


def _label_column(features: Any, labels: str) -> str | None:
    """Return the column of the labels: the only ClassLabel, or the one that ``labels`` names."""
    typed = [name for name, feature in features.items() if type(feature).__name__ == "ClassLabel"]
    if labels == "none" or (labels == "auto" and not typed):
        return None
    if labels == "auto":
        return _only(typed, "labels", features)
    if labels not in features:
        raise ConfigError(f"labels={labels}: no such column; there are {', '.join(features)}", fix="labels=COLUMN")
    return labels


def _class_names(features: Any, tables: dict[str, Any], label: str | None) -> tuple[str, ...] | None:
    if label is None:
        return None
    if type(features[label]).__name__ == "ClassLabel":
        return tuple(features[label].names)
    most = max(int(_labels(name, table, label).max(initial=-1)) for name, table in tables.items())
    return tuple(str(number) for number in range(most + 1))


def _labels(split: str, table: Any, column: str) -> Int64s:
    """Read a column of integer labels; raise ``DataError`` where some are missing or are no integers from 0."""
    import pyarrow

    values = table.data.column(column)
    if not pyarrow.types.is_integer(values.type):
        raise DataError(f"{split}: column {column} holds {values.type}, labels are integers", fix="labels=none")
    numbers = np.asarray(values.fill_null(-1).to_numpy(), np.int64)
    missing = int((numbers < 0).sum())
    if missing:
        raise DataError(f"{split}: {missing} of {len(numbers)} images have no label in {column!r}", fix="labels=none")
    return numbers


def _row_sizes(table: Any, column: str) -> Int64s:
    """Return each row's size in bytes; a row that only names a file has that file's size."""
    import pyarrow
    import pyarrow.compute

    values = table.data.column(column)
    if pyarrow.types.is_struct(values.type):
        data, paths = pyarrow.compute.struct_field(values, "bytes"), pyarrow.compute.struct_field(values, "path")
    else:
        data, paths = values, None
    lengths = pyarrow.compute.fill_null(pyarrow.compute.binary_length(data), -1)
    sizes = np.array(lengths.to_numpy(), np.int64)
    for item in np.flatnonzero(sizes < 0).tolist():
        sizes[item] = _file_size(paths[item].as_py() or "") if paths is not None else 0
    return sizes


def _describe(what: str, splits: dict[str, Split], classes: tuple[str, ...] | None, why: str) -> str:
    counts = ", ".join(f"{name} {len(split.sources):,}" for name, split in splits.items())
    if classes is None:
        return f"{what}: {counts}; no labels{why}"
    names = ", ".join(classes[:3]) + (", ..." if len(classes) > 3 else "")
    return f"{what}: {counts}; labels: {len(classes)} classes ({names})"


def read_file(path: Path) -> bytes:
    """Read a file; raise ``OSError`` where that is impossible, EFBIG for files above ``MAX_FILE_BYTES``."""
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > MAX_FILE_BYTES:
            raise OSError(errno.EFBIG, f"{size} bytes, at most {MAX_FILE_BYTES}", str(path))
        return file.read()


def printable(text: str) -> str:
    """Return ``text`` with bytes of file names that are no UTF-8 written as escapes."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
