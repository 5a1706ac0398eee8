"""Measure mpp-shard beside its peers, or its memory as the corpus grows.

    python tools/bench_shard.py race WORK --source IMAGES --peers PEERS/bin/python
    python tools/bench_shard.py memory WORK --listed 10000 1000000

Every contestant is a whole command in processes of its own (peers: tools/bench_shard_peers.py, run by the environment
of tools/requirements-peers.txt) and reads the same files, which are in memory before. In each round every contestant
runs once on all images and once on a few of them: the difference is its speed without the start. Emptying the output
folder and bringing what earlier runs wrote to the disk is not timed. Linux only.
"""

import argparse
import ctypes
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bench_machine import ROOT, machine, versions

PEERS = ROOT / "tools" / "bench_shard_peers.py"
PACKAGES = ("webdataset", "mosaicml-streaming", "litdata", "datasets", "pillow")
FEW = 16  # images of the short runs
SHARD = ("shard_samples=1000", "labels=none")
RESIZE = ("resize=160", "quality=90")
BASE = {"pass-through": "ShardWriter", "resize": "Pillow pool + ShardWriter"}  # whom a race's speeds are compared with
SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER of <linux/prctl.h>


@dataclass(frozen=True)
class Contestant:
    """A command ``PREFIX SOURCE OUT SUFFIX``; ``images`` names the folder that it reads."""

    race: str
    name: str
    processes: int
    prefix: tuple[str, ...]
    suffix: tuple[str, ...]
    images: str = "colour"


@dataclass(frozen=True)
class Usage:
    """What a command took: seconds, processor seconds of all its processes, peak resident bytes of one process."""

    wall: float
    cpu: float
    main: int
    others: int
    written: int


@dataclass
class Runs:
    """All runs of a contestant, on all images and on a few."""

    all: list[Usage] = field(default_factory=list)
    few: list[Usage] = field(default_factory=list)


def main() -> int:
    """Run what the command line asks for; write the figures as a table and as JSON into the work folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("race", "memory"))
    parser.add_argument("work", type=Path, help="folder for images, outputs and results, on the disk to measure")
    parser.add_argument("--source", type=Path, help="folder of JPEGs to copy")
    parser.add_argument("--peers", help="python of the environment of the peers")
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="", help="a word in the names of the contestants to run")
    parser.add_argument("--listed", type=int, nargs="+", default=[1_000_000], help="numbers of tiny files to shard")
    arguments = parser.parse_args()
    if arguments.what == "race" and not (arguments.source and arguments.peers):
        parser.error("a race needs --source and --peers")
    ctypes.CDLL(None).prctl(SUBREAPER, 1)  # so that orphans of a command are waited for, and counted, here
    arguments.work.mkdir(parents=True, exist_ok=True)
    lines, figures = race(arguments) if arguments.what == "race" else memory(arguments.work, arguments.listed)
    table = "\n".join(lines)
    print(table)
    (arguments.work / f"{arguments.what}.md").write_text(table + "\n")
    figures = {"command": sys.argv, "machine": machine(), **figures}
    (arguments.work / f"{arguments.what}.json").write_text(json.dumps(figures, indent=1) + "\n")
    return 0


def contestants(peers: str) -> list[Contestant]:
    """Return everybody, by race; ``peers`` is the python of theirs."""

    def ours(race: str, name: str, processes: int, *options: str, images: str = "colour") -> Contestant:
        prefix, suffix = (sys.executable, "-m", "mpp.shard"), (*SHARD, f"workers={processes}", *options)
        return Contestant(race, f"mpp-shard {name}", processes, prefix, suffix, images)

    def theirs(race: str, name: str, peer: str, processes: int = 1) -> Contestant:
        return Contestant(race, name, processes, (peers, str(PEERS), peer), (str(processes),))

    copy, resize = BASE
    return [
        theirs(copy, BASE[copy], "webdataset"),
        ours(copy, "check=header", 1, "check=header"),
        ours(copy, "check=decode", 1, "check=decode"),
        ours(copy, "check=header, gray among them", 1, "check=header", images="found"),
        theirs(copy, "MDSWriter", "mds"),
        theirs(copy, "LitData optimize", "litdata"),
        theirs(copy, "datasets save_to_disk", "datasets"),
        theirs(copy, "copies of the files", "copy"),
        theirs(copy, BASE[copy], "webdataset", 2),
        ours(copy, "check=header", 2, "check=header"),
        ours(copy, "check=decode", 2, "check=decode"),
        *(theirs(resize, BASE[resize], "webdataset-resize", processes) for processes in (1, 2)),
        *(ours(resize, " ".join(RESIZE), processes, *RESIZE) for processes in (1, 2)),
    ]


def race(arguments: argparse.Namespace) -> tuple[list[str], dict[str, Any]]:
    """Run all contestants in turns; return the lines of the table and all figures."""
    work = arguments.work
    for images in ("colour", "found"):
        copy_images(arguments.source, work / images, arguments.images, images == "colour")
        copy_images(arguments.source, work / f"{images}-few", FEW, images == "colour")
    everybody = [one for one in contestants(arguments.peers) if arguments.only in one.name]
    runs = {one: Runs() for one in everybody}
    for one in everybody:
        run(one, work, f"{one.images}-few")  # not counted: brings its programs into memory
    for turn in range(arguments.rounds):
        for one in everybody[turn % len(everybody) :] + everybody[: turn % len(everybody)]:
            mine = runs[one]
            mine.few.append(run(one, work, f"{one.images}-few"))
            mine.all.append(run(one, work, one.images))
            speed = arguments.images / mine.all[-1].wall
            print(f"round {turn + 1}: {one.name}, {one.processes}: {speed:,.0f} images/s", file=sys.stderr, flush=True)
    figures = [asdict(one) | asdict(runs[one]) for one in everybody]
    races = {name: {one: runs[one] for one in everybody if one.race == name} for name in BASE}
    lines = [line for name, among in races.items() for line in _table(name, among, arguments.images)]
    return lines, {"images": arguments.images, "versions": versions(arguments.peers, PACKAGES), "contestants": figures}


def copy_images(source: Path, target: Path, count: int, colour: bool) -> None:
    """Make ``count`` distinct JPEGs from those of ``source``, 1000 a folder, only those of 3 components if ``colour``.

    Each copy has its number in a comment. A folder that is there already is only read, which brings it into memory.
    """
    if target.exists():
        assert sum(len(path.read_bytes()) > 0 for path in target.rglob("*.jpg")) == count, f"remove {target}"
        return
    found = [path.read_bytes() for path in sorted(source.rglob("*")) if path.suffix.lower() in (".jpg", ".jpeg")]
    kept = [jpeg for jpeg in found if not colour or components(jpeg) == 3]
    for number in range(count):
        jpeg = kept[number % len(kept)]
        begin = 4 + int.from_bytes(jpeg[4:6], "big") if jpeg[3] == 0xE0 else 2  # JFIF's own segment comes first
        path = target / f"{number // 1000:03d}" / f"{number:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg[:begin] + b"\xff\xfe\x00\x0a%08d" % number + jpeg[begin:])


def components(jpeg: bytes) -> int:
    """Return the number of colour components that the header of a JPEG declares."""
    position = 2
    while jpeg[position + 1] not in (0xC0, 0xC1, 0xC2):
        position += 2 + int.from_bytes(jpeg[position + 2 : position + 4], "big")
    return jpeg[position + 9]


def run(one: Contestant, work: Path, images: str) -> Usage:
    """Run one contestant with an empty output folder."""
    out = work / "out"
    shutil.rmtree(out, ignore_errors=True)
    os.sync()
    return measure([*one.prefix, str(work / images), str(out), *one.suffix], work, out)


def measure(command: Sequence[str], work: Path, out: Path) -> Usage:
    """Run a command and wait for it and for every process that it leaves; raise ``SystemExit`` where it fails."""
    cache = {name: str(work / "cache") for name in ("HF_HOME", "DATA_OPTIMIZER_CACHE_FOLDER", "XDG_CACHE_HOME")}
    environment = {**os.environ, **cache, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryFile("w+") as errors:
        began = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors, env=environment)
        wall = cpu = 0.0
        peaks = {True: 0, False: 0}  # of the command's own process, of the others
        for pid, status, usage in _ended():
            if pid == process.pid:
                wall, process.returncode = time.perf_counter() - began, os.waitstatus_to_exitcode(status)
            cpu += usage.ru_utime + usage.ru_stime
            peaks[pid == process.pid] = max(peaks[pid == process.pid], usage.ru_maxrss * 1024)
        if process.returncode:
            errors.seek(0)
            raise SystemExit(f"{' '.join(command)}\nended with {process.returncode}: {errors.read()[-2000:]}")
    written = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    return Usage(wall, cpu, peaks[True], peaks[False], written)


def _ended() -> Iterator[tuple[int, int, resource.struct_rusage]]:
    """Wait for every child; yield its number, status and resources."""
    while True:
        try:
            yield os.wait4(-1, 0)
        except ChildProcessError:
            return


def _table(title: str, runs: dict[Contestant, Runs], images: int) -> list[str]:
    """Return the lines of one race's table: medians over the rounds, ratios between equal numbers of processes.

    The spread is that of the seconds of the whole command, from the least to the most, by the median.
    """
    speeds = {one: _speeds(mine, images) for one, mine in runs.items()}
    base = {one.processes: speed for one, speed in speeds.items() if one.name == BASE[title]}
    lines = [
        f"| {title} | processes | spread | images/s | x {BASE[title]} | after the start | x | per CPU second | x "
        "| peak MB | written MB |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for one, speed in speeds.items():
        compared = base.get(one.processes, [float("nan")] * len(speed))
        cells = [f"{mine:,.0f} | {mine / other:.2f}" for mine, other in zip(speed, compared, strict=True)]
        walls = [usage.wall for usage in runs[one].all]
        spread = (max(walls) - min(walls)) / statistics.median(walls)
        peak = max(max(usage.main, usage.others) for usage in runs[one].all) / 1e6
        written = runs[one].all[-1].written / 1e6
        head = f"| {one.name} | {one.processes} | {spread:.0%}"
        lines.append(f"{head} | {' | '.join(cells)} | {peak:,.0f} | {written:,.0f} |")
    return [*lines, ""]


def _speeds(runs: Runs, images: int) -> list[float]:
    """Return images a second of the whole command, then without the start, then that by processor time."""
    wall, cpu = (statistics.median(getattr(usage, name) for usage in runs.all) for name in ("wall", "cpu"))
    first, used = (statistics.median(getattr(usage, name) for usage in runs.few) for name in ("wall", "cpu"))
    return [images / wall, (images - FEW) / (wall - first), (images - FEW) / (cpu - used)]


def memory(work: Path, counts: Sequence[int]) -> tuple[list[str], dict[str, Any]]:
    """Shard ever more tiny files; return the lines of the table and all figures."""
    lines = ["| files listed | seconds | main process, peak MB | workers, peak MB |", "|---:|---:|---:|---:|"]
    figures = {}
    for count in counts:
        link_images(work / f"tiny-{count}", count)
        shutil.rmtree(work / "out", ignore_errors=True)
        command = [sys.executable, "-m", "mpp.shard", str(work / f"tiny-{count}"), str(work / "out"), "check=header"]
        usage = measure(command, work, work / "out")
        lines.append(f"| {count:,} | {usage.wall:,.0f} | {usage.main / 1e6:,.0f} | {usage.others / 1e6:,.0f} |")
        figures[count] = asdict(usage)
    return lines, {"listed": figures}


def link_images(target: Path, count: int) -> None:
    """Make ``count`` names of a few tiny JPEGs, 1000 a class folder."""
    from PIL import Image

    if target.exists():
        return
    for number in range(count):
        folder = target / f"class{number // 1000:06d}"
        if number % 1000 == 0:
            folder.mkdir(parents=True)
        if number % 50_000 == 0:  # a file has at most 65,000 names
            original = folder / f"{number:09d}.jpg"
            Image.new("RGB", (8, 8), (number // 50_000, 0, 0)).save(original)
        else:
            os.link(original, folder / f"{number:09d}.jpg")


if __name__ == "__main__":
    sys.exit(main())
