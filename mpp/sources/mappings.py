"""Mapping files: the label of an image by its path or its name, in a table, JSON or YAML."""

import json
from collections.abc import Iterator
from pathlib import Path

import yaml

from mpp.errors import DataError
from mpp.sources.files import named_as_image, printable
from mpp.sources.rows import LABELS, PATHS, column_names, one_column, read_rows

MAPPINGS = (".csv", ".tsv", ".json", ".jsonl", ".yaml", ".yml")


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
    elif kind in (".yaml", ".yml"):
        yield from _yaml_pairs(file)
    else:
        yield from _table_pairs(file)


def _table_pairs(file: Path) -> Iterator[tuple[str, str, object]]:
    names = column_names(file)
    path = one_column(names, PATHS, None, str(file), "image")
    bare = path is None and len(names) == 2 and ("/" in names[0] or named_as_image(names[0]))
    header = ("path", "label") if bare and file.suffix.lower() != ".jsonl" else None
    path = "path" if header else path
    label = "label" if header else one_column(names, LABELS, None, str(file), "labels")
    if path is None or label is None:
        raise DataError(
            f"{file}: expected the columns path and label, found {', '.join(map(printable, names))}",
            fix="begin the file with the line path,label",
        )
    for row in read_rows(file, (path, label), header=header):
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
