"""Turn a corpus of images into shards: ``mpp-shard SOURCE OUT [key=value ...]``, or its parts one by one."""

import sys
from collections.abc import Callable, Sequence
from typing import Any

from mpp.config import parse
from mpp.errors import exit_code_of
from mpp.shards.options import FinalizeOptions, PlanOptions, RunOptions, ShardOptions, StatusOptions

ABOUT = """
Write the images of SOURCE as tar shards into OUT. Killed at any moment, the same command continues and ends with
the same bytes. A cluster runs the parts by themselves:

    mpp-shard plan SOURCE OUT [key=value ...]   list the images, cut the layout
    mpp-shard run OUT --task I/N                write part I of N of the shards, I from 0; repeating it is harmless
    mpp-shard finalize OUT                      what other readers need; the counts
    mpp-shard status OUT                        done, running, failed, refused, time to go
"""


def run(argv: Sequence[str]) -> None:
    """Parse ``argv`` and do what its verb says; without a verb, everything."""
    verb, words = (argv[0], argv[1:]) if argv and argv[0] in PARTS else ("", argv)
    if verb:
        options, positional, about = PARTS[verb]
        parsed = parse(options, _task_as_setting(words), prog=f"mpp-shard {verb}", about=about, positional=positional)
    else:
        parsed = parse(ShardOptions, words, prog="mpp-shard", about=ABOUT, positional=("source", "out"))

    from mpp.shards import sharding, status

    commands: dict[str, Callable[[Any], None]] = {
        "": sharding.shard_corpus,
        "plan": sharding.plan_shards,
        "run": sharding.run_shards,
        "finalize": sharding.finalize_shards,
        "status": status.show_status,
    }
    commands[verb](parsed)


PARTS: dict[str, tuple[type[Any], tuple[str, ...], str]] = {
    "plan": (PlanOptions, ("source", "out"), "List the images of SOURCE and cut the layout of their shards into OUT."),
    "run": (RunOptions, ("out",), "Write the planned shards of OUT that are missing, or a part: --task I/N."),
    "finalize": (FinalizeOptions, ("out",), "Write what readers of the set at OUT need, once all shards are written."),
    "status": (StatusOptions, ("out",), "Say how far the writing of OUT is."),
}


def _task_as_setting(words: Sequence[str]) -> list[str]:
    """Turn ``--task I/N``, the form of job scripts, into ``task=I/N``."""
    text = list(words)
    for place, word in enumerate(text):
        if word == "--task" and place + 1 < len(text):
            text[place : place + 2] = [f"task={text[place + 1]}"]
        elif word.startswith("--task="):
            text[place] = word.removeprefix("--")
    return text


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    return exit_code_of(run, argv)


if __name__ == "__main__":
    sys.exit(main())
