"""Measure mpp's training stream beside its peers: alone, at its start, and in a training run.

    python tools/bench_stream.py race WORK --source IMAGES --peers PEERS/bin/python [--size 32 --batches 400]
    python tools/bench_stream.py train WORK --source IMAGES --peers PEERS/bin/python --workers 1 --batches 24 --rounds 3
    python tools/bench_stream.py start WORK

IMAGES is a folder of classes of JPEGs, or of parquet files with the columns ``image`` and ``label``; of either only
what belongs to train. Everybody reads the same bytes in a format of its own, made once, and in memory afterwards; makes
the same views; hands over batches of the same size. Every measurement is a process of its own that warms up and then
times a fixed number of batches. The contestants take turns, each round in another order; the tables show medians.
Processor time an image tells a slow contestant from a busy machine. Linux only.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from bench_loops import Task
from bench_machine import ROOT, machine, own_versions, versions
from bench_shard import components

OURS, PEERS = ROOT / "tools" / "bench_stream_ours.py", ROOT / "tools" / "bench_stream_peers.py"
PACKAGES = ("torch", "torchvision", "pillow", "webdataset", "mosaicml-streaming", "litdata", "datasets")
STREAMS = ("mpp", "mpp, floats in the trainer")
THEIRS = (
    "webdataset",
    "webdataset uint8",
    "ImageFolder",
    "ImageFolder uint8",
    "datasets set_transform",
    "datasets format torch",
    "MosaicML streaming",
    "LitData",
)
ALONE = ("mpp views alone", "torchvision decode_jpeg alone", "simplejpeg alone", "Pillow alone")
BASE = "webdataset"  # whom speeds are compared with
BATCH, WARM, WARM_STEPS = 64, 20, 3
LATER_STEPS = (10, 100_000, 1_300_000)  # of 390,625 in an epoch of 100 million samples
MEMORY_BATCHES = 300

Figures = dict[str, Any]
Measured = TypeVar("Measured")


@dataclass(frozen=True)
class Contestant:
    """A command ``PYTHON SCRIPT NAME TASK`` with so many data workers."""

    name: str
    workers: int
    python: str
    script: Path

    def __str__(self) -> str:
        return f"{self.name}, {self.workers} workers"


def main() -> int:
    """Run what the command line asks for; write the figures as a table and as JSON into the work folder."""
    arguments = _arguments()
    arguments.work = arguments.work.resolve()
    arguments.work.mkdir(parents=True, exist_ok=True)
    title = arguments.what if arguments.what == "start" else f"{arguments.what}-{arguments.size}"
    lines, figures = {"race": race, "train": train, "start": start}[arguments.what](arguments)
    table = "\n".join(lines)
    print(table)
    (arguments.work / f"{title}.md").write_text(table + "\n")
    figures = {"command": sys.argv, "machine": machine(), **figures}
    (arguments.work / f"{title}.json").write_text(json.dumps(figures, indent=1) + "\n")
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("race", "train", "start"))
    parser.add_argument("work", type=Path, help="folder for the formats and results")
    parser.add_argument("--source", type=Path, help="folder of images")
    parser.add_argument("--size", type=int, default=224, help="pixels of a side of the views; below 64 as for CIFAR")
    parser.add_argument("--peers", help="python of the environment of the peers")
    parser.add_argument("--images", type=int, default=20_000, help="in the set; those of the source again and again")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--only", default="", help="a word in the names of the contestants to run")
    parser.add_argument("--batches", type=int, default=100, help="of 64 images, timed; steps of training")
    parser.add_argument("--width", type=int, default=192)
    parser.add_argument("--depth", type=int, default=6)
    parser.add_argument("--patch", type=int, default=16)
    parser.add_argument("--shards", type=int, nargs="+", default=[1, 100, 10_000], help="in the sets to start from")
    parser.add_argument("--shard-samples", type=int, default=10_000, help="in a shard of the sets to start from")
    arguments = parser.parse_args()
    if arguments.what != "start" and not (arguments.source and arguments.peers):
        parser.error("peers are measured with --source and --peers")
    return arguments


def race(arguments: argparse.Namespace) -> tuple[list[str], Figures]:
    """Measure loaders with no model, and decoders alone; return the lines of the table and all figures."""
    formats = prepare(arguments)
    everybody = contestants(arguments, [*STREAMS, *THEIRS])
    everybody += [Contestant(name, 0, sys.executable, OURS) for name in ALONE if arguments.only in name]
    task = {"formats": str(formats), "size": arguments.size, "batch": BATCH, "warm": WARM, "count": arguments.batches}
    runs = take_turns(everybody, arguments.rounds, lambda one: _run(one, Task(**task, workers=one.workers), formats))
    return _race_table(runs), _all_figures(arguments, runs)


def train(arguments: argparse.Namespace) -> tuple[list[str], Figures]:
    """Measure a training run with every loader; return the lines of the table and all figures."""
    formats = prepare(arguments)
    everybody = [Contestant("one batch", 0, sys.executable, OURS)]
    everybody += contestants(arguments, [STREAMS[0], *THEIRS])
    classes = len(list((formats / "images").iterdir()))
    model = {"width": arguments.width, "depth": arguments.depth, "patch": arguments.patch, "classes": classes}
    task = {"formats": str(formats), "size": arguments.size, "batch": BATCH, "warm": WARM_STEPS, "model": model}
    task["count"] = arguments.batches
    runs = take_turns(everybody, arguments.rounds, lambda one: _run(one, Task(**task, workers=one.workers), formats))
    lines = ["| training with | workers | spread | images/s | waiting for data | ms a step | CPU ms an image |"]
    lines.append("|---|---:|---:|---:|---:|---:|---:|")
    for one, mine in runs.items():
        speed, used = _speeds(mine)
        stalled, step = _median(mine, "stalled"), _median(mine, "seconds_per_step")
        lines.append(f"{_head(one, mine)} | {speed:,.1f} | {stalled:.2%} | {1000 * step:,.1f} | {1000 * used:.2f} |")
    return lines, _all_figures(arguments, runs)


def contestants(arguments: argparse.Namespace, names: Sequence[str]) -> list[Contestant]:
    """Return those that are asked for, with each number of workers."""
    wanted = [name for name in names if arguments.only in name]
    sides = {name: (arguments.peers, PEERS) if name in THEIRS else (sys.executable, OURS) for name in wanted}
    return [Contestant(name, workers, *sides[name]) for workers in arguments.workers for name in wanted]


def take_turns(
    everybody: Sequence[Measured], rounds: int, measured: Callable[[Measured], Figures]
) -> dict[Measured, list[Figures]]:
    """Measure all of them, round after round, each round beginning with another; return the figures of each."""
    runs: dict[Measured, list[Figures]] = {one: [] for one in everybody}
    for turn in range(rounds):
        first = turn * len(everybody) // rounds
        for one in [*everybody[first:], *everybody[:first]]:
            runs[one].append(measured(one))
            print(f"round {turn + 1}: {one}: {runs[one][-1]}", file=sys.stderr, flush=True)
    return runs


def _run(one: Contestant, task: Task, formats: Path) -> Figures:
    return measure([one.python, str(one.script), one.name, json.dumps(asdict(task))], formats.parent)


def measure(command: Sequence[str], work: Path) -> Figures:
    """Run a command; return the JSON of its last line, or raise ``SystemExit`` where it fails."""
    cache = {name: str(work / "cache") for name in ("HF_HOME", "DATA_OPTIMIZER_CACHE_FOLDER", "XDG_CACHE_HOME")}
    environment = {**os.environ, **cache, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\nended with {done.returncode}: {done.stderr[-2000:]}")
    figures: Figures = json.loads(done.stdout.splitlines()[-1]) if done.stdout else {}
    return figures


def prepare(arguments: argparse.Namespace) -> Path:
    """Write the images in every format, unless they are there; read all once, which brings them into memory."""
    formats: Path = arguments.work / f"{arguments.source.name}-{arguments.images}"
    if not (formats / "images").exists():
        copy_images(arguments.source, formats / "images", arguments.images)
    if not (formats / "shards" / "index.json").exists():
        shard = ["labels=folders", f"shard_samples={min(1000, arguments.images // 8)}", "check=header"]
        shard_command = [sys.executable, "-m", "mpp.shard", str(formats / "images"), str(formats / "shards"), *shard]
        subprocess.run(shard_command, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=sys.stderr)
    measure([arguments.peers, str(PEERS), "write", str(formats)], arguments.work)
    assert all(len(path.read_bytes()) >= 0 for path in formats.rglob("*") if path.is_file())
    return formats


def copy_images(source: Path, target: Path, count: int) -> None:
    """Write ``count`` JPEGs of the source in class folders, taking each several times where there are fewer.

    Only those of 3 components: mpp-shard keeps their bytes, so that everybody has the same ones.
    """
    kept = [(name, jpeg) for name, jpeg in _images(source) if components(jpeg) == 3]
    random.Random(0).shuffle(kept)
    for number in range(count):
        name, jpeg = kept[number % len(kept)]
        path = target / name / f"{number:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg)


def _images(source: Path) -> Iterator[tuple[str, bytes]]:
    """Yield the class and the bytes of every image for training."""
    import pyarrow.parquet as parquet

    for path in sorted(source.glob("train*.parquet")):
        for row in parquet.read_table(path).to_pylist():
            yield f"{row['label']:03d}", row["image"]["bytes"]
    folder = source / "train" if (source / "train").is_dir() else source
    for path in sorted(folder.glob("*/*")):
        if path.suffix.lower() in (".jpg", ".jpeg"):
            yield path.parent.name, path.read_bytes()


def _race_table(runs: dict[Contestant, list[Figures]]) -> list[str]:
    """Return the lines of a race's table; what works alone is compared with one worker."""
    base = {one.workers: _speeds(mine) for one, mine in runs.items() if one.name == BASE}
    lines = [f"| | workers | spread | images/s | x {BASE} | CPU ms an image | {BASE} / CPU |"]
    lines.append("|---|---:|---:|---:|---:|---:|---:|")
    for one, mine in runs.items():
        speed, used = _speeds(mine)
        compared, other = base.get(max(1, one.workers), (float("nan"), float("nan")))
        cells = f"{speed:,.0f} | {speed / compared:.2f} | {1000 * used:.3f} | {other / used:.2f}"
        lines.append(f"{_head(one, mine)} | {cells} |")
    return lines


def _speeds(runs: list[Figures]) -> tuple[float, float]:
    return _median(runs, "images_per_second"), _median(runs, "cpu_seconds_per_image")


def _median(runs: list[Figures], name: str) -> float:
    return statistics.median(run[name] for run in runs)


def _head(one: Contestant, runs: list[Figures]) -> str:
    """Return the first cells of a line; the spread is that of images/s from the least to the most, by the median."""
    speeds = [run["images_per_second"] for run in runs]
    return f"| {one.name} | {one.workers} | {(max(speeds) - min(speeds)) / statistics.median(speeds):.0%}"


def _all_figures(arguments: argparse.Namespace, runs: dict[Contestant, list[Figures]]) -> Figures:
    figures = [{"name": one.name, "workers": one.workers, "runs": mine} for one, mine in runs.items()]
    of_packages = {"mpp's": own_versions(PACKAGES[:3]), "peers'": versions(arguments.peers, PACKAGES)}
    return {"images": arguments.images, "versions": of_packages, "contestants": figures}


def start(arguments: argparse.Namespace) -> tuple[list[str], Figures]:
    """Measure how long a stream takes to its first batch, and a worker's memory; return the lines and all figures."""
    sets = {shards: link_shards(arguments.work, shards, arguments.shard_samples) for shards in arguments.shards}
    largest = max(sets)
    starts = [(largest, step, workers) for workers in (0, 1) for step in LATER_STEPS]
    starts += [(shards, LATER_STEPS[0], 1) for shards in sorted(sets) if shards != largest]

    def run(one: tuple[int, int, int]) -> Figures:
        shards, step, workers = one
        batches = MEMORY_BATCHES if workers and step == LATER_STEPS[0] else 1
        task = {"folder": str(sets[shards]), "start_step": step, "workers": workers, "batches": batches}
        return measure([sys.executable, str(OURS), "start", json.dumps(task)], arguments.work)

    runs = take_turns(starts, arguments.rounds, run)
    lines = [
        "| shards | samples | workers | from step | seconds to open | to the first batch | of the main process, MB "
    ]
    lines[0] += f"| of a worker after {MEMORY_BATCHES} batches: peak, MB | resident | shared pages divided | own |"
    lines.append("|" + "---:|" * 11)
    for (shards, step, workers), mine in runs.items():
        cells = [f"{shards:,}", f"{shards * arguments.shard_samples:,}", f"{workers}", f"{step:,}"]
        cells += [
            f"{_median(mine, 'open'):.2f}",
            f"{_median(mine, 'first'):.2f}",
            f"{_megabytes(mine, 'main', 'peak'):,.0f}",
        ]
        kinds = ("peak", "resident", "share", "own") if workers and step == LATER_STEPS[0] else ()
        cells += [f"{_megabytes(mine, 'worker', kind):,.0f}" for kind in kinds] or [""] * 4
        lines.append(f"| {' | '.join(cells)} |")
    return lines, {"runs": [{"start": one, "runs": mine} for one, mine in runs.items()]}


def _megabytes(runs: list[Figures], process: str, kind: str) -> float:
    return statistics.median(run[process][kind] for run in runs) / 1e6


def link_shards(work: Path, count: int, samples: int) -> Path:
    """Return a set of ``count`` shards that are all the same file: one of tiny images, under many names."""
    one, many = work / f"one-{samples}", work / f"shards-{count}-of-{samples}"
    if not (one / "index.json").exists():
        _write_tiny(work, one, samples)
    if (many / "index.json").exists():
        return many
    index = json.loads((one / "index.json").read_text())
    (entry,) = index["shardlist"]
    entries = [entry | {"url": f"train/train-{number:06d}.tar"} for number in range(count)]
    sidecars = [path for path in (one / ".mpp" / "train").iterdir() if path.name.startswith("train-000000.")]
    for folder in ("train", ".mpp/train"):
        (many / folder).mkdir(parents=True, exist_ok=True)
    for number in range(count):
        os.link(one / entry["url"], many / "train" / f"train-{number:06d}.tar")
        for path in sidecars:
            os.link(path, many / ".mpp" / "train" / f"train-{number:06d}{path.suffix}")
    (many / "index.json").write_text(json.dumps(index | {"shardlist": entries}))
    return many


def _write_tiny(work: Path, out: Path, samples: int) -> None:
    """Shard so many images of 8 x 8 pixels into one tar."""
    from PIL import Image

    for number in range(samples):
        path = work / f"tiny-{samples}" / f"{number % 10}" / f"{number:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (number % 251, number // 251 % 251, 0)).save(path)
    options = ["labels=folders", f"shard_samples={samples}", "check=header"]
    uncut = f"import mpp.shards.layout as layout; layout.FEWEST_SAMPLES = {samples}"  # else it makes several shards
    program = f"{uncut}; import sys, mpp.shard; sys.exit(mpp.shard.main(sys.argv[1:]))"
    command = [sys.executable, "-c", program, str(work / f"tiny-{samples}"), str(out), *options]
    subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
