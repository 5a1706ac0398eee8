"""Images that are rows of a table: Hugging Face datasets, as parquet files or by their Hub name."""

import os
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from mpp.config import config
from mpp.errors import ConfigError, DataError
from mpp.sources.entries import UNKNOWN, Entry
from mpp.sources.files import file_size, printable, read_file
from mpp.sources.hub import offline_without_hub
from mpp.sources.rows import LABELS, one_column
from mpp.sources.splits import DEFAULT, SPLIT_OF, word_split

AS_MANIFESTS = "where they hold paths or URLs, name one parquet file as SOURCE, or several in a .yaml"


@config
class Dataset:
    """A dataset whose rows lie in Arrow files, which every process maps into its memory."""

    kind: Literal["dataset"] = "dataset"
    root: str = Field(description="folder of parquet files, one of them, or name on the Hub")
    tables: dict[str, tuple[str, ...]] = Field(description="absolute paths of the Arrow files by split")
    image: str = Field(description="column of the images")
    label: str | None = Field(None, description="column of the labels")
    names: tuple[str, ...] | None = Field(None, description="names of the labels where those are numbers")
    left_out: dict[str, int] = Field(default_factory=dict, description="rows of the splits without any label")
    unused: dict[str, str] = Field(default_factory=dict, description="columns that one may expect to be used, and how")

    def entries(self) -> Iterator[Entry]:
        """Yield every row, in the order of the table; ``place`` is its number."""
        for split in self.tables:
            item = 0
            columns = [self._chunks(split, self.image), self._chunks(split, self.label) if self.label else []]
            labels = (_plain(label) for chunk in columns[1] for label in chunk)
            for chunk in columns[0]:
                for size, path in sizes_and_paths(chunk):
                    shown = f"{split}[{item}]" + (f" {printable(path)}" if path else "")
                    yield Entry(split, b"%d" % item, shown, size, next(labels, None))
                    item += 1

    def classes(self) -> tuple[str, ...] | None:
        """Return the names of a ClassLabel column."""
        return self.names

    def describe(self) -> str:
        """Name the dataset, its column, and the splits that were left out."""
        why = [
            f"; {split} left out: none of its {count:,} images has a label in {self.label!r} (labels=none takes it)"
            for split, count in self.left_out.items()
        ]
        why += [f"; its column {name!r} is not used ({how})" for name, how in self.unused.items()]
        return f"dataset {self.root}, image column {self.image!r}" + "".join(why)

    def read(self, split: str, place: bytes) -> bytes:
        """Return one row's bytes; raise ``OSError`` where a row only names a file that cannot be read."""
        item = int(place)
        chunks, begins = self._images[split]
        number = int(np.searchsorted(begins, item, side="right")) - 1
        row = chunks[number][item - int(begins[number])].as_py()
        data, path = (row.get("bytes"), row.get("path")) if isinstance(row, dict) else (row, None)
        return read_file(Path(path)) if data is None and path else data or b""

    @cached_property
    def _open_tables(self) -> dict[str, Any]:
        """The rows of each split, mapped from the Arrow files."""
        import pyarrow

        opened = {}
        for split, files in self.tables.items():
            parts = [pyarrow.ipc.open_stream(pyarrow.memory_map(file)).read_all() for file in files]
            opened[split] = pyarrow.concat_tables(parts)
        return opened

    @cached_property
    def _images(self) -> dict[str, tuple[list[Any], npt.NDArray[np.int64]]]:
        """The chunks of each split's image column and the row at which each begins."""
        chunks = {split: self._chunks(split, self.image) for split in self.tables}
        return {split: (parts, np.cumsum([0] + [len(part) for part in parts])) for split, parts in chunks.items()}

    def _chunks(self, split: str, column: str) -> list[Any]:
        chunks: list[Any] = self.column(split, column).chunks
        return chunks

    def column(self, split: str, name: str) -> Any:
        """Return a column of a split as it lies in Arrow; ``a.b`` is the field b of the column a."""
        return column_of(self._open_tables[split], name)


def open_dataset(
    source: str, files: Sequence[str], labels: str, image: str | None, *, otherwise: str = DEFAULT
) -> Dataset:
    """Open the parquet ``files``, or the Hub dataset ``source`` where there are none.

    ``labels`` is auto, none or a column; ``image`` is a column, found by its type where it is None; ``otherwise`` is
    the split of files whose names say none. Raises ``ConfigError`` for columns that are not there, ``DataError`` for
    files that cannot be read or labels that do not fit.
    """
    loaded = _load(source, files, otherwise)
    features = next(iter(loaded.values())).features
    column = one_column(list(features), (), image, source, "image") or _only(image_columns(features), "image", features)
    check_images(next(iter(loaded.values())), column)
    label = _label_column(features, labels, source)
    bare = [] if label is None else [name for name, table in loaded.items() if not _labelled(name, table, label)]
    if len(bare) == len(loaded):
        raise DataError(f"{source}: no split has labels in {label!r}", fix="labels=none")
    tables = {
        name: tuple(os.path.abspath(cached["filename"]) for cached in table.cache_files)
        for name, table in loaded.items()
        if name not in bare
    }
    return Dataset(
        root=source,
        tables=tables,
        image=column,
        label=label,
        names=tuple(names) if label is not None and (names := getattr(features[label], "names", None)) else None,
        left_out={name: len(loaded[name]) for name in bare},
        unused=_unused(features, label, labels) if len(loaded) == 1 else {},
    )


def _unused(features: Mapping[str, Any], label: str | None, labels: str) -> dict[str, str]:
    """Return the columns whose names promise labels or splits and that are not taken for them."""
    named = {name: name.lower() for name in features}
    unlabelled = label is None and labels == "auto"
    found = {name: f"labels={name} takes it" for name, lower in named.items() if unlabelled and lower in LABELS}
    return found | {name: "files are split by their names" for name, lower in named.items() if lower == "split"}


def column_of(table: Any, name: str) -> Any:
    """Return the column ``name`` of an Arrow table, or the field b of its column a where the name is a.b."""
    import pyarrow.compute

    if name in table.column_names:
        return table.column(name)
    outer, *inner = name.split(".")
    return pyarrow.compute.struct_field(table.column(outer), inner)


def check_images(table: Any, column: str) -> None:
    """Raise ``ConfigError`` for a column that holds something else than images, such as their URLs."""
    import pyarrow

    kind = column_of(table.data, column).type
    if pyarrow.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind = kind.field("bytes").type
    if not (pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind)):
        raise ConfigError(f"image={column}: this column holds {kind}, no images", fix=AS_MANIFESTS)


def _load(source: str, files: Sequence[str], otherwise: str) -> dict[str, Any]:
    """Open a dataset as one memory-mapped table a split; raise ``DataError`` with the library's reason."""
    import datasets

    datasets.disable_progress_bars()
    groups: dict[str, list[str]] = {}
    for file in files:
        name = os.path.basename(file) if file == source else os.path.relpath(file, source)
        groups.setdefault(word_split(name) or otherwise, []).append(file)
    try:
        if files:
            loaded = datasets.load_dataset("parquet", data_files=groups)
        else:
            with offline_without_hub():
                loaded = datasets.load_dataset(source)
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


def image_columns(features: Mapping[str, Any]) -> list[str]:
    """Name the columns of type Image, or else those that are built as such columns are stored."""
    typed = [name for name, feature in features.items() if type(feature).__name__ == "Image"]
    return typed or [name for name, feature in features.items() if isinstance(feature, dict) and "bytes" in feature]


def _only(columns: list[str], kind: str, features: Mapping[str, Any]) -> str:
    if len(columns) == 1:
        return columns[0]
    fix = f"{kind}=COLUMN" if columns else AS_MANIFESTS
    raise ConfigError(f"{len(columns)} {kind} columns among {', '.join(features)}, expected 1", fix=fix)


def _label_column(features: Mapping[str, Any], labels: str, source: str) -> str | None:
    """Return the column of the labels: the only ClassLabel, or the one that ``labels`` names."""
    typed = [name for name, feature in features.items() if type(feature).__name__ == "ClassLabel"]
    if labels == "none" or (labels == "auto" and not typed):
        return None
    if labels == "auto":
        return _only(typed, "labels", features)
    return one_column(list(features), (), labels, source, "labels")


def _labelled(split: str, table: Any, column: str) -> bool:
    """Say whether rows are labelled; all labels are missing (-1 or null) in some test sets of the Hub.

    Raises ``DataError`` where only some are missing, or the labels are neither integers nor names.
    """
    import pyarrow

    values = table.data.column(column)
    missing = values.null_count
    if pyarrow.types.is_integer(values.type):
        missing += sum(int((chunk.drop_null().to_numpy() < 0).sum()) for chunk in values.chunks)
    elif not (pyarrow.types.is_string(values.type) or pyarrow.types.is_large_string(values.type)):
        found = f"{split}: column {column} holds {values.type}, labels are whole numbers or names"
        raise DataError(found, fix="labels=none")
    if 0 < missing < len(values):
        raise DataError(f"{split}: {missing} of {len(values)} images have no label in {column!r}", fix="labels=none")
    return not missing


def _plain(label: Any) -> str | int:
    value: str | int = label.as_py()
    return printable(value) if isinstance(value, str) else value


def sizes_and_paths(chunk: Any) -> Iterator[tuple[int, str | None]]:
    """Yield each image's size in bytes and its path, if any; a row that only names a file has that file's size."""
    import pyarrow
    import pyarrow.compute

    data, paths = chunk, None
    if pyarrow.types.is_struct(chunk.type):
        fields = {chunk.type.field(number).name: number for number in range(chunk.type.num_fields)}
        data = pyarrow.compute.struct_field(chunk, fields["bytes"])
        paths = pyarrow.compute.struct_field(chunk, fields["path"]) if "path" in fields else None
    lengths = pyarrow.compute.fill_null(pyarrow.compute.binary_length(data), UNKNOWN).to_pylist()
    for number, size in enumerate(lengths):
        path = None if paths is None else paths[number].as_py()
        yield (file_size(path) if path else 0) if size == UNKNOWN else size, path
