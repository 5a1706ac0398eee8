"""Threads that fetch whole shards before they are read, in the order in which they will be, no further than allowed.

What cannot be fetched is no failure here: the reader then asks for the ranges it needs, and knows how to complain.
"""

import sys
import threading
from collections.abc import Callable, Iterator, Sequence

THREADS = 3


class FetchAhead:
    """Fetches shards in the background.

    ``needs`` gives (shard, last step at which it is read) in the order of first need, endless or not; a shard may come
    again. ``fetch`` is called with its number. The shards that were fetched, and whose last step has not passed, have
    at most ``room_bytes`` together, counted by ``sizes``; a shard that is larger alone is left out. Where there is
    nothing to fetch, ``needs`` is followed ``steps_ahead`` of the present step.
    ``failures`` counts fetches that ended with an ``OSError``.
    """

    def __init__(
        self,
        needs: Iterator[tuple[int, int]],
        fetch: Callable[[int], object],
        sizes: Sequence[int],
        room_bytes: int,
        steps_ahead: int,
    ) -> None:
        self.failures = 0
        self._needs, self._fetch, self._sizes, self._room = needs, fetch, sizes, room_bytes
        self._ahead = steps_ahead
        self._changed = threading.Condition()
        self._held: dict[int, int] = {}  # shard: the last step at which it is read
        self._head: tuple[int, int] | None = None  # the next need, where there was no room for it
        self._step = 0
        self._closed = False
        self._error: BaseException | None = None
        for _ in range(THREADS):
            threading.Thread(target=self._work, name="fetch ahead", daemon=True).start()

    def advance(self, step: int) -> None:
        """Let go what is not read at ``step`` or later; raise what a thread met, ``DataError`` as a rule."""
        with self._changed:
            self._step = step
            self._held = {shard: last for shard, last in self._held.items() if last >= step}
            self._changed.notify_all()
            if self._error is not None:
                raise self._error

    def close(self) -> None:
        """Begin no further fetch; one under way is not waited for."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _work(self) -> None:
        try:
            while (shard := self._next()) is not None:
                try:
                    self._fetch(shard)
                except OSError as error:
                    with self._changed:
                        self.failures += 1
                        first = self.failures == 1
                    if first:
                        said = f"not fetched ahead, is read by ranges: {error.strerror or error}"
                        print(said, file=sys.stderr, flush=True)
        except BaseException as error:
            with self._changed:
                self._error = self._error or error
            self.close()

    def _next(self) -> int | None:
        """Return the next shard to fetch, as soon as there is room for it; None at the end."""
        with self._changed:
            while not self._closed:
                self._head = self._head or next(self._needs, None)
                if self._head is None:
                    return None
                shard, last = self._head
                passed, too_large = last < self._step, self._sizes[shard] > self._room
                known = shard in self._held
                if known or too_large:  # nothing to fetch: where that holds for all, there would be no end of it
                    wait = last > self._step + self._ahead
                else:
                    wait = self._used() + self._sizes[shard] > self._room
                if wait and not passed:
                    self._changed.wait()
                    continue
                self._head = None
                if not passed and not too_large:
                    self._held[shard] = max(last, self._held.get(shard, last))
                    if not known:
                        return shard
            return None

    def _used(self) -> int:
        return sum(self._sizes[shard] for shard in self._held)
