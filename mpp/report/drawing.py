"""What all pictures by matplotlib share: colours, sizes, legends, and how they are written.

Colours are those of Okabe and Ito, which people with any colour vision can tell apart; an arm has the same colour and
marker in every picture of a comparison.
"""

import io
import re
import textwrap
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpp.evaluation.verdict import Row
from mpp.sources.files import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ((0, (6, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)), (0, (3, 1.5)), (0, (6, 2, 1, 2, 1, 2)))
BLACK, WHITE, GRAY, LIGHT = "#000000", "#ffffff", "#666666", "#dddddd"
WIDTH, HEIGHT = 4.8, 3.3  # inches of one chart without its legend: its text is still read on a phone
_LINE = 0.19  # inches of a line of a legend
_NAME_LENGTH, _NAME_LINES = 46, 2  # characters and lines of a name in a legend; the page has it whole
_TWO_COLUMNS = 22  # characters up to which names stand in two columns
FONTS = "DejaVu Sans, Verdana, Arial, sans-serif"  # wide ones first: it is the first that lengths are measured in
_ROOM = 0.03  # of an axis beyond what is possible
_PATH = re.compile(r' (?:d|x|y)="[^"]*"')
_NUMBER = re.compile(r"-?\d+\.\d{2,}")


def new_figure(width: float, height: float, names: Sequence[str] = ()) -> "Figure":
    """Return a figure of this size in inches, and room for a legend, drawn without a display or global state."""
    from matplotlib.figure import Figure

    lines = sum(legible(name).count("\n") + 1 for name in names)
    return Figure(figsize=(width, height + _LINE * lines / _columns(names)), layout="constrained")


def look_of(arms: Sequence[str], arm: str) -> tuple[str, str]:
    """Return the colour and marker of an arm."""
    number = arms.index(arm)
    return COLORS[number % len(COLORS)], MARKERS[number % len(MARKERS)]


def is_hollow(arms: Sequence[str], arm: str) -> bool:
    """Say whether an earlier arm has this one's colour and marker: it is drawn with hollow markers and dashed lines."""
    return arms.index(arm) // len(COLORS) % 2 == 1


def legible(name: str) -> str:
    """Return a name as matplotlib draws it: broken into lines, cut where it is long, none of it read as a formula."""
    lines = textwrap.wrap(printable(name), _NAME_LENGTH, max_lines=_NAME_LINES, placeholder=" …") or [""]
    text = "\n".join(lines).replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text  # a label that begins so would be hidden


def draw_interval(axes: "Axes", place: float, row: Row, color: str) -> None:
    """Draw the 95 % interval of a row's accuracy where there is one."""
    if row.top1.low is not None and row.top1.high is not None:
        ends = [row.top1.low, row.top1.high]
        axes.plot([place, place], ends, color=color, linewidth=1.1, marker="_", markersize=5)


def keep_possible(axes: "Axes") -> None:
    """Cut the axis of accuracies off at about 0 and 100 %: intervals of few seeds pass the possible."""
    low, high = axes.get_ylim()
    room = _ROOM * (high - low)  # for the markers of those who are there
    axes.set_ylim(max(-room, low), min(100 + room, high))


def finish(axes: "Axes", across: str, up: str) -> None:
    """Name the axes, draw the grid, and put the legend above, where it covers no curve."""
    axes.set(xlabel=across, ylabel=up)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color=LIGHT, linewidth=0.6)
    axes.set_axisbelow(True)
    handles, names = axes.get_legend_handles_labels()
    if handles:
        axes.legend(
            handles,
            names,
            frameon=False,
            fontsize="small",
            ncols=_columns(names),
            loc="lower left",
            bbox_to_anchor=(0, 1),
        )


def save(figure: "Figure", path: Path) -> None:
    """Write the figure; equal figures give equal bytes, which name neither a date nor an address.

    The text of an SVG stays text, in whatever font is there: small, searchable, and of any script.
    """
    from matplotlib import rc_context

    path.parent.mkdir(parents=True, exist_ok=True)
    with rc_context({"svg.hashsalt": "mpp", "svg.fonttype": "none"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # it is measured as a box
        if path.suffix != ".svg":
            figure.savefig(path, dpi=150)
            return
        written = io.StringIO()
        nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
        figure.savefig(written, format="svg", metadata=nothing)
    text = re.sub(r"\s*\n\s*", "\n", written.getvalue())
    used = set(re.findall(r'(?:url\(#|href="#)([\w.-]+)', text))
    text = re.sub(r' id="([\w.-]+)"', lambda found: found[0] if found[1] in used else "", text)
    text = re.sub(r' transform="rotate\(-0 [^"]*"|(?<=; )font-family: [^;"]*; ', "", text)
    text = text.replace("<svg ", f'<svg font-family="{FONTS}" ', 1)
    path.write_text(_PATH.sub(lambda found: _NUMBER.sub(_shorter, found[0]), text), encoding="utf-8")


def _shorter(number: re.Match[str]) -> str:
    return f"{float(number[0]):.1f}".removesuffix(".0")


def cycle(values: Sequence[Any], count: int) -> list[Any]:
    """Return ``count`` values, from the first again where there are fewer."""
    return [values[number % len(values)] for number in range(count)]


def _columns(names: Sequence[str]) -> int:
    return 2 if all(len(name) <= _TWO_COLUMNS for name in names) else 1
