"""A DataLoader's worker processes without processes, so that hypothesis can try many numbers of them."""

import copy
import itertools
from collections.abc import Iterator
from typing import TypeVar

from dualtoken.pipelines.loader.token_loader import RankLoader

Batch = TypeVar("Batch")


def by_workers(loader: RankLoader[Batch], num_workers: int) -> Iterator[Batch]:
    """Yield what `num_workers` workers make of a loader, in turns as a DataLoader takes it from them."""
    workers = []
    for number in range(num_workers):
        worker = copy.copy(loader)
        worker.__class__ = type("Worker", (type(loader),), {"turn": (number, num_workers)})
        workers.append(iter(worker))
    for turn in itertools.cycle(workers):
        batch = next(turn, None)
        if batch is None:
            return
        yield batch
