"""Whoever runs the tasks, whatever happens to processes on the way: the same results, or an error that says why."""

import importlib.util
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import pytest

from mpp.config import config, dump, resolve
from mpp.errors import ConfigError, DataError, DiskError, MppError, Stopped
from mpp.shards import engines
from mpp.shards.engines import AHEAD, ATTEMPTS, Engine, Ray, Slurm, run_tasks

needs_submitit = pytest.mark.skipif(importlib.util.find_spec("submitit") is None, reason="submitit is not installed")
needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed")


class Task(NamedTuple):
    """A number to square, and what happens on the way; ``marks`` remembers what has happened once."""

    number: int
    marks: Path
    trouble: str = "none"


def square(task: Task) -> dict[str, int]:
    mark = task.marks / str(task.number)
    first = not mark.exists()
    mark.touch()
    if task.trouble == "bug":
        raise ZeroDivisionError(f"bug {task.number}")
    if task.trouble == "disk full":
        raise DiskError(f"no room for {task.number}")
    if task.trouble == "interrupt":
        raise KeyboardInterrupt
    if task.trouble == "killed" or (task.trouble == "killed once" and first):
        os.kill(os.getpid(), signal.SIGKILL)
    if task.trouble == "preempted once" and first:
        os.kill(os.getpid(), signal.SIGUSR2)
    if task.trouble == "signals":
        for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
            os.kill(os.getpid(), number)
    if task.trouble == "slow":
        mark.write_text(str(os.getpid()))
        time.sleep(120)
    return {"number": task.number, "square": task.number**2}


class Counted(list[Task]):
    """Tasks that count how many were asked for."""

    drawn = 0

    def __iter__(self) -> Iterator[Task]:
        for task in super().__iter__():
            self.drawn += 1
            yield task


Tasks = Callable[..., list[Task]]


@pytest.fixture(autouse=True)
def this_file_can_be_imported_by_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(Path(__file__).parents[2]), *sys.path])


@pytest.fixture
def tasks(tmp_path: Path) -> Tasks:
    """Return a function that makes tasks, one for each trouble."""

    def make(*troubles: str) -> list[Task]:
        return [Task(number, tmp_path, trouble) for number, trouble in enumerate(troubles)]

    return make


def by_number(results: list[dict[str, int]]) -> list[dict[str, int]]:
    return sorted(results, key=lambda result: result["number"])


def squares(count: int) -> list[dict[str, int]]:
    return [{"number": number, "square": number**2} for number in range(count)]


def run_until_error(engine: Slurm | Ray, todo: list[Task]) -> tuple[list[int], MppError]:
    """Return the numbers whose results came, and the error that came after them."""
    results = []
    with pytest.raises(MppError) as raised:
        for result in engine.run(square, todo):
            results.append(result["number"])
    return sorted(results), raised.value


@config
class Options:
    engine: Engine | None = None


def test_a_config_chooses_the_engine_by_its_kind() -> None:
    chosen = resolve(Options, {"engine": {"kind": "slurm", "partition": "cpu"}})
    assert chosen == Options(engine=Slurm(partition="cpu"))
    assert resolve(Options, dump(chosen)) == chosen
    with pytest.raises(ConfigError, match=r"engine\.cpu: unknown key; did you mean engine\.cpus\?"):
        resolve(Options, {"engine": {"kind": "ray", "cpu": 3}})


@pytest.mark.parametrize("engine", [Slurm(), Ray()])
def test_no_tasks_no_results(engine: Slurm | Ray) -> None:
    assert list(engine.run(square, [])) == []


@pytest.mark.parametrize("workers", [0, 1, 2, None])
@pytest.mark.parametrize("count", [0, 9])
def test_a_pool_gives_the_results_of_one_process(workers: int | None, count: int, tasks: Tasks) -> None:
    assert by_number(list(run_tasks(square, tasks(*["none"] * count), workers))) == squares(count)


def test_a_pool_holds_few_tasks_at_a_time(tasks: Tasks) -> None:
    todo = Counted(tasks(*["none"] * 50))
    with closing(run_tasks(square, todo, workers=1)) as results:
        next(results)
        assert todo.drawn == AHEAD


def test_signals_to_the_whole_group_do_not_reach_the_workers(tasks: Tasks) -> None:
    assert by_number(list(run_tasks(square, tasks("signals", "none"), workers=1))) == squares(2)


def test_a_killed_worker_is_reported_and_not_waited_for(tasks: Tasks) -> None:
    with pytest.raises(DataError, match="a worker process was killed"):
        list(run_tasks(square, tasks("killed", "none"), workers=1))


def test_an_error_in_a_worker_arrives_as_itself(tasks: Tasks) -> None:
    with pytest.raises(DiskError, match="no room for 1"):
        list(run_tasks(square, tasks("none", "disk full"), workers=1))


def test_an_interruption_is_a_stop(tasks: Tasks) -> None:
    with pytest.raises(Stopped, match="the same command continues"):
        list(run_tasks(square, tasks("interrupt"), workers=0))


@pytest.fixture
def local_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Slurm]:
    """Return a function that makes a SLURM engine out of processes of this machine."""
    monkeypatch.setattr(engines, "SECONDS_BETWEEN_POLLS", 0.05)

    def make(**settings: int) -> Slurm:
        return Slurm(cluster="local", logs=tmp_path / "logs", **settings)

    return make


@needs_submitit
def test_slurm_jobs_killed_or_preempted_are_run_again(tasks: Tasks, local_slurm: Callable[..., Slurm]) -> None:
    todo = tasks("none", "none", "killed once", "preempted once", "none")
    assert by_number(list(local_slurm(tasks_per_job=3, cpus=2).run(square, todo))) == squares(5)


@needs_submitit
def test_a_slurm_failure_is_reported_when_all_else_is_done(tasks: Tasks, local_slurm: Callable[..., Slurm]) -> None:
    numbers, error = run_until_error(local_slurm(tasks_per_job=2), tasks("disk full", "none", "none"))
    assert numbers == [1, 2]
    assert isinstance(error, DiskError)
    numbers, error = run_until_error(local_slurm(tasks_per_job=1), tasks("bug", "none"))
    assert numbers == [1]
    assert isinstance(error, DataError)
    assert "failed" in str(error)
    assert "ZeroDivisionError: bug 0" in str(error)


@needs_submitit
def test_a_slurm_job_killed_every_time_is_given_up(
    tasks: Tasks, local_slurm: Callable[..., Slurm], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "ATTEMPTS", 2)
    numbers, error = run_until_error(local_slurm(tasks_per_job=1), tasks("killed", "none"))
    assert numbers == [1]
    assert isinstance(error, DataError)
    assert "ended without a result" in str(error)


def leave_in_the_middle(engine: Slurm | Ray, todo: list[Task]) -> None:
    """Take the first result, leave, and check that the process of the second, slow task is gone."""
    slow, pid = todo[1].marks / "1", 0
    with closing(engine.run(square, todo)) as results:
        assert next(results) == {"number": 0, "square": 0}
        while not pid:
            time.sleep(0.05)
            pid = int(slow.read_text() or 0) if slow.exists() else 0
    deadline = time.monotonic() + 60
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path(f"/proc/{pid}").exists()


@needs_submitit
@pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")
def test_slurm_jobs_end_when_the_run_is_left(tasks: Tasks, local_slurm: Callable[..., Slurm]) -> None:
    leave_in_the_middle(local_slurm(tasks_per_job=1), tasks("none", "slow"))


STAND_INS = {
    "sbatch": """
        cp "$1" {folder}/script.sh
        last=$(sed -n 's/.*--array=0-\\([0-9]*\\)%.*/\\1/p' "$1")
        for index in $(seq 0 $last); do
            SLURM_JOB_ID=$((77 + index)) SLURM_ARRAY_JOB_ID=77 SLURM_ARRAY_TASK_ID=$index SLURM_NTASKS=1 \\
                bash {folder}/script.sh > /dev/null 2>&1 &
        done
        echo Submitted batch job 77
    """,
    "srun": 'shift 5; exec "$@"',
    "scontrol": 'echo "$@" >> {folder}/requeued; bash {folder}/script.sh &',
    "sacct": "",
    "scancel": "",
}


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put stand-ins for SLURM's commands first on the path, which run jobs here; return their folder."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, script in STAND_INS.items():
        (folder / name).write_text(f"#!/bin/bash\n{script.replace('{folder}', str(folder))}")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


@needs_submitit
def test_slurm_is_asked_for_an_array_and_requeues_what_is_preempted(
    tasks: Tasks, cluster: Path, tmp_path: Path
) -> None:
    engine = Slurm(
        logs=tmp_path / "logs", tasks_per_job=2, max_parallel=2, cpus=1, memory_gb=1.5, partition="cpu", account="lab"
    )
    todo = tasks("none", "none", "preempted once", "none", "none")
    assert by_number(list(engine.run(square, todo))) == squares(5)
    asked = (cluster / "script.sh").read_text()
    for line in (
        "array=0-2%2",
        "partition=cpu",
        "account=lab",
        "mem=1536MB",
        "time=60",
        "requeue",
        "ntasks-per-node=1",
    ):
        assert f"#SBATCH --{line}\n" in asked
    assert (cluster / "requeued").read_text() == "requeue 77_1\n"


@needs_submitit
def test_what_slurm_refuses_is_said_in_its_words(tasks: Tasks, cluster: Path, tmp_path: Path) -> None:
    (cluster / "sbatch").write_text("#!/bin/bash\necho invalid partition specified: gpu >&2; exit 1")
    with pytest.raises(ConfigError, match=r"did not take 1 job.*invalid partition specified: gpu"):
        list(Slurm(logs=tmp_path / "logs").run(square, tasks("none")))


@needs_submitit
def test_a_cancelled_slurm_job_is_not_begun_again(tasks: Tasks, cluster: Path, tmp_path: Path) -> None:
    (cluster / "sbatch").write_text("#!/bin/bash\necho >> $0.calls; echo Submitted batch job 78")
    (cluster / "sacct").write_text("#!/bin/bash\necho 'JobID|State|NodeList'; echo '78|CANCELLED by 0|'")
    with pytest.raises(DataError, match="job 78 ended without a result, as CANCELLED by 0"):
        list(Slurm(logs=tmp_path / "logs").run(square, tasks("none")))
    assert (cluster / "sbatch.calls").read_text() == "\n"


@pytest.mark.parametrize(("engine", "module"), [(Slurm(), "submitit"), (Ray(), "ray")])
def test_an_engine_that_is_not_installed_says_what_to_install(
    engine: Slurm | Ray, module: str, tasks: Tasks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError, match=rf'pip install "mpp\[{engine.kind}\]"'):
        list(engine.run(square, tasks("none")))


@needs_ray
@pytest.mark.slow
def test_ray_is_started_and_ended_where_there_is_none(tasks: Tasks) -> None:
    import ray

    assert not ray.is_initialized()
    with pytest.raises(ConfigError, match="no Ray at"):
        list(Ray(address="auto", cpus=1).run(square, tasks("none")))
    assert by_number(list(Ray(cpus=1).run(square, tasks("none", "none")))) == squares(2)
    assert not ray.is_initialized()


@pytest.fixture(scope="module")
def ray_session() -> Iterator[None]:
    """Hold one small Ray for several tests."""
    import ray

    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@needs_ray
@pytest.mark.slow
def test_a_ray_worker_that_dies_is_replaced(ray_session: None, tasks: Tasks) -> None:
    import ray

    assert by_number(list(Ray().run(square, tasks("none", "killed once", *["none"] * 9)))) == squares(11)
    assert ray.is_initialized(), "the session of others is left alone"


@needs_ray
@pytest.mark.slow
def test_a_ray_failure_arrives_as_itself(ray_session: None, tasks: Tasks) -> None:
    numbers, error = run_until_error(Ray(), tasks("disk full"))
    assert (numbers, type(error), str(error)) == ([], DiskError, "no room for 0")
    with pytest.raises(ZeroDivisionError, match="bug 0"):
        list(Ray().run(square, tasks("bug")))
    _, error = run_until_error(Ray(), tasks("killed"))
    assert isinstance(error, DataError)
    assert f"begun {ATTEMPTS} times" in str(error)


@needs_ray
@pytest.mark.slow
def test_ray_holds_few_tasks_at_a_time_and_ends_them_when_the_run_is_left(ray_session: None, tasks: Tasks) -> None:
    todo = Counted(tasks("none", "slow", *["none"] * 20))
    leave_in_the_middle(Ray(), todo)
    assert todo.drawn == AHEAD * 2
