"""Whole runs over faults of their folder: kills inside a save, a full disk, hostile and damaged files, secrets."""

import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from forked_runs import ROOT, Done, ForkedRuns

from mpp.disk import lock_file
from mpp.training.backbone import load_backbone
from mpp.training.checkpoint import complete_checkpoints, verify

PLACES = ("begin", "folder", "written", "synced", "manifest", "rename", "renamed", "safe", "removing", "end")
SESAME = "open-sesame-123"
pytestmark = pytest.mark.slow

Command = Callable[..., Done]


@pytest.fixture(scope="module")
def server() -> Iterator[ForkedRuns]:
    """The process that runs are forked from."""
    with ForkedRuns() as server:
        yield server


@pytest.fixture(scope="module")
def config(tiny_vit: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A config of 16 steps with a checkpoint every 4."""
    tree = {
        "vit": {**tiny_vit, "drop_path": 0.1},
        "steps": 16,
        "global_batch": 16,
        "stream": {"workers": 0},
        "log_every": 1,
        "save_every": 4,
    }
    file = tmp_path_factory.mktemp("config") / "tiny.yaml"
    file.write_text(json.dumps(tree))
    return file


@pytest.fixture
def command(server: ForkedRuns, config: Path, tiny_shards: Path, tmp_path: Path) -> Command:
    """Return a function that runs ``mpp pretrain`` into tmp_path/run, with words, and MPP_FAULT as its ``fault``."""

    def run(*words: str, fault: str = "", environment: dict[str, str] | None = None, **settings: Any) -> Done:
        given = ["--config", str(config), f"shards={tiny_shards}", f"out={tmp_path / 'run'}", *words]
        return server.run(given, tmp_path / "log", environment={"MPP_FAULT": fault, **(environment or {})}, **settings)

    return run


@pytest.fixture(scope="module")
def undisturbed(server: ForkedRuns, config: Path, tiny_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run from start to end on one process."""
    out = tmp_path_factory.mktemp("undisturbed")
    done = server.run(["--config", str(config), f"shards={tiny_shards}", f"out={out / 'run'}"], out / "log")
    assert done.code == 0, done.output
    return out / "run"


def assert_same_run(first: Path, second: Path) -> None:
    assert (first / "metrics.jsonl").read_text() == (second / "metrics.jsonl").read_text()
    weights, others = (load_backbone(str(run)).weights for run in (first, second))
    assert all(torch.equal(weights[name], others[name]) for name in weights)
    assert weights.keys() == others.keys()


@pytest.mark.parametrize("place", PLACES)
def test_a_run_killed_inside_a_save_has_a_checkpoint_and_continues_to_the_bit(
    command: Command, undisturbed: Path, tmp_path: Path, place: str
) -> None:
    assert command(fault=f"kill@save.{place}:12").code == -signal.SIGKILL
    saved = tmp_path / "run" / "checkpoints"
    newest = 12 if place in ("renamed", "safe", "removing", "end") else 8
    assert verify(complete_checkpoints(saved)[0])["step"] == newest
    done = command()
    assert done.code == 0 and f"continuing from {saved}/step-{newest:09d}" in done.output
    assert "warning" not in done.output
    assert sorted(os.listdir(saved)) == ["step-000000012", "step-000000016"]
    assert_same_run(undisturbed, tmp_path / "run")


def test_a_disk_that_is_full_for_two_saves_costs_two_checkpoints_and_nothing_else(
    command: Command, undisturbed: Path, tmp_path: Path
) -> None:
    done = command(fault="raise-disk@save.written:8,raise-disk@save.synced:12")
    assert done.code == 0
    assert done.output.count("warning: cannot save") == 2 and "step-000000004 stands" in done.output
    assert sorted(os.listdir(tmp_path / "run" / "checkpoints")) == ["step-000000004", "step-000000016"]
    assert_same_run(undisturbed, tmp_path / "run")


@pytest.mark.parametrize("ranks", [1, 2])
def test_after_three_saves_in_a_row_that_fail_the_run_stops(command: Command, tmp_path: Path, ranks: int) -> None:
    done = command("save_every=2", file_bytes=60_000, ranks=ranks)
    assert done.codes == [7] * ranks
    assert done.output.count("warning: cannot save") == 2
    assert "no file may have more than 60,000 (ulimit -f)" in done.output
    assert re.search(r"about [\d,]+ bytes are needed, [\d,]+ are free", done.output)
    assert not os.listdir(tmp_path / "run" / "checkpoints")
    assert (tmp_path / "run" / "metrics.jsonl").read_text().count("\n") == 6


def test_no_checkpoint_is_ahead_of_the_metrics_that_a_disk_does_not_take(command: Command, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    first = json.dumps({"step": 0, "long": "x" * 200_000}) + "\n"
    (tmp_path / "run" / "metrics.jsonl").write_text(first)
    done = command(file_bytes=len(first) + 1200)  # room for the checkpoints, and for some lines
    assert done.code == 7 and "metrics.jsonl waits: " in done.output
    steps = [json.loads(line)["step"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert 4 <= steps[-1] < 8
    assert os.listdir(tmp_path / "run" / "checkpoints") == ["step-000000004"]
    assert command().code == 0
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(17))


def test_a_save_that_fails_at_a_stop_says_what_stands(command: Command, undisturbed: Path, tmp_path: Path) -> None:
    done = command(fault="term@save.begin:8,raise-disk@save.manifest:9")
    assert done.code == 7 and "step-000000008 stands" in done.output
    assert command().code == 0
    assert_same_run(undisturbed, tmp_path / "run")


def test_a_small_disk_is_refused_before_the_first_step_and_a_full_one_loses_nothing(
    config: Path, tiny_shards: Path, tmp_path: Path
) -> None:
    if subprocess.run(["unshare", "-Urm", "true"], capture_output=True).returncode:
        pytest.skip("this machine does not let a user mount a file system of his own")
    small, large = tmp_path / "small", tmp_path / "large"
    small.mkdir()
    large.mkdir()
    mount = f'mount -t tmpfs -o size=120k none {small} && mount -t tmpfs -o size=10M none {large} && exec "$@"'
    with ForkedRuns("unshare", "-Urm", "sh", "-c", mount, "sh") as server:

        def train(disk: Path, *words: str) -> Done:
            given = ["--config", str(config), f"shards={tiny_shards}", f"out={disk / 'run'}", *words]
            return server.run(given, tmp_path / "log")

        refused = train(small)
        assert refused.code == 7
        room = r"no room for checkpoints of [\d,]+ bytes.* [\d,]+ bytes are needed, [\d,]+ are free"
        assert re.search(room, refused.output) and str(small) in refused.output
        assert not server.place(small / "run" / "metrics.jsonl").exists()
        assert train(large, "steps=4").code == 0
        big = server.place(large / "big")
        with pytest.raises(OSError), big.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(2**16))
        full = train(large, "steps=8", "allow_changed=[steps]")
        assert full.code == 7 and str(large) in full.output and "Traceback" not in full.output
        assert verify(complete_checkpoints(server.place(large / "run" / "checkpoints"))[0])["step"] == 4
        assert not list(server.place(large / "run").glob("**/*.writing"))
        big.unlink()
        assert train(large, "steps=8", "allow_changed=[steps]").code == 0


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_damaged_checkpoint_is_set_aside_by_all_and_the_run_is_the_same(
    command: Command, undisturbed: Path, tmp_path: Path, ranks: int
) -> None:
    calm = ("vit.drop_path=0",)  # which differs by process
    assert command(*calm, ranks=ranks).codes == [0] * ranks
    shutil.copytree(tmp_path / "run", tmp_path / "whole")
    (tmp_path / "run" / "STATUS").write_text("running\n")
    with (tmp_path / "run" / "checkpoints" / "step-000000016" / "optimizer.bin").open("r+b") as file:
        file.seek(5000)
        file.write(b"\xff\x00\xff\x00")
    done = command(*calm, ranks=ranks)
    assert done.codes == [0] * ranks
    assert done.output.count("warning: ") == 1 and "step-000000016.corrupt" in done.output
    assert_same_run(tmp_path / "whole", tmp_path / "run")


@pytest.mark.parametrize("ranks", [1, 2])
def test_where_all_checkpoints_are_damaged_the_run_ends_with_4_and_each_reason(
    command: Command, undisturbed: Path, tmp_path: Path, ranks: int
) -> None:
    shutil.copytree(undisturbed, tmp_path / "run")
    (tmp_path / "run" / "STATUS").write_text("running\n")
    saved = tmp_path / "run" / "checkpoints"
    (saved / "step-000000016" / "random_states_0.pkl").unlink()
    (saved / "step-000000012" / "manifest.json").write_text("")
    for again in (False, True):
        done = command(ranks=ranks)
        assert done.codes == [4] * ranks
        assert "every checkpoint is damaged" in done.output and "Traceback" not in done.output
        assert again or ("random_states_0.pkl is missing" in done.output and "no readable manifest" in done.output)
    assert sorted(os.listdir(saved)) == ["step-000000012.corrupt", "step-000000016.corrupt"]


class Evil:
    """An object whose unpickling makes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("name", ["optimizer.bin", "random_states_0.pkl", "fast.so"])
def test_a_hostile_checkpoint_is_refused_with_4_and_runs_nothing(
    command: Command, undisturbed: Path, tmp_path: Path, name: str
) -> None:
    from accelerate import Accelerator

    from mpp.training.checkpoint import CheckpointStore

    shutil.copytree(undisturbed, tmp_path / "run")
    (tmp_path / "run" / "STATUS").write_text("running\n")
    saved = tmp_path / "run" / "checkpoints"
    facts = verify(saved / "step-000000016")

    def plant(folder: Path) -> None:
        shutil.copytree(saved / "step-000000016", folder, dirs_exist_ok=True)
        (folder / "manifest.json").unlink()
        evil = Evil(tmp_path / "marker")
        if name == "fast.so":
            (folder / name).write_bytes(pickle.dumps(evil))
        else:
            torch.save({"state": evil}, folder / name)

    shutil.rmtree(saved / "step-000000012")
    CheckpointStore(saved, Accelerator()).save({**facts, "step": 15}, plant)  # with a manifest that is right
    shutil.rmtree(saved / "step-000000016")
    done = command()
    assert done.code == 4 and f"{name} is refused" in done.output and "Traceback" not in done.output
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_folder_in_use_is_refused_to_every_process(command: Command, tmp_path: Path, ranks: int) -> None:
    (tmp_path / "run").mkdir()
    with lock_file(tmp_path / "run" / ".lock"):
        done = command(ranks=ranks)
        assert done.codes == [2] * ranks
        assert done.output.count("another process is running in") == ranks and "Traceback" not in done.output
    assert command("steps=1").code == 0


def test_settings_changed_before_a_resume_are_listed_and_may_be_allowed(command: Command, tmp_path: Path) -> None:
    assert command("steps=4").code == 0
    done = command("steps=8", "optimizer.learning_rate=0.5")
    assert done.code == 2 and "steps: was 4, now 8" in done.output
    assert "optimizer.learning_rate: was" in done.output
    assert command("steps=8", "allow_changed=[steps]").code == 0
    assert command("steps=8").code == 0
    assert "steps: 4" in (tmp_path / "run" / "config.yaml.1").read_text()
    # what does not fit the checkpoint is said, not thrown
    done = command("steps=9", "vit.width=32", "allow_changed=[steps, vit.width]")
    assert done.code == 4 and "does not fit" in done.output and "Traceback" not in done.output


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stpes: 3", "did you mean steps?"),
        ("steps: many", "steps: "),
        ("steps: !!python/object/apply:os.system ['touch marker']", "is not plain YAML"),
        ("a: &a [x, x]\nb: &b [*a, *a]\nsteps: [*b, *b]", "aliases (*name) are not allowed"),
        ("steps: 3\nsteps: 4", "the key steps is given twice"),
        ("[" * 10_000, "in one another"),
    ],
)
def test_a_config_that_cannot_be_used_ends_with_2(command: Command, tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "bad.yaml").write_text(text)
    done = command("--config", str(tmp_path / "bad.yaml"))
    assert done.code == 2 and message in done.output and "Traceback" not in done.output
    assert not (tmp_path / "run").exists() and not (ROOT / "marker").exists()


def test_no_secret_is_shown_or_written(command: Command, tmp_path: Path) -> None:
    environment = {"HF_TOKEN": SESAME, "WANDB_API_KEY": f"{SESAME}-w", "AWS_SECRET_ACCESS_KEY": f"{SESAME}-a"}
    words = [
        [],
        ["steps=17", "-v"],
        ["steps=17", "allow_changed=[steps]", "vit.width=32", "-v"],
        [f"api_key={SESAME}", "-v"],
        [f"split={SESAME}", "-v"],
        [f"shards=https://me:{SESAME}@127.0.0.1:9/set?X-Amz-Signature={SESAME}", "-v"],
        [f"shards=s3://bucket/x.tar?token={SESAME}", "-v"],
        [f"--token={SESAME}"],
        [f"--config=https://me:{SESAME}@host/x.yaml", "-v"],
        [f"precision.password={SESAME}"],
    ]
    done = [command(*one, environment=environment) for one in words]
    assert [one.code for one in done] == [0, *[2] * 9] or all(one.code for one in done[1:])
    assert [one.output for one in done if SESAME in one.output] == []
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert len(files) > 8
    assert [path for path in files if SESAME.encode() in path.read_bytes()] == []


def test_a_bug_shows_no_secret_either(tmp_path: Path) -> None:
    script = (
        "from mpp.errors import exit_code_of\n"
        "def bug(argv): raise RuntimeError('GET https://me:open-sesame-123@host/?sig=open-sesame-123')\n"
        "exit_code_of(bug, [])\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1
    assert "RuntimeError: GET https://host/?sig=..." in done.stderr
    assert "sesame-123" not in done.stderr.replace("def bug", "").split("RuntimeError:")[-1]


def test_no_library_sends_telemetry(tmp_path: Path) -> None:
    script = (
        "import sys\nfrom mpp.errors import exit_code_of\n"
        "def look(argv):\n    from huggingface_hub import constants\n    print(constants.HF_HUB_DISABLE_TELEMETRY)\n"
        "exit_code_of(look, [])\n"
    )
    environment = {name: value for name, value in os.environ.items() if "TRACK" not in name and "TELEM" not in name}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, env=environment, check=True
    )
    assert done.stdout == "True\n"
