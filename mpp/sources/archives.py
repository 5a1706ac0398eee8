"""Images in tar and zip archives: one archive, or all those under a folder; WebDataset shards are such."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import Field

from mpp.config import config
from mpp.errors import DataError
from mpp.sources.entries import Entry, Label
from mpp.sources.files import MAX_FILE_BYTES, has_signature, named_as_image, printable, walk
from mpp.sources.labels import SPLIT_OF, SplitFolders, is_number, labeller, word_split
from mpp.sources.members import Damaged
from mpp.sources.nested import Item, files_in, is_archive, read_place, without_suffix

LABELS = ("auto", "none", "folders", "cls")
LARGEST_SAMPLE = 1024  # files with one key
LONGEST_CLASS = 256  # bytes of a .cls member
INDEXES = ("index.json", "_info.json")  # of mpp's sets and of timm's


class Around(NamedTuple):
    """What the path of an archive says of its images: how their paths begin, its stem, a split, a class."""

    prefix: str
    stem: str
    split: str | None
    folder: str | None


class Facts(NamedTuple):
    """What the path of an image in an archive says: its split, whether a folder says that, and its class folder."""

    split: str | None
    by_folder: bool
    folder: str | None


class Sample(NamedTuple):
    """Neighbouring images of one key, and the text of that key's ``.cls`` member."""

    images: list[Item]
    label: str | None


@config
class Archives:
    """Archives of images."""

    kind: Literal["archives"] = "archives"
    root: Path = Field(description="absolute path of the archive, or of a folder of archives")
    labels: str = Field("auto", description="auto, none, folders, cls, or the absolute path of a mapping file")
    spool: Path = Field(description="folder for what must be unpacked to be read at random")
    names: tuple[str, ...] | None = Field(None, description="names of the numbers in .cls members")

    def entries(self) -> Iterator[Entry]:
        """Yield every image, walking the archives; ``place`` is a file and numbers that say where in it.

        Links, devices, encrypted members and the like are entries that cannot be read. Raises ``DataError`` for an
        archive that is damaged or cut off, where there are no images, and for labels that do not fit.
        """
        splits, by_path, empty = SplitFolders(), labeller("none" if self.labels == "cls" else self.labels), True
        for around, sample in self._samples():
            empty = False
            for item in sample.images:
                facts, path = facts_of(around, item.path), around.prefix + item.path
                if facts.by_folder or facts.split is None:
                    splits.add(facts.split, path)
                folder = facts.folder or (around.folder if self.labels == "folders" else None)
                label = self._class(sample, path, item)
                label = by_path(path, folder) if label is None else label
                size = 0 if item.member.refused else min(item.member.size, MAX_FILE_BYTES + 1)
                yield Entry(facts.split or "train", item.place, printable(path), size, label)
        splits.check(str(self.root))
        if empty:
            raise DataError(f"{self.root}: no images in it", fix="name another SOURCE")

    def classes(self) -> tuple[str, ...] | None:
        """Return the names of the numbers in ``.cls`` members, where a set says them."""
        return self.names

    def describe(self) -> str:
        """Name the archive or the folder."""
        return f"{'archive' if self.root.is_file() else 'archives under'} {self.root}"

    def read(self, split: str, place: bytes) -> bytes:
        """Return an image's bytes; raise ``OSError`` where it cannot be read, with what the listing found of it."""
        return read_place(place, self.root, self.spool)

    def _samples(self) -> Iterator[tuple[Around, Sample]]:
        """Yield the samples of every archive, and what its path says."""
        single = self.root.is_file()
        for name in [""] if single else filter(is_archive, walk(str(self.root))):
            path, images = self.root / name if name else self.root, 0
            try:
                for sample in grouped(files_in(path, name, self.spool)):
                    images += len(sample.images)
                    yield around_of(name, path.name), sample
            except Damaged as error:
                what = f"{printable(str(path))}: {error}; {images} images before that"
                raise DataError(what, fix=f"get {printable(path.name)} again") from None
            except OSError as error:
                raise DataError(f"{printable(str(path))}: {error.strerror or error}") from None

    def _class(self, sample: Sample, path: str, item: Item) -> Label:
        """Return the class that a ``.cls`` member gives, None where there is none or others were asked for."""
        if self.labels not in ("auto", "cls"):
            return None
        if sample.label is not None:
            return int(sample.label) if is_number(sample.label) else sample.label
        if self.labels == "cls" and not item.member.refused:
            raise DataError(f"{self.root}: {printable(path)} has no .cls", fix="labels=none")
        return None


def open_archives(root: Path, labels: str, spool: Path) -> Archives:
    """Open an archive, or a folder of archives, with the class names that lie beside or above it."""
    folder = root.parent if root.is_file() else root
    found = (_class_names(place / name) for place in (folder, folder.parent) for name in INDEXES)
    names = next(filter(None, found), None) if labels in ("auto", "cls") else None
    return Archives(root=root, labels=labels, spool=spool, names=names)


def around_of(name: str, file: str) -> Around:
    """Return what an archive's path says: ``name`` is relative to the source, empty where it is the source itself.

    A class may be its top folder, or its stem, that is not named after a split.
    """
    path = without_suffix(name)
    folder = next((part for part in path.split("/") if not word_split(part)), None) if name else None
    return Around(f"{path}/" if name else "", without_suffix(file), word_split(name or file), folder)


def facts_of(around: Around, path: str) -> Facts:
    """Return what the path of an image in an archive says.

    A top folder that repeats the archive's stem is passed over. The split is the top folder's, else the archive's.
    """
    parts = [part for part in path.split("/") if part not in ("", ".", "..")]
    if len(parts) > 1 and parts[0] == around.stem:
        parts = parts[1:]
    split = SPLIT_OF.get(parts[0].lower()) if len(parts) > 1 else None
    folders = parts[1:-1] if split else parts[:-1]
    return Facts(split or around.split, split is not None, folders[0] if folders else None)


def grouped(items: Iterable[Item]) -> Iterator[Sample]:
    """Yield samples: neighbours with one key and different names; those without images are left out.

    Raises ``Damaged`` where ``items`` does, after what came before that.
    """
    key, names, sample, damage = None, set[str](), Sample([], None), None
    try:
        for item in items:
            folder, slash, name = item.path.rpartition("/")
            stem = name.partition(".")[0]
            if key != folder + slash + stem or item.member.name in names or len(names) == LARGEST_SAMPLE:
                if sample.images:
                    yield sample
                key, names, sample = folder + slash + stem, set(), Sample([], None)
            names.add(item.member.name)
            if item.member.name.endswith(f"{stem}.cls") and not item.member.refused:
                sample = sample._replace(label=_class_text(item))
            elif _is_image(item):
                sample.images.append(item)
    except Damaged as error:
        damage = error
    if sample.images:
        yield sample
    if damage is not None:
        raise damage


def _class_text(item: Item) -> str:
    if item.member.size > LONGEST_CLASS:
        raise Damaged(f"{printable(item.path)} has {item.member.size} bytes, a class at most {LONGEST_CLASS}")
    return printable(item.content.decode("utf-8", "surrogateescape").strip())


def _is_image(item: Item) -> bool:
    """Say whether a file counts as an image: by its name, or without an extension by its first bytes.

    One that cannot be read does, unless it has the name of something else than an image or an archive.
    """
    named = named_as_image(item.member.name)
    if named is None:
        return bool(item.member.refused) or has_signature(item.head)
    return named or bool(item.member.refused and is_archive(item.member.name))


def _class_names(file: Path) -> tuple[str, ...] | None:
    """Return the class names in the index of a shard set, None where there are none."""
    try:
        index = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    names = index.get("classes", index.get("class_names")) if isinstance(index, dict) else None
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        return None
    return tuple(map(printable, names))
