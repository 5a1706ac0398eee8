"""Runs of ``mpp pretrain``, each a process of its own that can be killed, without the seconds of importing torch.

One process imports everything; every run is a fork of it. ``python command_server.py`` reads one JSON request a line,
forks one process a rank, and answers with their exit codes; a signal is minus its number, as in subprocess.
"""

import json
import os
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, NoReturn

_DEADLINE = 150  # seconds until a run that hangs is killed
ROOT = Path(__file__).resolve().parent.parent.parent


class Done(NamedTuple):
    """The exit codes of the ranks, and what they printed, one after the other."""

    codes: list[int]
    output: str

    @property
    def code(self) -> int:
        """The exit code of a run on one process."""
        assert len(self.codes) == 1
        return self.codes[0]


class CommandServer:
    """The process that forks, while open; ``prefix`` is a command that starts it."""

    def __init__(self, *prefix: str) -> None:
        self.prefix = prefix

    def __enter__(self) -> "CommandServer":
        path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
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
        """Run ``mpp pretrain WORDS`` on so many processes; files that they write have at most ``file_bytes``."""
        assert self._process.stdin is not None and self._process.stdout is not None
        logs = [f"{log}.{rank}" for rank in range(ranks)]
        request = {"words": list(words), "logs": logs, "file_bytes": file_bytes, "environment": dict(environment or {})}
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        codes = json.loads(self._process.stdout.readline())
        return Done(codes, "".join(Path(name).read_text() for name in logs))


def serve() -> None:
    """Answer requests until standard input ends."""
    from mpp.evaluation import comparison  # noqa: F401  torch, timm, accelerate, and all of ours
    from mpp.pretrain import main

    for line in sys.stdin:
        request = json.loads(line)
        ranks = len(request["logs"])
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        children = []
        for rank in range(ranks):
            together = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "MASTER_PORT": port}
            launched = {name: str(value) for name, value in together.items()} | {"MASTER_ADDR": "127.0.0.1"}
            child = os.fork()
            if child == 0:
                _run(main, request, rank, launched if ranks > 1 else {})
            children.append(child)
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        print(json.dumps(codes), flush=True)


def _run(main: Any, request: dict[str, Any], rank: int, launched: dict[str, str]) -> NoReturn:
    code = 1
    signal.alarm(_DEADLINE)
    try:
        output = os.open(request["logs"][rank], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.environ.update({**request["environment"], **launched})
        if request["file_bytes"] is not None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (request["file_bytes"], resource.RLIM_INFINITY))
        code = main(request["words"])
    except BaseException:
        sys.excepthook(*sys.exc_info())
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    serve()
