"""Who runs the tasks of sharding: this process or a local pool.

Every task is a pure function of its arguments, so it does not matter who runs it, how often, or in which order.
"""

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from mpp.errors import DataError, Stopped
from mpp.processes import STOP_SIGNALS, end_with_parent, worker_context

Task = TypeVar("Task")
Result = TypeVar("Result")


def run_tasks(function: Callable[[Task], Result], tasks: Sequence[Task], workers: int | None) -> Iterator[Result]:
    """Yield ``function(task)`` for every task, as they finish.

    ``workers`` processes do it (None: one a CPU), or this one where it is 0. Raises ``DataError`` where a process
    is killed, ``Stopped`` on Ctrl-C.
    """
    workers = min((os.cpu_count() or 1) if workers is None else workers, len(tasks))
    if workers == 0:
        yield from map(function, tasks)
        return
    with ProcessPoolExecutor(workers, worker_context(), initializer=_start_worker) as pool:
        futures: list[Future[Result]] = [pool.submit(function, task) for task in tasks]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BrokenProcessPool:
            raise DataError("a worker process was killed, by the system or for memory", fix="workers=1") from None
        except KeyboardInterrupt:
            raise Stopped("interrupted; finished shards are kept, the same command continues") from None
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _start_worker() -> None:
    """Keep decoders' own messages off the terminal; Ctrl-C reaches the whole group, and the parent decides."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)  # a pool ends its workers by SIGTERM
    end_with_parent()
