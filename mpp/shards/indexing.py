"""Tars written by others become a set: indexed once, into a folder that is then opened like any other set.

The tars stay where they are; the folder holds ``index.json``, which comes last, and the tables of members. One process
writes it, others that want the same wait. What is killed is begun again.
"""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from mpp.disk import cache_folder, disk_errors, fsync_path, lock_file
from mpp.errors import ConfigError, DataError
from mpp.shards.engines import run_tasks
from mpp.shards.outputs import LOCK, TEMPORARY, LocalOutput
from mpp.shards.progress import shown as shown_progress
from mpp.shards.shardset import ELSEWHERE, INDEX, MEMBER, RECORDS, ShardRecord, ShardSet, open_shards, shown, sidecar
from mpp.shards.sidecars import wids_index
from mpp.shards.tarindex import Amount, IndexedTar, TarTask, index_tar
from mpp.sources.archives import INDEXES, SIDECARS, class_names
from mpp.sources.files import file_size
from mpp.sources.remote import scheme_of
from mpp.sources.tarlists import Tar, find_tars, means_tars

VERSION = 1  # of what an index says; another makes indexes anew
MOST_CLASSES = 1_000_000
SECONDS_BETWEEN_TRIES = 0.2
SECONDS_BEFORE_A_WORD = 2.0  # that another process is waited for

Classes = tuple[str, ...] | None


@dataclass(frozen=True)
class IndexPlan:
    """What is to be indexed: ``names`` are those of the classes, where files beside the tars say them."""

    source: str
    tars: tuple[Tar, ...]
    labels: str
    image: str | None
    names: Classes

    @property
    def digest(self) -> str:
        """Return the sha256 over everything that the index depends on: names, sizes and times of tars, and options."""
        facts = [VERSION, self.tars, self.labels, self.image, self.names]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def plan_index(source: str, *, split: str | None = None, labels: str = "auto", image: str | None = None) -> IndexPlan:
    """List the tars of ``source``, with stats alone; raises what :func:`find_tars` raises."""
    extension = None if image is None else image.lower().removeprefix(".")
    if extension in SIDECARS:
        raise ConfigError(f"image={image}: no extension of images", fix="image=jpg, say, or leave it out")
    tars = find_tars(source, split)
    return IndexPlan(source, tars, labels, extension, _class_names(source, tars) if labels == "auto" else None)


def index_tars(plan: IndexPlan, out: Path, workers: int | None = None) -> None:
    """Index the tars of ``plan`` into the folder ``out``, unless that is done; wait where another process does it.

    ``workers`` as in :func:`run_tasks`. Raises ``DataError`` and ``ConfigError`` for tars that cannot be read like a
    set, or ``out`` with other things in it, ``DiskError`` where there is no room.
    """
    if is_indexed(plan, out):
        return
    _check_out(out)
    console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    with disk_errors(out), _alone(out, console):
        if is_indexed(plan, out):
            return
        console.print(f"indexing {len(plan.tars):,} tar{'s' * (len(plan.tars) > 1)}, once, into {out}")
        (out / INDEX).unlink(missing_ok=True)  # until it is written anew, the tables are of two minds
        fsync_path(out)
        shutil.rmtree(out / ELSEWHERE, ignore_errors=True)
        results = list(_indexed(plan, out, workers, console))
        _check_distinct([result.record for result in results])
        classes = _classes(plan, results)
        _say_what_is_left_out(results, console)
        groups: dict[str, list[ShardRecord]] = {}
        for tar, result in zip(plan.tars, results, strict=True):
            groups.setdefault(tar.split, []).append(result.record)
        index = wids_index(groups, classes) | {"indexed": plan.digest}
        LocalOutput(out).put(INDEX, json.dumps(index, indent=1, ensure_ascii=False).encode() + b"\n")


def open_any(source: str, split: str, workers: int | None = None) -> ShardSet:
    """Open one split of a set, or of tars written by others, which are indexed at their first use.

    The index lies in ``$MPP_CACHE``, or ``~/.cache/mpp``, under a name that changes with names, sizes and times of the
    tars. Raises what :func:`open_shards` and :func:`index_tars` raise.
    """
    if not _are_tars(source):
        return open_shards(source, split)
    plan = plan_index(source)
    out = cache_folder() / "index" / plan.digest[:32]
    index_tars(plan, out, workers)
    return open_shards(out, split)


def is_indexed(plan: IndexPlan, out: Path) -> bool:
    """Say whether ``out`` holds the finished index of the very same tars, and every table."""
    index = _index(out)
    return index.get("indexed") == plan.digest and all(_has_table(out, entry) for entry in index["shardlist"])


def _has_table(out: Path, entry: dict[str, Any]) -> bool:
    """Say whether a table is there: those who clean caches take files one by one."""
    expected: int = entry["samples"] * len(entry["members"]) * MEMBER.itemsize
    return file_size(out / sidecar(entry["url"], "members")) == expected


def _are_tars(source: str) -> bool:
    """Say whether ``source`` is no set that mpp has written or begun, and there are tars to index."""
    if scheme_of(source) is None and os.path.isdir(source):
        ours = "splits" in _index(Path(source)) or (Path(source) / RECORDS).exists()
        return not ours and any(name.endswith(".tar") for _, _, names in os.walk(source) for name in names)
    return means_tars(source)


def _index(folder: Path) -> dict[str, Any]:
    """Return ``index.json`` of a folder, nothing where it has none; one that is damaged has splits, to be opened."""
    try:
        index = json.loads((folder / INDEX).read_bytes())
    except OSError:
        return {}
    except ValueError:
        return {"splits": []}
    return index if isinstance(index, dict) else {}


def _class_names(source: str, tars: Sequence[Tar]) -> Classes:
    """Return the class names that lie beside or above the tars of this machine."""
    if scheme_of(tars[0].name) is not None:
        return None
    folder = Path(source) if os.path.isdir(source) else Path(tars[0].name).parent
    found = (class_names(place / name) for place in (folder, folder.absolute().parent) for name in INDEXES)
    return next(filter(None, found), None)


def _check_out(out: Path) -> None:
    if (out / RECORDS / "layout.json").exists():
        raise ConfigError(f"OUT {out} is a set of mpp-shard", fix="name another OUT")
    if out.exists() and not out.is_dir():
        raise ConfigError(f"OUT {out} is a file", fix="name another OUT")
    if out.is_dir() and not (out / RECORDS).exists() and any(out.iterdir()):
        raise ConfigError(f"OUT {out} is not empty, and no index", fix="name another OUT")


@contextmanager
def _alone(out: Path, console: Console) -> Iterator[None]:
    """Hold the folder ``out`` alone, as soon as no other process does."""
    (out / RECORDS).mkdir(parents=True, exist_ok=True)
    began, said = time.monotonic(), False
    while True:
        try:
            lock = lock_file(out / LOCK)
            break
        except BlockingIOError:
            if not said and time.monotonic() - began > SECONDS_BEFORE_A_WORD:
                console.print(f"waiting for another process that indexes into {out}")
                said = True
            time.sleep(SECONDS_BETWEEN_TRIES)
    with lock:
        shutil.rmtree(out / TEMPORARY, ignore_errors=True)  # what killed processes left
        yield


def _indexed(plan: IndexPlan, out: Path, workers: int | None, console: Console) -> Iterator[IndexedTar]:
    """Index every tar, and yield what came of it in the order of the plan."""
    tasks = [TarTask(tar, out.absolute(), plan.labels, plan.image) for tar in plan.tars]
    done: dict[str, IndexedTar] = {}
    total = sum(_units(tar.name, tar.size) for tar in plan.tars)
    unit = "tars" if all(scheme_of(tar.name) for tar in plan.tars) else "MB"
    for result in shown_progress(
        run_tasks(index_tar, tasks, workers),
        lambda result: _units(result.record.name, result.record.bytes),
        total=total,
        title="indexing",
        console=console,
        unit=unit,
    ):
        done[result.record.name] = result
    return (done[tar.name] for tar in plan.tars)


def _units(name: str, size: int) -> int:
    """Return what a tar counts in the progress: its MB, or 1 where its size is not known beforehand."""
    return 1 if scheme_of(name) else -(-size // 10**6)


def _check_distinct(records: Sequence[ShardRecord]) -> None:
    """Raise ``DataError`` where two tars have the same bytes: their samples would be read twice."""
    known: dict[str, str] = {}
    for record in records:
        first = known.setdefault(record.sha256, record.name)
        if first != record.name:
            message = f"{shown(record.name)} has the same bytes as {shown(first)}"
            raise DataError(message, fix="leave one of them out")


def _classes(plan: IndexPlan, results: Sequence[IndexedTar]) -> Classes:
    """Return the names of the classes, None where no sample has one; raise ``DataError`` where only some have."""
    samples = sum(result.record.samples for result in results)
    unlabelled = _sum([(result.record.name, result.unlabelled) for result in results])
    if unlabelled.number == samples:
        return None
    if unlabelled.number:
        message = f"{unlabelled.number:,} of {samples:,} samples have no .cls, the first is {unlabelled.first}"
        raise DataError(message, fix="mpp index TARS OUT labels=none")
    largest = max(results, key=lambda result: result.largest[0])
    number, key = largest.largest
    most = MOST_CLASSES if plan.names is None else len(plan.names)
    if number >= most:
        known = "more than a class can be" if plan.names is None else f"but the index beside the tars names {most}"
        message = f"{shown(largest.record.name)}: {key} is of class {number}, {known}"
        raise DataError(message, fix="mend that file, or mpp index TARS OUT labels=none")
    return plan.names or tuple(map(str, range(number + 1)))


def _sum(amounts: Sequence[tuple[str, Amount]]) -> Amount:
    """Add up what is amiss in each tar; the first sample is called after its tar and key."""
    named = [f"{shown(name)}: {amount.first}" for name, amount in amounts if amount.number]
    return Amount(sum(amount.number for _, amount in amounts), named[0] if named else "")


def _say_what_is_left_out(results: Sequence[IndexedTar], console: Console) -> None:
    bare = _sum([(result.record.name, result.bare) for result in results])
    total = sum(result.record.samples for result in results) + bare.number
    if bare.number:
        words = "sample has" if bare.number == 1 else "samples have"
        left = f"{bare.number:,} of {total:,} {words} no image and are left out, the first is {bare.first}"
        console.print(left)
