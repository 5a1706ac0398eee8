"""Probes of a network while it is trained: when they are due, that they change nothing, and what they cost.

The network computes in evaluation mode, outside of whatever wraps it for training; the generators of random numbers are
seeded anew in every step. So a run with probes is the run without them.
"""

import time
from collections.abc import Callable, Mapping

from accelerate import Accelerator

from mpp.errors import Stopped
from mpp.faults import reach
from mpp.model.encoders import Encoder
from mpp.training.guard import Guard
from mpp.training.loop import Values
from mpp.training.probe_schedule import ProbeSchedule
from mpp.training.progress import say
from mpp.training.recipe import PretrainConfig
from mpp.training.reporting import Reporter
from mpp.training.runs import Run, read_metrics
from mpp.training.together import from_main

PREFIX = "probe/"  # of the names of what is measured; of the averaged weights it is probe_ema/
MOST_SHARE = 0.05  # of the time that probes take without a warning

Check = Callable[[], None]  # raises Stopped; all processes call it equally often
Probe = Callable[[Encoder, Check], Values]  # measures one in evaluation mode; all processes call it together
OpenProbe = Callable[[PretrainConfig, Accelerator], Probe]  # raises what is wrong with the settings or the labels


class Monitor:
    """Measures ``networks``, by the prefix of their values, when that is due; ``probed`` is a step that was."""

    def __init__(
        self, probe: Probe | None, networks: Mapping[str, Encoder], schedule: ProbeSchedule, *, steps: int
    ) -> None:
        self._probe, self._networks, self._steps = probe, networks, steps
        self._every, self._probed = schedule.every, -1
        self._last: float | None = None  # when the last probe ended
        self._warned = False

    def resume(self, step: int, accelerator: Accelerator, run: Run | None) -> None:
        """Go on after ``step`` steps: what metrics.jsonl holds of them is not measured again."""
        if self._probe is None:
            return

        def known() -> bool:
            assert run is not None
            return (run.folder / "metrics.jsonl").exists() and any(
                line["step"] == step and any(name.startswith(PREFIX) for name in line)
                for line in read_metrics(run.folder)
            )

        if from_main(accelerator, known):
            self._probed = step

    def measure(self, step: int, images_seen: int, guard: Guard, reporter: Reporter | None) -> tuple[float, bool]:
        """Measure and record, if that is due after ``step`` steps; all processes call this together.

        Returns the seconds it took, and whether all processes are to stop, with nothing recorded.
        """
        if not self._due(step):
            return 0.0, False

        def check() -> None:
            if guard.stop_agreed():
                raise Stopped("in a probe")

        began = time.perf_counter()
        reach("probe", step)
        values: Values = {}
        try:
            with guard.clock.paused("a probe"):
                for prefix, network in self._networks.items():
                    found = self._measured(network, check)
                    values |= {prefix + name: value for name, value in found.items()}
        except Stopped:
            return 0.0, True
        seconds = time.perf_counter() - began
        if reporter is not None:
            reporter.record(step, images_seen, values, self._cost(step, seconds, values))
        self._last = time.perf_counter()
        return seconds, False

    def _due(self, step: int) -> bool:
        if self._probe is None or self._every is None or step == self._probed:
            return False
        return step % self._every == 0 or step == self._steps

    def _measured(self, network: Encoder, check: Check) -> Values:
        """Return what the probe finds; the network is in the same mode afterwards."""
        assert self._probe is not None
        modes = {module: module.training for module in network.modules()}
        network.eval()
        try:
            return self._probe(network, check)
        finally:
            for module, training in modes.items():
                module.training = training

    def _cost(self, step: int, seconds: float, values: Values) -> Values:
        """Say what was found and what it cost; return the line of timing.jsonl. Warn, once, of a large share.

        The share is that of the time since the probe before; the first probe of a process has none. Of the rest of the
        steps at the end, fewer than ``every``, it is no measure.
        """
        line = {"probe_seconds": round(seconds, 3)}
        share = None if self._last is None else seconds / (time.perf_counter() - self._last)
        if share is not None:
            line["probe_share"] = round(share, 4)
        told = "  ".join(f"{name.removeprefix(PREFIX)} {value:.2f}" for name, value in values.items())
        of_time = "" if share is None else f", {100 * share:.1f} % of the time"
        say(f"step {step}: {told}  ({seconds:.2f} s{of_time})")
        assert self._every is not None
        if share is not None and share > MOST_SHARE and step % self._every == 0 and not self._warned:
            self._warned = True
            rarer = round(self._every * share / (1 - share) * (1 - MOST_SHARE) / MOST_SHARE + 0.5)
            say(
                f"warning: probes take {100 * share:.0f} % of the time; probe.every={rarer} or fewer probe.images: less"
            )
        return line
