"""The order of sharding: list, plan, run, finalize."""

import json
import shutil
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import rich.console
import rich.progress
import rich.table

from mpp.errors import ConfigError, DataError
from mpp.shards.corpora import Listing, list_corpus
from mpp.shards.disk import lock_file
from mpp.shards.engines import run_tasks
from mpp.shards.images import ImagePolicy
from mpp.shards.layout import (
    FORMAT_VERSION,
    ShardOptions,
    layout_hash,
    listing_hash,
    options_hash,
    plan_shards,
)
from mpp.shards.shardset import MEMBER, RECORDS
from mpp.shards.sidecars import finalize
from mpp.shards.writer import TEMPORARY, ShardTask, disk_errors, write_atomic, write_shard

Record = dict[str, Any]
FORMAT_PROBES = 256  # images looked into to choose the stored format
SECONDS_BETWEEN_LINES = 10.0


def shard_corpus(options: ShardOptions) -> None:
    """Turn ``options.source`` into a shard set at ``options.out``, or continue one; print what was done.

    Raises ``ConfigError`` for a source or output folder that cannot be used, ``DataError`` where more than
    ``max_refused`` of the images were refused (the set is complete and valid then), ``DiskError`` without room.
    """
    console = rich.console.Console(highlight=False, soft_wrap=True)
    _check_places(options.source, options.out)
    listing = list_corpus(options.source, options.labels, options.image)
    policy = _policy(options, listing)
    console.print(f"{listing.decisions}; stored as {policy.format}", markup=False)
    layout = _layout(options, listing)
    with disk_errors(options.out), _alone(options.out, layout):
        tasks = [task for split in listing.splits for task in _tasks(options, listing, split, policy, layout)]
        records = _run(tasks, options.workers, console)
        finalize(options.out, list(listing.splits), listing.classes, records)
        shutil.rmtree(options.out / TEMPORARY, ignore_errors=True)
    _report(console, records, options)


def _check_places(source: str, out: Path) -> None:
    """Refuse an output folder inside the source or around it, and one that holds something else."""
    inside, target = Path(source).resolve(), out.resolve()
    if Path(source).exists() and (target.is_relative_to(inside) or inside.is_relative_to(target)):
        raise ConfigError(f"OUT {out} and SOURCE {source} lie one inside the other", fix="name another OUT")
    if out.exists() and not out.is_dir():
        raise ConfigError(f"OUT {out} is a file", fix="name a folder")
    if out.is_dir() and any(out.iterdir()) and not (out / RECORDS / "layout.json").exists():
        raise ConfigError(f"OUT {out} is not empty and was not written by mpp-shard", fix="name another OUT")


def _policy(options: ShardOptions, listing: Listing) -> ImagePolicy:
    """Return what to do with each image; ``format=auto`` becomes jpg where a source image is a JPEG."""
    stored = options.format
    if stored == "auto":
        stored = "jpg" if _any_jpeg(listing) else "png"
    return ImagePolicy(
        stored, options.resize, options.quality, options.max_pixels, options.min_side, options.max_aspect
    )


def _any_jpeg(listing: Listing) -> bool:
    """Say whether a source is named as a JPEG, or is one among evenly spaced probes of each split."""
    for name, split in listing.splits.items():
        if any(source.lower().endswith((".jpg", ".jpeg")) for source in split.sources):
            return True
        for item in range(0, len(split.sources), max(1, len(split.sources) // FORMAT_PROBES)):
            try:
                if listing.reader.read(name, item).image.startswith(b"\xff\xd8\xff"):
                    return True
            except OSError:
                continue
    return False


def _layout(options: ShardOptions, listing: Listing) -> Record:
    """Return what a set is made of; a run continues another only where this is the same."""
    fixed = options.fixed()
    listed = listing_hash(listing.splits, listing.classes)
    chosen = options_hash(fixed)
    counts = {name: len(split.sources) for name, split in listing.splits.items()}
    hashes = {"listing_hash": listed, "options_hash": chosen, "layout_hash": layout_hash(listed, chosen)}
    return {"version": FORMAT_VERSION, "options": fixed, "images": counts, **hashes}


def _tasks(options: ShardOptions, listing: Listing, split: str, policy: ImagePolicy, layout: Record) -> list[ShardTask]:
    """Return the tasks of one split, each with no more of the listing than it needs."""
    limits = {"shard_samples": options.shard_samples, "shard_bytes": options.shard_bytes}
    plans = plan_shards(split, listing.splits[split].sizes, seed=options.seed, **limits)
    labels = listing.splits[split].labels
    return [
        ShardTask(
            root=options.out,
            plan=plan,
            labels=None if labels is None else labels[plan.items],
            reader=listing.reader.narrow(split, plan.items.tolist()),
            policy=policy,
            layout_hash=layout["layout_hash"],
            options_hash=layout["options_hash"],
        )
        for plan in plans
    ]


@contextmanager
def _alone(out: Path, layout: Record) -> Iterator[None]:
    """Hold the output folder for this run and this layout; raise ``ConfigError`` where another has it."""
    path = out / RECORDS / "layout.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        lock = lock_file(out / RECORDS / "lock")
    except BlockingIOError:
        raise ConfigError(f"another mpp-shard is writing to {out}", fix="wait for it, or stop it") from None
    with lock:
        if path.exists():
            _check_same(out, json.loads(path.read_text()), layout)
        else:
            write_atomic(out, f"{RECORDS}/layout.json", json.dumps(layout, indent=1).encode())
        shutil.rmtree(out / TEMPORARY, ignore_errors=True)
        yield


def _check_same(out: Path, before: Record, now: Record) -> None:
    if before["layout_hash"] == now["layout_hash"]:
        return
    pairs = [(key, before["options"].get(key), value) for key, value in now["options"].items()]
    differences = [f"{key}: {old} there, {new} now" for key, old, new in pairs if old != new]
    if before["listing_hash"] != now["listing_hash"]:
        differences.append(f"images: {before['images']} there, {now['images']} now, or other names, sizes or labels")
    if before["version"] != now["version"]:
        differences.append(f"format version: {before['version']} there, {now['version']} now")
    raise ConfigError(f"{out} was begun with something else: {'; '.join(differences)}", fix="name another OUT")


def _run(tasks: list[ShardTask], workers: int | None, console: rich.console.Console) -> list[Record]:
    """Write the shards that are not done, showing progress; return all commit records in layout order."""
    records = {task.plan.name: record for task in tasks if (record := _committed(task)) is not None}
    missing = [task for task in tasks if task.plan.name not in records]
    if len(missing) < len(tasks):
        console.print(f"continuing: {len(records)} of {len(tasks)} shards are done")
    total = sum(len(task.plan.items) for task in missing)
    for record in _shown(run_tasks(write_shard, missing, workers), total, console):
        records[record["name"]] = record
    return [records[task.plan.name] for task in tasks]


def _committed(task: ShardTask) -> Record | None:
    """Return the commit record of a shard that is done: of this layout, tar and table of the recorded sizes."""
    tar = task.root / task.plan.name
    path = (task.root / RECORDS / task.plan.name).with_suffix(".json")
    try:
        record: Record = json.loads(path.read_text())
        table = record["samples"] * len(record["members"]) * MEMBER.itemsize
        same = record["layout_hash"] == task.layout_hash and path.with_suffix(".members").stat().st_size == table
        return record if same and (not record["samples"] or tar.stat().st_size == record["bytes"]) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _shown(records: Iterable[Record], total: int, console: rich.console.Console) -> Iterator[Record]:
    """Pass records on, showing images, images/s and refusals: a bar on a terminal, else a line now and then."""
    columns = ("[progress.description]{task.description}", "{task.completed:,.0f} of {task.total:,.0f}")
    rate = ("{task.fields[rate]:,.0f} images/s", "{task.fields[refused]:,} refused")
    texts = [rich.progress.TextColumn(column) for column in (*columns, *rate)]
    started = line = time.monotonic()
    done = refused = 0
    bar = rich.progress.Progress(
        texts[0], rich.progress.BarColumn(), *texts[1:], rich.progress.TimeRemainingColumn(), console=console,
        disable=not console.is_terminal,
    )  # fmt: skip
    with bar:
        task = bar.add_task("sharding", total=total, rate=0.0, refused=0)
        for record in records:
            done, refused = done + record["listed"], refused + record["refused"]
            now = time.monotonic()
            rate_now = done / (now - started)
            bar.update(task, completed=done, rate=rate_now, refused=refused)
            if not console.is_terminal and (now - line > SECONDS_BETWEEN_LINES or done == total):
                console.print(f"{done:,} of {total:,} images, {rate_now:,.0f} images/s, {refused:,} refused")
                line = now
            yield record


def _report(console: rich.console.Console, records: list[Record], options: ShardOptions) -> None:
    """Print the counts by outcome; raise ``DataError`` where too many images were refused."""
    listed, taken = (sum(record[key] for record in records) for key in ("listed", "samples"))
    refused = Counter(reason for record in records for _, reason, _, _ in record["refusals"])
    notes = Counter[str]()
    for record in records:
        notes.update(record["notes"])
    assert taken + refused.total() == listed, f"{taken} taken + {refused.total()} refused is not {listed} listed"
    table = rich.table.Table("", "images", box=None)
    rows = [("listed", listed), ("taken", taken), *((f"  {note}", count) for note, count in sorted(notes.items()))]
    rows += [("refused", refused.total()), *((f"  {reason}", count) for reason, count in sorted(refused.items()))]
    for name, count in rows:
        table.add_row(name, f"{count:,}")
    console.print(table)
    tars = [record for record in records if record["samples"]]
    size = sum(record["bytes"] for record in tars)
    console.print(f"{options.out}: {len(tars)} shards, {size:,} bytes", markup=False)
    if refused.total() > options.max_refused * listed:
        share = f"{refused.total()} of {listed} images were refused ({refused.total() / listed:.1%})"
        where = f"reasons in {options.out / RECORDS / 'refused.parquet'}; the shards are complete and valid"
        raise DataError(f"{share}, at most {options.max_refused:.1%} allowed; {where}", fix="max_refused=FRACTION")
