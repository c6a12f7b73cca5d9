"""The loader that the MLLM stage trains from: exact, elastic, and resumed from one integer.

Sample number n of a run is a pure function of (datasets, seed, n): the mixture says which corpus, a permutation which row. A step
of R ranks takes the next R * batch_size numbers, rank r every R-th of them; worker w of W makes every W-th step. So a run goes
on under another number of ranks or workers, or another batch size, with the samples that an uninterrupted one would have taken.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from pipelines.mixture import Mixture, mixture, whole_epochs
from pipelines.permutation import Permutation
from pipelines.token_reader import Rows, TokenDataset, TokenRows

STATE_VERSION = 1


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
    samples: int
    """Of the whole run, all ranks together, when this step is done: what a resumed run starts from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadPlan:
    """What a run reads, and in which order."""

    datasets: tuple[TokenDataset, ...]
    weights: Mapping[int, Sequence[float]] | None = None
    """Shares by first sample, such as {0: [3, 1], 1_000_000: [1, 1]}: an endless run."""
    epochs: tuple[float, ...] | None = None
    """How often each dataset is read, such as (1, 2.5), evenly over the run: a run of so many samples. By default once each."""
    seed: int = 0
    shuffle: bool = True
    with_captions: bool = False

    def __post_init__(self) -> None:
        first, *others = self.datasets
        for other in others:
            if other.tokenizer_sha256 != first.tokenizer_sha256:
                raise ValueError(
                    f"{first.url} has tokens of tokenizer {first.tokenizer_fingerprint}, {other.url} of {other.tokenizer_fingerprint}: "
                    "a mixture has one tokenizer; pretokenize one of them again"
                )
            if other.streams != first.streams:
                raise ValueError(f"{first.url} is read for {first.streams}, {other.url} for {other.streams}: open them alike")
        if self.weights is not None and self.epochs is not None:
            raise ValueError("weights and epochs are both given: weights make an endless run, epochs a finite one")
        for name, given in (("epochs", self.epochs), *(("weights", row) for row in (self.weights or {}).values())):
            if given is not None and len(given) != len(self.datasets):
                raise ValueError(f"{name}={list(given)} for {len(self.datasets)} datasets: give one each")
        if empty := [dataset.url for dataset in self.datasets if not len(dataset)]:
            raise ValueError(f"{empty[0]} has no rows: leave it out")

    def order(self) -> Mixture:
        """Return the order of the sources."""
        if self.weights is not None:
            return mixture(self.weights, self.seed)
        epochs = self.epochs or (1.0,) * len(self.datasets)
        return whole_epochs([int(len(dataset) * times) for dataset, times in zip(self.datasets, epochs, strict=True)], self.seed)

    def identity(self) -> dict[str, Any]:
        """Return what decides which sample has which number."""
        return {
            "datasets": [dataset.fingerprint for dataset in self.datasets],
            "weights": {str(first): list(row) for first, row in self.weights.items()} if self.weights else None,
            "epochs": list(self.epochs) if self.epochs else None,
            "seed": self.seed,
            "shuffle": self.shuffle,
        }


class TokenLoader(IterableDataset[TokenBatch]):
    """Yields one rank's batches from where it stands; give it to `iterate`, or to a DataLoader with batch_size=None."""

    def __init__(self, plan: LoadPlan, batch_size: int, *, rank: int = 0, world_size: int = 1) -> None:
        super().__init__()
        if batch_size < 1 or not 0 <= rank < world_size:
            raise ValueError(f"batch_size={batch_size}, rank={rank}, world_size={world_size}: give a batch, and a rank below the size")
        self.plan, self.batch_size, self.rank, self.world_size = plan, batch_size, rank, world_size
        self._order = plan.order()
        self.samples = 0
        """Where the next iteration begins."""

    def state_dict(self, last: TokenBatch | None = None) -> dict[str, Any]:
        """Return what a run that goes on after `last` needs, as JSON values; the same on all ranks."""
        return {"version": STATE_VERSION, "samples": self.samples if last is None else last.samples, "plan": self.plan.identity()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on after a state, under any batch size, world size and number of workers.

        Raises ValueError where the state is of other data, weights, order or seed.
        """
        if state.get("version") != STATE_VERSION:
            raise ValueError(
                f"loader state has version {state.get('version')}, this reads {STATE_VERSION}: start anew, or update dualtoken"
            )
        ours, theirs = self.plan.identity(), state["plan"]
        if differ := [name for name in ours if ours[name] != theirs.get(name)]:
            name = differ[0]
            raise ValueError(f"loader state has {name}={theirs.get(name)}, this run {ours[name]}: make them equal, or start anew")
        self.samples = int(state["samples"])

    def __iter__(self) -> Iterator[TokenBatch]:
        worker = get_worker_info()
        number, every = (worker.id, worker.num_workers) if worker else (0, 1)
        step_size, start, end = self.batch_size * self.world_size, self.samples, self._order.samples
        step = number
        while end is None or start + step * step_size < end:
            first = start + step * step_size
            after = first + step_size if end is None else min(first + step_size, end)
            yield self._batch(np.arange(first + self.rank, after, self.world_size), after)
            step += every

    def _batch(self, numbers: Rows, after: int) -> TokenBatch:
        chosen = self._order.choose(numbers)
        parts, captions, places = [], [""] * len(numbers), []
        for source in np.unique(chosen.source):
            dataset, mine = self.plan.datasets[source], np.flatnonzero(chosen.source == source)
            rows = _rows_of(self.plan, int(source), chosen.number[mine])
            parts.append(dataset.read(rows))
            places.append(mine)
            if self.plan.with_captions:
                for place, caption in zip(mine.tolist(), dataset.captions(rows), strict=True):
                    captions[place] = caption
        read = parts[0] if len(parts) == 1 else _in_order(parts, places, len(numbers)) if parts else self.plan.datasets[0].read(numbers)
        tensors = [None if column is None else torch.from_numpy(column) for column in read]
        source = torch.from_numpy(chosen.source)
        assert tensors[0] is not None
        return TokenBatch(tensors[0], source, tensors[1], tensors[2], captions if self.plan.with_captions else None, after)


def iterate(loader: TokenLoader, *, num_workers: int = 0, stall_seconds: float = 300.0) -> Iterator[TokenBatch]:
    """Yield a loader's batches, made by worker processes; raises TimeoutError where none comes for `stall_seconds`."""
    if not num_workers:
        yield from loader
        return
    batches = DataLoader(loader, batch_size=None, num_workers=num_workers, timeout=stall_seconds, prefetch_factor=4)
    try:
        yield from batches
    except RuntimeError as error:
        if "timed out" not in str(error):
            raise
        raise TimeoutError(f"no batch came for {stall_seconds:g} s: look at the storage of {loader.plan.datasets[0].url}") from error


def _rows_of(plan: LoadPlan, source: int, numbers: Rows) -> Rows:
    """Return the rows of a source's samples, which are counted on over its epochs."""
    size = len(plan.datasets[source])
    epochs, positions = np.divmod(numbers, size)
    if not plan.shuffle:
        return positions
    rows = np.empty_like(positions)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        rows[here] = _permutation(size, plan.seed, int(epoch), plan.datasets[source].fingerprint)(positions[here])
    return rows


@lru_cache(maxsize=64)
def _permutation(size: int, seed: int, epoch: int, name: str) -> Permutation:
    return Permutation(size, seed, epoch, name)


def _in_order(parts: Sequence[TokenRows], places: Sequence[Rows], size: int) -> TokenRows:
    columns = []
    for column in zip(*parts, strict=True):
        if column[0] is None:
            columns.append(None)
            continue
        whole = np.empty((size, *column[0].shape[1:]), column[0].dtype)
        for part, mine in zip(column, places, strict=True):
            whole[mine] = part
        columns.append(whole)
    return TokenRows(*columns)
