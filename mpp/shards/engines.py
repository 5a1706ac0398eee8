"""Who runs the tasks of sharding: this process, a local pool, SLURM or Ray.

Every task is a pure function of its arguments, so it does not matter who runs it, how often, or in which order. An
engine yields results as they come; left early, it ends what it has begun.
"""

import importlib
import logging
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import Field

from mpp.config import config
from mpp.errors import ConfigError, DataError, MppError, Stopped
from mpp.processes import end_with_parent, worker_context

Task = TypeVar("Task")
Result = TypeVar("Result")

ATTEMPTS = 4  # times that a task is begun where its process or machine dies
AHEAD = 2  # tasks in flight for each worker, so that none waits for this process
LOG_LINES = 20
SECONDS_BETWEEN_POLLS = 0.5


def run_tasks(function: Callable[[Task], Result], tasks: Sequence[Task], workers: int | None) -> Iterator[Result]:
    """Yield ``function(task)`` for every task, as they finish.

    ``workers`` processes of this machine do it (None: one a CPU), or this one where it is 0. Raises what ``function``
    raises, ``DataError`` where a process is killed, ``Stopped`` on Ctrl-C and SIGTERM.
    """
    workers = min(usable_cpus() if workers is None else workers, len(tasks))
    with _stoppable():
        if workers == 0:
            yield from map(function, tasks)
            return
        others = set(multiprocessing.active_children())
        with ProcessPoolExecutor(workers, worker_context(), initializer=_start_worker) as pool:
            try:
                yield from _drain(pool, function, iter(tasks), AHEAD * workers)
            except BrokenProcessPool:
                message = "a worker process was killed, by the system or for memory"
                raise DataError(message, fix="fewer workers, parallel=1 in a comparison") from None
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                for worker in set(multiprocessing.active_children()) - others:
                    worker.kill()  # what it has begun is begun again some day, and gives the same
                raise


def usable_cpus() -> int:
    """Return the CPUs that this process may use, which a cluster limits."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _drain(
    pool: ProcessPoolExecutor, function: Callable[[Task], Result], tasks: Iterator[Task], in_flight: int
) -> Iterator[Result]:
    """Yield results from ``pool``, which holds no more than ``in_flight`` tasks at a time."""
    pending: set[Future[Result]] = set()
    while True:
        pending |= {pool.submit(function, task) for task in islice(tasks, in_flight - len(pending))}
        if not pending:
            return
        done, pending = wait(pending, return_when=FIRST_COMPLETED)
        for future in done:
            yield future.result()


def _start_worker() -> None:
    """Keep decoders' own messages off the terminal; Ctrl-C reaches the whole group, and the parent decides."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})  # a pool ends its workers by it
    end_with_parent()


@config
class Slurm:
    """An array of SLURM jobs, each with a chunk of the tasks; what is preempted or out of time is run again.

    A task that hears of that, saves and raises ``Stopped`` is submitted anew, others are requeued by submitit.
    """

    kind: Literal["slurm"] = "slurm"
    logs: Path = Field(Path("slurm-logs"), description="folder for job files and logs, on a disk that all nodes share")
    tasks_per_job: int = Field(8, gt=0, description="tasks of one job; the cluster limits the jobs of an array")
    max_parallel: int = Field(64, gt=0, description="jobs that run at the same time")
    cpus: int = Field(1, gt=0, description="processes of one job, which share its tasks")
    memory_gb: float = Field(2.0, gt=0, description="memory for each of the processes, GB")
    minutes: int = Field(60, gt=0, description="time limit of a job, minutes")
    gpus: int = Field(0, ge=0, description="GPUs of each process; sharding needs none")
    threads: int = Field(1, gt=0, description="CPUs of each process; sharding uses one")
    partition: str | None = Field(None, description="SLURM partition; default: the cluster's")
    account: str | None = Field(None, description="SLURM account; default: the user's")
    cluster: Literal["slurm", "local"] = Field("slurm", description="local tries it out with processes of this machine")

    def run(self, function: Callable[[Task], Result], tasks: Sequence[Task]) -> Iterator[Result]:
        """Yield ``function(task)`` for every task, as jobs finish.

        What ``function`` raises is raised when all others are done, as it is where it is an ``MppError``. Raises
        ``DataError`` for other errors and where processes keep dying, ``ConfigError`` where SLURM does not take
        the jobs, ``Stopped`` on Ctrl-C.
        """
        failures: list[MppError] = []
        attempt = 0
        while tasks:
            attempt += 1
            lost: list[Task] = []
            stopped: list[Task] = []
            for share, outcomes in self._run_once(function, tasks):
                for place, outcome in enumerate(outcomes):
                    if isinstance(outcome, _Lost) and attempt < ATTEMPTS:
                        lost.extend(share)
                    elif isinstance(outcome, Stopped):  # it has saved where it was: any number of times
                        stopped.append(share[place])
                    elif isinstance(outcome, MppError):
                        failures.append(outcome)
                    else:
                        yield outcome
            attempt -= bool(stopped) and not lost
            tasks = [*lost, *stopped]
        if failures:
            raise failures[0]

    def _run_once(
        self, function: Callable[[Task], Result], tasks: Sequence[Task]
    ) -> Iterator[tuple[Sequence[Task], list[Result | MppError]]]:
        """Yield for each process of each job the tasks it was given, and what came of them."""
        starts = range(0, len(tasks), self.tasks_per_job)
        chunks = [_Chunk(function, tasks[start : start + self.tasks_per_job]) for start in starts]
        pending = dict(zip(self._submit(chunks), chunks, strict=True))
        try:
            with _stoppable():
                while pending:
                    time.sleep(SECONDS_BETWEEN_POLLS)
                    for job in [job for job in pending if job.done()]:
                        chunk = pending.pop(job)
                        for rank in range(job.num_tasks):
                            yield chunk.share(rank, job.num_tasks), _outcomes(job.task(rank))
        finally:
            for job in pending:
                job.cancel(check=False)

    def _submit(self, chunks: "Sequence[_Chunk[Any, Any]]") -> list[Any]:
        submitit = _extra("submitit", "slurm")
        try:
            executor = submitit.AutoExecutor(self.logs, cluster=self.cluster)
            executor.update_parameters(
                name="mpp",
                timeout_min=self.minutes,
                tasks_per_node=self.cpus,
                cpus_per_task=self.threads,
                mem_gb=self.memory_gb * self.cpus,
                slurm_partition=self.partition,
                slurm_account=self.account,
                slurm_array_parallelism=self.max_parallel,
                slurm_gpus_per_task=self.gpus or None,
                slurm_additional_parameters={"requeue": True},
            )
            with submitit.helpers.clean_env(), executor.batch():  # this may itself be a SLURM job
                return [executor.submit(chunk) for chunk in chunks]
        except (RuntimeError, OSError) as error:
            fix = "change engine.partition, engine.account, engine.tasks_per_job, ..., or leave engine out"
            raise ConfigError(f"SLURM did not take {len(chunks)} job(s): {error}", fix=fix) from None


@dataclass(frozen=True)
class _Chunk(Generic[Task, Result]):
    """What a SLURM job calls; the name of ``checkpoint`` is submitit's."""

    function: Callable[[Task], Result]
    tasks: Sequence[Task]

    def __call__(self) -> list[Result | MppError]:
        """Run the share of this process; an expected failure does not keep the other tasks from running."""
        here = _extra("submitit", "slurm").JobEnvironment()
        share, outcomes = self.share(here.global_rank, here.num_tasks), list[Result | MppError]()
        for task in share:
            # After a signal there is no time for more: what is left has been stopped, too.
            over = bool(outcomes) and isinstance(outcomes[-1], Stopped)
            outcomes.append(outcomes[-1] if over else self._outcome(task))
        return outcomes

    def checkpoint(self) -> Any:
        """Return what to run when the job comes back: the same, for what is done is done quickly."""
        return _extra("submitit", "slurm").helpers.DelayedSubmission(self)

    def share(self, rank: int, processes: int) -> Sequence[Task]:
        return self.tasks[rank::processes]

    def _outcome(self, task: Task) -> Result | MppError:
        try:
            return self.function(task)
        except MppError as error:
            return error


class _Lost(DataError):
    """A process of a job that ended without a word; its tasks may have better luck."""


def _outcomes(job: Any) -> list[Any]:
    """Return what a process of a job has returned, or one error with the end of its log."""
    log = "\n".join((job.stderr() or "(nothing)").splitlines()[-LOG_LINES:])
    log = f"{job.paths.stderr} ends with\n{log}"
    fix = "mend what the log says, or give engine.memory_gb, engine.minutes; the same command continues"
    if not job.paths.result_pickle.exists():  # or not yet on a slow disk, and then its tasks are done quickly
        kind = DataError if job.state.startswith("CANCELLED") else _Lost
        return [kind(f"SLURM job {job.job_id} ended without a result, as {job.state}; {log}", fix=fix)]
    try:
        outcomes: list[Any] = job.result()
    except _extra("submitit.core.utils", "slurm").FailedJobError:
        return [DataError(f"SLURM job {job.job_id} failed; {log}", fix=fix)]
    return outcomes


@config
class Ray:
    """Tasks of Ray, of a cluster or of this machine."""

    kind: Literal["ray"] = "ray"
    address: str = Field(
        "local", description="local starts Ray here; auto joins the cluster that runs here; or ray://HOST:PORT"
    )
    cpus: int | None = Field(None, gt=0, description="CPUs of a Ray that is started here; default: all")

    def run(self, function: Callable[[Task], Result], tasks: Sequence[Task]) -> Iterator[Result]:
        """Yield ``function(task)`` for every task, as they finish.

        Raises what ``function`` raises, ``DataError`` where processes keep dying, ``ConfigError`` where Ray cannot
        be reached, ``Stopped`` on Ctrl-C.
        """
        if not tasks:
            return
        ray = _extra("ray", "ray")
        with _stoppable(), self._started(ray):
            remote = ray.remote(max_retries=ATTEMPTS - 1)(function)
            queue = iter(tasks)
            pending: list[Any] = []
            try:
                while True:
                    room = AHEAD * max(1, int(ray.cluster_resources().get("CPU", 1))) - len(pending)
                    pending += [remote.remote(task) for task in islice(queue, max(0, room))]
                    if not pending:
                        return
                    (done,), pending = ray.wait(pending)
                    yield _inspected(ray, done)
            finally:
                for task in pending:
                    ray.cancel(task, force=True)

    @contextmanager
    def _started(self, ray: Any) -> Iterator[None]:
        """Hold a connection to Ray, the caller's where there is one."""
        if ray.is_initialized():
            yield
            return
        here = {"include_dashboard": False} if self.address == "local" else {}
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would report to its makers
        try:
            ray.init(self.address, num_cpus=self.cpus, log_to_driver=False, logging_level=logging.ERROR, **here)
        except (RuntimeError, ValueError, OSError) as error:
            raise ConfigError(f"no Ray at engine.address={self.address}: {error}", fix="ray start --head") from None
        try:
            yield
        finally:
            ray.shutdown()


def _inspected(ray: Any, done: Any) -> Any:
    """Return the result of a finished Ray task, or raise our error for its failure."""
    try:
        return ray.get(done)
    except ray.exceptions.RayTaskError as error:
        raise (error.cause if isinstance(error.cause, MppError) else error) from None
    except ray.exceptions.RayError as error:
        message = f"a Ray task was begun {ATTEMPTS} times and its process died: {error}"
        raise DataError(message, fix="ray logs says more; fewer CPUs leave more memory to each") from None


Engine = Annotated[Slurm | Ray, Field(discriminator="kind")]


@contextmanager
def _stoppable() -> Iterator[None]:
    """Turn Ctrl-C and SIGTERM into ``Stopped``."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    catches = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, stop) if catches else None
    try:
        yield
    except KeyboardInterrupt:
        raise Stopped("interrupted; what is finished is kept, the same command continues") from None
    finally:
        if catches:
            signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


def _extra(module: str, extra: str) -> Any:
    """Import what only one engine needs; raise ``ConfigError`` where it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(f"engine.kind={extra}: {error}", fix=f'pip install "mpp[{extra}]"') from None
