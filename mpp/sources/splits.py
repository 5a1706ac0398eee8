"""Which split an image belongs to: what the names of files and folders say."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

from mpp.errors import DataError
from mpp.sources.files import printable

SPLIT_OF = {
    **{"train": "train", "training": "train", "test": "test", "testing": "test"},
    **{"val": "validation", "valid": "validation", "validation": "validation"},
}
DEFAULT = "train"
WORDS = re.compile(r"(?<![a-z])(training|train|validation|valid|val|testing|test)(?![a-z])")


class Place(NamedTuple):
    """What the folder of an image says: its split, its class folder, and a split where none counts."""

    split: str | None
    folder: str | None
    stray: str | None


def split_name(name: Any, where: str) -> str:
    """Return the split that ``name`` stands for; raise ``DataError`` where that cannot name a folder."""
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,49}", name):
        raise DataError(f"{where}: split {name!r} is no name of letters and digits")
    return SPLIT_OF.get(name.lower(), name)


def word_split(path: str) -> str | None:
    """Return the split that is a word of a file's name, or else of the nearest folder's.

    Raises ``DataError`` where that name has the words of two splits.
    """
    for part in reversed(path.split("/")):
        found = _words(part)
        if len(found) > 1:
            raise DataError(
                f"{printable(path)} names the splits {' and '.join(found)}", fix="rename it after one split"
            )
        if found:
            return found[0]
    return None


def only_word(name: str) -> str | None:
    """Return the split that is a word of ``name``, None where it has none or those of several."""
    found = _words(name)
    return found[0] if len(found) == 1 else None


@lru_cache(maxsize=1024)
def _words(name: str) -> tuple[str, ...]:
    return tuple(sorted({SPLIT_OF[word] for word in WORDS.findall(name.lower())}))


def split_depth(folders: Iterable[str]) -> int | None:
    """Return how many folders stand above those that have a split in their name; None where that is not so everywhere.

    ``folders`` are those of all images. Above the splits stands nothing, or one folder that holds everything. A top
    folder that is named as a split and nothing else decides at once.
    """
    top, depths = None, {0, 1}
    for folder in folders:
        parts = folder.split("/")
        top = top or parts[0]
        if top.lower() in SPLIT_OF:
            return 0
        if only_word(parts[0]) is None:
            depths.discard(0)
        if parts[0] != top or len(parts) < 2 or only_word(parts[1]) is None:
            depths.discard(1)
        if not depths:
            return None
    return min(depths) if top else None


@lru_cache(maxsize=1024)
def place_of(folder: str, depth: int | None) -> Place:
    """Return what the folder of an image says where :func:`split_depth` has found ``depth``.

    Where it has found none, a top folder is a split that is named as one and nothing else: other images are amiss then.
    """
    parts = folder.split("/") if folder else []
    above = depth or 0
    name = parts[above] if len(parts) > above else ""
    split = SPLIT_OF.get(name.lower()) if depth is None else only_word(name)
    rest = parts[above + 1 :] if split else parts
    strays = () if split else (only_word(name), *(SPLIT_OF.get(part.lower()) for part in parts[1:]))
    return Place(split, rest[0] if rest else None, next(filter(None, strays), None))


@dataclass
class SplitFolders:
    """Remembers which images lie in split folders: either all do or none."""

    inside: set[str] = field(default_factory=set)
    outside: str | None = None
    strays: dict[str, str] = field(default_factory=dict)
    bare: str | None = None

    def note(self, place: Place, path: str, otherwise: str | None = None) -> None:
        """Note where an image lies; ``otherwise`` is the split that it has already where its folder names none."""
        if place.split is not None:
            self.inside.add(place.split)
            return
        if otherwise is None:
            self.outside = self.outside or path
        if place.stray is None:
            self.bare = self.bare or path
        else:
            self.strays.setdefault(place.stray, path)

    def check(self, where: str) -> None:
        """Raise ``DataError`` where only some images lie in split folders, or split folders stand where none count."""
        if self.outside is not None and self.inside:
            found = f"{printable(self.outside)} lies outside the split folders ({', '.join(sorted(self.inside))})"
            raise DataError(f"{where}: {found}", fix="move it into one of them")
        if len(self.strays) > 1 or (self.strays and not self.bare and DEFAULT not in self.strays):
            shown = ", ".join(printable(path) for _, path in sorted(self.strays.items()))
            found = f"{shown}: folders named after splits count at the top, where every image lies in one"
            found += f", and {printable(self.bare)} lies in none" if self.bare else ""
            raise DataError(f"{where}: {found}", fix="move them to the top, or make a .yaml of sources with split:")
