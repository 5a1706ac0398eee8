"""Options that decide the bytes of a set are told from those that do not."""

import pytest

from mpp.config import resolve
from mpp.errors import ConfigError
from mpp.shards.layout import options_hash
from mpp.shards.options import RunOptions, ShardOptions


def test_the_hash_of_the_options_follows_what_decides_the_bytes_and_nothing_else() -> None:
    base = ShardOptions(source="s", out="o").fixed()
    assert base == ShardOptions(source="t", out="p", workers=3, max_refused=0.5).fixed()
    for changed in ({"quality": 90}, {"dedupe": "exact"}, {"check": "header"}, {"background": [0, 0, 0]}):
        tree = {"source": "s", "out": "o", **changed}
        assert options_hash(resolve(ShardOptions, tree).fixed()) != options_hash(base)


@pytest.mark.parametrize("task", ["1", "a/b", "1/2/3", "-1/2"])
def test_a_task_is_one_number_of_another(task: str) -> None:
    with pytest.raises(ConfigError, match="task"):
        resolve(RunOptions, {"out": "o", "task": task})
