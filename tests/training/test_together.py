"""What the main process does is learnt by all: results and failures."""

import pickle

import pytest
from accelerate import Accelerator

from mpp.errors import DiskError
from mpp.training.together import from_main


def test_a_result_and_a_failure_come_through() -> None:
    accelerator = Accelerator()
    assert from_main(accelerator, lambda: {"a": 1}) == {"a": 1}

    def fail() -> None:
        raise DiskError("full", fix="make room")

    with pytest.raises(DiskError, match="full\n  fix: make room"):
        from_main(accelerator, fail)


def test_a_failure_crosses_to_other_processes_as_it_is() -> None:
    error = DiskError("full", fix="make room")
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
