"""Runs of ``mpp pretrain`` as processes that can be signalled one by one, without the seconds of importing torch.

``python forked_runs.py`` imports everything once; each line of JSON it reads is a process to fork, or one to wait for.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from forked import fork, launched

ROOT = Path(__file__).resolve().parent.parent.parent
PATIENCE = 240.0  # seconds; a machine may be busy


class Ranks(NamedTuple):
    """The processes of one run: their ids, and where their output goes."""

    pids: list[int]
    logs: list[Path]

    def output(self, rank: int) -> str:
        """Return what a process has printed."""
        return self.logs[rank].read_text()


class Done(NamedTuple):
    """The exit codes of a run's processes, and what they printed, one after the other."""

    codes: list[int]
    output: str

    @property
    def code(self) -> int:
        """The exit code of a run on one process."""
        assert len(self.codes) == 1
        return self.codes[0]


class ForkedRuns:
    """The process that forks, while open; it is the parent of all runs. ``prefix`` is a command that starts it."""

    def __init__(self, *prefix: str) -> None:
        self.prefix = prefix

    def __enter__(self) -> "ForkedRuns":
        path = os.pathsep.join([str(ROOT), str(ROOT / "tools"), os.environ.get("PYTHONPATH", "")])
        self._process = subprocess.Popen(
            [*self.prefix, sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def place(self, path: Path) -> Path:
        """Return the path by which other processes find what the server calls ``path``, on its own mounts."""
        return Path(f"/proc/{self._process.pid}/root{path}")

    def run(
        self,
        words: Sequence[str],
        log: Path,
        *,
        ranks: int = 1,
        file_bytes: int | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> Done:
        """Run ``mpp pretrain WORDS`` on so many processes to its end; their files have at most ``file_bytes``."""
        run = self._start(words, log, [environment or {}] * ranks, file_bytes)
        codes = self.codes(run)
        return Done(codes, "".join(map(run.output, range(ranks))))

    def start(
        self, words: Sequence[str], log: Path, *, ranks: int = 1, faults: Mapping[int, str] | None = None
    ) -> Ranks:
        """Start ``mpp pretrain WORDS`` on so many processes, as srun does; ``faults`` are MPP_FAULT by rank."""
        return self._start(words, log, [{"MPP_FAULT": (faults or {}).get(rank, "")} for rank in range(ranks)], None)

    def codes(self, run: Ranks) -> list[int]:
        """Wait for the processes of a run and return their exit codes; a signal is minus its number."""
        return [self._ask(wait=pid) for pid in run.pids]

    def _start(
        self, words: Sequence[str], log: Path, given: Sequence[Mapping[str, str]], file_bytes: int | None
    ) -> Ranks:
        logs = [Path(f"{log}.{rank}") for rank in range(len(given))]
        pids = [
            self._ask(words=list(words), log=str(own), environment={**launch, **more}, file_bytes=file_bytes)
            for own, launch, more in zip(logs, launched(len(given)), given, strict=True)
        ]
        return Ranks(pids, logs)

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
            print(fork(**request), flush=True)


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


if __name__ == "__main__":
    serve()
