"""The pipelines: their shell is sound, the configs they name exist, and the demo ends with the table it promises."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PIPELINES = sorted((ROOT / "pipelines").glob("*.sh"))


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
    lines = (out / "comparison" / "table.md").read_text().splitlines()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    rows = {(row[0], row[1]): row for row in cells if len(row) > 2 and row[0].isdigit()}
    assert len(rows) == 6
    for (labels, arm), row in rows.items():
        top1 = float(row[2].split()[0])
        scratch = float(rows[labels, "scratch"][2].split()[0])
        assert arm == "scratch" or top1 > scratch + 5, (labels, arm)
