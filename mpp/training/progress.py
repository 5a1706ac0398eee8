"""How a run shows that it lives: rates, and a bar with the time left on a terminal, plain lines elsewhere."""

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mpp.stream.stall import Figures, StallClock


def say(text: str) -> None:
    """Print a line. Where the disk that the log goes to is full, the line is lost and the training goes on."""
    try:
        print(text, flush=True)
    except BrokenPipeError:  # whoever reads the output has left
        raise
    except OSError:
        pass


class StepProgress:
    """Shows steps and the values of the last log line; silent where ``shown`` is false (all processes but one)."""

    def __init__(self, title: str, *, start: int, steps: int, shown: bool = True) -> None:
        self._title, self._start, self._steps, self._shown = title, start, steps, shown
        self._began = time.perf_counter()
        self._bar: Progress | None = None
        console = Console(file=sys.stderr)
        if shown and console.is_terminal:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[values]}"),
            )
            self._bar = Progress(*columns, console=console)
            self._task = self._bar.add_task(title, total=steps, completed=start, values="")

    def __enter__(self) -> "StepProgress":
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show(self, step: int, values: dict[str, float]) -> None:
        """Show that ``step`` steps are done, with these values."""
        if not self._shown:
            return
        text = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
        if self._bar is not None:
            self._bar.update(self._task, completed=step, values=text)
            return
        left = (time.perf_counter() - self._began) / max(1, step - self._start) * (self._steps - step)
        say(f"{self._title} {step}/{self._steps}  {text}  left {int(left // 60)}:{int(left % 60):02d}")


class Clock:
    """Measures the time between log lines: rates, and what the stall clock of the stream says.

    ``limit`` is the rate that matrix products alone would allow, images a second over all processes.
    """

    def __init__(self, global_batch: int, stall: StallClock, limit: float) -> None:
        self._global_batch, self._stall, self._limit = global_batch, stall, limit
        self.start(0)

    def start(self, step: int) -> None:
        """Begin measuring at ``step``."""
        self._step, self._time = step, time.perf_counter()
        self._stall.lap(1.0)

    def leave_out(self, seconds: float) -> None:
        """Say that so many seconds since the last call went into something else than training."""
        self._time += seconds

    def lap(self, step: int) -> tuple[Figures, Figures]:
        """Return rates since the last call (images a second over all processes, seconds a step, data), and counts."""
        seconds, steps = time.perf_counter() - self._time, step - self._step
        rates, counts = self._stall.lap(seconds)
        self._step, self._time = step, time.perf_counter()
        images = steps * self._global_batch / seconds
        speed = {
            "images_per_second": images,
            "utilisation": images / self._limit,
            "seconds_per_step": seconds / steps,
        }
        return speed | rates, counts


def shown_timing(timing: Figures) -> Figures:
    """Return what of a log line's timing is worth a look: rate, utilisation, the worst wait for data, and trouble."""
    wait = timing.get("data_wait_share_max", timing["data_wait_share"])
    trouble = {name: timing[name] for name in ("retries", "skipped") if timing[name]}
    rates = {name: timing[name] for name in ("images_per_second", "utilisation")}
    return {**rates, "data_wait_share": wait, **trouble}
