"""Samples of a micro-batch out of tars: found through the members' tables, read shard by shard, checked by CRC."""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import NamedTuple

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


class Span(NamedTuple):
    """A stretch of a tar that is read at once, and how many rows of the table of members lie in it."""

    begin: int
    size: int
    rows: int


class Part(NamedTuple):
    """What is wanted of one shard: rows, members by name, where they are (offset, size, crc32), and what to read."""

    shard: int
    rows: list[int]
    names: list[str]
    members: list[list[tuple[int, int, int]]]
    spans: list[Span]


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

        Samples that lie close together are read at once; what comes over a network is asked for at the same time.
        """
        assert len(ids) == 0 or (ids.min() >= 0 and ids.max() < self.samples), ids
        found: list[Sample | BadSample] = [BadSample("not read")] * len(ids)
        places = self._by_shard(ids)
        parts = [self._part(shard, ids[own] - self._starts[shard]) for shard, own in places.items()]
        data = iter(self._read_spans(parts))
        for part, own in zip(parts, places.values(), strict=True):
            samples = [self._sample(members) for members in self._members(part, islice(data, len(part.spans)))]
            if any(isinstance(sample, BadSample) for sample in samples) and self.storage.forget_copy(part.shard):
                # the copy may have been wrong, and not the shard
                samples = [self._sample(members) for members in self._members(part, self._read_spans([part]))]
            for place, sample in zip(own.tolist(), samples, strict=True):
                found[place] = sample
        return found

    def labels(self) -> Ints:
        """Return all labels [N], int64, read from the tars; raise ``DataError`` for a set without labels."""
        for one in self.sets:
            one.require_labels()
        labels: list[int] = []
        for shard, owned in enumerate(self.storage.shards):
            if owned.record.samples:
                # A request for each label would take hours: whole stretches come, images and all.
                gap = SPAN if is_remote(owned.owner.root, owned.record) else 0
                part = self._part(shard, np.arange(owned.record.samples, dtype=np.int64), ["cls"], gap)
                for members in self._members(part, self._read_spans([part])):
                    if isinstance(members, BadSample):
                        raise members
                    labels.append(int(members[0]))
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

    def _by_shard(self, ids: Ints) -> dict[int, Ints]:
        """Return by shard the places in ``ids`` of what it holds, in the order of its rows."""
        order = np.argsort(ids, kind="stable")
        shards = np.searchsorted(self._ends, ids[order], side="right")
        groups = np.split(order, np.flatnonzero(np.diff(shards)) + 1) if len(ids) else []
        return {self.locate(int(ids[places[0]]))[0]: places for places in groups}

    def _part(self, shard: int, rows: Ints, names: list[str] | None = None, gap: int = GAP) -> Part:
        """Look up the members ``names``, by default those that make a sample, of ascending rows of a shard.

        Up to ``gap`` bytes between them are read along.
        """
        extensions = self.storage.shards[shard].record.members
        if names is None:
            names = [next(name for name in extensions if name not in ("cls", "json"))]
            names += ["cls"] if self.labelled else []
        members = self.storage.members(shard, rows)[:, [extensions.index(name) for name in names]].tolist()
        return Part(shard, rows.tolist(), names, members, list(_spans(members, gap)))

    def _read_spans(self, parts: Iterable[Part]) -> list[bytes]:
        return self.storage.read_all([(part.shard, span.begin, span.size) for part in parts for span in part.spans])

    def _sample(self, members: list[memoryview] | BadSample) -> Sample | BadSample:
        if isinstance(members, BadSample):
            return members
        return Sample(members[0], int(members[1]) if self.labelled else None)

    def _members(self, part: Part, data: Iterable[bytes]) -> Iterator[list[memoryview] | BadSample]:
        """Cut the bytes of a part's spans into its members, row by row; ``BadSample`` where they are damaged."""
        row = 0
        for span, stretch in zip(part.spans, data, strict=True):
            whole = memoryview(stretch)
            for entries in part.members[row : row + span.rows]:
                found = [whole[at - span.begin : at - span.begin + size] for at, size, _ in entries]
                yield self._damage(part, row, found) or found
                row += 1

    def _damage(self, part: Part, row: int, found: list[memoryview]) -> BadSample | None:
        """Return what is to be said where the members of the part's row are not those that were written."""
        for name, payload, (_, size, crc32) in zip(part.names, found, part.members[row], strict=True):
            wrong = damage(payload, size, crc32)
            if wrong:
                sample_id = int(self._starts[part.shard]) + part.rows[row]
                message = f"{self.where(sample_id)}: the {name} member is damaged: {wrong}"
                return BadSample(message, fix=self.fix(sample_id))
        return None


def _spans(members: list[list[tuple[int, int, int]]], gap: int) -> Iterator[Span]:
    """Yield the stretches to read for rows of members: at most ``SPAN`` bytes where one row is not longer."""
    bounds = [(min(at for at, _, _ in row), max(at + size for at, size, _ in row)) for row in members]
    first = 0
    while first < len(bounds):
        (begin, end), last = bounds[first], first + 1
        while last < len(bounds):
            low, high = bounds[last]
            if not (begin <= low <= end + gap and high <= begin + SPAN):
                break
            end, last = max(end, high), last + 1
        yield Span(begin, end - begin, last - first)
        first = last
