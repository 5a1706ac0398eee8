"""Worker processes that start deaf to stop signals and end with their parent.

Launchers signal whole groups of processes, but the main process decides what a signal means and needs its workers
until then. They come from a fork server: fork would copy the locks of the threads of torch and of remote file systems.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import forkserver, resource_tracker
from multiprocessing.context import ForkServerContext
from types import FrameType

from mpp.errors import Stopped

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


def worker_context(*preload: str) -> ForkServerContext:
    """Return the context to start workers in: its server, and so every worker, blocks ``STOP_SIGNALS`` from birth.

    A worker that blocked them by itself could be hit before it came to that. A server that starts now imports the
    modules ``preload`` once for all workers.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(preload))
    resource_tracker.ensure_running()  # within the server's start it would unblock the signals
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return context


def end_with_parent() -> None:
    """End this worker when the main process is gone, also by kill -9: the fork server, its parent, may live on."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def stopped_by_sigterm() -> Iterator[None]:
    """Raise ``Stopped`` in the main thread on SIGTERM, for a command that has nothing to save; a second one kills."""

    def stop(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        raise Stopped("stopped by SIGTERM; what was finished before stands", fix="the same command begins again")

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
