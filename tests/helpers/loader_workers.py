"""A DataLoader's worker processes without processes, and counts of what loaders yield."""

import copy
import itertools
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from dualtoken.pipelines.loader.batches import PackedBatch, TokenBatch
from dualtoken.pipelines.loader.documents import Markers, PackPlan
from dualtoken.pipelines.loader.packed_loader import PackedLoader
from dualtoken.pipelines.loader.plan import LoadPlan
from dualtoken.pipelines.loader.token_loader import RankLoader, TokenLoader, WorkerInfo, iterate
from dualtoken.pipelines.tokens.reader import TokenDataset
from tests.helpers.token_datasets import key_of

Batch = TypeVar("Batch")
AnyBatches = Iterable[TokenBatch] | Iterable[PackedBatch]


def by_workers(loader: RankLoader[Batch], num_workers: int) -> Iterator[Batch]:
    """Yield what `num_workers` workers make of a loader, in turns as a DataLoader takes it from them.

    Without processes, hypothesis can try many numbers of workers.
    """
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


def keys_in(batches: AnyBatches) -> Counter[bytes]:
    """Count the keys of all samples in batches."""
    found = Counter[bytes]()
    for batch in batches:
        for key in batch.keys.numpy():
            found[key.tobytes()] += 1
    return found


def keys_of_rows(rows_by_name: dict[str, Iterable[int]], times: int = 1) -> Counter[bytes]:
    """Count the keys of rows of datasets, by the name that their samples have, each so many times."""
    expected = Counter[bytes]()
    for name, rows in rows_by_name.items():
        for row in rows:
            expected[key_of(name, row)] += times
    return expected


def lost_in(batches: AnyBatches) -> int:
    """Add up the samples that are missing from batches."""
    return sum(batch.lost for batch in batches)


def loaded_keys(url: str, num_workers: int = 0, **dataset_options: Any) -> list[Counter[bytes]]:
    """Read an epoch of single samples, and one of sequences; return the keys of each."""
    load = LoadPlan(datasets=(TokenDataset(url, **dataset_options),), with_captions=True)
    packing = PackPlan(
        load=load,
        capacity=1024,
        tokenize=lambda text: [len(text)],
        markers=Markers(image_start=1, image_end=2),
    )
    loaders: list[RankLoader[Any]] = [TokenLoader(load, 16), PackedLoader(packing, 2)]
    return [keys_in(iterate(loader, num_workers=num_workers)) for loader in loaders]
