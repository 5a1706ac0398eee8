"""Two processes of this machine meet and add a number, as those of a training will: ``python -m`` is each of them."""

import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

import mpp
from mpp.errors import HangError

ROOT = Path(mpp.__file__).resolve().parent.parent  # where `-m mpp...` is found, whatever the working folder


def handshake(backend: str, seconds: float) -> float:
    """Let two processes meet over ``backend`` (gloo, or nccl on the first two GPUs); return the seconds it took.

    Raises ``HangError`` where they do not within ``seconds`` or one fails, with what it said. No process stays.
    """
    began = time.perf_counter()
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # type: ignore[attr-defined]
    words = ["-m", "mpp.training.handshake", backend, str(store.port), str(seconds)]
    pair = [
        subprocess.Popen(
            [sys.executable, *words, str(rank)], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        for rank in (0, 1)
    ]
    try:
        while any(process.poll() is None for process in pair) and not any(process.returncode for process in pair):
            if time.perf_counter() - began > seconds:
                raise HangError(f"two processes did not meet over {backend} within {seconds:g} s", fix=_fix(backend))
            time.sleep(0.02)
    finally:
        for process in pair:
            process.kill()
        said = [process.communicate()[1].strip().rpartition("\n")[2] for process in pair]
    failed = next((words for words, process in zip(said, pair, strict=True) if process.returncode > 0), None)
    if failed is not None:
        raise HangError(f"two processes did not meet over {backend}: {failed}", fix=_fix(backend))
    return time.perf_counter() - began


def meet(backend: str, port: int, seconds: float, rank: int) -> None:
    """Be one of the two: sum the ranks + 1 of both, which makes 3."""
    limit = timedelta(seconds=seconds)
    store = dist.TCPStore("127.0.0.1", port, is_master=False, timeout=limit)  # type: ignore[attr-defined]
    device = torch.device("cpu") if backend == "gloo" else torch.device("cuda", rank)
    dist.init_process_group(backend, store=store, rank=rank, world_size=2, timeout=limit)
    number = torch.tensor([rank + 1], device=device)
    dist.all_reduce(number)
    assert int(number) == 3, f"the sum of 1 and 2 came out as {int(number)}"
    dist.destroy_process_group()


def _fix(backend: str) -> str:
    if backend == "gloo":
        return (
            "GLOO_SOCKET_IFNAME=INTERFACE that `ip addr` lists (lo for one machine), or this host's name in /etc/hosts"
        )
    return "NCCL_DEBUG=INFO says why; NCCL_P2P_DISABLE=1 where GPUs cannot reach each other; more /dev/shm"


if __name__ == "__main__":
    meet(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4]))
