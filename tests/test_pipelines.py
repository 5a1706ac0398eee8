"""The pipelines: their shell is sound, the configs they name exist, and the demo ends with the table it promises."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
SBATCH = ROOT / "pipelines" / "slurm" / "pretrain.sbatch"
PIPELINES = [*sorted((ROOT / "pipelines").glob("*.sh")), SBATCH]
# SLURM's commands for a job of two tasks on this machine: their pids are in the folder $JOB, as is what was queued.
STAND_INS = {
    "scontrol": """[ "$1" = requeue ] && echo "$2" >> "$JOB/requeued" || echo 127.0.0.1""",
    "scancel": """[ "$1 $2" = "--signal=TERM $SLURM_JOB_ID" ] && kill -TERM $(cat "$JOB/pids")""",
    "srun": """while [[ $1 == --* ]]; do shift; done
for rank in 0 1; do
    SLURM_PROCID=$rank SLURM_LOCALID=$rank "$@" &
    pids+=($!)
done
echo "${pids[@]}" > "$JOB/pids"
code=0
for pid in "${pids[@]}"; do wait "$pid" || code=$?; done
exit "$code" """,
}


@pytest.mark.parametrize("script", PIPELINES, ids=lambda script: script.name)
def test_a_pipeline_is_sound_shell_and_names_configs_that_exist(script: Path) -> None:
    subprocess.run(["bash", "-n", str(script)], check=True)
    assert os.access(script, os.X_OK)
    for name in re.findall(r"configs?/([\w/]+\.yaml)", script.read_text()):
        assert (ROOT / "configs" / name).is_file(), name


@pytest.mark.slow
def test_the_demo_ends_with_masked_pretraining_ahead_of_scratch(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        [str(ROOT / "pipelines" / "demo.sh"), str(out)], env=environment, capture_output=True, text=True, check=True
    )
    assert "YOUR_IMAGES" in done.stdout
    assert (out / "reconstructions.png").stat().st_size > 10_000
    rows = json.loads((out / "comparison" / "report.json").read_text())["rows"]
    means = {(row["labels_per_class"], row["arm"]): row["top1"]["mean"] for row in rows}
    assert len(means) == 12
    for (labels, arm), top1 in means.items():
        scratch = means[labels, "scratch"]
        assert arm == "scratch" or top1 > scratch + 5, (labels, arm)


@pytest.mark.slow
def test_slurms_warning_makes_the_ranks_save_and_the_job_queue_again(
    tiny_shards: Path, tiny_vit: dict[str, Any], tmp_path: Path
) -> None:
    for name, body in STAND_INS.items():
        (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    out, settings = tmp_path / "run", tmp_path / "tiny.yaml"
    tree = {"vit": tiny_vit, "steps": 100_000, "global_batch": 16, "stream": {"workers": 0}, "log_every": 1}
    settings.write_text(json.dumps(tree))
    environment = {
        **os.environ,
        "PATH": f"{tmp_path}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "JOB": str(tmp_path),
        "SLURM_JOB_ID": str((port - 20_000) % 10_000),
        "SLURM_JOB_NODELIST": "node[1-2]",
        "SLURM_NTASKS": "2",
    }
    command = ["bash", str(SBATCH), "--config", str(settings), f"shards={tiny_shards}", f"out={out}"]
    log = tmp_path / "log"
    with log.open("w") as output:
        job = subprocess.Popen(command, env=environment, cwd=tmp_path, stdout=output, stderr=output)
    deadline, metrics = time.monotonic() + 200, out / "metrics.jsonl"
    while not (metrics.exists() and metrics.read_bytes().count(b"\n") >= 3):
        assert job.poll() is None and time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)
    job.send_signal(signal.SIGUSR1)  # to the batch shell alone, as --signal=B: does
    assert job.wait(200) == 143, log.read_text()
    assert (tmp_path / "requeued").read_text() == environment["SLURM_JOB_ID"] + "\n"
    assert "every size and count is as recorded" in log.read_text()
    last = json.loads(metrics.read_text().splitlines()[-1])["step"]
    assert [path.name for path in (out / "checkpoints").iterdir()] == [f"step-{last:09d}"]
    facts = json.loads((out / "checkpoints" / f"step-{last:09d}" / "manifest.json").read_text())["facts"]
    assert facts["world"] == 2
