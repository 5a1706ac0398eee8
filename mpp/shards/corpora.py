"""Where images come from: a folder, or a Hugging Face dataset as parquet files or by its Hub name.

A corpus lists its images once (:class:`Listing`) and then reads any of them by split and number, in any process.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mpp.errors import ConfigError, DataError
from mpp.shards.files import file_size, is_image, printable, read_file, walk
from mpp.shards.layout import Int64s, Split

SPLIT_OF = {"train": "train", "val": "validation", "valid": "validation", "validation": "validation", "test": "test"}


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
        images = [name for name in names if is_image(root, name)]
        tables = [name for name in names if name.lower().endswith(".parquet")]
        if images and tables:
            found = f"both images ({printable(images[0])}) and parquet files ({printable(tables[0])})"
            raise ConfigError(f"{source}: {found} lie here", fix="name the subfolder with those to shard, or part them")
        if not images and not tables:
            raise DataError(f"{source}: no images and no parquet files under this folder", fix="name another SOURCE")
        return list_dataset(source, labels, image, tables) if not images else list_folder(root, images, labels)
    if root.exists():
        raise ConfigError(f"{source} is a file; SOURCE is a folder or a Hub dataset", fix="name the folder it lies in")
    if re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", source) and not root.parent.exists():
        return list_dataset(source, labels, image, [])
    raise ConfigError(f"{source}: no such folder", fix="name an existing folder, or a Hub dataset as OWNER/NAME")


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
            np.array([file_size(root / f) for f in group], np.int64),
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


def list_dataset(source: str, labels: str, image: str | None, files: list[str]) -> Listing:
    """List a dataset from parquet ``files`` under the folder ``source``, or from the Hub where there are none."""
    tables = _load(source, files)
    features = next(iter(tables.values())).features
    column = image or _only(_image_columns(features), "image", features)
    if column not in features:
        raise ConfigError(f"image={column}: no such column; there are {', '.join(features)}", fix="image=COLUMN")
    label = _label_column(features, labels)
    splits, why = {}, ""
    for name, table in tables.items():
        numbers = None if label is None else _labels(name, table, label)
        if label is not None and numbers is None:
            why += (
                f"; {name} left out: none of its {len(table):,} images has a label in {label!r} (labels=none takes it)"
            )
            continue
        sources = tuple(f"{name}[{item}]" for item in range(len(table)))
        splits[name] = Split(sources, _row_sizes(table, column), numbers)
    if not splits:
        raise DataError(f"{source}: no split has labels in {label!r}", fix="labels=none")
    classes = _class_names(features, splits, label)
    what = f"dataset {source}, image column {column!r}"
    return Listing(splits, classes, _describe(what, splits, classes, why), DatasetReader(tables, column))


def _load(source: str, files: list[str]) -> dict[str, Any]:
    """Open a dataset as one memory-mapped table a split; raise ``DataError`` with the library's reason."""
    import datasets

    datasets.disable_progress_bars()
    groups: dict[str, list[str]] = {}
    for file in files:
        groups.setdefault(_split_of_file(file), []).append(str(Path(source) / file))
    try:
        loaded = datasets.load_dataset("parquet", data_files=groups) if files else datasets.load_dataset(source)
    except Exception as error:  # a network, a file system and many parsers speak through this one call
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        what = "its parquet files cannot be read" if files else "no such folder, and no such dataset on the Hub"
        raise DataError(f"{source}: {what} ({reason})", fix="name another SOURCE") from None
    splits = {SPLIT_OF.get(name, name): loaded[name] for name in sorted(loaded)}
    if len(splits) < len(loaded):
        raise DataError(
            f"{source}: {', '.join(sorted(loaded))} are several names of one split", fix="name another SOURCE"
        )
    return splits


def _split_of_file(file: str) -> str:
    """Return the split that is a word of a parquet file's name, or else of the nearest folder's, else train.

    Raises ``DataError`` where that name has the words of two splits.
    """
    for part in reversed(file.lower().split("/")):
        words = re.findall(r"(?<![a-z])(train|validation|valid|val|test)(?![a-z])", part)
        found = sorted({SPLIT_OF[word] for word in words})
        if len(found) > 1:
            raise DataError(
                f"{printable(file)} names the splits {' and '.join(found)}", fix="rename it after one split"
            )
        if found:
            return found[0]
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


def _class_names(features: Any, splits: dict[str, Split], label: str | None) -> tuple[str, ...] | None:
    if label is None:
        return None
    if type(features[label]).__name__ == "ClassLabel":
        return tuple(features[label].names)
    most = max(int(split.labels.max(initial=-1)) for split in splits.values() if split.labels is not None)
    return tuple(str(number) for number in range(most + 1))


def _labels(split: str, table: Any, column: str) -> Int64s | None:
    """Read a column of integer labels, None where all are missing (-1 or null), as in the test sets of the Hub.

    Raises ``DataError`` where only some are missing, or the labels are no integers.
    """
    import pyarrow

    values = table.data.column(column)
    if not pyarrow.types.is_integer(values.type):
        raise DataError(f"{split}: column {column} holds {values.type}, labels are integers", fix="labels=none")
    numbers = np.asarray(values.fill_null(-1).to_numpy(), np.int64)
    missing = int((numbers < 0).sum())
    if 0 < missing < len(numbers):
        raise DataError(f"{split}: {missing} of {len(numbers)} images have no label in {column!r}", fix="labels=none")
    return None if missing else numbers


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
        sizes[item] = file_size(paths[item].as_py() or "") if paths is not None else 0
    return sizes


def _describe(what: str, splits: dict[str, Split], classes: tuple[str, ...] | None, why: str) -> str:
    counts = ", ".join(f"{name} {len(split.sources):,}" for name, split in splits.items())
    if classes is None:
        return f"{what}: {counts}; no labels{why}"
    names = ", ".join(classes[:3]) + (", ..." if len(classes) > 3 else "")
    return f"{what}: {counts}; labels: {len(classes)} classes ({names}){why}"
