"""The steps since the last line of a training's log: means of what they measured, over all workers."""

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, TypeVar

from dualtoken.pipelines.training.task import StepCost, Sum
from dualtoken.pipelines.training.worker_group import WorkerGroup

Batch = TypeVar("Batch")


class WindowOfWorker(NamedTuple):
    """What one worker adds to a line."""

    sums: Mapping[str, Sum]
    """Sums by metric."""
    data_wait: float
    """Share of the time that its steps waited for their batches."""
    num_lost: int | None
    """Samples that it lost to damage so far; None where its task does not say."""
    cost: StepCost | None
    """Cost of its share of a step; None where it is not counted."""


class Window(NamedTuple):
    """What a line says, but for the step."""

    metrics: dict[str, float]
    """Means over steps and workers; NaN for a metric that was finite in no step."""
    num_steps: int
    """Steps since the last line, bad ones included."""
    num_bad_steps: int
    """Steps of these that were skipped."""
    seconds: float
    """Time since the last line, or since the start."""
    data_wait: float
    """Share of that time which the worker that waited longest waited for batches."""
    num_lost: int | None
    """Samples lost to damage so far, as the worker says that lost most."""
    cost: StepCost | None = None
    """Cost of a step, over all workers together; None where it is not counted."""


class StepWindow:
    """Adds up the steps of one worker from one line to the next, without a message to the others."""

    def __init__(self, workers: WorkerGroup) -> None:
        self._workers = workers
        self._begin()

    def _begin(self) -> None:
        self._began = time.monotonic()
        self._sums: dict[str, Sum] = {}
        self._num_steps = 0
        self._num_bad = 0
        self._waited = 0.0
        """Seconds that steps waited for batches."""

    def waited_for(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Yield batches, and measure how long the caller waits for each."""
        iterator = iter(batches)
        while True:
            asked = time.monotonic()
            try:
                batch = next(iterator)
            except StopIteration:
                return
            finally:
                self._waited += time.monotonic() - asked
            yield batch

    def add(self, metrics: Mapping[str, float]) -> None:
        """Add a step's metrics; none for a bad one, which enters no mean."""
        self._num_steps += 1
        self._num_bad += not metrics
        for name, value in metrics.items():
            before = self._sums.get(name, Sum(0.0, 0))
            if math.isfinite(value):
                self._sums[name] = Sum(before.total + value, before.number + 1)
            else:
                self._sums[name] = before

    def close(self, num_lost: int | None, cost: StepCost | None = None) -> Window:
        """Return the window over all workers, which all close theirs at the same step, and begin the next.

        Costs one exchange of a few numbers.
        """
        seconds = max(time.monotonic() - self._began, 1e-9)
        own = WindowOfWorker(self._sums, self._waited / seconds, num_lost, cost)
        windows = self._workers.gather(own)
        lost = [window.num_lost for window in windows if window.num_lost is not None]
        whole = Window(
            metrics=means(window.sums for window in windows),
            num_steps=self._num_steps,
            num_bad_steps=self._num_bad,
            seconds=seconds,
            data_wait=max(window.data_wait for window in windows),
            num_lost=max(lost, default=None),
            cost=_sum_of_costs([window.cost for window in windows]),
        )
        self._begin()
        return whole


def _sum_of_costs(costs: Sequence[StepCost | None]) -> StepCost | None:
    """Return the cost of all shares; None where one is not counted."""
    total: StepCost | None = None
    for cost in costs:
        if cost is None:
            return None
        flop = cost.flop if total is None else total.flop + cost.flop
        total = cost._replace(flop=flop)
    return total


def means(sums_of_workers: Iterable[Mapping[str, Sum]]) -> dict[str, float]:
    """Return the mean of each metric over all workers that have it; NaN where that is nothing."""
    sums: dict[str, Sum] = {}
    for of_worker in sums_of_workers:
        for name, own in of_worker.items():
            before = sums.get(name, Sum(0.0, 0))
            sums[name] = Sum(before.total + own.total, before.number + own.number)
    found: dict[str, float] = {}
    for name, summed in sums.items():
        found[name] = summed.total / summed.number if summed.number else math.nan
    return found
