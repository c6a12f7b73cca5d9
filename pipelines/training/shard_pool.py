"""The shards that a process holds open: few, opened when they are needed or ahead of that on threads."""

import resource
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from threading import Lock

from dualtoken.pipelines.tokens.checked_files import DamagedShardError
from dualtoken.pipelines.tokens.shard_cache import ShardCache
from dualtoken.pipelines.training.open_shard import OpenShard

THREADS_AHEAD = 2
"""Threads that copy and open shards before they are needed."""
_SHARE_OF_DESCRIPTORS = 4
"""One in so many of a process's descriptors may be an open shard's."""


class ShardPool:
    """Open shards by number, the least recently used put away first; used by several threads."""

    def __init__(self, open_shard: Callable[[int], OpenShard], cache: ShardCache, max_open: int) -> None:
        """Open nothing yet. Copies that `cache` evicts are put away, or they would stay on disk."""
        descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._max_open = max(1, min(max_open, descriptors // _SHARE_OF_DESCRIPTORS))
        self._open_shard = open_shard
        self._cache = cache
        self._evictions = 0
        """Evictions of the cache that were looked at."""
        self._lock = Lock()
        self._open: OrderedDict[int, OpenShard] = OrderedDict()
        self._opening: dict[int, Lock] = {}
        """Locks of the shards that a thread is opening; the others wait for it."""
        self._threads = ThreadPoolExecutor(THREADS_AHEAD, "shards-ahead")
        self._ahead: dict[int, Future[None]] = {}

    def get(self, number: int) -> OpenShard:
        """Return a shard; raises `DamagedShardError`."""
        with self._lock:
            self._put_away_evicted()
            if number in self._open:
                self._open.move_to_end(number)
                return self._open[number]
            opening = self._opening.setdefault(number, Lock())
        with opening:
            with self._lock:
                if number in self._open:
                    return self._open[number]
            try:
                shard = self._open_shard(number)
                with self._lock:
                    self._open[number] = shard
                    while len(self._open) > self._max_open:
                        self._open.popitem(last=False)
            finally:
                with self._lock:
                    self._opening.pop(number, None)
        return shard

    def _put_away_evicted(self) -> None:
        evictions = self._cache.evictions()
        if evictions == self._evictions:
            return
        self._evictions = evictions
        for number, shard in list(self._open.items()):
            if not shard.tar.is_there():
                del self._open[number]

    def want(self, numbers: Sequence[int]) -> None:
        """Begin to open shards in this order, as many as may be open.

        Of those that were wanted before, the ones that were not begun and are wanted no more are left.
        """
        wanted = numbers[: self._max_open]
        for number in [number for number in self._ahead if number not in wanted]:
            self._ahead.pop(number).cancel()
        for number in wanted:
            if number not in self._ahead:
                self._ahead[number] = self._threads.submit(self._open_ahead, number)

    def _open_ahead(self, number: int) -> None:
        # Whoever needs the shard meets the same error, and says so.
        with suppress(DamagedShardError, OSError):
            self.get(number)

    def close(self) -> None:
        """End the threads and put all shards away."""
        self._threads.shutdown(cancel_futures=True)
        with self._lock:
            self._open.clear()
