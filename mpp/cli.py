"""``mpp VERB ...``: hand the command line to the entry point of that name, importing nothing else."""

import difflib
import importlib
import sys
from collections.abc import Sequence

from mpp import __version__
from mpp.errors import ConfigError, exit_code_of

VERBS = {
    "shard": "turn a corpus of images into shards (also: mpp-shard)",
    "index": "read WebDataset tars written by others as they are, after one look at each",
    "verify": "check shards against their records",
    "look": "one HTML page about a set of shards: counts, sizes, labels, refusals, pictures",
    "duplicates": "report stored images that look alike, and test images that are in train",
    "bench-stream": "images per second of a stream without a model, and what bounds it",
    "doctor": "check this machine: versions, devices, limits, disk, processes that meet",
    "budget": "memory, time and energy of a pretraining run before it is started",
    "pretrain": "pretrain a Vision Transformer on shards",
    "replay": "take a step again that a run has skipped: what in it is not finite",
    "transfer": "fine-tune a backbone on labelled shards and test it",
    "probe": "few-shot, nearest neighbours and a linear probe on frozen features",
    "compare": "masked against supervised pretraining against scratch, as a table",
    "reconstruct": "draw what a masked-patch run predicts",
    "demo": "the whole road in minutes, on images that need no download",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb that ``argv`` names; return its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    verb = next((word for word in words if word != "-v"), None)
    if verb in VERBS:
        words.remove(verb)
        return int(importlib.import_module(f"mpp.{verb.replace('-', '_')}").main(words))
    return exit_code_of(run, words)


def run(argv: Sequence[str]) -> None:
    """Answer a command line without a known verb: help, version, or ``ConfigError`` with the nearest verb."""
    word = argv[0] if argv else "--help"
    if word in ("-h", "--help"):
        print(usage())
    elif word == "--version":
        print(f"mpp {__version__}")
    else:
        near = difflib.get_close_matches(word, VERBS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(VERBS)}"
        raise ConfigError(f"mpp: unknown verb {word!r}; {hint}", fix="mpp --help")


def usage() -> str:
    """Return the help page: one line a verb."""
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {verb:{width}}  {text}" for verb, text in VERBS.items())
    return (
        f"usage: mpp VERB [key=value ...]\n\nMasked-patch pretraining of Vision Transformers.\n\n{verbs}\n\n"
        "  mpp VERB --help   every setting of a verb\n  mpp --version     the version\n"
        "  -v                add the traceback to an error"
    )


if __name__ == "__main__":
    sys.exit(main())
