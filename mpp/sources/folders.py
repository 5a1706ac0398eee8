"""Images that lie as files in a folder."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import Field

from mpp.config import config
from mpp.errors import DataError
from mpp.sources.entries import Entry
from mpp.sources.files import file_size, is_image, printable, read_file, walk
from mpp.sources.labels import SplitFolders, class_folder, labeller, top_split

LABELS = ("auto", "none", "folders")


@config
class Folder:
    """A folder of images, whose top folders may be named as splits, and those below as classes."""

    kind: Literal["folder"] = "folder"
    root: Path = Field(description="absolute path of the folder")
    labels: str = Field("auto", description="auto, none, folders, or the absolute path of a mapping file")

    def entries(self) -> Iterator[Entry]:
        """Yield every image, walking the folder; ``place`` is the relative path.

        Raises ``DataError`` where there are none, where only some lie in split folders, or where a folder cannot be
        listed; and what :func:`mpp.sources.labels.labeller` raises.
        """
        label_of, splits, empty = labeller(self.labels), SplitFolders(), True
        for name in walk(str(self.root)):
            if not is_image(self.root, name):
                continue
            empty = False
            split, label = splits.add(top_split(name), name), label_of(name, class_folder(name))
            yield Entry(split, os.fsencode(name), printable(name), file_size(f"{self.root}/{name}"), label)
        splits.check(str(self.root))
        if empty:
            raise DataError(f"{self.root}: no images under this folder", fix="name another SOURCE")

    def classes(self) -> None:
        """Return None: folders are names, and numbers of a mapping have none."""

    def describe(self) -> str:
        """Name the folder."""
        return f"folder {self.root}"

    def read(self, split: str, place: bytes) -> bytes:
        """Read one file; raise ``OSError`` where that is impossible or it is above ``MAX_FILE_BYTES``."""
        return read_file(os.path.join(self.root, os.fsdecode(place)))
