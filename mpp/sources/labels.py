"""What the path of an image says: its split by the name of a folder, its label by a folder or a mapping file."""

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from mpp.errors import ConfigError, DataError
from mpp.sources.files import printable
from mpp.sources.rows import LABELS, PATHS, column_names, one_column, read_rows

SPLIT_OF = {"train": "train", "val": "validation", "valid": "validation", "validation": "validation", "test": "test"}
MAPPINGS = (".csv", ".tsv", ".json", ".jsonl", ".yaml", ".yml")
Labeller = Callable[[str, str | None], str | int | None]  # (path, class folder) -> label


def top_split(path: str) -> str | None:
    """Return the split that the top folder of ``path`` is named after."""
    top, slash, _ = path.partition("/")
    return SPLIT_OF.get(top.lower()) if slash else None


def word_split(path: str) -> str | None:
    """Return the split that is a word of a file's name, or else of the nearest folder's.

    Raises ``DataError`` where that name has the words of two splits.
    """
    for part in reversed(path.lower().split("/")):
        words = re.findall(r"(?<![a-z])(train|validation|valid|val|test)(?![a-z])", part)
        found = sorted({SPLIT_OF[word] for word in words})
        if len(found) > 1:
            raise DataError(
                f"{printable(path)} names the splits {' and '.join(found)}", fix="rename it after one split"
            )
        if found:
            return found[0]
    return None


@dataclass
class SplitFolders:
    """Remembers whether images lie in split folders: either all do or none."""

    outside: str | None = None
    inside: set[str] = field(default_factory=set)

    def add(self, split: str | None, path: str) -> str:
        """Note that an image lies in the folder of a split, or in none; return its split, train where it is in none."""
        if split is None:
            self.outside = self.outside or path
            return "train"
        self.inside.add(split)
        return split

    def check(self, where: str) -> None:
        """Raise ``DataError`` where some images lie in split folders and some outside."""
        if self.outside is not None and self.inside:
            found = f"{printable(self.outside)} lies outside the split folders ({', '.join(sorted(self.inside))})"
            raise DataError(f"{where}: {found}", fix="move it into one of them")


def class_folder(path: str) -> str | None:
    """Return the top folder of ``path`` below a split folder, None where there is none."""
    parts = path.split("/")
    depth = 0 if top_split(path) is None else 1
    return parts[depth] if len(parts) > depth + 1 else None


def labeller(labels: str) -> Labeller:
    """Return what labels images: by nothing (none), their class folder (auto, folders) or a mapping file.

    The labeller raises ``ConfigError`` where labels=folders finds an image in no class folder, ``DataError`` where
    a mapping does not name an image.
    """
    if labels == "none":
        return lambda path, folder: None
    if labels == "auto":
        return lambda path, folder: None if folder is None else printable(folder)
    if labels == "folders":
        return _require_folder
    mapping = read_mapping(Path(labels))

    def look_up(path: str, folder: str | None) -> str | int:
        label = mapping.get(path, mapping.get(path.rpartition("/")[2]))
        if label is None:
            raise DataError(f"{labels}: no label for {printable(path)}", fix="complete the file, or labels=none")
        return label

    return look_up


def _require_folder(path: str, folder: str | None) -> str:
    if folder is None:
        raise ConfigError(f"labels=folders, but {printable(path)} lies in no class folder", fix="labels=none")
    return printable(folder)


def find_labels(labels: str, words: Iterable[str], what: str) -> str:
    """Return the labels option of a source that has no columns: one of ``words``, or the absolute path of a mapping.

    Raises ``ConfigError`` for anything else.
    """
    if labels in words:
        return labels
    if Path(labels).suffix.lower() in MAPPINGS:
        if not Path(labels).is_file():
            raise ConfigError(f"labels={labels}: no such file", fix="name a file with a path and a label a line")
        return os.path.abspath(labels)
    allowed = f"labels={', '.join(words)} or a mapping FILE ({' '.join(MAPPINGS)})"
    raise ConfigError(f"labels={labels}: {what} has no columns", fix=allowed)


def read_mapping(file: Path) -> dict[str, str | int]:
    """Read labels by path or by file name from CSV, TSV or JSON lines (two columns) or a JSON or YAML mapping.

    Labels that are all whole numbers are numbers. Raises ``DataError`` for a name without a label or with two.
    """
    mapping: dict[str, str | int] = {}
    for where, path, label in _pairs(file):
        if isinstance(label, bool) or not isinstance(label, str | int) or label == "" or not path:
            raise DataError(f"{where}: {printable(str(path))!r} has no label, or none that is a name or a number")
        if mapping.setdefault(path, label) != label:
            raise DataError(f"{where}: {printable(path)} has two labels, {mapping[path]} and {label}")
    if mapping and all(isinstance(label, int) or is_number(label) for label in mapping.values()):
        return {path: int(label) for path, label in mapping.items()}
    return {path: str(label) if isinstance(label, int) else printable(label) for path, label in mapping.items()}


def is_number(text: str) -> bool:
    """Say whether ``text`` is a whole number as labels are written: digits alone."""
    return text.isascii() and text.isdigit() and len(text) < 10


def _pairs(file: Path) -> Iterator[tuple[str, str, object]]:
    """Yield ``(where, path, label)`` of a mapping file."""
    kind = file.suffix.lower()
    if kind == ".json":
        yield from ((str(file), path, label) for path, label in _json_pairs(file))
        return
    if kind in (".yaml", ".yml"):
        yield from _yaml_pairs(file)
        return
    names = column_names(file)
    path = one_column(names, PATHS, None, str(file), "image")
    header = ("path", "label") if path is None and len(names) == 2 and kind != ".jsonl" else None
    path = "path" if header else path
    label = "label" if header else one_column(names, LABELS, None, str(file), "labels")
    if path is None or label is None:
        raise DataError(f"{file}: expected the columns path and label, found {', '.join(names)}")
    for row in read_rows(file, header=header):
        yield f"{file}:{row.line}", str(row.values.get(path, "")), row.values.get(label)


def _json_pairs(file: Path) -> list[tuple[str, object]]:
    """Return the pairs of a JSON object, those of a name that occurs twice too."""
    try:
        found = json.loads(file.read_bytes(), object_pairs_hook=list)
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{file}: no JSON ({error})") from None
    if not isinstance(found, list) or not all(isinstance(pair, tuple) for pair in found):
        raise DataError(f"{file}: expected an object of labels by path")
    return found


def _yaml_pairs(file: Path) -> Iterator[tuple[str, str, object]]:
    try:
        tree = yaml.compose(file.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise DataError(f"{file}: no YAML ({' '.join(str(error).split())})") from None
    if not isinstance(tree, yaml.MappingNode):
        raise DataError(f"{file}: expected a mapping of labels by path")
    for path, label in tree.value:
        text = label.value if isinstance(label, yaml.ScalarNode) else None
        yield f"{file}:{path.start_mark.line + 1}", str(path.value), text
