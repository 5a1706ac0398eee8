"""Which labelled images are fine-tuned on and which are held out: a function of the labels and a seed."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from mpp.errors import ConfigError, DataError
from mpp.shards.hashing import permutation
from mpp.shards.indexing import open_any
from mpp.shards.shardset import ShardSet
from mpp.stream.order import Ints
from mpp.stream.reader import ShardReader


def labelled_shards(root: str, split: str) -> ShardSet:
    """Open a split; raise ``DataError`` where it carries no labels."""
    shards = open_any(root, split)
    shards.require_labels()
    return shards


def open_splits(root: str, train_split: str, test_split: str) -> tuple[ShardSet, ShardSet]:
    """Open two labelled splits; raise ``ConfigError`` where they are one, ``DataError`` for one without labels."""
    if test_split == train_split:
        raise ConfigError(
            f"test_split is train_split, {test_split!r}: a head would be tested on what it was fitted to",
            fix="test_split=test",
        )
    return labelled_shards(root, train_split), labelled_shards(root, test_split)


@lru_cache(maxsize=4)
def read_labels(shards: ShardSet) -> Ints:
    """Return all labels of a split, int64 [N]; the last sets read are remembered."""
    return ShardReader(shards).labels()


def check_classes(train: Ints, test: Ints, classes: Sequence[str], *, drawn: bool = False) -> tuple[str, ...]:
    """Return what a reader must know of classes without images; raise ``DataError`` for what makes no sense.

    That is a label that no class has, a split without images, and a class that is tested but not trained on, unless the
    train images were ``drawn`` whatever their classes, as in VTAB-1k.
    """
    counts = []
    for name, labels in (("train", train), ("test", test)):
        if len(labels) == 0:
            raise DataError(f"the {name} split has no image", fix="mpp verify SHARDS")
        if labels.min() < 0 or labels.max() >= len(classes):
            wrong = labels[(labels < 0) | (labels >= len(classes))][0]
            raise DataError(
                f"the {name} split has an image of label {wrong}, but there are {len(classes)} classes",
                fix="shards written anew from the images, with their labels",
            )
        counts.append(np.bincount(labels, minlength=len(classes)))
    in_train, in_test = (count > 0 for count in counts)
    untrained = np.flatnonzero(in_test & ~in_train)
    if len(untrained) and not drawn:
        raise DataError(
            f"{_named(untrained, classes)} in the test split but without an image in the train split",
            fix="train images of every class, or a test split of the trained classes alone",
        )
    notes = []
    if len(untrained):
        notes.append(f"{_named(untrained, classes)} not among the train images that were drawn, and tested as the rest")
    untested, unseen = np.flatnonzero(in_train & ~in_test), np.flatnonzero(~in_train & ~in_test)
    if len(untested):
        notes.append(f"{_named(untested, classes)} not in the test split: means over classes leave it out")
    if len(unseen):
        notes.append(f"{_named(unseen, classes)} in neither split")
    return tuple(notes)


def _named(labels: Ints, classes: Sequence[str]) -> str:
    """Name classes, a few of many."""
    names = ", ".join(repr(classes[label]) for label in labels[:3])
    return (
        f"class {names} is" if len(labels) == 1 else f"{len(labels)} classes ({names}{', ...' * (len(labels) > 3)}) are"
    )


def choose_labels(labels: Ints, num_classes: int, per_class: int | None, seed: int) -> Ints:
    """Return the sample ids to train on: all, or ``per_class`` of each class drawn by ``seed``, in ascending order."""
    if per_class is None:
        return np.arange(len(labels), dtype=np.int64)
    counts = np.bincount(labels, minlength=num_classes)
    if counts.min() < per_class:
        raise DataError(
            f"class {counts.argmin()} has {counts.min()} labelled images, labels_per_class asks for {per_class}",
            fix=f"labels_per_class={counts.min() or 'null'}",
        )
    parts = []
    for label in range(num_classes):
        members = np.flatnonzero(labels == label)
        parts.append(members[permutation(len(members), seed, label)[:per_class]])
    return np.sort(np.concatenate(parts)).astype(np.int64)


def split_held_out(ids: Ints, labels: Ints, share: float, seed: int) -> tuple[Ints, Ints]:
    """Split ids into those to fit and those held out, ``share`` of every class and at least one image of it."""
    held = []
    for label in np.unique(labels[ids]):
        members = ids[labels[ids] == label]
        count = max(1, round(share * len(members)))
        if count >= len(members):
            raise DataError(
                f"class {label} has {len(members)} labelled image(s): none is left beside the held-out ones",
                fix="more labels_per_class, or nothing to choose: learning_rates=[] evaluate_every=null",
            )
        held.append(members[permutation(len(members), seed, int(label), 1)[:count]])
    chosen = np.sort(np.concatenate(held))
    return np.setdiff1d(ids, chosen), chosen
