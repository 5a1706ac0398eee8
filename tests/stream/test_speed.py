"""Stages add up to a worker, and the slowest one is named."""

import pytest

from mpp.shards.shardset import ShardSet
from mpp.stream.loader import StreamConfig
from mpp.stream.mixture import as_mixture
from mpp.stream.speed import Speed, measure_speed
from mpp.stream.views import ViewConfig


@pytest.mark.parametrize("workers", [0, 1])
def test_every_stage_of_a_real_stream_takes_time(shards: ShardSet, workers: int) -> None:
    settings = StreamConfig(workers=workers)
    speed = measure_speed(as_mixture(shards), ViewConfig(), (16, 16), batch=8, settings=settings, seconds=0.05)
    assert min(speed.read, speed.decode, speed.stream) > 1e-6
    assert (speed.hand_off > 0) == (workers > 0)
    assert speed.worker == pytest.approx(speed.read + speed.decode + speed.view + speed.batch)


def test_what_takes_longest_bounds_a_worker_and_the_hand_off_many_workers() -> None:
    def bound(**seconds: float) -> str:
        given = {"read": 1.0, "decode": 2.0, "view": 1.5, "batch": 1.0, "hand_off": 1.0, "stream": 1.0, "workers": 1}
        return Speed(**given | seconds).bound  # type: ignore[arg-type]

    assert bound() == "decode"
    assert bound(read=3.0) == "read"
    assert bound(workers=4) == "decode"  # 5.5 / 4 a worker is still more than 1
    assert bound(workers=6) == "hand-off"
    assert bound(workers=0, hand_off=9.0) == "decode"
