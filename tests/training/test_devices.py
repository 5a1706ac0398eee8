"""How a global batch is divided, and what several processes say together."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from mpp.errors import ConfigError
from mpp.training.devices import divide_batch, over_processes


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


def test_figures_are_means_with_the_worst_beside_them_and_counts_are_sums() -> None:
    alone = SimpleNamespace(num_processes=1, device=torch.device("cpu"))
    assert over_processes(alone, {"wait": 0.25}, {"retries": 3}) == {"wait": 0.25, "retries": 3}  # type: ignore[arg-type]

    def gather(row: Tensor) -> Tensor:
        return torch.cat([row, torch.tensor([[0.75, 1.0]])])

    several = SimpleNamespace(num_processes=2, device=torch.device("cpu"), gather=gather)
    together = over_processes(several, {"wait": 0.25}, {"retries": 3})  # type: ignore[arg-type]
    assert together == {"wait": 0.5, "wait_max": 0.75, "retries": 4}


@pytest.mark.parametrize(
    ("global_batch", "micro", "world", "fitting", "expected"),
    [
        (64, None, 1, 8, (8, 8)),
        (64, None, 2, 100, (32, 1)),
        (48, None, 1, 7, (8, 6)),  # 8 / 7 is nearer to one than 7 / 6
        (31, None, 1, 8, (31, 1)),  # a prime share is not taken image by image
        (64, 16, 1, 8, (16, 4)),  # what is asked for is done
    ],
)
def test_without_a_micro_batch_the_share_is_cut_into_what_fits(
    global_batch: int, micro: int | None, world: int, fitting: int, expected: tuple[int, int]
) -> None:
    assert divide_batch(global_batch, micro, world, fitting=fitting) == expected
