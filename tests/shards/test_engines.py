"""Tasks are run by this process or a local pool; a killed worker is reported."""

import os

import pytest

from mpp.errors import DataError
from mpp.shards.engines import run_tasks


def test_a_killed_worker_is_reported_and_not_waited_for() -> None:
    with pytest.raises(DataError, match="a worker process was killed"):
        list(run_tasks(os._exit, [1], workers=1))
