"""The stall clock: how long training waits for data, and what the data workers do meanwhile."""

from typing import NamedTuple

Figures = dict[str, float]


class Skip(NamedTuple):
    """A sample that could not be used, the one that took its place, and why."""

    sample_id: int
    instead: int
    reason: str


class Cost(NamedTuple):
    """What one micro-batch cost the process that made it."""

    images: int = 0
    bytes: int = 0
    read_seconds: float = 0.0
    view_seconds: float = 0.0
    retries: int = 0
    cache_hits: int = 0
    cache_misses: int = 0
    skipped: tuple[Skip, ...] = ()


class StallClock:
    """Adds up waiting and costs of batches; ``lap`` gives the figures since the last one."""

    def __init__(self) -> None:
        self._sums: list[float] = []
        self._reset()

    def add(self, waited: float, ready: int, cost: Cost) -> None:
        """Count a batch that came after ``waited`` seconds, when ``ready`` more were there."""
        self._waited += waited
        self._batches += 1
        self._ready += ready
        self._skipped += len(cost.skipped)
        self._sums = [then + now for then, now in zip(self._sums, cost[:-1], strict=True)]

    def lap(self, seconds: float) -> tuple[Figures, Figures]:
        """Return figures of the last ``seconds``: those to take the mean and maximum of over processes, and counts."""
        images, size, read_seconds, view_seconds, retries, hits, misses = self._sums
        rates = {
            "data_wait_seconds": self._waited,
            "data_wait_share": self._waited / max(seconds, 1e-9),
            "batches_ready": self._ready / max(1, self._batches),
            "read_megabytes_per_second": size / 1e6 / max(seconds, 1e-9),
            "read_ms_per_image": 1e3 * read_seconds / max(1, images),
            "view_ms_per_image": 1e3 * view_seconds / max(1, images),
        }
        counts = {"retries": retries, "skipped": self._skipped, "cache_hits": hits, "cache_misses": misses}
        self._reset()
        return rates, counts

    def _reset(self) -> None:
        self._waited, self._batches, self._ready, self._skipped = 0.0, 0, 0, 0
        self._sums = [0] * len(Cost()[:-1])
