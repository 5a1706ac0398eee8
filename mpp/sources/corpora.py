"""Where images come from: SOURCE becomes one corpus, or several with weights and limits."""

import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from mpp.config import config, resolve
from mpp.errors import ConfigError, DataError
from mpp.plain_yaml import read_yaml
from mpp.sources import archives, folders
from mpp.sources.archives import Archives, open_archives
from mpp.sources.entries import Entry
from mpp.sources.files import is_image, printable, walk
from mpp.sources.folders import Folder
from mpp.sources.hub import HUB_NAME
from mpp.sources.labels import find_labels
from mpp.sources.manifests import Manifest, open_manifest, spool_list
from mpp.sources.mappings import MAPPINGS
from mpp.sources.nested import ARCHIVES, NOT_READ, is_archive
from mpp.sources.remote import redact, scheme_of
from mpp.sources.rows import PATHS, TABLES
from mpp.sources.slices import Slices
from mpp.sources.splits import DEFAULT, only_word, split_name
from mpp.sources.tables import Dataset, open_dataset

OneCorpus = Folder | Dataset | Archives | Manifest
IMAGES, PARQUET, ARCHIVED, UNREAD = "images", "parquet files", "archives", "other archives"
KNOWN = f"a folder, an archive ({' '.join(ARCHIVES)}), a manifest ({' '.join(TABLES)}) or a list (.yaml)"
STANDARD_INPUT = "-"


@config
class OneSplit:
    """A corpus all of whose images are taken for one split, whatever it says of them."""

    kind: Literal["one_split"] = "one_split"
    corpus: OneCorpus = Field(discriminator="kind", description="the corpus")
    split: str = Field(description="split of all its images")

    @property
    def root(self) -> Path | str | None:
        """Return the folder or the archive of the corpus, None where it has none."""
        return getattr(self.corpus, "root", None)

    def entries(self) -> Iterator[Entry]:
        """Yield the images of the corpus; ``place`` begins with their split there."""
        for entry in self.corpus.entries():
            yield entry._replace(split=self.split, place=entry.split.encode() + b"\0" + entry.place)

    def classes(self) -> tuple[str, ...] | None:
        """Return what the corpus does."""
        return self.corpus.classes()

    def describe(self) -> str:
        """Name the corpus and the split."""
        return f"{self.corpus.describe()}, all of it for {self.split}"

    def read(self, split: str, place: bytes) -> bytes:
        """Return what the corpus does."""
        own, _, rest = place.partition(b"\0")
        return self.corpus.read(own.decode(), rest)


AnyCorpus = Annotated[OneCorpus | OneSplit | Slices, Field(discriminator="kind")]


@config
class Source:
    """One of the sources of a set."""

    corpus: AnyCorpus = Field(description="where its images are")
    weight: float | None = Field(None, gt=0, description="its share of the set, beside the other weights")
    limit: int | None = Field(None, gt=0, description="most images of it, in each split")


@config
class SourceLine:
    """One of the ``sources`` of a list."""

    source: str = Field(description="anything that SOURCE may be, relative to the list")
    labels: str | None = Field(None, description="as labels=, which holds where it is not given")
    image: str | None = Field(None, description="as image=, which holds where it is not given")
    split: str | None = Field(None, description="split of all its images; else its own, else the one it is named after")
    weight: float | None = Field(None, gt=0, description="its share of the set, beside the other weights")
    limit: int | None = Field(None, gt=0, description="most images of it, in each split")


def open_corpus(tree: Mapping[str, Any]) -> AnyCorpus:
    """Open a corpus from what :func:`mpp.config.dump` made of it."""
    return resolve(Source, {"corpus": tree}).corpus


def find_sources(source: str, labels: str, image: str | None, spool: Path) -> tuple[Source, ...]:
    """Return the corpora of ``source``: those that a .yaml file lists, or the one that it is itself.

    Raises ``ConfigError`` for a list that cannot be used, and what :func:`find_corpus` raises.
    """
    file = Path(source)
    if file.suffix.lower() not in (".yaml", ".yml") or not file.is_file():
        return (Source(corpus=find_corpus(source, labels, image, spool)),)
    lines = _listed_sources(file)
    if any(line.weight is None for line in lines) and not all(line.weight is None for line in lines):
        raise ConfigError(f"{file}: some sources have a weight and some have none", fix="give each one a weight")
    found = [_open_line(file, line, labels, image, spool) for line in lines]
    _check_apart(file, [source.corpus for source in found])
    return tuple(found)


def _open_line(file: Path, line: SourceLine, labels: str, image: str | None, spool: Path) -> Source:
    words = _labels_beside(file, line.labels) if line.labels is not None else labels
    place = _beside(file, line.source)
    otherwise = DEFAULT if line.split else only_word(Path(place).name) or DEFAULT
    found = find_corpus(place, words, line.image or image, spool, otherwise)
    split = split_name(line.split, f"{file}, {line.source}") if line.split else None
    corpus = OneSplit(corpus=found, split=split) if split else found
    return Source(corpus=corpus, weight=line.weight, limit=line.limit)


def _check_apart(file: Path, corpora: Sequence[AnyCorpus]) -> None:
    """Refuse sources of which one is or holds another: images would be listed twice."""
    plain = [corpus.corpus if isinstance(corpus, OneSplit) else corpus for corpus in corpora]
    named = [corpus.file if isinstance(corpus, Manifest) else Path(corpus.root) for corpus in plain]
    places = [place.resolve() if place.exists() else place for place in named]  # a name on the Hub is no place
    counts = Counter(places)
    for corpus, place in zip(plain, places, strict=True):
        above = () if isinstance(corpus, Manifest) else place.parents  # no folder lists what a manifest in it does
        other = next((folder for folder in above if folder in counts), place)
        if other != place or counts[place] > 1:
            raise ConfigError(f"{file}: the sources {place} and {other} overlap", fix="list each image once")


def _listed_sources(file: Path) -> list[SourceLine]:
    tree = read_yaml(file)
    found = tree.get("sources")
    if set(tree) != {"sources"} or not isinstance(found, list) or not found:
        raise ConfigError(f"{file}: expected `sources:` and below it a list", fix="see SOURCE in mpp-shard --help")
    lines = []
    for number, line in enumerate(found, 1):
        where = f"{file}, source {number}"
        if not isinstance(line, dict):
            raise ConfigError(f"{where}: {line!r}, expected keys such as source: and labels:")
        lines.append(resolve(SourceLine, line, where=where))
        if lines[-1].source == STANDARD_INPUT:
            raise ConfigError(f"{where}: standard input is no source of a list", fix="mpp-shard - OUT")
    return lines


def _beside(file: Path, name: str) -> str:
    """Return ``name`` seen from the folder of ``file``, where something has that name there."""
    return str(file.parent / name) if (file.parent / name).exists() else name


def _labels_beside(file: Path, labels: str) -> str:
    return _beside(file, labels) if labels.lower().endswith(MAPPINGS) else labels


def find_corpus(source: str, labels: str, image: str | None, spool: Path, otherwise: str | None = None) -> OneCorpus:
    """Look what ``source`` is and open it; what can be read only once is kept under ``spool``.

    ``labels`` is auto, none, folders, cls, a column or a mapping file; ``image`` names the column of images or their
    paths, or the extension of images in archives; ``otherwise`` is the split of images that name none, where the name
    of a single file does not say it. Raises ``ConfigError`` for a source that is not there or options that do not fit
    it, ``DataError`` for one without images.
    """
    if source == STANDARD_INPUT:
        file = Path(os.path.abspath(spool)) / "standard-input.txt"
        spool_list(file)
        return open_manifest(file, Path.cwd(), labels, image)
    if (scheme := scheme_of(source)) is not None:
        shown = "pipe:..." if scheme == "pipe" else redact(source)
        raise ConfigError(f"{shown}: SOURCE is no URL", fix="name a manifest with a URL a row")
    root = Path(os.path.abspath(source))
    if not _is_unicode(str(root)):
        raise ConfigError(f"{printable(str(root))}: the path of SOURCE is no UTF-8", fix="rename it")
    if root.is_dir():
        return _find_folder(root, labels, image, spool, otherwise or DEFAULT)
    if root.exists():
        return _find_file(root, labels, image, spool, otherwise or only_word(root.name) or DEFAULT)
    if re.fullmatch(HUB_NAME, source) and not Path(source).parent.exists():
        return open_dataset(source, [], labels, image, otherwise=otherwise or DEFAULT)
    raise ConfigError(f"{source}: no such folder or file", fix="name an existing one, or a Hub dataset as OWNER/NAME")


def _is_unicode(text: str) -> bool:
    try:
        return bool(text.encode())
    except UnicodeEncodeError:
        return False


def _find_folder(root: Path, labels: str, image: str | None, spool: Path, otherwise: str) -> OneCorpus:
    found = _contents(root)
    unread = found.pop(UNREAD, None)
    if len(found) > 1:
        listed = " and ".join(f"{kind} ({printable(name)})" for kind, name in found.items())
        both = "both " if len(found) == 2 else ""
        raise ConfigError(
            f"{root}: {both}{listed} lie here", fix="name the subfolder with those to shard, or part them"
        )
    if PARQUET in found:
        files = [str(root / name) for name in walk(str(root)) if name.lower().endswith(".parquet")]
        return open_dataset(str(root), files, labels, image, otherwise=otherwise)
    if ARCHIVED in found:
        words = find_labels(labels, archives.LABELS, "an archive")
        return open_archives(root, words, _absolute(spool), image=image, otherwise=otherwise)
    if IMAGES in found:
        if image is not None:
            raise ConfigError(f"image={image}: a folder of images has no columns", fix="leave image= away")
        words = find_labels(labels, folders.LABELS, "a folder of images")
        return Folder(root=root, labels=words, otherwise=otherwise)
    seen = f"; {printable(unread)} is an archive that is not read" if unread else ""
    raise DataError(
        f"{root}: no images, no parquet files and no archives under this folder{seen}", fix="name another SOURCE"
    )


def _contents(root: Path) -> dict[str, str]:
    """Return the kinds of files under a folder that are sources, each with the first of its kind."""
    found: dict[str, str] = {}
    for name, kind in _kinds(root):
        found.setdefault(kind, name)
    return found


def _kinds(root: Path) -> Iterator[tuple[str, str]]:
    for name in walk(str(root)):
        if name.lower().endswith(".parquet"):
            yield name, PARQUET
        elif is_archive(name):
            yield name, ARCHIVED
        elif name.lower().endswith(NOT_READ):
            yield name, UNREAD
        elif is_image(root, name):
            yield name, IMAGES


def _find_file(file: Path, labels: str, image: str | None, spool: Path, otherwise: str) -> OneCorpus:
    if is_archive(file.name):
        words = find_labels(labels, archives.LABELS, "an archive")
        return open_archives(file, words, _absolute(spool), image=image, otherwise=otherwise)
    if file.suffix.lower() == ".parquet" and _holds_images(file, image):
        return open_dataset(str(file), [str(file)], labels, image, otherwise=otherwise)
    if file.suffix.lower() in TABLES:
        return open_manifest(file, file.parent, labels, image, otherwise=otherwise)
    if file.name.lower().endswith(NOT_READ):
        raise ConfigError(f"{file}: archives of this kind are not read", fix="pack it again as .tar or .zip")
    raise ConfigError(f"{file} is a file; SOURCE is {KNOWN}", fix=f"mpp-shard - OUT < {file.name}, if it lists paths")


def _holds_images(file: Path, image: str | None) -> bool:
    """Say whether a parquet file holds images themselves, not their paths."""
    import pyarrow

    from mpp.sources.rows import parquet_schema

    schema = parquet_schema(file)
    asked = image.lower() if image else None
    fields = [field for field in schema if field.name.lower() == asked] or list(schema)
    stored = [
        field for field in fields if pyarrow.types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0
    ]
    plain = [field for field in fields if field.name.lower() in (asked, *PATHS) and _is_binary(field.type)]
    return bool(stored or plain)


def _is_binary(kind: Any) -> bool:
    import pyarrow

    return bool(pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind))


def _absolute(folder: Path) -> Path:
    return Path(os.path.abspath(folder))
