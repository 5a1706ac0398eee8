"""The first part of sharding: list the sources, find copies, cut the layout. What follows needs OUT alone."""

import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from mpp.disk import disk_errors
from mpp.errors import ConfigError, DataError
from mpp.shards.duplicates import TABLE, duplicates_table, find_duplicates
from mpp.shards.engines import run_tasks
from mpp.shards.hashing import shuffled
from mpp.shards.layout import FORMAT_VERSION, cut_shards, layout_hash, options_hash
from mpp.shards.listing import FOLDER, Keep, Listing, open_listing, write_listing
from mpp.shards.options import PlanOptions
from mpp.shards.outputs import LocalOutput, Output, RemoteOutput, is_remote, locked, open_output
from mpp.shards.shardset import RECORDS
from mpp.shards.writer import LAYOUT, Layout, image_policy
from mpp.sources.corpora import Source, find_sources

FORMAT_PROBES = 256  # images looked into to choose the stored format
FAILED_PROBES = 8  # then no more are tried: a URL that does not answer costs minutes
SPOOL = f"{RECORDS}/spool"  # what can be read only once, or only from its beginning, is copied to here
FRESH = f"{FOLDER}.new"  # a listing that is not known yet to be the one this set was begun with


def plan(options: PlanOptions, console: Console, opened: Sequence[Source] = ()) -> Layout:
    """List the sources of ``options`` and write the layout into OUT, or find there the same one.

    Sources that are ``opened`` already are taken in their place.
    Raises ``ConfigError`` for sources or an output folder that cannot be used and for an OUT that was begun with
    something else, ``DataError`` for sources without images, ``DiskError`` without room.
    """
    output = open_output(options.out, options.work)
    check_output(output)
    with disk_errors(output.work), _alone(output.work):
        sources = opened or _find_sources(options, output.work / SPOOL)
        _check_places(options, sources)
        fresh = _list(output.work, sources, options)
        now = _layout(options, fresh)
        begun = _check_same(output, now)
        if begun is None:
            _check_empty(output, fresh.splits)
        layout = begun or now | {"format": _stored_format(options, fresh)}
        image_policy(layout)  # refuses options that do not fit
        console.print(f"{fresh.summary['decisions']}; stored as {layout['format']}", markup=False)
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
def _alone(work: Path) -> Iterator[None]:
    """Hold the folder ``work``; what an attempt that fails has made of a folder that held nothing is removed."""
    before = next((folder for folder in (work, *work.parents) if folder.exists()), work)
    with locked(work):
        begun = (work / LAYOUT).exists()
        try:
            yield
        except BaseException:
            shutil.rmtree(work / (FRESH if begun else RECORDS), ignore_errors=True)
            while not begun and work != before and not any(work.iterdir()):
                work.rmdir()
                work = work.parent
            raise


def _find_sources(options: PlanOptions, spool: Path) -> tuple[Source, ...]:
    try:
        return find_sources(options.source, options.labels, options.image, spool)
    except PermissionError as error:
        reason = f"{error.filename or options.source}: {error.strerror}"
        raise DataError(reason, fix="get the permission to read it, or name another SOURCE") from None


def check_output(output: Output) -> None:
    """Refuse a folder that holds something else."""
    work = output.work
    if work.exists() and not work.is_dir():
        raise ConfigError(f"OUT {work} is a file", fix="name a folder")
    others = {entry.name for entry in work.iterdir()} - {RECORDS} if work.is_dir() else set()
    if others and not (work / LAYOUT).exists():  # a plan that was killed leaves RECORDS alone
        raise ConfigError(f"OUT {work} is not empty and was not written by mpp-shard", fix="name another OUT")


def _check_empty(output: Output, splits: Iterable[str]) -> None:
    """Refuse a store that holds other files where a set is to begin."""
    if isinstance(output, RemoteOutput) and any(output.files(folder) for folder in ("", *splits)):
        place = output.place("")
        raise ConfigError(f"OUT {place} is not empty and was not written by mpp-shard", fix="name another OUT")


def _check_places(options: PlanOptions, sources: Sequence[Source]) -> None:
    """Refuse an output folder inside a source or around it."""
    target = Path(options.out.removeprefix("file://")).resolve()
    for source in sources if not is_remote(options.out) or options.out.startswith("file://") else ():
        root = getattr(source.corpus, "root", None)
        inside = None if root is None else Path(root).resolve()
        if inside is not None and inside.exists() and (target.is_relative_to(inside) or inside.is_relative_to(target)):
            raise ConfigError(f"OUT {options.out} and SOURCE {root} lie one inside the other", fix="name another OUT")


def _list(work: Path, sources: Sequence[Source], options: PlanOptions) -> Listing:
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

    def keep(number: int, split: str, item: int) -> bool:
        mask = masks.get((number, split))
        return mask is not None and item < len(mask) and bool(mask[item])  # a file may have come since

    return keep


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


def _layout(options: PlanOptions, listing: Listing) -> Layout:
    """Return what a set is made of; a run continues another only where this is the same."""
    fixed = json.loads(json.dumps(options.fixed()))
    limits = {"shard_samples": options.shard_samples, "shard_bytes": options.shard_bytes}
    chosen, listed = options_hash(fixed), listing.summary["hash"]
    return {
        "version": FORMAT_VERSION,
        "options": fixed,
        "images": listing.splits,
        "classes": listing.summary["classes"],
        "listing_hash": listed,
        "options_hash": chosen,
        "layout_hash": layout_hash(listed, chosen),
        "bounds": {
            split: cut_shards(split, listing.sizes(split), seed=options.seed, **limits) for split in listing.splits
        },
    }


def _stored_format(options: PlanOptions, listing: Listing) -> str:
    """Return jpg or png; ``format=auto`` is jpg where one of evenly spaced probes is a JPEG, by name or content."""
    if options.format != "auto":
        return options.format
    failed = 0
    for split, count in listing.splits.items():
        rows = listing.rows(split, np.arange(0, count, max(1, count // FORMAT_PROBES), dtype=np.int64))
        if any(row.source.lower().endswith((".jpg", ".jpeg")) for row in rows):
            return "jpg"
        for row in rows:
            try:
                if failed < FAILED_PROBES and listing.read(split, row).startswith(b"\xff\xd8\xff"):
                    return "jpg"
            except OSError:
                failed += 1
    return "png"


def _find_copies(work: Path, listing: Listing, options: PlanOptions, console: Console) -> None:
    def run(function: Callable[[Any], Any], tasks: Sequence[Any]) -> Iterator[Any]:
        return run_tasks(function, tasks, options.workers)

    sizes = {split: listing.sizes(split) for split in listing.splits}
    copies = find_duplicates(work, sizes, run, console)
    LocalOutput(work).put(TABLE, duplicates_table(copies))


def _check_same(output: Output, now: Layout) -> Layout | None:
    """Return the layout with which OUT was begun; raise ``ConfigError`` with the differences where it is another."""
    try:
        before: Layout = json.loads(output.read(LAYOUT))
    except FileNotFoundError:
        return None
    if before["layout_hash"] == now["layout_hash"]:
        return before
    pairs = [(key, before["options"].get(key), value) for key, value in now["options"].items()]
    differences = [f"{key}: {old} there, {new} now" for key, old, new in pairs if old != new]
    if before["listing_hash"] != now["listing_hash"]:
        counts = f"images: {before['images']} there, {now['images']} now"
        same = "images: as many, but other names, sizes or labels"
        differences.append(same if before["images"] == now["images"] else counts)
    if before["version"] != now["version"]:
        differences.append(f"format version: {before['version']} there, {now['version']} now")
    where = output.place("")
    raise ConfigError(f"{where} was begun with something else: {'; '.join(differences)}", fix="name another OUT")
