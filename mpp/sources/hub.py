"""All splits of a dataset by its name on the Hub or its path, through ``datasets``, or one sentence why not."""

import logging
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mpp.errors import ConfigError, DataError
from mpp.sources.files import printable, walk
from mpp.sources.rows import parquet_schema

HUB_NAME = r"\w[\w.-]*/\w[\w.-]*"
SECONDS = 5.0  # for the Hub to answer at all; its own client would try for half a minute
LOCAL_COPY = "the path of a local copy instead of the name, or a network"


def load_splits(source: str, *, subset: str | None = None, revision: str | None = None) -> dict[str, Any]:
    """Return the tables of all splits of ``source``: OWNER/NAME on the Hub, a folder, or a parquet file.

    They lie in the cache of ``datasets``, mapped into memory; no code of a dataset is run. Without a network, what the
    cache holds is used. Raises ``ConfigError`` for a source that is neither, ``DataError`` for one that cannot be read,
    with the file where it is a local one.
    """
    path = Path(source).expanduser()
    if not path.exists() and (not re.fullmatch(HUB_NAME, source) or path.parent.exists()):
        raise ConfigError(f"{source}: no such folder or file", fix="name an existing one, or a Hub dataset OWNER/NAME")
    if path.is_file() and path.suffix.lower() != ".parquet":
        raise ConfigError(f"{source} is no parquet file", fix="name a folder, a .parquet file or a dataset on the Hub")
    if not path.exists():
        return _load_from_hub(source, subset, revision)
    files = [path] if path.is_file() else [path / name for name in walk(str(path)) if name.lower().endswith(".parquet")]
    import datasets

    try:
        with _quiet():
            if path.is_file():
                return dict(datasets.load_dataset("parquet", data_files=str(path.resolve())))
            return dict(datasets.load_dataset(str(path.resolve()), subset))
    except Exception as error:  # a file system and many parsers speak through this one call
        raise DataError(f"{source}: {_fault(files) or _reason(error)}", fix="mend or download it again") from None


def _load_from_hub(source: str, subset: str | None, revision: str | None) -> dict[str, Any]:
    import datasets

    with offline_without_hub() as answers:
        try:
            with _quiet():
                return dict(datasets.load_dataset(source, subset, revision=revision))
        except Exception as error:  # a network, a file system and many parsers speak through this one call
            if answers:
                why = f"cannot be loaded from the Hub ({_reason(error)})"
                raise DataError(f"{source}: {why}", fix="its name, or the path of a local copy") from None
            why = f"no such folder, not in the cache, and offline: the Hub does not answer within {SECONDS:g} s"
            raise DataError(f"{source}: {why}", fix=LOCAL_COPY) from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave errors to the one message that ends the command, and progress to people at a terminal."""
    import datasets

    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    before = datasets.utils.logging.get_verbosity()
    datasets.utils.logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        datasets.utils.logging.set_verbosity(before)


@contextmanager
def offline_without_hub() -> Iterator[bool]:
    """Keep to what is cached, instead of trying again and again, where the Hub does not answer; yield if it does."""
    import datasets
    import huggingface_hub
    from huggingface_hub import constants

    before = (datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE)
    answers = not any(before)
    if answers:
        try:
            huggingface_hub.get_session().head(constants.ENDPOINT, timeout=SECONDS)
        except Exception:  # whatever kind of client it has and however that fails
            answers = False
    try:
        if not answers:
            datasets.config.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE = True
        yield answers
    finally:
        datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE = before


def _fault(files: Sequence[Path]) -> str:
    """Return what is wrong with the first local parquet file that has something wrong, nothing where none has."""
    import pyarrow
    import pyarrow.parquet

    columns: Mapping[str, Path] = {}
    for file in files:
        names = parquet_schema(file).names
        columns = columns or dict.fromkeys(names, file)
        strangers = sorted(set(names) ^ set(columns))
        if strangers:
            has, lacks = (file, files[0]) if strangers[0] in names else (files[0], file)
            return f"{lacks} has no column {printable(strangers[0])!r}, {has} has one"
        table = pyarrow.parquet.ParquetFile(file)
        for group in range(table.num_row_groups):
            try:
                table.read_row_group(group)
            except (OSError, pyarrow.ArrowException) as error:
                return f"{file}: row group {group} of {table.num_row_groups} is damaged ({_reason(error)})"
    return ""


def _reason(error: BaseException) -> str:
    """Return the kind and the words of an error, of the first one where others were raised from it."""
    while (below := error.__cause__) is not None:
        error = below
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
