"""Runs units one after another in this process: for tests, debugging, and proof that the executor changes no byte."""

from collections.abc import Iterator, Sequence
from functools import partial

from pipelines.executor import Outcome, Work, WorkerSlot, attempt


class LocalExecutor:
    """An executor without a cluster."""

    def run(self, work: Sequence[Work]) -> Iterator[Outcome]:
        """Yield an outcome per unit, in order."""
        slot = WorkerSlot()
        for one in work:
            for unit in one.units:
                yield attempt(one.job, partial(slot.open, one.job), unit)
