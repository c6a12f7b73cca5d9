"""Token loader: what the MLLM stage trains from; exact, elastic, and resumed from one integer.

Sample n of a run is a pure function of (datasets, seed, n): the mixture says which dataset, a permutation
which row. A step of R ranks takes the next R * batch_size samples. Each rank takes an R-th of them, side by
side, so that a rank's samples are of few blocks of the mixture however many ranks there are. Worker w of W
makes every W-th step. So a run goes on under another number of ranks or workers, or another batch size, with
the samples that an uninterrupted one would have taken.
"""

import itertools
import pickle
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from dualtoken.pipelines.loader.batches import TokenBatch
from dualtoken.pipelines.loader.plan import LoadPlan, require_same_plan
from dualtoken.pipelines.loader.sample_reader import SampleLocations, SampleReader
from dualtoken.pipelines.tokens.mapped_shards import Rows
from dualtoken.pipelines.tokens.shards import Ids

__all__ = ["LoadPlan", "RankLoader", "TokenLoader", "iterate"]
Batch = TypeVar("Batch")
STATE_VERSION = 1
LOCATED_TOGETHER = 4096
"""Samples of a rank whose rows are computed together."""
PREFETCHED_BATCHES = 4
"""Batches that each worker process makes ahead."""
_STALLED = "DataLoader timed out after "


class WorkerInfo(NamedTuple):
    """A worker process of the data loader, which makes step `id` and every `num_workers`-th one after it."""

    id: int
    num_workers: int


class RankLoader(IterableDataset[Batch]):
    """Yields one rank's batches; give it to `iterate`, or to a DataLoader with batch_size=None."""

    def __init__(self, plan: LoadPlan, batch_size: int, rank: int, world_size: int) -> None:
        super().__init__()
        if batch_size < 1 or not 0 <= rank < world_size:
            raise ValueError(
                f"batch_size={batch_size}, rank={rank}, world_size={world_size}: "
                "give a batch, and a rank below the size"
            )
        self.plan = plan
        self.batch_size = batch_size
        self.rank = rank
        self.world_size = world_size

    @property
    def worker_info(self) -> WorkerInfo:
        """Which worker this process is; the only one outside a DataLoader's workers."""
        worker = get_worker_info()
        if worker is None:
            return WorkerInfo(id=0, num_workers=1)
        return WorkerInfo(worker.id, worker.num_workers)


class _Step(NamedTuple):
    """Range of the samples that all ranks take in one step."""

    begin: int
    end: int


class TokenLoader(RankLoader[TokenBatch]):
    """Yields batches of single samples.

    Samples that are held out or lost are left out of their step's batch, which is that much smaller, and may
    be empty.
    """

    def __init__(self, plan: LoadPlan, batch_size: int, *, rank: int = 0, world_size: int = 1) -> None:
        super().__init__(plan, batch_size, rank, world_size)
        self._reader = SampleReader(plan)
        self.samples = 0
        """First sample of the next iteration."""

    def state_dict(self, last: TokenBatch | None) -> dict[str, Any]:
        """Return what a run needs to go on after the batch `last`, as JSON values; the same on all ranks.

        `last` is None before the first batch.
        """
        return {
            "version": STATE_VERSION,
            "samples": self.samples if last is None else last.samples,
            "plan": self.plan.identity(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on after a state, under any batch size, world size and number of workers.

        Raises ValueError where the state is of other data, weights, order or seed.
        """
        require_same_plan(state, STATE_VERSION, self.plan.identity())
        self.samples = int(state["samples"])

    def __iter__(self) -> Iterator[TokenBatch]:
        # Rows of many small steps are located in one call: its price is that of a call, not of the samples.
        steps_together = max(1, LOCATED_TOGETHER // self.batch_size)
        start = self.samples
        for first in itertools.count(step=steps_together):
            steps = self._worker_steps(start, range(first, first + steps_together))
            if not steps:
                return
            samples = [self._rank_samples(step) for step in steps]
            locations = self._reader.locate(np.concatenate(samples))
            begin = 0
            for step, step_samples in zip(steps, samples, strict=True):
                end = begin + len(step_samples)
                yield self._read_batch(locations.select(slice(begin, end)), step)
                begin = end

    def _worker_steps(self, start: int, numbers: range) -> list[_Step]:
        """Return steps of this worker by number, 0 the first that it makes; none after the run's end."""
        worker = self.worker_info
        step_size = self.batch_size * self.world_size
        run_end = self._reader.mixture.num_samples
        steps: list[_Step] = []
        for number in numbers:
            begin = start + (worker.id + worker.num_workers * number) * step_size
            end = begin + step_size
            if run_end is not None:
                if begin >= run_end:
                    break
                end = min(end, run_end)
            steps.append(_Step(begin, end))
        return steps

    def _rank_samples(self, step: _Step) -> Rows:
        """Return this rank's samples of a step; ranks differ by one at most, in the last step too."""
        size = step.end - step.begin
        begin = step.begin + size * self.rank // self.world_size
        end = step.begin + size * (self.rank + 1) // self.world_size
        return np.arange(begin, end)

    def _read_batch(self, locations: SampleLocations, step: _Step) -> TokenBatch:
        num_wanted = len(locations.samples)
        captions = None
        if self.plan.with_captions:
            locations, captions = self._reader.texts_available(locations)
        with_caption = locations.samples
        locations, rows = self._reader.read_available(locations)
        if captions is not None and len(locations.samples) < len(captions):
            captions = list(itertools.compress(captions, np.isin(with_caption, locations.samples)))
        num_lost = num_wanted - len(locations.samples)
        if self.plan.heldout_fraction:
            is_seen = ~self._reader.are_keys_heldout([bytes(key) for key in rows.keys])
            locations = locations.select(is_seen)
            rows = rows.select(is_seen)
            captions = None if captions is None else list(itertools.compress(captions, is_seen))
        return TokenBatch(
            keys=torch.from_numpy(rows.keys),
            source=torch.from_numpy(locations.sources),
            semantic=_tensor(rows.semantic),
            pixel=_tensor(rows.pixel),
            captions=captions,
            lost=num_lost,
            samples=step.end,
        )


def _tensor(codes: Ids | None) -> Tensor | None:
    return None if codes is None else torch.from_numpy(codes)


class _PickledBatches(IterableDataset[bytes]):
    """A loader's batches as bytes, which go through a pipe.

    Tensors would go through shared memory, of which containers have 64 MB.
    """

    def __init__(self, loader: RankLoader[Any]) -> None:
        super().__init__()
        self._loader = loader

    def __iter__(self) -> Iterator[bytes]:
        for batch in self._loader:
            fields = [field.numpy() if isinstance(field, Tensor) else field for field in batch]
            yield pickle.dumps(batch._make(fields), pickle.HIGHEST_PROTOCOL)


def _unpickle_batch(pickled: bytes) -> Any:  # noqa: ANN401  (a batch of what the loader yields)
    batch = pickle.loads(pickled)  # noqa: S301  (of our own worker)
    return batch._make(torch.from_numpy(field) if isinstance(field, np.ndarray) else field for field in batch)


def iterate(
    loader: RankLoader[Batch],
    *,
    num_workers: int = 0,
    stall_seconds: float = 300.0,
    start_method: Literal["fork", "forkserver", "spawn"] | None = None,
) -> Iterator[Batch]:
    """Yield a loader's batches, made by worker processes.

    Workers start by `start_method`, by default the system's own. With any other than fork, what the loader
    holds must pickle. Without worker processes there is no time limit: a store that never answers is waited
    for.

    Raises what workers raise, and TimeoutError where no batch comes for `stall_seconds`.
    """
    if not num_workers:
        yield from loader
        return
    batches = DataLoader(
        _PickledBatches(loader),
        batch_size=None,
        num_workers=num_workers,
        timeout=stall_seconds,
        prefetch_factor=PREFETCHED_BATCHES,
        multiprocessing_context=start_method,
    )
    try:
        yield from map(_unpickle_batch, batches)
    except RuntimeError as error:
        # What a worker raises begins with other words.
        if not str(error).startswith(_STALLED):
            raise
        urls = ", ".join(dataset.url for dataset in loader.plan.datasets)
        raise TimeoutError(f"no batch came for {stall_seconds:g} s: look at the storage of {urls}") from error
