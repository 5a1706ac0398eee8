"""Sets of shards that several test files read."""

from collections.abc import Callable
from pathlib import Path

import pytest

from mpp.shards.options import ShardOptions
from mpp.shards.sharding import shard_corpus


@pytest.fixture
def root(corpus: Callable[..., Path], tmp_path: Path) -> Path:
    """A set of 2 + 1 shards of 10, 10 and 3 samples with two classes."""
    train = [f"train/{'ab'[number % 2]}/{number}.jpg" for number in range(20)]
    source = corpus(*train, *(f"test/a/{number}.jpg" for number in range(3)))
    shard_corpus(ShardOptions(source=str(source), out=str(tmp_path / "out"), shard_samples=10, workers=0))
    return tmp_path / "out"
