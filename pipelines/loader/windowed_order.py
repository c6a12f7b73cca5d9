"""An epoch's order that touches few shards at a time: shards in a seeded order, and rows shuffled among each W of them.

Position to row is a pure function of (rows of the shards, W, seed, epoch), as with a permutation of all rows (`permutation.py`), so a
loader resumes from a count. For each epoch there is a table of the shards, none of rows.
"""

import numpy as np

from dualtoken.pipelines.loader.permutation import Permutation, Rows


class WindowedOrder:
    """One epoch's order of the rows of shards; equal arguments give an equal order on every machine."""

    def __init__(self, bounds: Rows, window: int, seed: int, epoch: int, name: str) -> None:
        """Take where each shard's rows begin, and the end; `window` shards are read together, `name` is that of what is permuted."""
        self._seed, self._epoch, self._name = seed, epoch, name
        num_shards = len(bounds) - 1
        shards = Permutation(num_shards, seed, epoch, f"{name}\0shards")(np.arange(num_shards))
        self._begins = bounds[shards]
        """By place in the epoch's order of shards, where a shard's rows begin in the dataset."""
        self._firsts = np.append(0, np.cumsum(np.diff(bounds)[shards], dtype=np.int64))
        """And where in the epoch, and the end."""
        self._windows = np.append(self._firsts[:-1:window], self._firsts[-1])

    def __call__(self, positions: Rows) -> Rows:
        """Return the rows at positions of the epoch; equal positions give equal rows."""
        windows = np.searchsorted(self._windows, positions, side="right") - 1
        places = np.empty_like(positions)
        for number in np.unique(windows).tolist():
            here, (first, end) = windows == number, self._windows[number : number + 2].tolist()
            within = Permutation(end - first, self._seed, self._epoch, f"{self._name}\0window {number}")
            places[here] = first + within(positions[here] - first)
        shards = np.searchsorted(self._firsts, places, side="right") - 1
        return self._begins[shards] + places - self._firsts[shards]
