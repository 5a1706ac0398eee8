"""Fork processes that run ``mpp pretrain``, out of one that has imported torch already, which takes seconds.

Used by tools/check_resume.py and by the tests of whole runs.
"""

import os
import resource
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn


def launched(ranks: int) -> list[dict[str, str]]:
    """Return the environment of each process of a launch, as srun gives it; of one process nothing."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    together = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [{"RANK": str(rank), "LOCAL_RANK": str(rank), **together} for rank in range(ranks)] if ranks > 1 else [{}]


def fork(words: Sequence[str], log: Path, environment: Mapping[str, str], file_bytes: int | None = None) -> int:
    """Start ``mpp pretrain WORDS`` in a fork that prints into ``log``, and return its process id.

    Files that it writes have at most ``file_bytes``.
    """
    child = os.fork()
    if child == 0:
        _run(words, log, environment, file_bytes)
    return child


def _run(words: Sequence[str], log: Path, environment: Mapping[str, str], file_bytes: int | None) -> NoReturn:
    from mpp.pretrain import main

    code = 1
    try:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.environ.update(environment)
        if file_bytes is not None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, resource.RLIM_INFINITY))
        code = main(words)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
