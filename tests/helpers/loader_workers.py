"""A DataLoader's worker processes without processes, so that hypothesis can try many numbers of them."""

import copy
import itertools
from collections.abc import Iterator
from typing import TypeVar

from dualtoken.pipelines.loader.token_loader import RankLoader, WorkerInfo

Batch = TypeVar("Batch")


def by_workers(loader: RankLoader[Batch], num_workers: int) -> Iterator[Batch]:
    """Yield what `num_workers` workers make of a loader, in turns as a DataLoader takes it from them."""
    workers: list[Iterator[Batch]] = []
    for number in range(num_workers):
        worker = copy.copy(loader)
        worker_info = WorkerInfo(number, num_workers)
        worker.__class__ = type("Worker", (type(loader),), {"worker_info": worker_info})
        workers.append(iter(worker))
    for worker in itertools.cycle(workers):
        batch = next(worker, None)
        if batch is None:
            return
        yield batch
