"""The first part of sharding: list the sources, find copies, cut the layout. What follows needs OUT alone."""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from mpp.disk import disk_errors, lock_file
from mpp.errors import ConfigError, DataError
from mpp.shards.duplicates import TABLE, duplicates_table, find_duplicates
from mpp.shards.engines import run_tasks
from mpp.shards.hashing import shuffled
from mpp.shards.layout import FORMAT_VERSION, cut_shards, layout_hash, options_hash
from mpp.shards.listing import FOLDER, Keep, Listing, open_listing, write_listing
from mpp.shards.options import ShardOptions
from mpp.shards.outputs import LocalOutput, Output, clear_temporary, open_output
from mpp.shards.shardset import RECORDS
from mpp.shards.writer import LAYOUT, Layout, image_policy
from mpp.sources.corpora import Source, find_sources

FORMAT_PROBES = 256  # images looked into to choose the stored format
LOCK = f"{RECORDS}/lock"
SPOOL = f"{RECORDS}/spool"  # what can be read only once, or only from its beginning, is copied to here
FRESH = f"{FOLDER}.new"  # a listing that is not known yet to be the one this set was begun with


def plan(options: ShardOptions, console: Console) -> Layout:
    """List the sources of ``options`` and write the layout into OUT, or find there the same one.

    Raises ``ConfigError`` for sources or an output folder that cannot be used and for an OUT that was begun with
    something else, ``DataError`` for sources without images, ``DiskError`` without room.
    """
    output = open_output(options.out, options.work)
    _check_output(output)
    with disk_errors(output.work), _untouched_by_errors(output.work), locked(output.work):
        sources = find_sources(options.source, options.labels, options.image, output.work / SPOOL)
        _check_places(options, sources)
        fresh = _list(output.work, sources, options)
        layout = _layout(options, fresh)
        image_policy(layout)  # refuses options that do not fit
        console.print(f"{fresh.summary['decisions']}; stored as {layout['format']}", markup=False)
        begun = _check_same(output, layout)
        shutil.rmtree(output.work / FOLDER, ignore_errors=True)
        fresh.folder.rename(output.work / FOLDER)
        listing = open_listing(output.work)
        if options.dedupe == "exact" and not (begun and (output.work / TABLE).exists()):
            _find_copies(output.work, listing, options, console)
        text = json.dumps(layout, indent=1).encode()
        for place in {output, LocalOutput(output.work)}:
            place.put(LAYOUT, text)
    return layout


@contextmanager
def locked(work: Path, *, shared: bool = False) -> Iterator[None]:
    """Hold the folder ``work`` alone, or with others that write shards; raise ``ConfigError`` where that cannot be."""
    (work / RECORDS).mkdir(parents=True, exist_ok=True)
    try:
        lock = lock_file(work / LOCK, shared=shared)
    except BlockingIOError:
        raise ConfigError(f"another mpp-shard is writing to {work}", fix="wait for it, or stop it") from None
    with lock:
        if not shared:
            clear_temporary(work)
        yield


@contextmanager
def _untouched_by_errors(work: Path) -> Iterator[None]:
    """Remove what an attempt that fails has made of a folder that was not there or was empty."""
    before = next((folder for folder in (work, *work.parents) if folder.exists()), work)
    begun = (work / LAYOUT).exists()
    try:
        yield
    except BaseException:
        shutil.rmtree(work / (FRESH if begun else RECORDS), ignore_errors=True)
        if not begun:
            while work != before and work.exists() and not any(work.iterdir()):
                work.rmdir()
                work = work.parent
        raise


def _check_output(output: Output) -> None:
    """Refuse an output that holds something else."""
    work = output.work
    if work.exists() and not work.is_dir():
        raise ConfigError(f"OUT {work} is a file", fix="name a folder")
    if work.is_dir() and any(work.iterdir()) and not (work / LAYOUT).exists():
        raise ConfigError(f"OUT {work} is not empty and was not written by mpp-shard", fix="name another OUT")


def _check_places(options: ShardOptions, sources: Sequence[Source]) -> None:
    """Refuse an output folder inside a source or around it."""
    target = open_output(options.out, options.work).work.resolve()
    for source in sources:
        root = getattr(source.corpus, "root", None)
        inside = None if root is None else Path(root).resolve()
        if inside is not None and inside.exists() and (target.is_relative_to(inside) or inside.is_relative_to(target)):
            raise ConfigError(f"OUT {options.out} and SOURCE {root} lie one inside the other", fix="name another OUT")


def _list(work: Path, sources: Sequence[Source], options: ShardOptions) -> Listing:
    """List ``sources``, choosing among their images where they have weights or limits."""
    fresh = work / FRESH
    shutil.rmtree(fresh, ignore_errors=True)
    corpora = [source.corpus for source in sources]
    auto = options.labels == "auto"
    listing = write_listing(fresh, corpora, auto_labels=auto)
    if any(source.weight is not None or source.limit is not None for source in sources):
        keep = _choice(listing.summary["found"], sources, options.seed)
        shutil.rmtree(fresh)
        listing = write_listing(fresh, corpora, auto_labels=auto, keep=keep)
    if not sum(listing.splits.values()):
        raise DataError(f"{options.source}: no images", fix="name another SOURCE")
    return listing


def _choice(found: Mapping[str, Sequence[int]], sources: Sequence[Source], seed: int) -> Keep:
    """Choose by ``seed``, for each split, which images of each source are taken."""
    masks = {}
    for split, counts in found.items():
        for number, taken in enumerate(shares(counts, sources)):
            mask = np.zeros(counts[number], bool)
            mask[shuffled(np.arange(taken, dtype=np.int64), counts[number], seed, number)] = True
            masks[number, split] = mask
    return lambda number, split, item: bool(masks[number, split][item])


def shares(counts: Sequence[int], sources: Sequence[Source]) -> list[int]:
    """Return how many of ``counts`` images of each source are taken.

    At most its limit; and where there are weights, so many that the sources stand in their proportion and none has
    more than it has. A source without images leaves the others as they are.
    """
    most = [min(count, count if s.limit is None else s.limit) for count, s in zip(counts, sources, strict=True)]
    weights = [1.0 if source.weight is None else source.weight for source in sources]
    if all(source.weight is None for source in sources) or not any(most):
        return most
    whole = min(have / weight for have, weight in zip(most, weights, strict=True) if have)
    return [min(have, round(whole * weight)) for have, weight in zip(most, weights, strict=True)]


def _layout(options: ShardOptions, listing: Listing) -> Layout:
    """Return what a set is made of; a run continues another only where this is the same."""
    fixed = json.loads(json.dumps(options.fixed()))
    limits = {"shard_samples": options.shard_samples, "shard_bytes": options.shard_bytes}
    chosen, listed = options_hash(fixed), listing.summary["hash"]
    return {
        "version": FORMAT_VERSION,
        "options": fixed,
        "format": _stored_format(options, listing),
        "images": listing.splits,
        "classes": listing.summary["classes"],
        "listing_hash": listed,
        "options_hash": chosen,
        "layout_hash": layout_hash(listed, chosen),
        "bounds": {
            split: cut_shards(split, listing.sizes(split), seed=options.seed, **limits) for split in listing.splits
        },
    }


def _stored_format(options: ShardOptions, listing: Listing) -> str:
    """Return jpg or png; ``format=auto`` is jpg where a source image is a JPEG among evenly spaced probes."""
    if options.format != "auto":
        return options.format
    for split, count in listing.splits.items():
        probes = np.arange(0, count, max(1, count // FORMAT_PROBES), dtype=np.int64)
        for row in listing.rows(split, probes):
            try:
                if listing.read(split, row).startswith(b"\xff\xd8\xff"):
                    return "jpg"
            except OSError:
                continue
    return "png"


def _find_copies(work: Path, listing: Listing, options: ShardOptions, console: Console) -> None:
    def run(function: Callable[[Any], Any], tasks: Sequence[Any]) -> Iterator[Any]:
        return run_tasks(function, tasks, options.workers)

    sizes = {split: listing.sizes(split) for split in listing.splits}
    copies = find_duplicates(work, sizes, run, console)
    LocalOutput(work).put(TABLE, duplicates_table(copies))


def _check_same(output: Output, now: Layout) -> bool:
    """Say whether OUT was begun with this layout; raise ``ConfigError`` with the differences where it was another."""
    try:
        before = json.loads(output.read(LAYOUT))
    except FileNotFoundError:
        return False
    if before["layout_hash"] == now["layout_hash"]:
        return True
    pairs = [(key, before["options"].get(key), value) for key, value in now["options"].items()]
    differences = [f"{key}: {old} there, {new} now" for key, old, new in pairs if old != new]
    if before["listing_hash"] != now["listing_hash"]:
        differences.append(f"images: {before['images']} there, {now['images']} now, or other names, sizes or labels")
    if before["version"] != now["version"]:
        differences.append(f"format version: {before['version']} there, {now['version']} now")
    where = output.place("")
    raise ConfigError(f"{where} was begun with something else: {'; '.join(differences)}", fix="name another OUT")
