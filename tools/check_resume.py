"""Kill pretraining runs at random moments, continue them, and compare each with an undisturbed one, bit for bit.

    python tools/check_resume.py OUT --kills 200 --processes 2 -- --config configs/pretrain/FILE shards=SHARDS stream.workers=0

One process imports torch, once; every run is a fork of it, so that a kill costs a second. A run is killed a few times,
with all its processes, at a random log line and a random delay after it: in a step, in a save, before the first step.
Then it goes on to its end. Ends with 0 where metrics.jsonl and backbone.safetensors of all runs are the same bytes.
"""  # noqa: E501

import argparse
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from forked import fork, launched

ROOT = Path(__file__).resolve().parent.parent
EQUAL = ("metrics.jsonl", "backbone.safetensors")


def main(argv: Sequence[str] | None = None) -> int:
    """Run once undisturbed, then many times with kills; print each run and the verdict."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--kills", type=int, default=6)
    parser.add_argument("--per-run", type=int, default=3, help="kills of a run before it may end")
    parser.add_argument("--processes", type=int, choices=(1, 2), default=1)
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    parser.add_argument("settings", nargs="+", help="arguments of mpp pretrain, after --")
    arguments = parser.parse_args(argv)
    from mpp.training import pretraining  # noqa: F401  before any run: torch, timm, accelerate, and all of ours

    whole, log = arguments.out / "undisturbed", arguments.out / "log"
    arguments.out.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    if _ended(_start(arguments, whole, log)) != [0] * arguments.processes:
        print(f"the undisturbed run failed, see {log}.*")
        return 2
    seconds, lines = time.monotonic() - began, _logged(whole)
    print(f"undisturbed: {lines} log lines in {seconds:.1f} s", flush=True)
    moments, kills, equal, runs = random.Random(arguments.seed), 0, 0, 0
    while kills < arguments.kills:
        cut = arguments.out / "killed"
        shutil.rmtree(cut, ignore_errors=True)
        told = []
        for _ in range(min(arguments.per_run, arguments.kills - kills)):
            least = moments.randint(_logged(cut), lines)
            delay = moments.uniform(0, 2 * seconds / lines)
            if _killed(_start(arguments, cut, log), cut, least, delay):
                told.append(f"{_logged(cut)}")
            else:
                break  # it came to its end first
        codes = _ended(_start(arguments, cut, log))
        different = [name for name in EQUAL if _bytes(whole / name) != _bytes(cut / name)]
        runs, kills, equal = runs + 1, kills + len(told), equal + (not different and not any(codes))
        verdict = (
            f"different: {', '.join(different)}, codes {codes}, see {log}.*" if different or any(codes) else "equal"
        )
        print(f"run {runs}: killed after {' '.join(told) or 'no'} log lines: {verdict}; {kills} kills", flush=True)
        if verdict != "equal":
            return 1
    print(f"{equal} of {runs} runs with {kills} kills are bit-identical ({time.monotonic() - began:.0f} s)")
    return 0


def _start(arguments: argparse.Namespace, out: Path, log: Path) -> list[int]:
    """Fork the processes of a run and return their ids."""
    words = [*arguments.settings, f"out={out}"]
    environments = launched(arguments.processes)
    return [fork(words, Path(f"{log}.{rank}"), environment) for rank, environment in enumerate(environments)]


def _ended(children: list[int]) -> list[int]:
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def _killed(children: list[int], out: Path, lines: int, delay: float) -> bool:
    """Kill a run's processes ``delay`` seconds after ``lines`` log lines; return whether all were still there."""
    while _logged(out) < lines and os.waitid(os.P_PID, children[0], os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        time.sleep(0.002)
    time.sleep(delay)
    for child in children:
        os.kill(child, signal.SIGKILL)
    return _ended(children) == [-signal.SIGKILL] * len(children)


def _logged(out: Path) -> int:
    return (_bytes(out / "metrics.jsonl") or b"").count(b"\n")


def _bytes(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # and no threads that a fork would lose
    sys.exit(main())
