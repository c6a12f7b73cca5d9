"""A DataLoader's worker processes, imitated in one process, so that hypothesis can try many numbers of them."""

import copy
import itertools
from collections.abc import Iterator
from typing import TypeVar

from dualtoken.pipelines.loader.token_loader import RankLoader

Batch = TypeVar("Batch")


def by_workers(loader: RankLoader[Batch], num_workers: int) -> Iterator[Batch]:
    """Yield the batches of `num_workers` workers in turn, in the order in which a DataLoader yields them."""
    workers: list[Iterator[Batch]] = []
    for number in range(num_workers):
        worker = copy.copy(loader)
        # A property of the class, which asks PyTorch in a real worker process.
        worker.__class__ = type("Worker", (type(loader),), {"turn": (number, num_workers)})
        workers.append(iter(worker))
    for worker_batches in itertools.cycle(workers):
        batch = next(worker_batches, None)
        if batch is None:
            return
        yield batch
