"""Faults on purpose, for tests: MPP_FAULT="ACTION@PLACE[:STEP]", several with commas between, acts where the code says.

kill, term and stop send that signal to this process; raise-oom and raise-disk raise what a full device raises.
Without the variable nothing happens.
"""

import errno
import os
import signal

_SIGNALS = {"kill": signal.SIGKILL, "term": signal.SIGTERM, "stop": signal.SIGSTOP}


def wants(action: str, place: str, step: int | None = None) -> bool:
    """Return whether MPP_FAULT asks for ``action`` at ``place``, at any step or at this one."""
    asked = os.environ.get("MPP_FAULT", "").split(",")
    return f"{action}@{place}" in asked or (step is not None and f"{action}@{place}:{step}" in asked)


def reach(place: str, step: int | None = None) -> None:
    """Do what MPP_FAULT asks for at ``place``."""
    if "MPP_FAULT" not in os.environ:
        return
    for action, number in _SIGNALS.items():
        if wants(action, place, step):
            os.kill(os.getpid(), number)
    if wants("raise-disk", place, step):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), place)
    if wants("raise-oom", place, step):
        import torch

        raise torch.OutOfMemoryError(f"out of memory, on purpose, at {place}")
