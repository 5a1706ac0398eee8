"""What the main process alone does, and every process learns: a result, or the error that all end with."""

from collections.abc import Callable
from typing import Any, TypeVar

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from mpp.errors import MppError

T = TypeVar("T")


def from_main(accelerator: Accelerator, call: Callable[[], T]) -> T:
    """Return on every process what ``call`` returns on the main one; raise its ``MppError`` on all of them.

    All processes call this together.
    """
    outcome: list[Any] = [None]
    if accelerator.is_main_process:
        try:
            outcome = [(call(), None)]
        except MppError as error:
            outcome = [(None, error)]
    broadcast_object_list(outcome)
    result, failure = outcome[0]
    if failure is not None:
        raise failure
    return result  # type: ignore[no-any-return]
