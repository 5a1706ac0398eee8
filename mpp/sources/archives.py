"""Images in tar and zip archives: one archive, or all those under a folder; WebDataset shards are such."""

import json
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import Field

from mpp.config import config
from mpp.errors import ConfigError, DataError
from mpp.sources.entries import Entry, Label
from mpp.sources.files import MAX_FILE_BYTES, has_signature, named_as_image, printable, walk
from mpp.sources.labels import labeller
from mpp.sources.mappings import is_number
from mpp.sources.members import Damaged
from mpp.sources.nested import Item, files_in, is_archive, read_place, without_suffix
from mpp.sources.passed import PassedOver
from mpp.sources.splits import DEFAULT, SplitFolders, place_of, split_depth, word_split

LABELS = ("auto", "none", "folders", "cls")
LARGEST_SAMPLE = 1024  # files with one key
LONGEST_CLASS = 256  # bytes of a .cls member
SIDECARS = ("cls", "json", "txt")  # what makes neighbours of one key a sample
INDEXES = ("index.json", "_info.json")  # of mpp's sets and of timm's


class Around(NamedTuple):
    """What the path of an archive says of its images: how their paths begin, its stem, a split, a class."""

    prefix: str
    stem: str
    split: str | None
    folder: str | None


class Sample(NamedTuple):
    """Neighbouring images of one key, the text of that key's ``.cls`` member, and whether it has such members."""

    images: list[Item]
    label: str | None
    described: bool


@config
class Archives:
    """Archives of images."""

    kind: Literal["archives"] = "archives"
    root: Path = Field(description="absolute path of the archive, or of a folder of archives")
    labels: str = Field("auto", description="auto, none, folders, cls, or the absolute path of a mapping file")
    image: str | None = Field(None, description="extension of the images, behind the first dot; any where not given")
    otherwise: str = Field(DEFAULT, description="split of images whose paths name none")
    spool: Path = Field(description="folder for what must be unpacked to be read at random")
    names: tuple[str, ...] | None = Field(None, description="names of the numbers in .cls members")

    def entries(self) -> Iterator[Entry]:
        """Yield every image, walking the archives; ``place`` is a file and numbers that say where in it.

        Links, devices, encrypted members and the like are entries that cannot be read. Raises ``DataError`` for an
        archive that is damaged or cut off, where there are no images, and for labels that do not fit; ``ConfigError``
        where it is open which image of a sample is meant.
        """
        splits, by_path, empty = SplitFolders(), labeller("none" if self.labels == "cls" else self.labels), True
        for around, depth, sample in self._samples():
            empty = False
            for item in sample.images:
                path, place = around.prefix + item.path, place_of(folder_in(around, item.path), depth)
                splits.note(place, path, around.split)
                folder = place.folder or (around.folder if self.labels == "folders" else None)
                label = self._class(sample, path, item)
                label = self._checked(by_path(path, folder), path) if label is None else label
                size = 0 if item.member.refused else min(item.member.size, MAX_FILE_BYTES + 1)
                split = place.split or around.split or self.otherwise
                yield Entry(split, item.place, printable(path), size, label)
        splits.check(str(self.root))
        if empty:
            asked = f" with the extension {self.image}" if self.image else ""
            raise DataError(f"{self.root}: no images{asked} in it{self._passed.words()}", fix="name another SOURCE")

    def classes(self) -> tuple[str, ...] | None:
        """Return the names of the numbers in ``.cls`` members, where a set says them."""
        return self.names

    def describe(self) -> str:
        """Name the archive or the folder, and what the listing passed over."""
        return f"{'archive' if self.root.is_file() else 'archives under'} {self.root}{self._passed.words()}"

    def read(self, split: str, place: bytes) -> bytes:
        """Return an image's bytes; raise ``OSError`` where it cannot be read, with what the listing found of it."""
        return read_place(place, self.root, self.spool)

    @cached_property
    def _passed(self) -> PassedOver:
        return PassedOver()

    @cached_property
    def _known(self) -> frozenset[str]:
        return frozenset(self.names or ())

    def _samples(self) -> Iterator[tuple[Around, int | None, Sample]]:
        """Yield the samples of every archive, what its path says, and how deep its split folders stand."""
        self._passed.clear()
        for name in self._archives():
            path, images = self.root / name if name else self.root, 0
            around = around_of(name, path.name)
            try:
                depth = None if around.split else split_depth(self._folders(path, name, around))
                for sample in grouped(files_in(path, name, self.spool), self.image, self._passed):
                    images += len(sample.images)
                    self._check_single(sample, path)
                    yield around, depth, sample
            except Damaged as error:
                what = f"{printable(str(path))}: {error}; {images} images before that"
                raise DataError(what, fix=f"get {printable(path.name)} again") from None
            except OSError as error:
                raise DataError(f"{printable(str(path))}: {error.strerror or error}") from None

    def _archives(self) -> Iterator[str]:
        """Yield the archives relative to the root; one that is the root itself is an empty name."""
        if self.root.is_file():
            yield ""
            return
        for name in walk(str(self.root)):
            if is_archive(name):
                yield name
            else:
                self._passed.add(name)

    def _folders(self, path: Path, name: str, around: Around) -> Iterator[str]:
        """Yield the folder of every image of an archive, as far as it can be read."""
        try:
            for item in files_in(path, name, self.spool):
                if is_image(item):
                    yield folder_in(around, item.path)
        except Damaged:
            return  # is raised again where it can be said how many images came before

    def _check_single(self, sample: Sample, path: Path) -> None:
        """Refuse a sample with several images, unless ``image`` has chosen one."""
        found = sorted({_extension(item) for item in sample.images})
        masks = any("." in one for one in found) and len({one.rpartition(".")[2] for one in found}) > 1
        if self.image is None and len(found) > 1 and (sample.described or masks):
            shown = f"{', '.join(map(printable, found))} at {printable(sample.images[0].path)}"
            what = f"{printable(str(path))}: samples with {len(found)} images each ({shown})"
            raise ConfigError(what, fix=f"image={printable(found[0])}, the extension of those to take")

    def _class(self, sample: Sample, path: str, item: Item) -> Label:
        """Return the class that a ``.cls`` member gives, None where there is none or others were asked for."""
        if self.labels not in ("auto", "cls"):
            return None
        if sample.label is not None:
            return int(sample.label) if is_number(sample.label) else self._checked(sample.label, path)
        if self.labels == "cls" and not item.member.refused:
            raise DataError(f"{self.root}: {printable(path)} has no .cls", fix="labels=none")
        return None

    def _checked(self, label: Label, path: str) -> Label:
        """Return ``label``; raise ``DataError`` where it is a name that is none of the classes that a set says."""
        if self.names is not None and isinstance(label, str) and label not in self._known:
            what = f"{self.root}: {printable(path)} is of class {label}, none of the {len(self.names)} in {INDEXES[0]}"
            raise DataError(what, fix="mend that file, or labels=none, or labels=folders")
        return label


def open_archives(
    root: Path, labels: str, spool: Path, *, image: str | None = None, otherwise: str = DEFAULT
) -> Archives:
    """Open an archive, or a folder of archives, with the class names that lie beside or above it."""
    folder = root.parent if root.is_file() else root
    found = (class_names(place / name) for place in (folder, folder.parent) for name in INDEXES)
    names = next(filter(None, found), None) if labels in ("auto", "cls") else None
    extension = None if image is None else image.lower().removeprefix(".")
    return Archives(root=root, labels=labels, image=extension, otherwise=otherwise, spool=spool, names=names)


def around_of(name: str, file: str) -> Around:
    """Return what an archive's path says: ``name`` is relative to the source, empty where it is the source itself.

    A class may be its top folder, or its stem, that is not named after a split.
    """
    path = without_suffix(name)
    folder = next((part for part in path.split("/") if not word_split(part)), None) if name else None
    return Around(f"{path}/" if name else "", without_suffix(file), word_split(name or file), folder)


def folder_in(around: Around, path: str) -> str:
    """Return the folder of an image within an archive; a top folder that repeats the archive's stem is passed over."""
    parts = [part for part in path.split("/")[:-1] if part not in ("", ".", "..")]
    return "/".join(parts[1:] if parts[:1] == [around.stem] else parts)


def grouped(items: Iterable[Item], image: str | None, passed: PassedOver) -> Iterator[Sample]:
    """Yield samples: neighbours with one key and different names; those without images are left out.

    ``image`` is the extension of the images to take, if not all are. What is neither an image nor a class is counted
    in ``passed``. Raises ``Damaged`` where ``items`` does, after what came before that.
    """
    key, names, sample, damage = None, set[str](), Sample([], None, False), None
    try:
        for item in items:
            folder, slash, name = item.path.rpartition("/")
            stem = name.partition(".")[0]
            if key != folder + slash + stem or item.member.name in names or len(names) == LARGEST_SAMPLE:
                if sample.images:
                    yield sample
                key, names, sample = folder + slash + stem, set(), Sample([], None, False)
            names.add(item.member.name)
            extension = _extension(item)
            if extension in SIDECARS:
                sample = sample._replace(described=True)
            if extension == "cls" and not item.member.refused:
                sample = sample._replace(label=_class_text(item))
            elif is_image(item) and image in (None, extension):
                sample.images.append(item)
            else:
                passed.add(item.member.name)
    except Damaged as error:
        damage = error
    if sample.images:
        yield sample
    if damage is not None:
        raise damage


def _extension(item: Item) -> str:
    """Return what follows the first dot of a name, as WebDataset does."""
    return item.member.name.rpartition("/")[2].partition(".")[2].lower()


def _class_text(item: Item) -> str:
    if item.member.size > LONGEST_CLASS:
        raise Damaged(f"{printable(item.path)} has {item.member.size} bytes, a class at most {LONGEST_CLASS}")
    return printable(item.content.decode("utf-8", "surrogateescape").strip())


def is_image(item: Item) -> bool:
    """Say whether a file counts as an image: by its name, or without an extension by its first bytes.

    One that cannot be read does where it has the name of an image or an archive.
    """
    named = named_as_image(item.member.name)
    if named is None:
        return not item.member.refused and has_signature(item.head)
    return named or bool(item.member.refused and is_archive(item.member.name))


def class_names(file: Path) -> tuple[str, ...] | None:
    """Return the class names in the index of a shard set, None where there are none."""
    try:
        index = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    names = index.get("classes", index.get("class_names")) if isinstance(index, dict) else None
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        return None
    return tuple(map(printable, names))
