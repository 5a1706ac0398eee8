"""How a global batch is divided."""

import pytest

from mpp.errors import ConfigError
from mpp.training.devices import divide_batch


@pytest.mark.parametrize(
    ("global_batch", "micro", "world", "expected"),
    [(64, None, 1, (64, 1)), (64, None, 4, (16, 1)), (64, 8, 2, (8, 4)), (64, 100, 2, (32, 1))],
)
def test_processes_times_micro_batches_make_the_global_batch(
    global_batch: int, micro: int | None, world: int, expected: tuple[int, int]
) -> None:
    assert divide_batch(global_batch, micro, world) == expected
    assert expected[0] * expected[1] * world == global_batch


def test_a_world_that_does_not_divide_is_refused_naming_those_that_do() -> None:
    with pytest.raises(ConfigError, match=r"16 .*3 processes; use 1, 2, 4, 8, 16"):
        divide_batch(16, None, 3)
    with pytest.raises(ConfigError, match=r"use 1, 2, 4, 8"):
        divide_batch(16, 3, 2)
