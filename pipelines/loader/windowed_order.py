"""Windowed shuffle: shards in a seeded order, and rows shuffled among each W of them.

An epoch then touches few shards at a time. Position to row is a pure function of (rows of the shards, W,
seed, epoch), as with a permutation of all rows (`permutation.py`), so a loader resumes from a count. Memory
is a table of the shards for each epoch, and none of rows.
"""

from typing import NamedTuple

import numpy as np

from dualtoken.pipelines.loader.permutation import FeistelPermutation, Rows

_EPOCHS_KEPT = 2
"""Epochs whose tables of shards are kept: a batch may reach from one epoch into the next."""


class Window(NamedTuple):
    """Shards that are shuffled together, and the part of the epoch that they fill."""

    number: int
    first: int
    """First position in the epoch."""
    end: int
    """Position after the last one."""
    shards: Rows
    """Numbers of the shards, in the epoch's order."""


class WindowedOrder:
    """One epoch's order of the rows of shards; equal arguments give an equal order on every machine."""

    def __init__(self, bounds: Rows, window: int, seed: int, epoch: int, name: str) -> None:
        """Draw the order of the shards.

        `bounds` holds the first row of each shard, and the number of rows. `window` shards are shuffled
        together. `name` tells apart the orders of two datasets.
        """
        self._seed = seed
        self._epoch = epoch
        self._name = name
        self._shards_per_window = window

        num_shards = len(bounds) - 1
        permutation = FeistelPermutation(num_shards, seed, epoch, f"{name}\0shards")
        self._shards = permutation(np.arange(num_shards))
        rows_per_shard = np.diff(bounds)[self._shards]
        self._dataset_starts = bounds[self._shards]
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

    def window_at(self, position: int) -> Window:
        """Return the window that a position of the epoch is in."""
        number = int(np.searchsorted(self._window_bounds, position, side="right")) - 1
        return self._window(number)

    def window_after(self, window: Window) -> Window | None:
        """Return the next window of the epoch; None after its last one."""
        number = window.number + 1
        if number == len(self._window_bounds) - 1:
            return None
        return self._window(number)

    def _window(self, number: int) -> Window:
        first, end = self._window_bounds[number : number + 2].tolist()
        begin = number * self._shards_per_window
        return Window(number, first, end, self._shards[begin : begin + self._shards_per_window])


class WindowedEpochs:
    """The windowed orders of one dataset's epochs, each made when its first row is asked for.

    Its methods may be called by several threads.
    """

    def __init__(self, bounds: Rows, window: int, seed: int, name: str) -> None:
        """Take the arguments of `WindowedOrder`, but for the epoch."""
        self._bounds = bounds
        self._window = window
        self._seed = seed
        self._name = name
        self._orders: dict[int, WindowedOrder] = {}

    def epoch(self, number: int) -> WindowedOrder:
        """Return the order of an epoch."""
        order = self._orders.get(number)
        if order is None:
            order = WindowedOrder(self._bounds, self._window, self._seed, number, self._name)
            kept = list(self._orders.items())[-_EPOCHS_KEPT + 1 :]
            # A new dictionary, since another thread may be looking into the old one.
            self._orders = dict([*kept, (number, order)])
        return order
