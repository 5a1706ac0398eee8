"""Ranges of bytes of shards, wherever they lie: open files, the node's cache, or ranged requests."""

import hashlib
import os
import resource
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np

from mpp.errors import DataError
from mpp.shards.shardset import (
    MEMBER,
    ShardRecord,
    ShardSet,
    how_to_verify,
    is_remote,
    place,
    read_members,
    shown,
    sidecar,
)
from mpp.sources.remote import read_range, scheme_of
from mpp.stream.cache import NodeCache
from mpp.stream.order import Ints

AT_ONCE = 16  # requests
MOST_OPEN = 512  # shards: 64 lanes with windows of 8 shards need as many at once


class Shard(NamedTuple):
    """One shard of one of the sets that are read."""

    owner: ShardSet
    record: ShardRecord
    number: int  # in its set


class Traffic:
    """What reading has cost so far: bytes, requests tried again, reads with and without the cache."""

    def __init__(self) -> None:
        self.bytes = self.retries = self.hits = self.misses = 0

    def retry(self) -> None:
        """Count a request that is tried again."""
        self.retries += 1


class ShardStorage:
    """Bytes and tables of members of shards, by the number of the shard; may be pickled and forked.

    A remote shard is read from ``cache`` where it is there, and by ranged requests until then.
    """

    def __init__(self, sets: Sequence[ShardSet], cache: NodeCache | None = None) -> None:
        self.shards = [Shard(one, record, number) for one in sets for number, record in enumerate(one.shards)]
        self.cache, self.traffic = cache, Traffic()
        self._tars: OrderedDict[int, int] = OrderedDict()
        self._tables: OrderedDict[int, int | np.ndarray[Any, Any]] = OrderedDict()
        self._copies: set[int] = set()  # shards that were opened in the cache
        self._most_open = 0

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_tars": OrderedDict(), "_tables": OrderedDict(), "_most_open": 0}

    def __del__(self) -> None:
        self.close()

    def where(self, number: int) -> str:
        """Name a shard for a message: as in its set, or the whole path or redacted URL of one that lies elsewhere."""
        return shown(self.shards[number].record.name)

    def read(self, number: int, offset: int, size: int) -> bytes:
        """Return ``size`` bytes of a tar from ``offset`` on, fewer where a file ends; raise ``DataError``."""
        return self.read_all([(number, offset, size)])[0]

    def read_all(self, ranges: Sequence[tuple[int, int, int]]) -> list[bytes]:
        """Return the bytes of each (number, offset, size), fewer where a file ends; raise ``DataError``.

        What comes over a network is asked for at the same time.
        """
        pool = ThreadPoolExecutor(AT_ONCE)  # starts threads for requests alone
        try:
            begun = [self._begin(pool, *one) for one in ranges]
            data = [one if isinstance(one, bytes) else one.result() for one in begun]
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
        self.traffic.bytes += sum(map(len, data))
        return data

    def _begin(self, pool: ThreadPoolExecutor, number: int, offset: int, size: int) -> "bytes | Future[bytes]":
        """Read from a file, or hand the request for a range to the pool."""
        shard, descriptor = self.shards[number], self._tars.get(number)
        if descriptor is None:
            descriptor = self._open_tar(number, shard)
        else:
            self._tars.move_to_end(number)
        if descriptor is None:
            self.traffic.misses += 1
            return pool.submit(self._request, shard, offset, size)
        self.traffic.hits += number in self._copies
        try:
            return os.pread(descriptor, size, offset)
        except OSError as error:
            fix = "look at the disk, then the same command"
            raise DataError(f"{self.where(number)}, byte {offset}: {error.strerror}", fix=fix) from None

    def members(self, number: int, rows: Ints) -> np.ndarray[Any, Any]:
        """Return the members [rows, columns] of a shard's samples, dtype ``MEMBER``; raise ``DataError``."""
        table = self._tables.get(number)
        if table is None:
            table = self._open_table(number)
        else:
            self._tables.move_to_end(number)
        if not isinstance(table, int):
            found: np.ndarray[Any, Any] = table[rows]
            return found
        width = len(self.shards[number].record.members) * MEMBER.itemsize
        low, high = int(rows[0]), int(rows[-1])
        if high - low < 4 * len(rows):  # rows come in ascending order; neighbours are read at once
            raw = os.pread(table, (high - low + 1) * width, low * width)
            return np.frombuffer(raw, MEMBER).reshape(high - low + 1, -1)[rows - low]
        raw = b"".join([os.pread(table, width, row * width) for row in rows.tolist()])
        return np.frombuffer(raw, MEMBER).reshape(len(rows), -1)

    def fetch(self, number: int) -> bool:
        """Bring a remote shard into the node's cache; return whether it is there, raise ``DataError``."""
        shard = self.shards[number]
        if self.cache is None or not is_remote(shard.owner.root, shard.record):
            return False
        url = place(shard.owner.root, shard.record.name)
        sha256 = shard.record.sha256
        return self.cache.fetch(_key(url, sha256), url, shard.record.bytes, sha256, on_retry=self.traffic.retry)

    def forget_copy(self, number: int) -> bool:
        """Remove a shard's copy, whose bytes turned out to be wrong; say whether it was read from one."""
        if number not in self._copies or self.cache is None:
            return False
        shard = self.shards[number]
        self._copies.discard(number)
        descriptor = self._tars.pop(number, None)
        if descriptor is not None:
            os.close(descriptor)
        self.cache.discard(_key(place(shard.owner.root, shard.record.name), shard.record.sha256))
        return True

    def close(self) -> None:
        """Close every file; reading opens them again."""
        for opened in (self._tars, self._tables):
            while opened:
                held = opened.popitem()[1]
                if isinstance(held, int):
                    os.close(held)

    def _open_tar(self, number: int, shard: Shard) -> int | None:
        """Return a descriptor of the tar, None for a remote one that is not in the cache.

        The size is compared again: a shard may be replaced between epochs.
        """
        path = place(shard.owner.root, shard.record.name)
        if is_remote(shard.owner.root, shard.record):
            copy = self._open_copy(_key(path, shard.record.sha256), shard.record.bytes)
            if copy is None:
                return None
            self._copies.add(number)
            self._hold(self._tars, number, copy)
            return copy
        descriptor = _open_file(path, shard.owner.root)
        size = os.fstat(descriptor).st_size
        if size != shard.record.bytes:
            os.close(descriptor)
            message = f"{self.where(number)}: {size} of {shard.record.bytes} bytes, it is not the shard that was opened"
            raise DataError(message, fix=how_to_verify(shard.owner.root))
        self._hold(self._tars, number, descriptor)
        return descriptor

    def _open_copy(self, key: str, size: int) -> int | None:
        """Return a descriptor of a copy in the cache, None where there is none; one of another size is thrown away."""
        descriptor = None if self.cache is None else self.cache.open(key)
        if descriptor is None or self.cache is None or os.fstat(descriptor).st_size == size:
            return descriptor
        os.close(descriptor)
        self.cache.discard(key)
        return None

    def _open_table(self, number: int) -> int | np.ndarray[Any, Any]:
        """Open a table of members; one behind a URL is read whole, into the cache or else into memory."""
        shard = self.shards[number]
        path = place(shard.owner.root, sidecar(shard.record.name, "members"))
        expected = shard.record.samples * len(shard.record.members) * MEMBER.itemsize
        table: int | np.ndarray[Any, Any] | None = None
        if scheme_of(path) is None:
            table = _open_file(path, shard.owner.root)
            size = os.fstat(table).st_size
            if size != expected:
                os.close(table)
                raise DataError(f"{path}: {size} of {expected} bytes", fix=how_to_verify(shard.owner.root))
        elif self.cache is not None:
            key = _key(path, shard.record.sha256 + " members")
            with suppress(OSError):  # asked for again below, with a message
                self.cache.fetch(key, path, expected, "", wait=True, on_retry=self.traffic.retry)
            table = self._open_copy(key, expected)
        if table is None:
            table = read_members(shard.owner, shard.number)
        self._hold(self._tables, number, table)
        return table

    def _hold(self, opened: "OrderedDict[int, Any]", number: int, held: Any) -> None:
        """Keep a file open; the one unused for longest is closed in exchange."""
        self._most_open = self._most_open or _raise_limit()
        if len(opened) >= self._most_open:
            last = opened.popitem(last=False)[1]
            if isinstance(last, int):
                os.close(last)
        opened[number] = held

    def _request(self, shard: Shard, offset: int, size: int) -> bytes:
        url = place(shard.owner.root, shard.record.name)
        try:
            return read_range(url, offset, size, total=shard.record.bytes, on_retry=self.traffic.retry)
        except OSError as error:
            raise DataError(f"{error.strerror or error}", fix="look at the address, then the same command") from None


def _key(url: str, sha256: str) -> str:
    """Return what a file is called in the cache: its hash, that of its URL where it is not known."""
    return sha256 if len(sha256) == 64 else hashlib.sha256(f"{url} {sha256}".encode()).hexdigest()


def _open_file(path: str, root: str) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}", fix=how_to_verify(root)) from None


def _raise_limit() -> int:
    """Return how many tars may be open; as many tables are, and several readers may be in a process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 8 * MOST_OPEN
    if soft != resource.RLIM_INFINITY and soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
        soft = most
    return MOST_OPEN if soft == resource.RLIM_INFINITY else min(MOST_OPEN, max(8, soft // 8))
