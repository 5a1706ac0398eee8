"""Where images come from: SOURCE becomes one corpus, or several with weights and limits."""

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from mpp.config import config, read_yaml, resolve
from mpp.errors import ConfigError, DataError
from mpp.sources import archives, folders
from mpp.sources.archives import Archives, open_archives
from mpp.sources.files import is_image, printable, walk
from mpp.sources.folders import Folder
from mpp.sources.labels import MAPPINGS, find_labels
from mpp.sources.manifests import Manifest, open_manifest, spool_list
from mpp.sources.nested import ARCHIVES, is_archive
from mpp.sources.remote import redact, scheme_of
from mpp.sources.rows import PATHS, TABLES
from mpp.sources.tables import Dataset, open_dataset

AnyCorpus = Annotated[Folder | Dataset | Archives | Manifest, Field(discriminator="kind")]
IMAGES, PARQUET, ARCHIVED = "images", "parquet files", "archives"
KNOWN = f"a folder, an archive ({' '.join(ARCHIVES)}), a manifest ({' '.join(TABLES)}) or a list (.yaml)"
HUB_NAME = r"\w[\w.-]*/\w[\w.-]*"
STANDARD_INPUT = "-"


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
    found = []
    for line in lines:
        words = _labels_beside(file, line.labels) if line.labels is not None else labels
        corpus = find_corpus(_beside(file, line.source), words, line.image or image, spool)
        found.append(Source(corpus=corpus, weight=line.weight, limit=line.limit))
    return tuple(found)


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


def find_corpus(source: str, labels: str, image: str | None, spool: Path) -> AnyCorpus:
    """Look what ``source`` is and open it; what can be read only once is kept under ``spool``.

    ``labels`` is auto, none, folders, cls, a column or a mapping file; ``image`` names the column of images or their
    paths. Raises ``ConfigError`` for a source that is not there or options that do not fit it, ``DataError`` for one
    without images.
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
        return _find_folder(root, labels, image, spool)
    if root.exists():
        return _find_file(root, labels, image, spool)
    if re.fullmatch(HUB_NAME, source) and not Path(source).parent.exists():
        return open_dataset(source, [], labels, image)
    raise ConfigError(f"{source}: no such folder or file", fix="name an existing one, or a Hub dataset as OWNER/NAME")


def _is_unicode(text: str) -> bool:
    try:
        return bool(text.encode())
    except UnicodeEncodeError:
        return False


def _find_folder(root: Path, labels: str, image: str | None, spool: Path) -> AnyCorpus:
    found = _contents(root)
    if len(found) > 1:
        listed = " and ".join(f"{kind} ({printable(name)})" for kind, name in found.items())
        both = "both " if len(found) == 2 else ""
        raise ConfigError(
            f"{root}: {both}{listed} lie here", fix="name the subfolder with those to shard, or part them"
        )
    if PARQUET in found:
        files = [str(root / name) for name in walk(str(root)) if name.lower().endswith(".parquet")]
        return open_dataset(str(root), files, labels, image)
    if ARCHIVED in found:
        _refuse_column(image, "archives have")
        return open_archives(root, find_labels(labels, archives.LABELS, "an archive"), _absolute(spool))
    if IMAGES in found:
        _refuse_column(image, "a folder of images has")
        return Folder(root=root, labels=find_labels(labels, folders.LABELS, "a folder of images"))
    raise DataError(f"{root}: no images, no parquet files and no archives under this folder", fix="name another SOURCE")


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
        elif is_image(root, name):
            yield name, IMAGES


def _find_file(file: Path, labels: str, image: str | None, spool: Path) -> AnyCorpus:
    if is_archive(file.name):
        _refuse_column(image, "archives have")
        return open_archives(file, find_labels(labels, archives.LABELS, "an archive"), _absolute(spool))
    if file.suffix.lower() == ".parquet" and _holds_images(file, image):
        return open_dataset(str(file), [str(file)], labels, image)
    if file.suffix.lower() in TABLES:
        return open_manifest(file, file.parent, labels, image)
    raise ConfigError(f"{file} is a file; SOURCE is {KNOWN}", fix=f"mpp-shard - OUT < {file.name}, if it lists paths")


def _holds_images(file: Path, image: str | None) -> bool:
    """Say whether a parquet file holds images themselves, not their paths."""
    import pyarrow

    from mpp.sources.rows import parquet_schema

    schema = parquet_schema(file)
    fields = [field for field in schema if field.name == image] or list(schema)
    stored = [
        field for field in fields if pyarrow.types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0
    ]
    plain = [field for field in fields if field.name in (image, *PATHS) and pyarrow.types.is_binary(field.type)]
    return bool(stored or plain)


def _refuse_column(image: str | None, what: str) -> None:
    if image is not None:
        raise ConfigError(f"image={image}: {what} no columns", fix="leave image= away")


def _absolute(folder: Path) -> Path:
    return Path(os.path.abspath(folder))
