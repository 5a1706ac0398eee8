"""The report of a comparison: one HTML page that needs nothing but itself, the same as Markdown and as JSON, pictures.

The page has no scripts and makes no request; everything in it that is not ours is escaped.
"""

import base64
import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from markupsafe import Markup

from mpp import __version__
from mpp.disk import disk_errors
from mpp.evaluation.verdict import Comparison, Row
from mpp.report import markdown, sheets
from mpp.report.contents import RECONSTRUCTIONS, Contents, draw_contents
from mpp.report.inline_svg import inline_svg
from mpp.report.notation import is_told, show_difference, show_labels, show_mean, show_p, show_rate
from mpp.report.record import as_json
from mpp.report.rendering import template
from mpp.report.wording import name_metric
from mpp.sources.files import printable

PAGE, MARKDOWN, JSON = "report.html", "report.md", "report.json"


class Strip(NamedTuple):
    """A difference as it is drawn: mean and 95 % interval on an axis from 0 to 100, and where no difference is."""

    zero: float
    low: float
    mean: float
    high: float
    look: str  # gained, lost, untold


def write_report(comparison: Comparison) -> str:
    """Write the report into the comparison's folder; return what a terminal shows of it.

    Raises ``DiskError`` where it cannot be written.
    """
    folder = comparison.folder
    with disk_errors(folder):
        contents = draw_contents(comparison)
        for name, text in ((MARKDOWN, markdown.report(contents)), (JSON, as_json(contents)), (PAGE, render(contents))):
            temporary = folder / f".{name}.writing"
            temporary.write_text(text, encoding="utf-8")
            os.replace(temporary, folder / name)
    short = markdown.short(contents.comparison, contents.verdict)
    return f"{short}\n{folder / PAGE} has the curves, the costs and the rest\n"


def render(contents: Contents) -> str:
    """Return the page; the pictures are read from the comparison's folder."""
    comparison = contents.comparison
    page = template(
        "compare.html",
        shown=printable,
        labels=show_labels,
        mean=show_mean,
        difference=show_difference,
        p=show_p,
        rate=show_rate,
        together=_together,
    )
    return page.render(
        contents=contents,
        comparison=comparison,
        metric=name_metric(comparison.metric),
        groups=list(_groups(comparison)),
        costs=sheets.costs(comparison),
        ablation=sheets.ablation(comparison),
        ends=sheets.pretraining_ends(contents.endings),
        arms=sheets.arms(comparison),
        data=sheets.data(comparison),
        environment=sheets.environment(comparison.environment),
        pictures={
            name: Markup(_embedded(comparison.folder / name, contents.pictures[name])) for name in contents.pictures
        },
        stages=sheets.STAGES,
        units=sheets.UNITS,
        version=__version__,
    )


def strip(row: Row, low: float, high: float) -> Strip | None:
    """Return how a row's difference is drawn on an axis from ``low`` to ``high``; None without an interval."""
    difference = row.difference
    if difference is None or difference.low is None or difference.high is None:
        return None
    look = "untold" if not is_told(row) else "gained" if difference.mean > 0 else "lost"

    def place(value: float) -> float:
        return 100 * (value - low) / (high - low or 1)

    return Strip(place(0), place(difference.low), place(difference.mean), place(difference.high), look)


def _groups(comparison: Comparison) -> Iterator[tuple[int | None, list[tuple[Row, Strip | None]]]]:
    """Yield the rows of each number of labels, with their strips, all on one axis that holds zero."""
    differences = [row.difference for row in comparison.rows if row.difference is not None]
    ends = [0.0, *(end for one in differences for end in (one.low, one.high) if end is not None)]
    for labels, rows in itertools.groupby(comparison.rows, key=lambda row: row.labels_per_class):
        yield labels, [(row, strip(row, min(ends), max(ends))) for row in rows]


def _together(cell: str) -> str:
    """Return a mean and a difference so that a narrow column breaks them only between the two."""
    return cell.replace(" [", "\N{NO-BREAK SPACE}[").replace(", ", ",\N{NO-BREAK SPACE}")


def _embedded(path: Path, title: str) -> str:
    if path.name != RECONSTRUCTIONS:
        return inline_svg(path, title)
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    return str(Markup('<img src="data:image/png;base64,{}" alt="{}">').format(data, title))
