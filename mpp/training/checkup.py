"""Look over a machine before a run: versions, devices, limits, the output folder, processes that meet."""

import importlib.metadata
import math
import os
import platform
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from packaging.requirements import Requirement

from mpp.errors import ConfigError, DiskError, HangError, MppError
from mpp.training.handshake import handshake
from mpp.training.trial import disk_speed, existing, free_bytes, try_commit, try_lock
from mpp.training.utilisation import matrix_rate

_GB = 1e9
LEAST_SHARED = 1e9  # bytes of /dev/shm: workers keep their batches there, and docker gives 64 MB
LEAST_FILES = 4096  # open at once: tars, workers and their pipes
LEAST_ROOM, FEW_ROOM = 1e9, 20e9  # of the output; two checkpoints of ViT-B take 2 GB
SLOW_DISK = 100e6  # bytes a second
_HANDSHAKE_SECONDS = 60.0

Status = Literal["ok", "warn", "fail"]


class Finding(NamedTuple):
    """What one check found; ``exit_code`` is that of the kind of failure, 0 where there is none."""

    name: str
    status: Status
    text: str
    fix: str = ""
    exit_code: int = 0


def checkup(out: Path) -> Iterator[Finding]:
    """Yield the findings one by one; the last take seconds."""
    folder = existing(out)
    yield versions()
    yield requirements()
    yield torchvision()
    yield deepspeed()
    yield from devices()
    yield processors()
    yield shared_memory()
    yield from limits()
    yield room(folder)
    yield _tried("disk speed", DiskError, lambda: _speed(folder))
    yield _tried("write, fsync, rename", DiskError, lambda: try_commit(folder), f"{folder}: files appear whole")
    yield _tried("lock", DiskError, lambda: try_lock(folder), f"{folder}: one process at a time")
    yield meeting("gloo")
    if torch.cuda.device_count() > 1:
        yield meeting("nccl")


def versions() -> Finding:
    """Say which Python and torch these are, and what torch was built with."""
    built = [f"{name} {found}" for name, found in (("CUDA", torch.version.cuda), ("ROCm", torch.version.hip)) if found]
    if torch.distributed.is_nccl_available():
        built.append("NCCL " + ".".join(map(str, torch.cuda.nccl.version())))
    text = f"Python {platform.python_version()}, torch {torch.__version__} ({', '.join(built) or 'for processors'})"
    return Finding("versions", "ok", text)


def requirements() -> Finding:
    """Compare the installed packages with what mpp asks for."""
    try:
        wanted = [Requirement(line) for line in importlib.metadata.requires("mpp") or ()]
    except importlib.metadata.PackageNotFoundError:
        return Finding("packages", "warn", "mpp is not installed, only on the path", "pip install -e .")
    wrong, count = [], 0
    for one in wanted:
        if one.marker is not None and not one.marker.evaluate({"extra": ""}):
            continue
        count += 1
        try:
            found = importlib.metadata.version(one.name)
        except importlib.metadata.PackageNotFoundError:
            found = "missing"
        if found == "missing" or not one.specifier.contains(found, prereleases=True):
            wrong.append(f"{one.name} {found}, needed {one.specifier}")
    if wrong:
        return Finding("packages", "fail", "; ".join(wrong), "pip install -U mpp", ConfigError.exit_code)
    shown = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("accelerate", "timm"))
    return Finding("packages", "ok", f"{shown} and {count - 2} more, as mpp asks for them")


def torchvision() -> Finding:
    """See that torchvision was built for this torch: its own operators run."""
    try:
        import torchvision as found

        kept = found.ops.nms(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.ones(1), 0.5)
        assert kept.tolist() == [0]
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        reason = str(error).partition("\n")[0]
        fix = "pip install torch torchvision, both from the same index"
        text = f"torchvision does not match torch {torch.__version__}: {reason}"
        return Finding("torchvision", "fail", text, fix, ConfigError.exit_code)
    return Finding("torchvision", "ok", f"{found.__version__}, matches torch")


def deepspeed() -> Finding:
    """Say whether ZeRO can be used."""
    try:
        return Finding("deepspeed", "ok", importlib.metadata.version("deepspeed"))
    except importlib.metadata.PackageNotFoundError:
        return Finding("deepspeed", "ok", 'not installed, needed for ZeRO alone: pip install "mpp[deepspeed]"')


def devices() -> Iterator[Finding]:
    """Yield every GPU, or the processor, with the rate at which it multiplies matrices."""
    if not torch.cuda.is_available():
        gflops, threads = matrix_rate(torch.device("cpu")) / 1e9, torch.get_num_threads()
        if torch.version.cuda and Path("/dev/nvidiactl").exists():
            fix = f"a driver for CUDA {torch.version.cuda}, or torch for the CUDA version that nvidia-smi shows"
            yield Finding("devices", "fail", "a GPU is there and torch cannot use it", fix, ConfigError.exit_code)
        else:
            yield Finding(
                "devices", "ok", f"no GPU; the processor does {gflops:,.0f} GFLOP/s in fp32 by {threads} threads"
            )
        return
    for number in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(number)
        name = f"{facts.name}, {facts.total_memory / _GB:.0f} GB"
        try:
            ones = torch.ones(512, 512, device=f"cuda:{number}", dtype=torch.bfloat16)
            right = bool(((ones @ ones) == 512).all())
            rate = matrix_rate(torch.device("cuda", number)) / 1e12
        except RuntimeError as error:
            reason = str(error).partition("\n")[0]
            yield Finding(f"GPU {number}", "fail", f"{name}: {reason}", "see nvidia-smi", ConfigError.exit_code)
            continue
        good = right and torch.cuda.is_bf16_supported()
        yield Finding(f"GPU {number}", "ok" if good else "warn", f"{name}, {rate:,.0f} TFLOP/s in bf16")


def processors() -> Finding:
    """Compare the processors of the machine with those that this process may use."""
    there, usable = os.cpu_count() or 1, len(os.sched_getaffinity(0))
    share = min(float(usable), cgroup_processors(Path("/sys/fs/cgroup/cpu.max")))
    text = f"{share:g} of {there} can be used"
    if share < there:
        fix = f"stream.workers=N for what {share:g} can do; ask for more (--cpus-per-task, docker --cpus)"
        return Finding("processors", "warn", text, fix)
    return Finding("processors", "ok", text)


def cgroup_processors(file: Path) -> float:
    """Return how many processors a container's limit allows, from its cpu.max; infinity without a limit."""
    try:
        quota, period = file.read_text().split()
    except (OSError, ValueError):
        return math.inf
    return math.inf if quota == "max" else int(quota) / int(period)


def shared_memory(folder: Path = Path("/dev/shm")) -> Finding:
    """See that data workers have room to hand over their batches."""
    if not folder.is_dir():
        return Finding("shared memory", "warn", f"no {folder}", "stream.workers=0 where workers fail")
    free = free_bytes(folder)
    text = f"{free / _GB:.1f} GB free in {folder}"
    if free < LEAST_SHARED:
        return Finding("shared memory", "warn", text, "docker run --shm-size=8g, or fewer stream.workers")
    return Finding("shared memory", "ok", text)


def limits() -> Iterator[Finding]:
    """Yield the limits of this process: open files, locked memory, size of a file."""
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    few = files != resource.RLIM_INFINITY and files < LEAST_FILES
    yield Finding("open files", "warn" if few else "ok", _limit(files, ""), "ulimit -n 65536" if few else "")
    locked = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    fabric = Path("/sys/class/infiniband").is_dir() and locked != resource.RLIM_INFINITY
    fix = "ulimit -l unlimited; docker run --ulimit memlock=-1: InfiniBand needs it"
    yield Finding("locked memory", "warn" if fabric else "ok", _limit(locked, " bytes"), fix if fabric else "")
    size = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    if size != resource.RLIM_INFINITY and size < LEAST_ROOM:
        yield Finding("file size", "fail", _limit(size, " bytes"), "ulimit -f unlimited", DiskError.exit_code)
    else:
        yield Finding("file size", "ok", _limit(size, " bytes"))


def room(folder: Path) -> Finding:
    """See that the output has room for checkpoints."""
    free = free_bytes(folder)
    text = f"{free / _GB:,.1f} GB free in {folder}"
    if free < LEAST_ROOM:
        return Finding("room", "fail", text, "make room, or out=ANOTHER", DiskError.exit_code)
    if free < FEW_ROOM:
        return Finding("room", "warn", text, "a run keeps two checkpoints, each three times its weights in fp32")
    return Finding("room", "ok", text)


def meeting(backend: str, seconds: float = _HANDSHAKE_SECONDS) -> Finding:
    """Let two processes meet over ``backend``."""
    return _tried(
        f"two processes, {backend}", HangError, lambda: f"met and added within {handshake(backend, seconds):.1f} s"
    )


def _speed(folder: Path) -> str | Finding:
    speed = disk_speed(folder)
    text = f"{speed.write / 1e6:,.0f} MB/s written, {speed.read / 1e6:,.0f} MB/s read"
    if speed.write < SLOW_DISK:
        return Finding(
            "disk speed", "warn", text, "checkpoints take long: out= on a faster disk, or a larger save_every"
        )
    return text


def _tried(name: str, kind: type[MppError], action: Callable[[], str | Finding | None], text: str = "") -> Finding:
    """Return what ``action`` finds, ``text`` where it says nothing, or its error as a failure of this kind."""
    try:
        found = action()
    except MppError as error:
        reason, _, fix = str(error).partition("\n  fix: ")
        return Finding(name, "fail", reason, fix, error.exit_code)
    except OSError as error:
        return Finding(name, "fail", str(error), "see the message", kind.exit_code)
    return found if isinstance(found, Finding) else Finding(name, "ok", found or text)


def _limit(value: int, unit: str) -> str:
    return "unlimited" if value == resource.RLIM_INFINITY else f"{value:,}{unit}"
