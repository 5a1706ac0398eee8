"""Errors of a run under guard: lost processes and exhausted memory get their names and exit codes."""

import pytest
import torch
from accelerate import Accelerator

from mpp.errors import DataError, HangError, MemoryLimitError
from mpp.training.guard import guarded, memory_errors, next_divisor
from mpp.training.stops import StopSignals
from mpp.training.watchdog import Timeouts


@pytest.mark.parametrize(("micro", "smaller"), [(16, 8), (12, 6), (9, 3), (7, 1), (1, None)])
def test_the_next_micro_batch_is_the_largest_that_keeps_the_global_batch(micro: int, smaller: int | None) -> None:
    assert next_divisor(micro) == smaller


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"),
        RuntimeError("[enforce fail] not enough memory"),
    ],
)
def test_out_of_memory_names_the_step_the_micro_batch_and_the_checkpoint(error: Exception) -> None:
    named = r"(?s)at step 3 .*micro_batch=8 keeps.*continues from step-2"
    with pytest.raises(MemoryLimitError, match=named), memory_errors(16, lambda: 2, lambda: "step-2"):
        raise error


def test_with_one_image_at_a_time_another_way_is_named() -> None:
    with pytest.raises(MemoryLimitError, match="more processes"), memory_errors(1, lambda: 0, lambda: "the beginning"):
        raise MemoryError


def test_other_errors_stay_what_they_are() -> None:
    with pytest.raises(RuntimeError, match="shapes"), memory_errors(16, lambda: 2, lambda: ""):
        raise RuntimeError("shapes do not fit")


@pytest.mark.parametrize(
    ("error", "becomes"),
    [
        (RuntimeError("[gloo/transport/tcp/pair.cc:561] Connection closed by peer [127.0.0.1]:13750"), HangError),
        (torch.distributed.DistBackendError("NCCL error"), HangError),
        (RuntimeError("shapes do not fit"), RuntimeError),
        (DataError("a shard is cut"), DataError),
    ],
)
def test_what_breaks_between_processes_is_a_lost_process_and_nothing_else_is(
    error: Exception, becomes: type[Exception]
) -> None:
    with pytest.raises(becomes), StopSignals() as stops, guarded(Accelerator(cpu=True), stops, Timeouts()):
        raise error


def test_one_process_stops_by_its_own_word_alone() -> None:
    with StopSignals() as stops, guarded(Accelerator(cpu=True), stops, Timeouts()) as guard:
        assert not guard.stop_agreed()
        stops.ask("SIGTERM")
        assert guard.stop_agreed()
