"""Sharding from beginning to end, and its parts for clusters: plan, run a part of the shards, finalize."""

import shutil
from collections.abc import Sequence

from rich.console import Console

from mpp.disk import disk_errors
from mpp.errors import ConfigError, DataError
from mpp.shards.engines import run_tasks
from mpp.shards.listing import FOLDER
from mpp.shards.options import FinalizeOptions, PlanOptions, RunOptions, ShardOptions
from mpp.shards.outputs import TEMPORARY, Output, locked, open_output
from mpp.shards.planning import SPOOL, plan
from mpp.shards.progress import shown
from mpp.shards.records import Counts, ShardPlace, committed, forget, open_layout, shard_places
from mpp.shards.shardset import RECORDS, ShardRecord
from mpp.shards.sidecars import finalize
from mpp.shards.writer import FAILED, ShardTask, write_shard

RUN_AGAIN = "run the command that writes the shards again: it writes only what is missing"


def shard_corpus(options: ShardOptions) -> None:
    """Turn ``options.source`` into a shard set at ``options.out``, or continue one; print what was done.

    Raises ``ConfigError`` for a source or output folder that cannot be used, ``DataError`` where more than
    ``max_refused`` of the images were refused (the set is complete and valid then), ``DiskError`` without room.
    """
    console = _console()
    plan(options, console)
    run_shards(RunOptions(out=options.out, work=options.work, workers=options.workers, engine=options.engine))
    finalize_shards(FinalizeOptions(out=options.out, work=options.work, max_refused=options.max_refused))


def plan_shards(options: PlanOptions) -> None:
    """List the sources and cut the layout, and say how the shards are written then."""
    console = _console()
    layout = plan(options, console)
    count = sum(len(bounds) - 1 for bounds in layout["bounds"].values())
    place = open_output(options.out, options.work).place("")
    words = place if options.work is None else f"{place} work={options.work}"
    console.print(f"{count:,} shards to write; next: mpp-shard run {words} [--task I/N]", markup=False)


def run_shards(options: RunOptions) -> None:
    """Write those of the planned shards that are missing, or the part of them that is ``options.task``."""
    console, output = _console(), open_output(options.out, options.work)
    layout = open_layout(output)
    part, parts = map(int, options.task.split("/"))
    if part >= parts:
        raise ConfigError(f"task={options.task}: the parts of {parts} are 0 to {parts - 1}", fix=f"task=0/{parts}")
    with disk_errors(output.work), locked(output.work, shared=True):
        places = list(shard_places(layout))
        mine = places[len(places) * part // parts : len(places) * (part + 1) // parts]
        listed = (output.work / FOLDER).exists()  # so that what was unreadable can be tried again
        done = {record.name for record in committed(output, layout, mine, all_read=listed)[0]}
        missing = [place for place in mine if place.name not in done]
        if missing and not listed:
            what = f"{output.place('')} was finished, but {len(missing)} shards are missing or damaged now"
            raise DataError(what, fix="the command that wrote it, mpp-shard [plan] SOURCE OUT, with the same settings")
        if len(missing) < len(mine):
            console.print(f"continuing: {len(mine) - len(missing)} of {len(mine)} shards are done")
        forget(output, missing)
        tasks = [ShardTask(output.absolute(), place.split, place.number) for place in missing]
        if options.engine is None:
            results = run_tasks(write_shard, tasks, options.workers)
        else:
            results = options.engine.run(write_shard, tasks)
        total = sum(place.images for place in missing)
        for _ in shown(results, lambda record: int(record["listed"]), total=total, title="sharding", console=console):
            pass


def finalize_shards(options: FinalizeOptions) -> None:
    """Write what other readers need once all shards are there, and print the counts by outcome.

    Raises ``DataError`` where shards are missing, or where more than ``max_refused`` of the images were refused.
    """
    console, output = _console(), open_output(options.out, options.work)
    layout = open_layout(output)
    with disk_errors(output.work), locked(output.work):
        places = list(shard_places(layout))
        records, counts = committed(output, layout, places)
        done = {record.name for record in records}
        missing = [place.name for place in places if place.name not in done]
        if missing:
            names = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
            raise DataError(f"{output.place('')}: {len(missing)} shards are not written: {names}", fix=RUN_AGAIN)
        _check_strangers(output, places)
        finalize(output, layout, records)
        for folder in (FOLDER, SPOOL, FAILED, TEMPORARY):
            shutil.rmtree(output.work / folder, ignore_errors=True)
    _report(console, records, counts, options)


def _check_strangers(output: Output, places: Sequence[ShardPlace]) -> None:
    """Raise ``DataError`` for tars among the shards that are none: other readers would take them for shards."""
    names = {place.name for place in places}
    for split in {place.split for place in places}:
        for file in sorted(output.files(split)):
            if file.endswith(".tar") and f"{split}/{file}" not in names:
                raise DataError(f"{output.place(f'{split}/{file}')} is no shard of this set", fix="move it elsewhere")


def _report(console: Console, records: list[ShardRecord], counts: Counts, options: FinalizeOptions) -> None:
    """Print the counts by outcome; raise ``DataError`` where too many images were refused."""
    console.print(counts.table())
    tars = [record for record in records if record.samples]
    size = sum(record.bytes for record in tars)
    place = open_output(options.out, options.work).place("")
    console.print(f"{place}: {len(tars)} shards, {size:,} bytes", markup=False)
    refused = counts.refused.total() - counts.refused["duplicate"]
    if refused > options.max_refused * counts.listed:
        share = f"{refused} of {counts.listed} images were refused ({refused / counts.listed:.1%})"
        reason, most = counts.refused.most_common(1)[0]
        where = f"{most} of them {reason}, all in {RECORDS}/refused.parquet there"
        valid = "the shards are complete and valid" if counts.taken else "there are no shards"
        allowed = f"at most {options.max_refused:.1%} allowed"
        fix = "max_refused=FRACTION accepts them; the same command tries what was unreadable again"
        raise DataError(f"{place}: {share}, {allowed}; {where}; {valid}", fix=fix)


def _console() -> Console:
    return Console(highlight=False, soft_wrap=True)
