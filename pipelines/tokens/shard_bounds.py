"""Rows of a dataset by shard: which shard a row is in, by arithmetic on one number per shard.

B rows.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from dualtoken.pipelines.tokens.mapped_shards import Rows


class ShardRows(NamedTuple):
    """Requested rows that lie in one shard."""

    number: int
    """Number of the shard."""
    places: Rows
    """Places among the rows that were asked for."""
    rows: Rows
    """Numbers of the rows in the shard, 0 the first."""


class ShardBounds:
    """Rows of shards laid end to end; eight bytes a shard, twice."""

    def __init__(self, rows_per_shard: Rows) -> None:
        self._ends = np.cumsum(rows_per_shard, dtype=np.int64)
        self.starts: Rows = self._ends - rows_per_shard
        """Row of the dataset that each shard begins with."""

    @property
    def num_rows(self) -> int:
        """Rows of all shards."""
        return int(self._ends[-1]) if len(self._ends) else 0

    def bounds(self) -> Rows:
        """Return where each shard's rows begin, and the end."""
        return np.append(0, self._ends)

    def shards_of(self, rows: Rows) -> Rows:
        """Return the number of each row's shard, (B,)."""
        within = len(rows) == 0 or (rows.min() >= 0 and rows.max() < self.num_rows)
        assert within, "a row outside the dataset"
        return np.searchsorted(self._ends, rows, side="right")

    def shard_of(self, row: int) -> int:
        """Return the number of one row's shard, in a tenth of the time that `shards_of` takes."""
        return int(self._ends.searchsorted(row, side="right"))

    def by_shard(self, rows: Rows) -> Iterator[ShardRows]:
        """Part rows by their shards, which come in order."""
        shards = self.shards_of(rows)
        order = np.argsort(shards, kind="stable")
        cuts = np.flatnonzero(np.diff(shards[order])) + 1
        for places in np.split(order, cuts):
            if len(places):
                number = int(shards[places[0]])
                yield ShardRows(number, places, rows[places] - self.starts[number])
