"""The shards of a labelled dataset: found as they were written, written once, or waited for."""

import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from mpp.config import dump
from mpp.disk import disk_errors, lock_file
from mpp.errors import ConfigError, DataError, HangError
from mpp.evaluation.protocols import TEST, TRAIN, LabelledData, open_labelled
from mpp.shards.options import FinalizeOptions, RunOptions, ShardOptions
from mpp.shards.outputs import BusyError, open_output
from mpp.shards.planning import check_output, plan
from mpp.shards.sharding import finalize_shards, run_shards
from mpp.shards.shardset import INDEX, RECORDS, open_shards, place, read_file, read_index, shown
from mpp.sources.corpora import Source
from mpp.sources.files import walk
from mpp.sources.slices import Slices

RECORD: Final = f"{RECORDS}/data.json"  # which data a set was written from
LOCK: Final = f"{RECORDS}/data.lock"
FEW: Final = 4_000  # images that this process writes sooner than others are started for it
PATIENCE: Final = 6 * 3600.0  # seconds that a process waits for the first one to write the set
PAUSE: Final = 1.0  # seconds between two looks


def ready(shards: str, data: LabelledData | None) -> None:
    """Have the labelled set ``data`` at ``shards``: use the one that is there, or write it.

    Of several processes that a launcher started the first writes and the others wait; of several jobs one writes.
    Raises ``ConfigError`` where other data lie there, ``DataError`` for data that are not what ``data`` says,
    ``HangError`` for a wait in vain.
    """
    if data is None or _found(shards, data):
        return
    if int(os.environ.get("RANK", "0")) > 0:
        _wait(shards, data)
    else:
        _write_or_wait(shards, data)


def _found(shards: str, data: LabelledData) -> bool:
    """Say whether the finished set is there; say what of it was refused.

    A set with too many refused images is none: writing it again tries those that were unreadable.
    """
    record = _read(shards, RECORD)
    if _read(shards, INDEX) is None:
        return False
    if record is not None:
        _check_same(shards, record, data)
    index = read_index(shards)
    names = index["classes"]
    if names is not None and len(names) != data.classes:
        what = f"{shown(shards)} has {len(names)} classes, data.classes is {data.classes}"
        raise DataError(what, fix=f"shards=ANOTHER, or data.classes={len(names)}")
    if record is None:
        _say(f"{shown(shards)}: taken as it is, it was not written from {data.source}")
        return True
    refused, kept = 0, 0
    for split in (TRAIN, TEST):
        for shard in open_shards(shards, split).shards:
            refused, kept = refused + shard.refused, kept + shard.samples
    if refused:
        _say(f"{shown(shards)}: {refused:,} of {refused + kept:,} images were refused when it was written")
    return refused <= data.max_refused * (refused + kept)


@lru_cache
def _say(line: str) -> None:
    """Print a line, once and by the first process, however many transfers a comparison makes."""
    if int(os.environ.get("RANK", "0")) == 0:
        print(line, flush=True)


def _check_same(shards: str, there: Mapping[str, Any], data: LabelledData) -> None:
    """Raise ``ConfigError`` with the differences where a set was written from other data."""
    now = _facts(data)
    if now["source"] == data.source and there.get("source") == str(_path(data)):  # a local one that is gone
        now["source"] = there["source"]
    if "content" in there:  # compared where both are known: a source may be gone once the set is there
        now |= _content(data)
    differences = [
        f"{key}: {there.get(key)} there, {value} now" for key, value in now.items() if there.get(key) != value
    ]
    if differences:
        what = f"{shown(shards)} was written from other data ({'; '.join(differences)})"
        raise ConfigError(what, fix="shards=ANOTHER_FOLDER, or the same data")


def _facts(data: LabelledData) -> dict[str, Any]:
    """Return what decides the samples of a set, a local source by its absolute path."""
    facts = {key: value for key, value in dump(data).items() if key != "max_refused"}
    return {**facts, "source": str(_path(data)) if _path(data).exists() else data.source}


def _path(data: LabelledData) -> Path:
    return Path(data.source).expanduser().resolve()


def _content(data: LabelledData) -> dict[str, str]:
    """Return, in words, how many files and bytes a local source has, and a hash of their names and sizes.

    Not when they were written, which a copy on another machine does not share. Nothing for a source that is not local.
    """
    path = _path(data)
    if not path.exists():
        return {}
    names = [""] if path.is_file() else list(walk(str(path)))
    sizes = [_size(path / name) for name in names]
    listing = hashlib.sha256()
    for name, size in zip(names, sizes, strict=True):
        listing.update(b"%s\0%d\0" % (os.fsencode(name), size))
    return {"content": f"{len(names):,} files, {sum(sizes):,} bytes, listing {listing.hexdigest()[:8]}"}


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:  # a link that leads nowhere
        return 0


def _read(shards: str, name: str) -> dict[str, Any] | None:
    """Return a JSON file of a set, None where there is none."""
    try:
        content: Any = json.loads(read_file(place(shards, name)))
    except OSError:
        return None
    except ValueError as error:
        raise DataError(f"{shown(place(shards, name))}: damaged, {error}", fix="shards=ANOTHER_FOLDER") from None
    if not isinstance(content, dict):
        raise DataError(f"{shown(place(shards, name))}: damaged, no JSON object", fix="shards=ANOTHER_FOLDER")
    return content


def _write_or_wait(shards: str, data: LabelledData) -> None:
    """Write the set unless another job does; where that one ends before it is whole, go on with it."""
    slices, output = open_labelled(data), open_output(shards, None)
    check_output(output)
    until = time.monotonic() + PATIENCE
    while True:
        try:
            with _alone(output.work):
                if not _found(shards, data):
                    _write(shards, data, slices)
                return
        except BusyError:
            if time.monotonic() > until:
                raise
        _say(f"{shown(shards)}: another job writes it, waiting")
        time.sleep(PAUSE)


@contextmanager
def _alone(work: Path) -> Iterator[None]:
    """Be the one job that writes a labelled set, through all steps of it; raise ``BusyError`` where another is."""
    try:
        with disk_errors(work):
            (work / LOCK).parent.mkdir(parents=True, exist_ok=True)
            lock = lock_file(work / LOCK)
    except (BlockingIOError, FileNotFoundError):  # or it fails just now, and clears away
        raise BusyError(f"another job is writing {work}", fix="wait for it, or stop it") from None
    try:
        with lock:
            yield
    finally:
        with suppress(OSError):
            work.rmdir()  # where nothing was begun


def _write(shards: str, data: LabelledData, slices: Slices) -> None:
    count = sum(end - first for ranges in slices.rows.values() for _, first, end in ranges)
    workers = 0 if count <= FEW else None
    options = ShardOptions(source=data.source, out=shards, workers=workers)
    plan(options, Console(highlight=False, soft_wrap=True), (Source(corpus=slices),))
    open_output(shards, None).put(RECORD, json.dumps(_facts(data) | _content(data), indent=1).encode())
    run_shards(RunOptions(out=shards, workers=workers))
    finalize_shards(FinalizeOptions(out=shards, max_refused=data.max_refused))


def _wait(shards: str, data: LabelledData) -> None:
    """Wait until the first process has written the set; its end ends this one, too, by the launcher."""
    until = time.monotonic() + PATIENCE
    while not _found(shards, data):
        if time.monotonic() > until:
            what = f"{shown(shards)}: the first process has not written it within {PATIENCE / 3600:g} h"
            raise HangError(what, fix="write it with one process first: the same command without a launcher")
        time.sleep(PAUSE)
