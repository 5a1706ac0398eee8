"""How far the writing of a set is: done, running, failed, refused, time to go."""

import time
from collections.abc import Sequence
from pathlib import PurePosixPath

from rich.console import Console

from mpp.shards.options import StatusOptions
from mpp.shards.outputs import TEMPORARY, LocalOutput, Output, open_output
from mpp.shards.records import Counts, committed, open_layout, shard_places
from mpp.shards.shardset import INDEX, RECORDS, ShardRecord
from mpp.shards.writer import FAILED, Layout

RECENT_SECONDS = 600.0  # what was done in them tells the speed
FAILURES_SHOWN = 5


def show_status(options: StatusOptions) -> None:
    """Print how far the set at ``options.out`` is; raise ``DataError`` where nothing is planned."""
    console = Console(highlight=False, soft_wrap=True)
    output = open_output(options.out, options.work)
    layout = open_layout(output)
    places = list(shard_places(layout))
    records, counts = committed(output, layout, places)
    for split, images in layout["images"].items():
        own = [record for record in records if PurePosixPath(record.name).parent.name == split]
        shards = sum(place.split == split for place in places)
        listed = sum(record.samples + record.refused for record in own)
        console.print(f"{split}: {len(own):,} of {shards:,} shards, {listed:,} of {images:,} images")
    _print_at_work(console, output)
    console.print(counts.table())
    console.print(_outlook(output, layout, records, counts), markup=False)


def _print_at_work(console: Console, output: Output) -> None:
    """Print how many shards are being written, and the errors of those that failed and were not tried again."""
    building = LocalOutput(output.work).files(TEMPORARY)
    recent = time.time() - RECENT_SECONDS
    running = sum(".tar." in name and (file.written or 0) > recent for name, file in building.items())
    failed = sorted((output.work / FAILED).glob("*.txt"))
    console.print(f"running: {running:,}, failed: {len(failed):,}")
    for note in failed[:FAILURES_SHOWN]:
        console.print(f"  {note.stem}: {note.read_text().strip()}", markup=False)


def _outlook(output: Output, layout: Layout, records: Sequence[ShardRecord], counts: Counts) -> str:
    """Say when the rest will be done, or what comes next."""
    left = sum(layout["images"].values()) - counts.listed
    if not left:
        if INDEX in output.files(""):
            return "complete"
        return f"all shards are written; next: mpp-shard finalize {output.place('')}"
    rate = _rate(output, layout, records)
    if rate is None:
        return f"{left:,} images to go"
    return f"{left:,} images to go, at {rate:,.0f} images/s about {left / rate / 60:,.0f} minutes"


def _rate(output: Output, layout: Layout, records: Sequence[ShardRecord]) -> float | None:
    """Return the images a second of the shards written lately, None where there are too few to tell."""
    now = time.time()
    files = {name: file for split in layout["bounds"] for name, file in output.files(f"{RECORDS}/{split}").items()}
    times = []
    for record in records:
        written = files[f"{PurePosixPath(record.name).stem}.json"].written
        if written is not None and now - written < RECENT_SECONDS:
            times.append((written, record.samples + record.refused))
    if len(times) < 2:
        return None
    times.sort()
    return sum(images for _, images in times[1:]) / max(now - times[0][0], 1e-3)
