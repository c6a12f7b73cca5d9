"""The loader that the MLLM stage trains from: exact, elastic, and resumed from one integer.

Sample number n of a run is a pure function of (datasets, seed, n): the mixture says which corpus, a permutation which row. A step
of R ranks takes the next R * batch_size numbers, each rank an R-th of them, side by side, so that a rank's are of few blocks of the
mixture however many ranks there are; worker w of W makes every W-th step. So a run goes on under another number of ranks or workers,
or another batch size, with the samples that an uninterrupted one would have taken.
"""

import itertools
import pickle
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from dualtoken.pipelines.loader.load_plan import LoadPlan, Places, Samples, require_same_plan
from dualtoken.pipelines.tokens.mapped_shards import Rows
from dualtoken.pipelines.tokens.shards import Ids

__all__ = ["LoadPlan", "RankLoader", "TokenBatch", "TokenLoader", "iterate"]
Batch = TypeVar("Batch")
STATE_VERSION = 1
AHEAD = 4096
"""Samples whose places are computed together."""
_STALLED = "DataLoader timed out after "


class TokenBatch(NamedTuple):
    """A step's samples on one rank: B of them, H by W positions, D depths."""

    keys: Tensor
    """(B, 16), uint8."""
    source: Tensor
    """(B,), int64: which dataset."""
    semantic: Tensor | None
    """(B, H, W, D), uint16; None where no dataset reads the stream."""
    pixel: Tensor | None
    captions: list[str] | None
    lost: int
    """Samples of this step and rank that are not here, since their shards are in quarantine."""
    samples: int
    """Of the whole run, all ranks together, when this step is done: what a resumed run starts from."""


class RankLoader(IterableDataset[Batch]):
    """Yields one rank's batches from where it stands; give it to `iterate`, or to a DataLoader with batch_size=None."""

    def __init__(self, plan: LoadPlan, batch_size: int, rank: int, world_size: int) -> None:
        super().__init__()
        if batch_size < 1 or not 0 <= rank < world_size:
            raise ValueError(
                f"batch_size={batch_size}, rank={rank}, world_size={world_size}: give a batch, and a rank below the size"
            )
        self.plan, self.batch_size, self.rank, self.world_size = plan, batch_size, rank, world_size

    @property
    def turn(self) -> tuple[int, int]:
        """Return (w, W) where this process makes every W-th step from step w on."""
        worker = get_worker_info()
        return (worker.id, worker.num_workers) if worker else (0, 1)


class TokenLoader(RankLoader[TokenBatch]):
    """Yields batches of single samples."""

    def __init__(self, plan: LoadPlan, batch_size: int, *, rank: int = 0, world_size: int = 1) -> None:
        super().__init__(plan, batch_size, rank, world_size)
        self._samples = Samples(plan)
        self.samples = 0
        """Where the next iteration begins."""

    def state_dict(self, last: TokenBatch | None) -> dict[str, Any]:
        """Return what a run that goes on after `last` needs, None before the first batch, as JSON values; the same on all ranks."""
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
        turn, every = self.turn
        step_size, start, end = self.batch_size * self.world_size, self.samples, self._samples.order.samples
        ahead = max(1, AHEAD // self.batch_size)
        for group in itertools.count():
            firsts = [start + (turn + every * (group * ahead + step)) * step_size for step in range(ahead)]
            if end is not None:
                firsts = [first for first in firsts if first < end]
            if not firsts:
                return
            afters = [first + step_size if end is None else min(first + step_size, end) for first in firsts]
            numbers = [self._mine(first, after) for first, after in zip(firsts, afters, strict=True)]
            places, taken = self._samples.find(np.concatenate(numbers)), 0
            for mine, after in zip(numbers, afters, strict=True):
                yield self._batch(places.at(slice(taken, taken + len(mine))), after)
                taken += len(mine)

    def _mine(self, first: int, after: int) -> Rows:
        """Return this rank's part of a step; parts of the last step, too, are of one size or one less."""
        begin, end = (
            first + (after - first) * rank // self.world_size for rank in (self.rank, self.rank + 1)
        )
        return np.arange(begin, end)

    def _batch(self, places: Places, after: int) -> TokenBatch:
        wanted, captions = len(places.numbers), None
        if self.plan.with_captions:
            places, captions = self._samples.captions_there(places)
        numbers = places.numbers
        places, (keys, semantic, pixel) = self._samples.rows_there(places)
        if captions is not None and len(keys) < len(captions):
            captions = list(itertools.compress(captions, np.isin(numbers, places.numbers)))
        return TokenBatch(
            torch.from_numpy(keys), torch.from_numpy(places.source), _tensor(semantic), _tensor(pixel),
            captions, wanted - len(keys), after,
        )  # fmt: skip


def _tensor(codes: Ids | None) -> Tensor | None:
    return None if codes is None else torch.from_numpy(codes)


class _Piped(IterableDataset[bytes]):
    """A loader's batches as bytes, which go through a pipe. Tensors would go through shared memory, of which containers have 64 MB."""

    def __init__(self, loader: RankLoader[Any]) -> None:
        super().__init__()
        self._loader = loader

    def __iter__(self) -> Iterator[bytes]:
        for batch in self._loader:
            fields = (field.numpy() if isinstance(field, Tensor) else field for field in batch)
            yield pickle.dumps(batch._make(fields), pickle.HIGHEST_PROTOCOL)


def _from_pipe(piped: bytes) -> Any:  # noqa: ANN401  (a batch of what the loader yields)
    batch = pickle.loads(piped)  # noqa: S301  (of our own worker)
    return batch._make(torch.from_numpy(field) if isinstance(field, np.ndarray) else field for field in batch)


def iterate(
    loader: RankLoader[Batch],
    *,
    num_workers: int = 0,
    stall_seconds: float = 300.0,
    start_method: Literal["fork", "forkserver", "spawn"] | None = None,
) -> Iterator[Batch]:
    """Yield a loader's batches, made by worker processes; raises what they raise, and TimeoutError where none comes for `stall_seconds`.

    Workers start by `start_method`, the system's own where none is given; but for fork, what the loader holds must pickle. Without
    worker processes nobody watches: a store that never answers is waited for.
    """
    if not num_workers:
        yield from loader
        return
    batches = DataLoader(
        _Piped(loader),
        batch_size=None,
        num_workers=num_workers,
        timeout=stall_seconds,
        prefetch_factor=4,
        multiprocessing_context=start_method,
    )
    try:
        yield from map(_from_pipe, batches)
    except RuntimeError as error:
        # What a worker raises begins with other words.
        if not str(error).startswith(_STALLED):
            raise
        urls = ", ".join(dataset.url for dataset in loader.plan.datasets)
        raise TimeoutError(f"no batch came for {stall_seconds:g} s: look at the storage of {urls}") from error
