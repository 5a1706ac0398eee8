"""A stream goes on where its state says, with any number of processes, and never as another stream."""

import json
from collections.abc import Callable
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from mpp.errors import DataError
from mpp.shards.shardset import ShardSet
from mpp.stream.loader import StreamConfig, TrainStream
from mpp.stream.mixture import mixed
from mpp.stream.state import StreamState
from mpp.stream.views import ViewConfig


def open_stream(shards: Any, **settings: Any) -> TrainStream:
    rest = {"seed": 5, "global_batch": 8, "micro_batch": 4} | settings
    return TrainStream(shards, ViewConfig(), (8, 8), **rest, settings=StreamConfig(workers=0))


def saved(state: StreamState) -> dict[str, Any]:
    """Return a state as it comes out of a checkpoint."""
    facts: dict[str, Any] = json.loads(json.dumps(asdict(state)))
    return facts


@pytest.mark.parametrize("step", [0, 1, 10, 11, 12, 100_000])
def test_a_state_that_was_saved_gives_its_step_back(uneven: ShardSet, step: int) -> None:
    stream = open_stream(uneven)
    state = stream.state(step)
    assert stream.steps_per_epoch == 11
    assert (state.epoch, state.samples_seen) == (step // 11, 8 * step)
    assert stream.state(0).resumed(saved(state), "last") == step


@pytest.mark.parametrize("worlds", [(2, 1, 2), (1, 4, 2)])
def test_resumed_twice_with_other_numbers_of_processes_the_global_batches_go_on(
    uneven: ShardSet, worlds: tuple[int, ...]
) -> None:
    whole = [batch.ids for batch in islice(open_stream(uneven, micro_batch=8), 15)]
    step = 0
    for world in worlds:
        ranks = [
            open_stream(uneven, micro_batch=8 // world, rank=rank, world=world, start_step=step)
            for rank in range(world)
        ]
        for now in range(step, step + 5):
            together = torch.stack([next(stream).ids for stream in ranks], dim=1).flatten()
            assert torch.equal(together, whole[now])
        states = [stream.state(step + 5) for stream in ranks]
        assert len(set(states)) == 1
        step = open_stream(uneven).state(0).resumed(saved(states[0]), "last")
    assert step == 15


def refusal(stream: TrainStream, facts: dict[str, Any]) -> str:
    with pytest.raises(DataError) as caught:
        stream.state(0).resumed(facts, "runs/a/step-9")
    assert "fix: " in str(caught.value) and caught.value.exit_code == 3
    return str(caught.value).partition("\n")[0]


def test_another_stream_is_refused_naming_what_changed(uneven: ShardSet, shards: ShardSet) -> None:
    facts = saved(open_stream(uneven).state(9))
    assert refusal(open_stream(shards), facts) == (
        "runs/a/step-9 was trained on another stream: the shards, or their weights, changed "
        f"(then {uneven.fingerprint}, now {shards.fingerprint})"
    )
    assert refusal(open_stream(uneven, global_batch=16), facts).endswith("the global batch changed (then 8, now 16)")
    for field, words in (
        ("lanes", "the number of lanes that the order is made of changed (then [2], now [1])"),
        ("windows", "the windows that the order is made of changed (then [2], now [104])"),
    ):
        assert words in refusal(open_stream(uneven), facts | {field: [2]})
        assert "changed (then None" in refusal(open_stream(uneven), {k: v for k, v in facts.items() if k != field})


def test_other_weights_or_one_tar_more_make_another_stream(
    uneven: ShardSet,
    shards: ShardSet,
    tmp_path: Path,
    make_tars: Callable[..., Path],
    index: Callable[..., ShardSet],
) -> None:
    def state(mixture: Any) -> StreamState:
        return open_stream(mixture).state(3)

    first = state(mixed([uneven, shards], [1.0, 3.0]))
    assert first.lanes == (1, 1) and first.windows == (104, 80)
    assert "weights" in refusal(open_stream(mixed([uneven, shards], [1.0, 2.0])), saved(first))
    assert open_stream(mixed([uneven, shards], [2.0, 6.0])).state(0).resumed(saved(first), "last") == 3
    small = index(make_tars(tmp_path / "tars", [9, 9]), tmp_path / "two")
    facts = saved(state(small))
    assert "the shards" in refusal(open_stream(index(make_tars(tmp_path / "tars", [9, 9, 1]), tmp_path / "3")), facts)
