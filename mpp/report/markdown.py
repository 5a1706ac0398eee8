"""A comparison as Markdown: the short form that a terminal shows, and report.md for a paper or a model card."""

import re
from collections.abc import Iterator, Sequence

from mpp import __version__
from mpp.evaluation.tables import aligned
from mpp.evaluation.verdict import Comparison
from mpp.report import sheets
from mpp.report.contents import RECONSTRUCTIONS, TRAINING_CURVES, Contents
from mpp.report.sheets import Sheet
from mpp.report.wording import Verdict
from mpp.sources.files import printable

# What would be no plain text: not _ within words, nor < before a number, nor [ that begins no link.
_SPECIAL = re.compile(r"[\\`*|]|<(?=[a-zA-Z/!?])|\](?=[(:\[])")


def short(comparison: Comparison, verdict: Verdict) -> str:
    """Return verdict, warnings, table and notes as a terminal shows them."""
    parts = [
        *_warnings(comparison, verdict),
        f"{_text(verdict.headline)}\n",
        *([_list(verdict.beside)] if verdict.beside else []),
        _table(sheets.short_results(comparison)),
        *([_list(comparison.notes)] if comparison.notes else []),
    ]
    return "\n".join(parts)


def report(contents: Contents) -> str:
    """Return the text of report.md; its pictures are the files beside it."""
    return "\n".join(_parts(contents))


def _parts(contents: Contents) -> Iterator[str]:
    comparison = contents.comparison
    yield "# What pretraining was worth\n"
    yield from _warnings(comparison, contents.verdict)
    yield f"**{_text(contents.verdict.headline)}**\n"
    if contents.verdict.beside:
        yield _list(contents.verdict.beside)
    yield "## Results\n"
    yield _table(sheets.results(comparison))
    yield from (
        _picture(name, contents) for name in contents.pictures if name not in (TRAINING_CURVES, RECONSTRUCTIONS)
    )
    if (ablation := sheets.ablation(comparison)) is not None:
        yield "## Ablations\n"
        yield _table(ablation)
    yield "## What it cost\n"
    yield "Pretraining is the mean of a run, tuning all trials of the rate, fine-tuning the mean of a seed.\n"
    yield _table(sheets.costs(comparison))
    yield from _pretraining(contents)
    yield "## What was compared\n"
    yield _table(sheets.arms(comparison))
    yield _list([*contents.equality, *comparison.notes, *contents.missing])
    yield "## Data, settings, environment\n"
    yield _table(sheets.data(comparison))
    yield f"Settings (sha256 `{_text(comparison.settings_sha256)}`):\n"
    yield _fenced(contents.settings, "yaml")
    yield _table(sheets.environment(comparison.environment))
    yield f"Written by mpp {__version__}. To make it again, from the settings in this folder:\n"
    yield _fenced(contents.command, "sh")


def _pretraining(contents: Contents) -> Iterator[str]:
    ends = sheets.pretraining_ends(contents.endings)
    pictures = [name for name in (TRAINING_CURVES, RECONSTRUCTIONS) if name in contents.pictures]
    if ends is None and not pictures:
        return
    yield "## Pretraining\n"
    if ends is not None:
        yield "The last logged step beside what is reached without learning.\n"
        yield _table(ends)
    yield from (_picture(name, contents) for name in pictures)


def _warnings(comparison: Comparison, verdict: Verdict) -> Iterator[str]:
    if comparison.warnings:
        yield f"**{_text(verdict.caveat)}**\n"
        yield _list(comparison.warnings)


def _table(sheet: Sheet) -> str:
    return aligned([_text(cell) for cell in sheet.header], [[_text(cell) for cell in row] for row in sheet.rows])


def _list(sentences: Sequence[str]) -> str:
    return "".join(f"* {_text(sentence)}\n" for sentence in sentences)


def _picture(name: str, contents: Contents) -> str:
    return f"![{_text(contents.pictures[name])}]({name})\n"


def _text(text: str) -> str:
    """Return words as Markdown shows them, on one line."""
    return _SPECIAL.sub(r"\\\g<0>", printable(" ".join(text.split())))


def _fenced(text: str, language: str) -> str:
    """Return a block of code whose fence is longer than any within."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{text.rstrip()}\n{fence}\n"
