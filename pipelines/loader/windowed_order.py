"""Windowed shuffle: shards in a seeded order, and rows shuffled among each W of them.

An epoch then touches few shards at a time. Position to row is a pure function of (rows of the shards, W, seed, epoch),
as with a permutation of all rows (`permutation.py`), so a loader resumes from a count. Memory is a table of the shards
for each epoch, and none of rows.
"""

import numpy as np

from dualtoken.pipelines.loader.permutation import FeistelPermutation, Rows


class WindowedOrder:
    """One epoch's order of the rows of shards; equal arguments give an equal order on every machine."""

    def __init__(self, bounds: Rows, window: int, seed: int, epoch: int, name: str) -> None:
        """Draw the order of the shards.

        `bounds` holds the first row of each shard, and the number of rows. `window` shards are shuffled together.
        `name` tells apart the orders of two datasets.
        """
        self._seed = seed
        self._epoch = epoch
        self._name = name

        num_shards = len(bounds) - 1
        permutation = FeistelPermutation(num_shards, seed, epoch, f"{name}\0shards")
        shards = permutation(np.arange(num_shards))
        rows_per_shard = np.diff(bounds)[shards]
        self._dataset_starts = bounds[shards]
        """First row of each shard in the dataset, shards in the epoch's order."""
        self._epoch_bounds = np.append(0, np.cumsum(rows_per_shard, dtype=np.int64))
        """First position of each shard in the epoch, and the epoch's length."""
        self._window_bounds = np.append(self._epoch_bounds[:-1:window], self._epoch_bounds[-1])
        """First position of each window in the epoch, and the epoch's length."""

    def __call__(self, positions: Rows) -> Rows:
        """Return the rows at positions of the epoch; equal positions give equal rows."""
        windows = np.searchsorted(self._window_bounds, positions, side="right") - 1
        shuffled = np.empty_like(positions)
        for window in np.unique(windows).tolist():
            in_window = windows == window
            first, end = self._window_bounds[window : window + 2].tolist()
            permutation = FeistelPermutation(
                end - first, self._seed, self._epoch, f"{self._name}\0window {window}"
            )
            shuffled[in_window] = first + permutation(positions[in_window] - first)

        shards = np.searchsorted(self._epoch_bounds, shuffled, side="right") - 1
        return self._dataset_starts[shards] + shuffled - self._epoch_bounds[shards]
