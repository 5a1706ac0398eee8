"""Kill a pretraining run at random moments, continue it, and compare it with an undisturbed one, bit for bit.

    python tools/check_resume.py OUT --kills 2 --processes 1 -- --config configs/pretrain/FILE shards=SHARDS

Ends with 0 where metrics.jsonl and backbone.safetensors of the two runs are the same bytes.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main() -> int:
    """Run once undisturbed and once with kills, print each kill and the verdict."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--kills", type=int, default=2)
    parser.add_argument("--processes", type=int, choices=(1, 2), default=1)
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    parser.add_argument("settings", nargs="+", help="arguments of mpp pretrain, after --")
    arguments = parser.parse_args()
    command = [sys.executable, *_launcher(arguments.processes), str(ROOT / "mpp" / "pretrain.py"), *arguments.settings]
    moments = random.Random(arguments.seed)
    whole, cut = arguments.out / "undisturbed", arguments.out / "killed"
    began = time.monotonic()
    subprocess.run([*command, f"out={whole}"], check=True, stdout=subprocess.DEVNULL)
    steps = _logged(whole)
    print(f"undisturbed: {steps} log lines in {time.monotonic() - began:.0f} s", flush=True)
    for kill in range(arguments.kills):
        least = moments.randint(_logged(cut) + 1, max(_logged(cut) + 1, steps * (kill + 1) // (arguments.kills + 1)))
        code = _killed(command, cut, least, moments.random())
        print(f"kill {kill + 1}: after {_logged(cut)} log lines, exit code {code}", flush=True)
        if code != -signal.SIGKILL:
            print("the run ended before it was killed: no verdict; fewer kills or more steps")
            return 2
    subprocess.run([*command, f"out={cut}"], check=True, stdout=subprocess.DEVNULL)
    names = ("metrics.jsonl", "backbone.safetensors")
    different = [name for name in names if (whole / name).read_bytes() != (cut / name).read_bytes()]
    print(f"different: {', '.join(different)}" if different else f"equal: {' and '.join(names)}")
    return 1 if different else 0


def _launcher(processes: int) -> list[str]:
    if processes == 1:
        return []
    config = ROOT / "configs" / "accelerate" / "cpu_2_processes.yaml"
    return ["-m", "accelerate.commands.launch", "--config_file", str(config)]


def _killed(command: list[str], out: Path, lines: int, delay: float) -> int:
    """Start the run, kill all its processes ``delay`` seconds after ``lines`` log lines, return its exit code."""
    process = subprocess.Popen([*command, f"out={out}"], start_new_session=True, stdout=subprocess.DEVNULL)
    while _logged(out) < lines and process.poll() is None:
        time.sleep(0.005)
    time.sleep(delay)
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    return process.wait()


def _logged(out: Path) -> int:
    path = out / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


if __name__ == "__main__":
    sys.exit(main())
