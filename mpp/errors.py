"""Errors that a user can act on, and the exit code of each kind.

Every message says what went wrong, where, why (observed against allowed) and how to mend it.
"""

import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from types import TracebackType

from mpp.redaction import redact


class MppError(Exception):
    """An expected failure: printed without a traceback, ends the process with ``exit_code``."""

    exit_code = 1

    def __init__(self, message: str, *, fix: str = "") -> None:
        super().__init__(f"{message}\n  fix: {fix}" if fix else message)


class ConfigError(MppError):
    """A mistake in a command line or a configuration file."""

    exit_code = 2


class DataError(MppError):
    """Images or shards that are missing, damaged or not what the command needs."""

    exit_code = 3


class CheckpointError(MppError):
    """A checkpoint or backbone that is missing, damaged or does not fit."""

    exit_code = 4


class NumericsError(MppError):
    """A loss or gradient that is not finite."""

    exit_code = 5


class HangError(MppError):
    """A process or a storage that does not answer in time."""

    exit_code = 6


class DiskError(MppError):
    """No room, or no permission, to write."""

    exit_code = 7


class MemoryLimitError(MppError):
    """A device or machine that has too little memory for the micro-batch."""

    exit_code = 8


class Stopped(MppError):
    """The run was asked to stop by a signal and has saved its state."""

    exit_code = 143


def exit_code_of(command: Callable[[Sequence[str]], None], argv: Sequence[str] | None) -> int:
    """Run ``command(argv)``; print an expected failure in one message and return its exit code.

    ``-v`` anywhere in ``argv`` adds the traceback. Errors that are not ``MppError`` are bugs and propagate. Nothing
    that is printed here holds a secret.
    """
    os.environ.setdefault("DO_NOT_TRACK", "1")  # no telemetry of the libraries that a command starts
    arguments = list(sys.argv[1:] if argv is None else argv)
    verbose = "-v" in arguments
    try:
        command([argument for argument in arguments if argument != "-v"])
    except MppError as error:
        if verbose:
            print(redact(traceback.format_exc()), file=sys.stderr, end="")
        print(f"error: {redact(str(error))}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    except BrokenPipeError:  # whoever reads our output, `head` say, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Exception:
        sys.excepthook = _show_bug
        raise
    return 0


def _show_bug(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print the traceback of a bug, without the secrets in its message."""
    print(redact("".join(traceback.format_exception(kind, error, trace))), file=sys.stderr, end="")
