"""Runs of ``mpp pretrain`` as processes that can be signalled one by one, without the seconds of importing torch.

``python forked_runs.py`` imports everything once; each line of JSON it reads is a process to fork, or one to wait for.
"""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, NoReturn

ROOT = Path(__file__).resolve().parent.parent.parent
PATIENCE = 240.0  # seconds; a machine may be busy


class Ranks(NamedTuple):
    """The processes of one run: their ids, and where their output goes."""

    pids: list[int]
    logs: list[Path]

    def output(self, rank: int) -> str:
        """Return what a process has printed."""
        return self.logs[rank].read_text()


class ForkedRuns:
    """The process that forks, while open; it is the parent of all runs."""

    def __enter__(self) -> "ForkedRuns":
        path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def start(
        self, words: Sequence[str], log: Path, *, ranks: int = 1, faults: Mapping[int, str] | None = None
    ) -> Ranks:
        """Start ``mpp pretrain WORDS`` on so many processes, as srun does; ``faults`` are MPP_FAULT by rank."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        pids, logs = [], [Path(f"{log}.{rank}") for rank in range(ranks)]
        for rank in range(ranks):
            together = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "MASTER_PORT": port}
            environment = {name: str(value) for name, value in together.items()} | {"MASTER_ADDR": "127.0.0.1"}
            environment = (environment if ranks > 1 else {}) | {"MPP_FAULT": (faults or {}).get(rank, "")}
            pids.append(self._ask(words=list(words), log=str(logs[rank]), environment=environment))
        return Ranks(pids, logs)

    def codes(self, run: Ranks) -> list[int]:
        """Wait for the processes of a run and return their exit codes; a signal is minus its number."""
        return [self._ask(wait=pid) for pid in run.pids]

    def _ask(self, **request: Any) -> int:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())


def wait_until(happened: Callable[[], bool]) -> None:
    """Wait until something happened; fail where it does not."""
    deadline = time.monotonic() + PATIENCE
    while not happened():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


def serve() -> None:
    """Answer requests until standard input ends."""
    from mpp.training import pretraining  # noqa: F401  torch, timm, accelerate, and all of ours

    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            print(_code(request["wait"]), flush=True)
        else:
            child = os.fork()
            if child == 0:
                _run(request["words"], request["log"], request["environment"])
            print(child, flush=True)


def _code(child: int) -> int:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(child, 9)
    os.waitpid(child, 0)
    return -99


def _run(words: list[str], log: str, environment: dict[str, str]) -> NoReturn:
    from mpp.pretrain import main

    code = 1
    try:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.environ.update(environment)
        code = main(words)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    serve()
