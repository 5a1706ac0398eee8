"""All that watches over a run: stop signals, lost processes, the clock; and what their errors are called."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from mpp.errors import HangError, MemoryLimitError, MppError, Stopped
from mpp.training.peers import CONTINUE, Peers
from mpp.training.stops import Agreement, StopSignals
from mpp.training.watchdog import Timeouts, Watchdog

_NO_MEMORY = ("out of memory", "can't allocate memory", "cannot allocate memory", "not enough memory")
_LOST = ("connection closed by peer", "connection reset", "nccl", "gloo", "socket", "process group", "broken pipe")


class Guard:
    """Watches over a run from its beginning to its end; all processes open it together."""

    def __init__(self, accelerator: Accelerator, stops: StopSignals, timeouts: Timeouts) -> None:
        self.stops = stops
        self.peers = Peers(accelerator.process_index, accelerator.num_processes, stops, broadcast_object_list)
        self.samples: Callable[[int], str] = lambda step: "samples not known yet"
        self.clock = Watchdog(self.peers, timeouts, lambda step: self.samples(step))
        self._agreement = Agreement(accelerator)

    def stop_agreed(self) -> bool:
        """Return whether all processes stop here; all call this at each step."""
        agreed = self._agreement.reached(self.stops.received is not None)
        if agreed:
            self.stops.taken_up()
        return agreed

    def close(self, why: str = "") -> None:
        """Take leave of the other processes: say ``why`` where something went wrong."""
        if not why:
            self._agreement.close()
        self.clock.close()
        self.peers.close(why)


@contextmanager
def guarded(accelerator: Accelerator, stops: StopSignals, timeouts: Timeouts) -> Iterator[Guard]:
    """Open a guard; what breaks because a process was lost becomes ``HangError`` and names that process."""
    guard = Guard(accelerator, stops, timeouts)
    try:
        yield guard
    except Stopped:
        guard.close()
        raise
    except RuntimeError as error:
        lost = guard.peers.why_lost() if _is_collective(error) else None
        guard.close(f"{type(error).__name__}: {str(error).partition(chr(10))[0][:200]}")
        if not _is_collective(error):
            raise
        reason = lost or f"a process was lost: {str(error).partition(chr(10))[0][:300]}"
        raise HangError(f"{reason}; process {guard.peers.rank} cannot go on", fix=CONTINUE) from error
    except BaseException as error:
        guard.close(str(error).partition("\n")[0] if isinstance(error, MppError) else repr(error)[:300])
        raise
    else:
        guard.close()


@contextmanager
def memory_errors(micro_batch: int, step: Callable[[], int], newest: Callable[[], str]) -> Iterator[None]:
    """Turn a device or machine without memory into ``MemoryLimitError``, which names a smaller micro-batch."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        said = any(words in str(error).lower() for words in _NO_MEMORY)
        if not said and not isinstance(error, MemoryError | torch.OutOfMemoryError):
            raise
        smaller = next_divisor(micro_batch)
        fix = (
            f"micro_batch={smaller} keeps the global batch"
            if smaller
            else "more processes, a smaller model or DeepSpeed ZeRO 3: one image at a time is too much already"
        )
        raise MemoryLimitError(
            f"out of memory at step {step() + 1} with micro_batch {micro_batch}: {str(error).partition(chr(10))[0]}",
            fix=f"{fix}; the same command then continues from {newest()}",
        ) from error


def next_divisor(micro_batch: int) -> int | None:
    """Return the largest micro-batch below this one that divides it, so that the global batch stays."""
    return next((size for size in range(micro_batch - 1, 0, -1) if micro_batch % size == 0), None)


def _is_collective(error: RuntimeError) -> bool:
    text = str(error).lower()
    return isinstance(error, torch.distributed.DistError) or any(words in text for words in _LOST)
