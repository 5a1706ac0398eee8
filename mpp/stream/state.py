"""Where a stream stands, and whether a checkpoint is one of the same stream."""

from dataclasses import asdict, dataclass
from typing import Any

from mpp.errors import DataError
from mpp.stream.mixture import Order

_WORDS = {
    "fingerprint": "the shards, or their weights,",
    "global_batch": "the global batch",
    "lanes": "the number of lanes that the order is made of",
    "windows": "the windows that the order is made of",
}


@dataclass(frozen=True)
class StreamState:
    """The epoch and the samples seen by all ranks, and what the order of the stream depends on beside the seed.

    ``lanes`` and ``windows`` (samples) are those of each set.
    """

    epoch: int
    samples_seen: int
    fingerprint: str
    global_batch: int
    lanes: tuple[int, ...]
    windows: tuple[int, ...]

    @classmethod
    def at(cls, step: int, order: Order, fingerprint: str) -> "StreamState":
        """Return the state before a global step."""
        return cls(
            epoch=step // order.steps_per_epoch,
            samples_seen=step * order.global_batch,
            fingerprint=fingerprint,
            global_batch=order.global_batch,
            lanes=tuple(one.num_lanes for one in order.orders),
            windows=tuple(one.window for one in order.orders),
        )

    def resumed(self, facts: dict[str, Any], where: str) -> int:
        """Return the step to continue at by the ``facts`` of the checkpoint ``where``.

        Raises ``DataError`` where those are of another stream than this one.
        """
        own = asdict(self)
        for name, words in _WORDS.items():
            then, now = (list(value) if isinstance(value, tuple) else value for value in (facts.get(name), own[name]))
            if then != now:
                raise DataError(
                    f"{where} was trained on another stream: {words} changed (then {then}, now {now})",
                    fix="what the run was begun with, or out=ANOTHER",
                )
        return int(facts["samples_seen"]) // self.global_batch
