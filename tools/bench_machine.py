"""What a benchmark's figures depend on and what its processes take: processors, commit, versions, time, memory.

Needs nothing but Python: the peers' environment imports it too. Linux only.
"""

import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def machine() -> dict[str, Any]:
    """Return what the figures depend on beside the code, and the code's commit."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    commit = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True)
    return {"processors": models, "python": platform.python_version(), "commit": commit.stdout.strip()}


def own_versions(names: Sequence[str]) -> dict[str, str]:
    """Return the versions of these packages here."""
    return {name: importlib.metadata.version(name) for name in names}


def versions(python: str, names: Sequence[str]) -> dict[str, str]:
    """Return the versions of these packages in the environment of another ``python``."""
    program = f"import json, importlib.metadata as m; print(json.dumps({{n: m.version(n) for n in {list(names)}}}))"
    found: dict[str, str] = json.loads(subprocess.check_output([python, "-c", program]))
    return found


def processor_seconds() -> float:
    """Return the processor seconds so far of this process and all below it, those that have ended included."""
    children: dict[int, list[int]] = {}
    ticks: dict[int, int] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                fields = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()
            except OSError:  # it has ended meanwhile; then its parent, which waited for it, has its seconds
                continue
            children.setdefault(int(fields[1]), []).append(int(entry))
            ticks[int(entry)] = sum(map(int, fields[11:15]))  # user, system, and those of children waited for
    below, total = [os.getpid()], 0
    while below:
        process = below.pop()
        total += ticks.get(process, 0)
        below += children.get(process, [])
    return total / os.sysconf("SC_CLK_TCK")


def memory(process: int) -> dict[str, int]:
    """Return bytes of a process: ``peak`` and present ``resident``, ``share`` with shared pages divided, ``own``."""
    kibibytes: dict[str, int] = {}
    for table in ("status", "smaps_rollup"):
        for line in Path(f"/proc/{process}/{table}").read_text().splitlines():
            name, _, value = line.partition(":")
            if value.endswith(" kB"):
                kibibytes[name] = int(value.split()[0])
    kept = {"peak": kibibytes["VmHWM"], "resident": kibibytes["Rss"], "share": kibibytes["Pss"]}
    kept["own"] = kibibytes["Private_Clean"] + kibibytes["Private_Dirty"]
    return {name: value * 1024 for name, value in kept.items()}
