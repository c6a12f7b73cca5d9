"""The memory maps of one dataset in one process, and tables of where their rows lie, so that a batch is found by arithmetic.

B rows. No more maps than `MAX_OPEN_SHARDS` stay, and none of a copy that its cache let go, but those of one call: a cache's files are
on disk for as long as somebody maps them.
"""

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from dualtoken.pipelines.tokens.mapped_shards import MappedShard, Rows
from dualtoken.pipelines.tokens.shard_cache import ShardCache

MAX_OPEN_SHARDS = 4096
"""The oldest map is let go first."""


class ShardMaps:
    """Maps by number of shard."""

    def __init__(
        self, num_shards: int, num_batches: int, columns: Sequence[str], cache: ShardCache | None
    ) -> None:
        """Hold none yet, of shards with at most `num_batches` each, copies in `cache` if it is given."""
        self.maps: dict[int, MappedShard] = {}
        self._cache, self._evictions = cache, 0
        self._slots = np.full(num_shards, -1, np.int64)
        self._tables = {name: np.zeros((0, num_batches), np.int64) for name in columns}
        """By column, for each slot, where the shard's batches begin."""
        self._free: list[int] = []
        """Slots that no shard has."""

    def begins(
        self, shards: Rows, batches: Rows, open_shards: Callable[[list[int]], Iterable[MappedShard]]
    ) -> dict[str, Rows]:
        """Return by column where batches of shards, (B,) each, begin in memory; valid until the next call."""
        self._let_go_of_evicted()
        slots = self._slots[shards]
        if (closed := slots < 0).any():
            missing = np.unique(shards[closed]).tolist()
            for number, shard in zip(missing, open_shards(missing), strict=True):
                self._add(number, shard)
            self._let_go_of_oldest(shards)
            slots = self._slots[shards]
        return {name: table[slots, batches] for name, table in self._tables.items()}

    def _let_go_of_oldest(self, wanted: Rows) -> None:
        if len(self.maps) > MAX_OPEN_SHARDS:
            kept = set(wanted.tolist())
            spare = [number for number in self.maps if number not in kept]
            for number in spare[: len(self.maps) - MAX_OPEN_SHARDS]:
                self._let_go(number)

    def _let_go_of_evicted(self) -> None:
        if self._cache is None or (evictions := self._cache.evictions()) == self._evictions:
            return
        self._evictions = evictions
        for number in [number for number, shard in self.maps.items() if not _is_there(shard)]:
            self._let_go(number)

    def _add(self, number: int, shard: MappedShard) -> None:
        slot = self._free.pop() if self._free else self._grow()
        for name, addresses in shard.addresses.items():
            self._tables[name][slot, : len(addresses)] = addresses
        self.maps[number], self._slots[number] = shard, slot

    def _let_go(self, number: int) -> None:
        del self.maps[number]
        self._free.append(int(self._slots[number]))
        self._slots[number] = -1

    def _grow(self) -> int:
        """Double the tables; return a free slot."""
        size = len(self._tables["key"])
        self._tables = {
            name: np.concatenate([table, np.zeros((max(size, 16), table.shape[1]), np.int64)])
            for name, table in self._tables.items()
        }
        self._free = list(range(size, len(self._tables["key"])))
        return self._free.pop()


def _is_there(shard: MappedShard) -> bool:
    try:
        return shard.path.stat().st_ino == shard.inode
    except FileNotFoundError:
        return False
