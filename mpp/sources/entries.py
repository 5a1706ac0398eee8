"""What every kind of source gives: entries when it is listed, and the bytes of any of them later."""

from collections.abc import Iterator
from typing import NamedTuple, Protocol

UNKNOWN = -1
Label = str | int | None


class Entry(NamedTuple):
    """One listed image.

    ``place`` is what its corpus needs to find it again, ``source`` the same for people, ``size`` its bytes or
    ``UNKNOWN``, ``label`` a class name, a number, or None.
    """

    split: str
    place: bytes
    source: str
    size: int
    label: Label


class Corpus(Protocol):
    """Where images come from: a config class with a ``kind``, so that any process can open it again."""

    def entries(self) -> Iterator[Entry]:
        """Yield every image once, in an order that depends on the source alone."""
        ...

    def classes(self) -> tuple[str, ...] | None:
        """Return the names of integer labels, where the source knows them."""
        ...

    def describe(self) -> str:
        """Say in words what was found and decided."""
        ...

    def read(self, split: str, place: bytes) -> bytes:
        """Return the bytes of an image; raise ``OSError`` where it cannot be read."""
        ...
