"""What labels an image: nothing, the folder it lies in, or a mapping file."""

import os
from collections.abc import Callable, Iterable
from pathlib import Path

from mpp.errors import ConfigError, DataError
from mpp.sources.files import printable
from mpp.sources.mappings import MAPPINGS, read_mapping

Labeller = Callable[[str, str | None], str | int | None]  # (path, class folder) -> label


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
    if labels.lower().endswith(MAPPINGS):
        return find_mapping(labels)
    allowed = f"labels={', '.join(words)} or a mapping FILE ({' '.join(MAPPINGS)})"
    raise ConfigError(f"labels={labels}: {what} has no columns", fix=allowed)


def find_mapping(labels: str) -> str:
    """Return the absolute path of a mapping file; raise ``ConfigError`` where there is none."""
    if not Path(labels).is_file():
        raise ConfigError(f"labels={labels}: no such file", fix="name a file with a path and a label a line")
    return os.path.abspath(labels)
