"""Data workers: processes that make batches ahead of time, and what is said when one is lost or stuck.

PyTorch's DataLoader hands the draws out to the workers in turn and gives the batches back in the same order.
"""

import atexit
import math
import multiprocessing
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch.utils.data import DataLoader

from mpp.errors import DataError, HangError, MppError
from mpp.processes import end_with_parent, worker_context
from mpp.stream.batches import Batch, Batches, MadeBatch
from mpp.stream.mixture import Draw
from mpp.stream.slots import SlotReader
from mpp.stream.stall import Cost

SECONDS_TO_NOTICE = 0.5  # that a worker is gone
BATCHES_AHEAD = 3  # that each worker may have ready
# The loader asks a worker for a further batch as it gives one of its batches to us, in the order in which they were
# asked for: until we ask for the next one, a worker fills at most this many slots that we have not read.
SLOTS = BATCHES_AHEAD + 1


def made_batches(
    dataset: Batches, schedule: Iterable[Draw], workers: int, timeout: float
) -> Generator[tuple[Batch, Cost, int]]:
    """Make the scheduled batches, ahead of time where there are workers; each comes with how many more were ready."""
    asked: deque[Draw] = deque()  # whose batches have not come
    slots = SlotReader(dataset.shape, pinned=torch.cuda.is_available())
    loader = DataLoader(
        dataset,
        batch_size=None,
        sampler=_noted(schedule, asked),
        num_workers=workers,
        timeout=min(timeout, SECONDS_TO_NOTICE) if workers else 0,
        multiprocessing_context=worker_context("mpp.stream.workers") if workers else None,
        worker_init_fn=_start_worker,
        collate_fn=_as_it_is,
        prefetch_factor=BATCHES_AHEAD if workers else None,
        generator=torch.Generator(),  # else the loader draws from, and so changes, the global generator
    )
    with _running(loader) if workers else nullcontext((iter(loader), None)) as (items, kill):
        try:
            for item in items if kill is None else _patient(items, timeout, kill):
                asked.popleft()
                if isinstance(item, MppError):
                    raise item
                images = slots.copy(item.images)  # before the next item is asked for: its slot is filled again then
                labels = None if item.labels is None else torch.from_numpy(item.labels)
                batch = Batch(images, labels, torch.from_numpy(item.ids), torch.from_numpy(item.epochs))
                yield batch, item.cost, _ready(items) if workers else 0
        except TimeoutError as error:
            names = dict.fromkeys(dataset.reader.shard_of(sample_id) for sample_id in asked[0].ids if sample_id >= 0)
            listed = ", ".join(list(names)[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
            raise HangError(
                f"{error}: a data worker is stuck on samples {asked[0].ids[:4].tolist()} ... of {listed}",
                fix="look at the storage; stream.timeout=SECONDS waits for longer",
            ) from None
        except (RuntimeError, OSError, EOFError) as error:
            if not workers or str(error).startswith("Caught "):  # raised by our own code, here or there
                raise
            raise DataError(
                f"a data worker is lost: {type(error).__name__}: {error}",
                fix="stream.workers=0 shows the error itself; a worker that was killed may have run out of memory",
            ) from None


def _noted(schedule: Iterable[Draw], asked: "deque[Draw]") -> Iterator[Draw]:
    for draw in schedule:
        asked.append(draw)
        yield draw


def _patient(
    items: Iterator[MadeBatch | MppError], timeout: float, kill: Callable[[], None]
) -> Iterator[MadeBatch | MppError]:
    """Extend the short timeout of the loader, at which it looks for dead workers, to ``timeout`` seconds.

    It knows none while it takes a slot over from a worker: where that is stopped just then, ``kill`` ends the waiting.
    """
    asked, ended, expired = [math.inf], threading.Event(), threading.Event()

    def watch() -> None:
        while not ended.wait(SECONDS_TO_NOTICE):
            if time.monotonic() - asked[0] >= timeout:
                expired.set()
                return kill()

    threading.Thread(target=watch, name="patience", daemon=True).start()
    try:
        while True:
            asked[0] = min(asked[0], time.monotonic())
            try:
                item = next(items)
            except StopIteration:
                return
            except (RuntimeError, OSError, EOFError) as error:
                not_yet = str(error).startswith("DataLoader timed out")
                if expired.is_set() or (not_yet and time.monotonic() - asked[0] >= timeout):
                    raise TimeoutError(f"no batch within {timeout:g} seconds") from None
                if not not_yet:
                    raise
                continue
            asked[0] = math.inf
            yield item
    finally:
        ended.set()


def _ready(items: Any) -> int:
    """Return how many batches wait to be taken; the loader keeps that to itself."""
    out_of_turn = sum(len(task) == 2 for task in items._task_info.values())
    try:
        return int(items._data_queue.qsize()) + out_of_turn
    except NotImplementedError:  # macOS cannot count a queue between processes
        return out_of_turn


def _as_it_is(made: Any) -> Any:
    """Hand a batch over; the loader would make a tensor of each array, and send each by a file of its own."""
    return made


def _start_worker(_: int) -> None:
    """Begin a data worker; the loader calls it with the worker's number."""
    end_with_parent()


@contextmanager
def _running(
    loader: Iterable[MadeBatch | MppError],
) -> Iterator[tuple[Iterator[MadeBatch | MppError], Callable[[], None]]]:
    """Start a loader's workers, and kill them at the end; also give what kills them earlier."""
    others = set(multiprocessing.active_children())
    items = iter(loader)
    workers = set(multiprocessing.active_children()) - others

    def kill() -> None:
        for worker in workers:
            worker.kill()

    def end() -> None:
        kill()
        for worker in workers:
            worker.join(5)

    atexit.register(end)  # after an error that nobody expected
    try:
        yield items, kill
    finally:
        end()
        atexit.unregister(end)
