"""How work on many images shows that it lives: a bar with the time left on a terminal, else a line now and then."""

import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

SECONDS_BETWEEN_LINES = 10.0
Result = TypeVar("Result")


def shown(
    results: Iterable[Result],
    count: Callable[[Result], int],
    *,
    total: int,
    title: str,
    console: Console,
    unit: str = "images",
) -> Iterator[Result]:
    """Pass ``results`` on as they come, showing how many of ``total`` images they stand for, and images a second.

    What is counted may be of another ``unit``.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn(f"{{task.completed:,.0f}} of {{task.total:,.0f}}  {{task.fields[rate]:,.0f}} {unit}/s"),
        TimeRemainingColumn(),
    )
    began = line = time.monotonic()
    done = 0
    with Progress(*columns, console=console, disable=not (console.is_terminal and total)) as bar:
        task = bar.add_task(title, total=total, rate=0.0)
        for result in results:
            done += count(result)
            now = time.monotonic()
            rate = done / max(now - began, 1e-9)
            bar.update(task, completed=done, rate=rate)
            if not console.is_terminal and (now - line > SECONDS_BETWEEN_LINES or done == total):
                console.print(f"{title}: {done:,} of {total:,} {unit}, {rate:,.0f} {unit}/s", markup=False)
                line = now
            yield result
