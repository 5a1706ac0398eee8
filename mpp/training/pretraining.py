"""Pretrain a ViT on a shard set: open the data, build the task, train, and leave a backbone.

The same function trains masked patch prediction and supervised classification, so that the two differ in the
task alone. The same call continues a run that was cut off.
"""

from contextlib import AbstractContextManager, closing
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from torch import nn

from mpp.config import dump
from mpp.errors import Stopped
from mpp.model.encoders import Encoder, build_encoder
from mpp.model.tasks import ClassificationConfig, build_task
from mpp.redaction import redact
from mpp.stream.loader import TrainStream
from mpp.stream.mixture import Mixture, open_mixture
from mpp.stream.order import count_steps
from mpp.stream.state import StreamState
from mpp.training.backbone import BACKBONE, save_backbone
from mpp.training.baseline_figures import note_baselines
from mpp.training.checkpoint import CHECKPOINTS, CheckpointStore, complete_checkpoints, verify
from mpp.training.computing import images_at_once, set_up
from mpp.training.devices import divide_batch, open_accelerator, over_processes, prepare
from mpp.training.ema import BACKBONE_EMA, open_average
from mpp.training.guard import Guard, guarded, memory_errors
from mpp.training.loop import Plan, Trainer, Values
from mpp.training.monitor import Monitor, OpenProbe, Probe
from mpp.training.oddities import Oddities
from mpp.training.optim import build_optimizer, peak_rate
from mpp.training.progress import Clock, StepProgress, shown_timing
from mpp.training.recipe import PretrainConfig
from mpp.training.reporting import Reporter, open_reporter, reconstruction_painter
from mpp.training.room import state_bytes
from mpp.training.runs import FINISHED, Run, settings_hash
from mpp.training.stops import StopSignals
from mpp.training.strategies import check_fits, make_whole, save_state, strategy_of
from mpp.training.together import from_main
from mpp.training.trackers import check_trackers
from mpp.training.utilisation import find_ceiling

_SECONDS_OF_DATA = 30.0  # beyond the stream's own timeout, which can say which shard it was


def pretrain(settings: PretrainConfig, open_probe: OpenProbe | None = None) -> None:
    """Run, or continue, the pretraining that ``settings`` describe, to the end; ``open_probe`` probes the network.

    Leaves ``backbone.safetensors`` in the run folder. Raises ``ConfigError``, ``DataError``, ``CheckpointError``,
    ``NumericsError``, ``HangError``, ``DiskError`` or ``MemoryLimitError``, and ``Stopped`` after a signal, with a
    checkpoint saved.
    """
    with StopSignals() as stops:
        shards, task, accelerator = build(settings)
        with guarded(accelerator, stops, settings.timeouts) as guard:
            assert open_probe is not None or settings.probe.every is None
            probe = open_probe(settings, accelerator) if open_probe and settings.probe.every else None
            _pretrain(settings, shards, task, accelerator, guard, probe)


def build(settings: PretrainConfig) -> tuple[Mixture, nn.Module, Accelerator]:
    """Open the data, and build the task and the accelerator of a run; raise what is wrong with its settings."""
    shards = open_mixture(settings.shards, settings.split)
    if isinstance(settings.task, ClassificationConfig):
        shards.require_labels()
    settings.schedule.check(settings.steps)
    check_trackers(settings.tracker)
    accelerator = open_accelerator(settings.precision)
    divide_batch(settings.global_batch, settings.micro_batch, accelerator.num_processes)
    count_steps(shards.samples, settings.global_batch)
    torch.manual_seed(settings.seed)
    vit = build_encoder(settings.vit)
    task = build_task(settings.task, vit, num_classes=len(shards.classes or ()), seed=settings.seed)
    return shards, task, accelerator


def _pretrain(
    settings: PretrainConfig,
    shards: Mixture,
    task: nn.Module,
    accelerator: Accelerator,
    guard: Guard,
    probe: Probe | None,
) -> None:
    run: Run | None = None

    def begin() -> bool:
        nonlocal run
        run = Run(Path(settings.out), settings, settings.allow_changed)
        guard.peers.last_words = run.close
        return run.finished

    finished = from_main(accelerator, begin)
    outcome = "failed"
    try:
        if finished:
            accelerator.print(f"{settings.out}: finished already")
        else:
            Pretraining(settings, shards, task, accelerator).to_the_end(run, guard, probe)
        accelerator.print(f"backbone: {Path(settings.out) / BACKBONE}", flush=True)
        outcome = FINISHED
    except Stopped:
        outcome = "stopped by a signal, the same command continues it"
        raise
    finally:
        if run is not None:
            run.close(outcome)


class Pretraining:
    """One run while it lasts: where it starts, what happens between steps, what it leaves.

    It starts at the newest checkpoint, or at the ``checkpoint`` given: a folder of one, or None for the beginning.
    """

    def __init__(
        self,
        settings: PretrainConfig,
        shards: Mixture,
        task: nn.Module,
        accelerator: Accelerator,
        *checkpoint: Path | None,
    ) -> None:
        self.settings, self.shards, self.accelerator = settings, shards, accelerator
        self.run: Run | None = None
        self.skipped: dict[str, int] = {}  # what the checkpoint knows of skipped steps
        self.average = open_average(task, settings.ema, warmup=settings.ema_warmup, accelerator=accelerator)
        set_up(task, settings.compute)  # after the average: a compiled task is not copied
        mixing = settings.task.mixing if isinstance(settings.task, ClassificationConfig) else None
        fitting = images_at_once(task.get_submodule("vit"), accelerator.device, mixing=mixing)
        micro, accumulate = divide_batch(
            settings.global_batch, settings.micro_batch, accelerator.num_processes, fitting=fitting
        )
        optimizer = build_optimizer(task, settings.optimizer)
        self.task, self.optimizer = prepare(
            accelerator, task, optimizer, micro_batch=micro, accumulate=accumulate, clip=settings.clip
        )
        self.store = CheckpointStore(Path(settings.out) / CHECKPOINTS, accelerator)
        self.micro_batch, self.order = micro, shards.order(settings.seed, settings.global_batch)
        if checkpoint:
            self.start = 0 if checkpoint[0] is None else self._load(checkpoint[0], verify(checkpoint[0]))
        else:
            found = self.store.latest()
            self.start = 0 if found is None else self._load(*found)
            if self.start < settings.steps:
                beside = [] if self.average is None else [self.average.module]
                self.store.check_room(state_bytes(accelerator, *beside))
        self.stream = TrainStream(
            shards,
            settings.view,
            settings.vit.image_size,
            seed=settings.seed,
            global_batch=settings.global_batch,
            micro_batch=micro,
            rank=accelerator.process_index,
            world=accelerator.num_processes,
            start_step=self.start,
            settings=settings.stream,
        )
        self.plan = Plan(
            steps=settings.steps,
            accumulate=accumulate,
            learning_rate=peak_rate(
                settings.optimizer.learning_rate, settings.learning_rate_scaling, settings.global_batch
            ),
            schedule=settings.schedule,
            clip=settings.clip,
            log_every=settings.log_every,
            seed=settings.seed,
        )
        self.trainer = Trainer(self.task, self.optimizer, self.stream, accelerator, self.plan, self.average)
        self.trainer.finite.resume(self.skipped)

    def to_the_end(self, run: Run | None, guard: Guard, probe: Probe | None = None) -> None:
        """Train, with ``probe`` probing the network as it goes, and write the backbone."""
        settings, trainer, shown = self.settings, self.trainer, self.accelerator.is_main_process
        self.run, guard.samples = run, self.samples
        clock = self._prepare(run, guard)
        monitor = self._monitor(probe, run)
        oddities = Oddities(run, settings, self.order, self.accelerator.num_processes, self._save_here)
        with (
            self._reporter(run) as reporter,
            closing(self.stream),
            StepProgress("pretrain", start=self.start, steps=settings.steps, shown=shown) as progress,
            memory_errors(self.micro_batch, lambda: trainer.done, self._newest),
        ):

            def save(step: int, *, last: bool) -> bool:
                trainer.read_judged(oddities.note)
                with guard.clock.paused("a save"):
                    return self._save(step, last=last)

            def before_step(step: int) -> None:
                stop, saved = guard.stop_agreed(), step == self.start
                if not saved and (stop or step % settings.save_every == 0):
                    saved = save(step, last=stop)
                if not stop:  # probed after the save: a run whose probe fails has lost nothing
                    stop = probe_stops(step)
                if stop and not saved:
                    save(step, last=True)
                if stop:
                    raise _stopped(guard.stops, step)
                if step == self.start:
                    clock.start(step)

            def on_log(step: int, values: Values) -> None:
                timing = over_processes(self.accelerator, *clock.lap(step))
                if reporter is not None:
                    with guard.clock.paused("the trackers"):
                        reporter.log(step, step * settings.global_batch, values, timing)
                progress.show(step, {**values, **shown_timing(timing)})

            def probe_stops(step: int) -> bool:
                seconds, stop = monitor.measure(step, step * settings.global_batch, guard, reporter)
                clock.leave_out(seconds)
                return stop

            trainer.run(self.start, before_step, on_log, oddities.note)
            if self.start < settings.steps:
                save(settings.steps, last=True)
            if probe_stops(settings.steps):
                raise _stopped(guard.stops, settings.steps)
        with guard.clock.paused("the backbone"):
            self._leave()

    def _prepare(self, run: Run | None, guard: Guard) -> Clock:
        """Note what is known before the first step, and have the guard hear of waits; return the clock of the steps."""
        settings, trainer = self.settings, self.trainer
        if run is not None:
            run.rewind(self.start)
            note_baselines(run, self.shards, settings, guard.stops)
        ceiling = find_ceiling(settings.task, settings.vit, len(self.shards.classes or ()), self.accelerator.device)
        if run is not None:
            run.note_environment(ceiling._asdict())
        trainer.waits_for_data = lambda step: guard.clock.pause("the data", settings.stream.timeout + _SECONDS_OF_DATA)
        trainer.computes = guard.clock.step
        limit = self.accelerator.num_processes * ceiling.images_per_second
        return Clock(settings.global_batch, self.stream.clock, limit)

    def _monitor(self, probe: Probe | None, run: Run | None) -> Monitor:
        """Return what probes the network, and its average, beyond the step that this process begins at."""
        networks = {"probe/": cast(Encoder, self.accelerator.unwrap_model(self.task).vit)}
        if self.average is not None:
            networks["probe_ema/"] = cast(Encoder, self.average.module.vit)
        monitor = Monitor(probe, networks, self.settings.probe, steps=self.settings.steps)
        monitor.resume(self.start, self.accelerator, run)
        return monitor

    def samples(self, step: int) -> str:
        """Name the samples of this process in a step (from 0)."""
        ranks = (self.accelerator.process_index, self.accelerator.num_processes)
        return f"samples {self.order.draw(range(step, step + 1), *ranks).ids.tolist()}"

    def _reporter(self, run: Run | None) -> AbstractContextManager[Reporter | None]:
        settings, accelerator = self.settings, self.accelerator
        bare, world = accelerator.unwrap_model(self.task), accelerator.num_processes
        derived = {
            "learning_rate": self.plan.learning_rate,
            "epochs": round(settings.steps * settings.global_batch / self.shards.samples, 3),
            "processes": world,
            "micro_batch": settings.global_batch // world // self.plan.accumulate,
            "accumulate": self.plan.accumulate,
        }
        return open_reporter(
            run,
            settings.tracker,
            redact(dump(settings)),
            derived,
            start=self.start,
            every=settings.picture_every,
            painter=lambda: reconstruction_painter(bare, self.shards, settings.view, settings.stream, accelerator),
        )

    def _load(self, folder: Path, facts: dict[str, Any]) -> int:
        """Load a checkpoint and return its step."""
        step = StreamState.at(0, self.order, self.shards.fingerprint).resumed(facts, str(folder))
        check_fits(self.accelerator, facts, folder)
        self.store.load(folder)
        if self.average is not None:
            self.average.resume(folder, self.accelerator.unwrap_model(self.task))
        self.accelerator.print(f"continuing from {folder}", flush=True)
        self.skipped = facts.get("skipped", {})
        return step

    def _save(self, step: int, *, last: bool) -> bool:
        """Save a checkpoint; return whether the disk took it, raise where it is the ``last`` and was not taken."""
        launch = {"world": self.accelerator.num_processes, "strategy": strategy_of(self.accelerator)}
        own = {"step": step, "settings_sha256": settings_hash(self.settings), **launch}
        facts: dict[str, Any] = {**own, **asdict(self.stream.state(step)), "skipped": self.trainer.finite.state()}
        return self.store.save(facts, self._write, last=last)

    def _write(self, folder: Path) -> None:
        if self.run is not None:
            self.run.finish_lines()
        save_state(self.accelerator, folder)
        if self.average is not None and self.accelerator.is_main_process:
            self.average.save(folder)

    def _newest(self) -> str:
        return str(next(iter(complete_checkpoints(self.store.folder)), "the beginning"))

    def _save_here(self) -> None:
        self._save(self.trainer.done, last=True)

    def _leave(self) -> None:
        """Write the backbone."""
        settings = self.settings
        make_whole(self.accelerator, self.task)
        if self.run is not None:
            finished = self.accelerator.unwrap_model(self.task)
            save_backbone(self.run.folder / BACKBONE, finished.vit, self._origin())
            if self.average is not None:
                origin = f"{self._origin()}, weights averaged with decay {settings.ema:g}"
                save_backbone(self.run.folder / BACKBONE_EMA, self.average.module.vit, origin)
        self.accelerator.wait_for_everyone()

    def _origin(self) -> str:
        settings = self.settings
        budget = f"{settings.steps} steps of {settings.global_batch} images"
        return f"{settings.task.kind}, {budget}, seed {settings.seed}, shards {self.shards.fingerprint[:12]}"


def _stopped(stops: StopSignals, step: int) -> Stopped:
    return Stopped(
        f"stopped by {stops.received or 'a signal to another process'}, "
        + (f"saved at step {step}" if step else "nothing to save yet"),
        fix="the same command continues",
    )
