"""The page of ``mpp look``: what a shard set holds, as one HTML file without scripts, links or requests.

Counts come from the commit records and are exact; sizes, shapes and pictures come from an evenly spaced sample
that is bounded whatever the size of the set.
"""

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mpp import __version__
from mpp.errors import ConfigError, DiskError
from mpp.report.balance import balance, class_name
from mpp.report.histograms import Histogram, of_aspects, of_sizes, show_bytes, show_count
from mpp.report.rendering import template
from mpp.report.samples import Sample, picture, sample_split, spread
from mpp.report.tallies import bars, read_reasons, read_tallies
from mpp.shards.shardset import ShardSet, open_shards, split_names
from mpp.sources.files import printable

MARK = '<!doctype html>\n<meta name="generator" content="mpp look">\n'  # how every page begins
SAMPLED = 10_000  # images that are measured
SHEET = 60  # images on the contact sheet
THUMBNAIL = 176  # pixels, longer side


class Shown(NamedTuple):
    """One image of the contact sheet; ``picture`` is a data URI, None where the image is too large to be drawn."""

    sample: Sample
    label: str | None
    picture: str | None


def write_page(root: Path, page: Path) -> None:
    """Look at the shard set in ``root`` and write what there is to see into the file ``page``.

    Raises ``DataError`` for what is no whole shard set, ``ConfigError`` for a page that cannot be there or a file
    of another kind that would be lost, ``DiskError`` where it cannot be written.
    """
    _check_page(page)
    text = MARK + render(root)
    temporary = page.with_name(f".look.{os.getpid()}")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, page)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise DiskError(f"{page}: cannot write, {error.strerror}", fix="mpp look SHARDS ANOTHER.html") from None


def render(root: Path) -> str:
    """Return the page of the set in ``root``, without its first lines; raise ``DataError`` where it is damaged."""
    sets = _open_splits(root)
    images = sum(shards.samples for shards in sets)
    samples = [list(sample_split(shards, max(SHEET, round(SAMPLED * shards.samples / images)))) for shards in sets]
    flat = [sample for group in samples for sample in group]
    tallies = read_tallies(root, {shards.split: shards.samples for shards in sets})
    refused = sum(tally.refused for tally in tallies.values())
    return template("look.html", count=show_count, bytes=show_bytes, percent=show_percent).render(
        name=printable(root.absolute().name),
        path=printable(str(root.absolute())),
        version=__version__,
        sets=sets,
        tallies=tallies,
        images=images,
        shards=sum(len(shards.shards) for shards in sets),
        bytes=sum(shard.bytes for shards in sets for shard in shards.shards),
        refused=refused,
        sampled=len(flat),
        sheet=[_sheet(group, SHEET // len(sets), sets[0].classes or ()) for group in samples],
        charts=_charts(flat) if flat else {},
        resized=any(sample.size != sample.found for sample in flat),
        formats=bars(_sum(tally.formats for tally in tallies.values())),
        modes=bars(_sum(tally.modes for tally in tallies.values())),
        notes=bars(_sum(tally.notes for tally in tallies.values()), images),
        balance=balance(sets, {split: tally.labels for split, tally in tallies.items()}, flat),
        reasons=read_reasons(root) if refused else [],
    )


def show_percent(share: float) -> str:
    """Write a share of 0 to 1 in percent; what is not quite nothing or all is not shown as such."""
    if share in (0, 1):
        return f"{100 * share:.0f} %"
    percent = f"{100 * share:.1f}".removesuffix(".0")
    return {"0": "< 0.1", "100": "> 99.9"}.get(percent, percent) + " %"


def _check_page(page: Path) -> None:
    """Refuse a page that would take the place of anything but such a page."""
    fix = "mpp look SHARDS ANOTHER.html"
    if not page.absolute().parent.is_dir():
        raise ConfigError(f"{page}: there is no folder {page.parent}", fix=fix)
    try:
        with open(page, "rb") as file:
            ours = file.read(len(MARK)) == MARK.encode()
    except FileNotFoundError:
        return
    except OSError as error:
        raise ConfigError(f"{page}: {error.strerror}", fix=fix) from None
    if not ours:
        raise ConfigError(f"{page} exists and is no page of mpp look", fix=fix)


def _open_splits(root: Path) -> list[ShardSet]:
    """Open every split, the largest first."""
    sets = [open_shards(root, name) for name in split_names(root)]
    for shards in sets:
        shards.require_sources()
    return sorted(sets, key=lambda shards: (-shards.samples, shards.split))


def _sheet(samples: Sequence[Sample], most: int, names: Sequence[str]) -> list[Shown]:
    """Return the images of one split that the contact sheet shows."""
    chosen = [samples[number] for number in spread(len(samples), most).tolist()]
    return [
        Shown(sample, None if sample.label is None else class_name(sample.label, names), picture(sample, THUMBNAIL))
        for sample in chosen
    ]


def _charts(samples: Sequence[Sample]) -> dict[str, Histogram]:
    """Return the histograms of the sample by title."""
    stored, found = (np.array([getattr(sample, name) for sample in samples]) for name in ("size", "found"))
    weights = np.array([sample.image[1] for sample in samples])
    return {
        "Width, pixels": of_sizes(stored[:, 0], found[:, 0], show_count),
        "Height, pixels": of_sizes(stored[:, 1], found[:, 1], show_count),
        "Aspect, width to height": of_aspects(stored[:, 0] / stored[:, 1], found[:, 0] / found[:, 1]),
        "Stored size of an image": of_sizes(weights, weights, show_bytes),
    }


def _sum(counters: Any) -> Counter[str]:
    return sum(counters, Counter())
