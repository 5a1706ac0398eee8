"""Samples of a micro-batch out of tars: found through the members' tables, read shard by shard, checked by CRC."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from mpp.errors import DataError
from mpp.shards.shardset import ShardSet, damage, how_to_verify, is_remote
from mpp.stream.cache import NodeCache
from mpp.stream.order import Ints
from mpp.stream.storage import ShardStorage

TAR_BLOCK = 512  # bytes
SPAN = 8 * 2**20  # bytes that are read at once at most
GAP = 64 * 2**10  # bytes between samples that are read along rather than skipped


class BadSample(DataError):
    """One sample that is not what was written, or no image, in a shard that is otherwise in order."""


class Sample(NamedTuple):
    """The bytes of an image, and its label, None in a set without labels."""

    image: bytes | memoryview
    label: int | None


class ShardReader:
    """Random access to the samples of one set or several, by their running number; may be pickled and forked."""

    def __init__(self, *sets: ShardSet, cache: NodeCache | None = None) -> None:
        self.sets, self.storage = sets, ShardStorage(sets, cache)
        records = [shard.record for shard in self.storage.shards]
        self.labelled = all("cls" in record.members for record in records if record.samples)
        self._ends = np.cumsum([record.samples for record in records], dtype=np.int64)
        self._starts = self._ends - np.array([record.samples for record in records], np.int64)
        self.samples = int(self._ends[-1]) if records else 0

    def read(self, sample_id: int) -> Sample:
        """Return one sample; raise ``DataError``, ``BadSample`` where its bytes are not those that were written."""
        (found,) = self.read_all(np.array([sample_id], np.int64))
        if isinstance(found, BadSample):
            raise found
        return found

    def read_all(self, ids: Ints) -> list[Sample | BadSample]:
        """Return the samples with these ids [n], in their order; raise ``DataError`` where a shard cannot be read.

        Every shard is looked at once, and samples that lie close together in it are read at once.
        """
        assert len(ids) == 0 or (ids.min() >= 0 and ids.max() < self.samples), ids
        found: list[Sample | BadSample] = [BadSample("not read")] * len(ids)
        order = np.argsort(ids, kind="stable")
        shards = np.searchsorted(self._ends, ids[order], side="right")
        for places in np.split(order, np.flatnonzero(np.diff(shards)) + 1) if len(ids) else ():
            shard = int(np.searchsorted(self._ends, ids[places[0]], side="right"))
            rows = ids[places] - self._starts[shard]
            samples = list(self._read_rows(shard, rows))
            if any(isinstance(sample, BadSample) for sample in samples) and self.storage.forget_copy(shard):
                samples = list(self._read_rows(shard, rows))  # the copy may have been wrong, and not the shard
            for place, sample in zip(places.tolist(), samples, strict=True):
                found[place] = sample
        return found

    def labels(self) -> Ints:
        """Return all labels [N], int64, read from the tars; raise ``DataError`` for a set without labels."""
        for one in self.sets:
            one.require_labels()
        labels: list[int] = []
        for shard, owned in enumerate(self.storage.shards):
            if owned.record.samples:
                rows = np.arange(owned.record.samples, dtype=np.int64)
                column = owned.record.members.index("cls")
                members = self.storage.members(shard, rows)[:, [column]]
                # A request for each label would take hours: whole stretches come, images and all.
                gap = SPAN if is_remote(owned.owner.root, owned.record) else 0
                for row, (label,) in enumerate(self._payloads(shard, members, gap=gap)):
                    labels.append(int(self._checked(shard, row, "cls", label, *members[row, 0].item()[1:])))
        return np.array(labels, np.int64)

    def neighbour(self, sample_id: int, distance: int) -> int:
        """Return the id of a sample so many rows further on in the same shard, round its end."""
        shard, row = self.locate(sample_id)
        return int(self._starts[shard]) + (row + distance) % self.storage.shards[shard].record.samples

    def locate(self, sample_id: int) -> tuple[int, int]:
        """Return the number of the shard that holds a sample, and the sample's row in it."""
        shard = int(np.searchsorted(self._ends, sample_id, side="right"))
        return shard, sample_id - int(self._starts[shard])

    def where(self, sample_id: int) -> str:
        """Name a sample for a message: shard, row, and the key in the tar where it can be read."""
        shard, row = self.locate(sample_id)
        try:
            first = int(self.storage.members(shard, np.array([row]))["offset"][0].min())
            name = self.storage.read(shard, first - TAR_BLOCK, 100).split(b"\0", 1)[0].decode("utf-8", "replace")
        except (DataError, OSError, ValueError):
            name = ""
        key = name.rpartition("/")[2].partition(".")[0]
        shown_key = f" (key {key})" if key.isprintable() and key else ""
        return f"{self.storage.where(shard)}:{row}{shown_key}"

    def shard_of(self, sample_id: int) -> str:
        """Name the shard of a sample, without reading anything."""
        return self.storage.where(self.locate(int(sample_id))[0])

    def fix(self, sample_id: int) -> str:
        """Return the command that finds all that is wrong with the set of a sample."""
        return how_to_verify(self.storage.shards[self.locate(sample_id)[0]].owner.root)

    def close(self) -> None:
        """Close every shard; reading opens them again."""
        self.storage.close()

    def _read_rows(self, shard: int, rows: Ints) -> Iterator[Sample | BadSample]:
        """Yield the samples in these ascending rows of one shard."""
        extensions = self.storage.shards[shard].record.members
        names = [next(name for name in extensions if name not in ("cls", "json"))]
        names += ["cls"] if self.labelled else []
        members = self.storage.members(shard, rows)[:, [extensions.index(name) for name in names]]
        payloads = self._payloads(shard, members, gap=GAP)
        for row, entries, parts in zip(rows.tolist(), members.tolist(), payloads, strict=True):
            try:
                for name, part, (_, size, crc32) in zip(names, parts, entries, strict=True):
                    self._checked(shard, row, name, part, size, crc32)
                yield Sample(parts[0], int(parts[1]) if self.labelled else None)
            except BadSample as error:
                yield error

    def _payloads(self, shard: int, members: np.ndarray[Any, Any], *, gap: int) -> Iterator[list[memoryview]]:
        """Yield the bytes of ``members`` [n, columns] of a shard, row by row; up to ``gap`` bytes are read along."""
        entries = members.tolist()
        bounds = [(min(at for at, _, _ in row), max(at + size for at, size, _ in row)) for row in entries]
        index = 0
        while index < len(entries):
            (begin, end), first = bounds[index], index
            while index < len(entries):
                low, high = bounds[index]
                if index > first and not (begin <= low <= end + gap and high <= begin + SPAN):
                    break
                end, index = max(end, high), index + 1
            data = memoryview(self.storage.read(shard, begin, end - begin))
            for row in entries[first:index]:
                yield [data[at - begin : at - begin + size] for at, size, _ in row]

    def _checked(self, shard: int, row: int, name: str, payload: memoryview, size: int, crc32: int) -> memoryview:
        """Return a member's bytes; raise ``BadSample`` where they are not those that were written."""
        wrong = damage(payload, size, crc32)
        if not wrong:
            return payload
        sample_id = int(self._starts[shard]) + row
        message = f"{self.where(sample_id)}: the {name} member is damaged: {wrong}"
        raise BadSample(message, fix=self.fix(sample_id))
