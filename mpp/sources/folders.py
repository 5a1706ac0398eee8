"""Images that lie as files in a folder."""

import os
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Literal

from pydantic import Field

from mpp.config import config
from mpp.errors import DataError
from mpp.sources.entries import Entry
from mpp.sources.files import file_size, is_image, printable, read_file, walk
from mpp.sources.labels import labeller
from mpp.sources.passed import PassedOver
from mpp.sources.splits import DEFAULT, SplitFolders, place_of, split_depth

LABELS = ("auto", "none", "folders")


@config
class Folder:
    """A folder of images, whose top folders may be named after splits, and those below after classes."""

    kind: Literal["folder"] = "folder"
    root: Path = Field(description="absolute path of the folder")
    labels: str = Field("auto", description="auto, none, folders, or the absolute path of a mapping file")
    otherwise: str = Field(DEFAULT, description="split of images in no split folder")

    def entries(self) -> Iterator[Entry]:
        """Yield every image, walking the folder; ``place`` is the relative path.

        Raises ``DataError`` where there are none, where only some lie in split folders, or where a folder cannot be
        listed; and what :func:`mpp.sources.labels.labeller` raises.
        """
        label_of, splits, root, empty = labeller(self.labels), SplitFolders(), str(self.root), True
        depth = split_depth(name.rpartition("/")[0] for name in self._images())
        self._passed.clear()
        for name in self._images():
            empty = False
            place = place_of(name.rpartition("/")[0], depth)
            splits.note(place, name)
            size, label = file_size(f"{root}/{name}"), label_of(name, place.folder)
            yield Entry(place.split or self.otherwise, os.fsencode(name), printable(name), size, label)
        splits.check(root)
        if empty:
            what = f"{root}: no images under this folder{self._passed.words()}"
            raise DataError(what, fix="name another SOURCE")

    def classes(self) -> None:
        """Return None: folders are names, and numbers of a mapping have none."""

    def describe(self) -> str:
        """Name the folder, and what the listing passed over."""
        return f"folder {self.root}{self._passed.words()}"

    @cached_property
    def _passed(self) -> PassedOver:
        return PassedOver()

    def _images(self) -> Iterator[str]:
        for name in walk(str(self.root)):
            if is_image(self.root, name):
                yield name
            else:
                self._passed.add(name)

    def read(self, split: str, place: bytes) -> bytes:
        """Read one file; raise ``OSError`` where that is impossible or it is above ``MAX_FILE_BYTES``."""
        return read_file(f"{self.root}/{os.fsdecode(place)}")
