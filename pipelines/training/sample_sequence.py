"""The sequence of samples that a training takes: epochs laid end to end, each a windowed shuffle of shards.

Sample n of a run is a pure function of (the shards' numbers of samples, window, seed, n). So a run resumes
from one integer, and under one batch size gives the same batches to any number of ranks. B samples.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from dualtoken.pipelines.loader.permutation import seeded_uniform
from dualtoken.pipelines.loader.windowed_order import Window, WindowedEpochs
from dualtoken.pipelines.tokens.mapped_shards import Rows
from dualtoken.pipelines.tokens.shard_bounds import ShardBounds

TRIES_IN_WINDOW = 50
TRIES = 100
"""Samples that are tried in the place of one that cannot be read, those of its own window first."""


class SampleSequence:
    """Samples of a run by their index in it; may be used by several threads."""

    def __init__(self, shards: ShardBounds, window: int, seed: int, name: str) -> None:
        """Shuffle `window` shards at a time; `name` tells apart the orders of two datasets."""
        self._num_rows = shards.num_rows
        self._seed = seed
        self._epochs = WindowedEpochs(shards.bounds(), window, seed, name)

    def epoch_of(self, sample: int) -> int:
        """Return the epoch that a sample of the run is in."""
        return sample // self._num_rows

    def rows(self, samples: Rows) -> Rows:
        """Return the row of the dataset that each sample is, (B,)."""
        epochs, positions = np.divmod(samples, self._num_rows)
        rows = np.empty_like(positions)
        for epoch in np.unique(epochs).tolist():
            in_epoch = epochs == epoch
            rows[in_epoch] = self._epochs.epoch(epoch)(positions[in_epoch])
        return rows

    def substitutes(self, sample: int) -> Iterator[int]:
        """Yield rows to take in the place of a sample that cannot be read, each drawn from seed and sample.

        So all ranks, and runs that resume, take the same ones, and a lost shard's places are filled evenly.
        They are of the sample's own window, whose shards are open, and then of the whole epoch.
        """
        epoch, position = divmod(sample, self._num_rows)
        order = self._epochs.epoch(epoch)
        window = order.window_at(position)
        for number in range(TRIES):
            first, end = 0, self._num_rows
            if number < TRIES_IN_WINDOW:
                first, end = window.first, window.end
            drawn = seeded_uniform(self._seed, f"in place, try {number}", np.array([sample]))
            positions = first + (drawn * (end - first)).astype(np.int64)
            yield int(order(positions)[0])

    def window_at(self, sample: int) -> "WindowOfRun":
        """Return the window that a sample of the run is in."""
        epoch, position = divmod(sample, self._num_rows)
        window = self._epochs.epoch(epoch).window_at(position)
        done = (position - window.first) / (window.end - window.first)
        return WindowOfRun(epoch, window, done)

    def window_after(self, window: "WindowOfRun") -> Window:
        """Return the next window of the run, which may be the first of the next epoch."""
        following = self._epochs.epoch(window.epoch).window_after(window.window)
        if following is None:
            following = self._epochs.epoch(window.epoch + 1).window_at(0)
        return following


class WindowOfRun(NamedTuple):
    """A window of one epoch, and how far a run has come in it."""

    epoch: int
    window: Window
    done: float
    """Share of its samples that come before."""
