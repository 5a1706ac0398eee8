"""The bytes of one sample out of a tar: found through the members index, read at random, checked by CRC."""

import os
from collections import OrderedDict
from typing import Any, NamedTuple

import numpy as np

from mpp.errors import DataError
from mpp.shards.shardset import ShardSet, place, read_members, read_payload
from mpp.stream.order import Ints

# At most this many shards are held open: 64 lanes with windows of 8 shards need as many at once.
MAX_OPEN = 128  # well under the usual limit of 1,024 descriptors, with several readers in a process


class _OpenShard(NamedTuple):
    descriptor: int
    members: np.ndarray[Any, Any]  # MEMBER [samples, members]


class ShardReader:
    """Random access to the samples of a split by their running number; may be pickled and forked."""

    def __init__(self, shards: ShardSet) -> None:
        self.shards = shards
        self.labelled = all("cls" in shard.members for shard in shards.shards if shard.samples)
        self._ends = np.cumsum([shard.samples for shard in shards.shards], dtype=np.int64)
        self._open: OrderedDict[int, _OpenShard] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": OrderedDict()}

    def read(self, sample_id: int) -> tuple[bytes, int | None]:
        """Return the bytes of the image and its label, None in a set without labels.

        Raises ``DataError`` naming shard and sample where the bytes are not those that were written.
        """
        shard, row = self.locate(sample_id)
        extensions = self.shards.shards[shard].members
        column = next(number for number, extension in enumerate(extensions) if extension not in ("cls", "json"))
        image = self._member(shard, row, column)
        return image, self._label(shard, row) if self.labelled else None

    def labels(self) -> Ints:
        """Return all labels [N], int64, read from the tars; raise ``DataError`` for a set without labels."""
        self.shards.require_labels()
        sizes = [shard.samples for shard in self.shards.shards]
        return np.array([self._label(shard, row) for shard, size in enumerate(sizes) for row in range(size)], np.int64)

    def locate(self, sample_id: int) -> tuple[int, int]:
        """Return the number of the shard that holds a sample, and the sample's row in it."""
        assert 0 <= sample_id < self.shards.samples, sample_id
        shard = int(np.searchsorted(self._ends, sample_id, side="right"))
        return shard, sample_id - int(self._ends[shard]) + self.shards.shards[shard].samples

    def where(self, sample_id: int) -> str:
        """Name a sample for a message: shard and row."""
        shard, row = self.locate(sample_id)
        return f"{self.shards.shards[shard].name}:{row}"

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Close every shard; reading opens them again."""
        while self._open:
            os.close(self._open.popitem()[1].descriptor)

    def _label(self, shard: int, row: int) -> int:
        return int(self._member(shard, row, self.shards.shards[shard].members.index("cls")))

    def _member(self, shard: int, row: int, column: int) -> bytes:
        """Return the payload of one member, checked against the index."""
        opened = self._opened(shard)
        record = self.shards.shards[shard]
        where = f"{record.name}:{row}: the {record.members[column]} member"
        return read_payload(opened.descriptor, opened.members[row, column].item(), where, self.shards.root)

    def _opened(self, shard: int) -> _OpenShard:
        """Return the descriptor and the index of a shard; the one unused for longest is closed in exchange."""
        if shard in self._open:
            self._open.move_to_end(shard)
            return self._open[shard]
        if len(self._open) >= MAX_OPEN:
            os.close(self._open.popitem(last=False)[1].descriptor)
        path = place(self.shards.root, self.shards.shards[shard].name)
        try:
            descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        except OSError as error:
            raise DataError(f"{path}: {error.strerror}", fix=f"mpp verify {self.shards.root}") from None
        self._open[shard] = _OpenShard(descriptor, read_members(self.shards, shard))
        return self._open[shard]
