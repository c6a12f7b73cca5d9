"""The memory maps of one dataset in one process, and tables of their addresses to look batches up in.

B rows. At most `MAX_OPEN_SHARDS` maps are kept, and none of a copy that its cache evicted, since a cache's
files stay on disk for as long as somebody maps them. The shards of one call are all mapped at once, however
many they are.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from dualtoken.pipelines.tokens.mapped_shards import MappedShard, Rows
from dualtoken.pipelines.tokens.shard_cache import ShardCache

MAX_OPEN_SHARDS = 4096
"""Number of maps that are kept; the oldest is closed first."""
_NOT_OPEN = -1
_FIRST_SLOTS = 16
"""Slots that the tables begin with; they are doubled when they are full."""


class ShardMaps:
    """Maps by number of shard; a pickled copy holds none of them."""

    def __init__(
        self, num_shards: int, num_batches: int, columns: Sequence[str], cache: ShardCache | None
    ) -> None:
        """Open nothing yet; a shard has up to `num_batches`, and is a copy in `cache` where one is given."""
        self._arguments = (num_shards, num_batches, columns, cache)
        self.maps: dict[int, MappedShard] = {}
        self._cache = cache
        self._evictions = 0
        """Evictions of the cache that were looked at."""
        self._slots = np.full(num_shards, _NOT_OPEN, np.int64)
        """Row of the tables, by number of shard."""
        self._tables = {name: np.zeros((0, num_batches), np.int64) for name in columns}
        """Addresses of a shard's batches, by column and slot."""
        self._free_slots: list[int] = []

    def __reduce__(self) -> tuple[type["ShardMaps"], tuple[Any, ...]]:
        return ShardMaps, self._arguments

    def begins(
        self, shards: Rows, batches: Rows, open_shards: Callable[[list[int]], Iterable[MappedShard]]
    ) -> dict[str, Rows]:
        """Return by column where batches of shards, (B,) each, begin in memory; valid until the next call.

        `open_shards` maps the shards that are not open, in the order of their numbers.
        """
        self._close_evicted()
        slots = self._slots[shards]
        closed = slots == _NOT_OPEN
        if closed.any():
            missing = np.unique(shards[closed]).tolist()
            for number, shard in zip(missing, open_shards(missing), strict=True):
                self._add(number, shard)
            self._close_oldest(shards)
            slots = self._slots[shards]
        return {name: table[slots, batches] for name, table in self._tables.items()}

    def _close_oldest(self, wanted: Rows) -> None:
        """Close maps until there are no more than may be kept, but none that is wanted."""
        excess = len(self.maps) - MAX_OPEN_SHARDS
        if excess <= 0:
            return
        kept = set(wanted.tolist())
        spare = [number for number in self.maps if number not in kept]
        for number in spare[:excess]:
            self._close(number)

    def _close_evicted(self) -> None:
        """Close the maps of copies that the cache evicted since the last call."""
        if self._cache is None:
            return
        evictions = self._cache.evictions()
        if evictions == self._evictions:
            return
        self._evictions = evictions
        evicted = [number for number, shard in self.maps.items() if not _is_there(shard)]
        for number in evicted:
            self._close(number)

    def _add(self, number: int, shard: MappedShard) -> None:
        if not self._free_slots:
            self._grow()
        slot = self._free_slots.pop()
        for name, addresses in shard.addresses.items():
            self._tables[name][slot, : len(addresses)] = addresses
        self.maps[number] = shard
        self._slots[number] = slot

    def _close(self, number: int) -> None:
        del self.maps[number]
        self._free_slots.append(int(self._slots[number]))
        self._slots[number] = _NOT_OPEN

    def _grow(self) -> None:
        """Double the tables."""
        size = len(self._tables["key"])
        added = max(size, _FIRST_SLOTS)
        for name, table in self._tables.items():
            empty = np.zeros((added, table.shape[1]), np.int64)
            self._tables[name] = np.concatenate([table, empty])
        self._free_slots = list(range(size, size + added))


def _is_there(shard: MappedShard) -> bool:
    """Tell whether a shard's file is still the one that was mapped."""
    try:
        return shard.path.stat().st_ino == shard.inode
    except FileNotFoundError:
        return False
