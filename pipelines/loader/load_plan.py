"""What a training run reads, and in which order: sample number n is a pure function of (datasets, seed, n).

The mixture says which corpus a sample is of, a permutation which row. Loaders differ in how they cut this one sequence.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np

from dualtoken.pipelines.loader.mixture import Mixture, mixture, whole_epochs
from dualtoken.pipelines.loader.permutation import Permutation
from dualtoken.pipelines.loader.quarantine import Flags, Quarantine
from dualtoken.pipelines.loader.windowed_order import WindowedOrder
from dualtoken.pipelines.tokens.checked_files import DamagedShardError
from dualtoken.pipelines.tokens.mapped_shards import Buffers, Rows, copy_rows
from dualtoken.pipelines.tokens.reader import TokenDataset, TokenRows

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadPlan:
    """What a run reads, and in which order."""

    datasets: tuple[TokenDataset, ...]
    tokenizer: str | None = None
    """The one that the model reads codes of: the SHA-256 of its `model.safetensors`, or the fingerprint of its training. Tokens of
    another one are refused."""
    weights: Mapping[int, Sequence[float]] | None = None
    """Shares by first sample, such as {0: [3, 1], 1_000_000: [1, 1]}: an endless run."""
    epochs: tuple[float, ...] | None = None
    """How often each dataset is read, such as (1, 2.5), evenly over the run: a run of so many samples. By default once each."""
    seed: int = 0
    shuffle: bool = True
    shuffle_shards: int | None = None
    """Shuffle rows among so many shards at a time, which come in the seed's order: what is read from afar, or for the first time, is
    fetched a few shards at a time. By default rows of all shards are shuffled, so that each batch touches about as many as it has rows."""
    with_captions: bool = False
    on_damage: Literal["raise", "quarantine"] = "raise"
    """A damaged shard, fetched again where it is remote, ends the run, or is left out of it and written into `damage_ledger`."""
    damage_ledger: Path | None = None
    """A file of JSON lines, one for all ranks, with dataset, shard, file, rows lost and reason. What it names when a loader is
    made is left out from the start."""

    def __post_init__(self) -> None:
        self._require_one_kind()
        if self.weights is not None and self.epochs is not None:
            raise ValueError(
                "weights and epochs are both given: weights make an endless run, epochs a finite one"
            )
        for name, given in (
            ("epochs", self.epochs),
            *(("weights", row) for row in (self.weights or {}).values()),
        ):
            if given is not None and len(given) != len(self.datasets):
                raise ValueError(f"{name}={list(given)} for {len(self.datasets)} datasets: give one each")
        if empty := [dataset.url for dataset in self.datasets if not len(dataset)]:
            raise ValueError(f"{empty[0]} has no rows: leave it out")
        if self.shuffle_shards is not None and (self.shuffle_shards < 1 or not self.shuffle):
            raise ValueError(
                f"shuffle_shards={self.shuffle_shards}, shuffle={self.shuffle}: give at least 1 shard, and shuffle"
            )
        if self.on_damage == "quarantine" and self.damage_ledger is None:
            raise ValueError(
                "on_damage=quarantine without damage_ledger: name a file to write lost shards into"
            )

    def _require_one_kind(self) -> None:
        if self.tokenizer is not None:
            for dataset in self.datasets:
                dataset.require_tokenizer(self.tokenizer)
        first, *others = self.datasets
        for other in others:
            if other.tokenizer_sha256 != first.tokenizer_sha256:
                raise ValueError(
                    f"{first.url} has tokens of tokenizer {first.tokenizer_fingerprint}, {other.url} of {other.tokenizer_fingerprint}: "
                    "a mixture has one tokenizer; pretokenize one of them again"
                )
            if other.streams != first.streams:
                raise ValueError(
                    f"{first.url} is read for {first.streams}, {other.url} for {other.streams}: open them alike"
                )

    def order(self) -> Mixture:
        """Return the order of the sources."""
        if self.weights is not None:
            return mixture(self.weights, self.seed)
        epochs = self.epochs or (1.0,) * len(self.datasets)
        return whole_epochs(
            [int(len(dataset) * times) for dataset, times in zip(self.datasets, epochs, strict=True)],
            self.seed,
        )

    def identity(self) -> dict[str, Any]:
        """Return what decides which sample has which number."""
        return {
            "datasets": [dataset.fingerprint for dataset in self.datasets],
            "weights": {str(first): list(row) for first, row in self.weights.items()}
            if self.weights
            else None,
            "epochs": list(self.epochs) if self.epochs else None,
            "seed": self.seed,
            "shuffle": self.shuffle,
            "shuffle_shards": self.shuffle_shards,
        }


class Places(NamedTuple):
    """Where samples lie."""

    numbers: Rows
    """(B,) of the samples in their run."""
    source: Rows
    """(B,) which dataset."""
    rows: Rows
    """(B,) of that dataset."""

    def at(self, which: Flags | slice) -> "Places":
        """Return some of them."""
        return Places(self.numbers[which], self.source[which], self.rows[which])


class Samples:
    """Random access to a plan's samples by number."""

    def __init__(self, plan: LoadPlan) -> None:
        self.plan, self.order, self._buffers = plan, plan.order(), Buffers()
        self._windowed: dict[tuple[int, int], WindowedOrder] = {}
        """By dataset and epoch."""
        self._quarantine = (
            Quarantine(plan.damage_ledger, plan.datasets)
            if plan.on_damage == "quarantine" and plan.damage_ledger
            else None
        )

    def find(self, numbers: Rows) -> Places:
        """Return where samples lie."""
        source, number = self.order.choose(numbers)
        rows = np.empty_like(numbers)
        for one, mine in by_source(source):
            rows[mine] = self._rows_of(one, number[mine])
        return Places(numbers, source, rows)

    def _rows_of(self, source: int, numbers: Rows) -> Rows:
        """Return the rows of a source's samples, which are counted on over its epochs."""
        epochs, positions = np.divmod(numbers, len(self.plan.datasets[source]))
        if not self.plan.shuffle:
            return positions
        rows = np.empty_like(positions)
        for epoch in np.unique(epochs).tolist():
            here = epochs == epoch
            rows[here] = self._epoch(source, epoch)(positions[here])
        return rows

    def _epoch(self, source: int, epoch: int) -> Callable[[Rows], Rows]:
        plan, dataset = self.plan, self.plan.datasets[source]
        if plan.shuffle_shards is None:
            return _permutation(len(dataset), plan.seed, epoch, dataset.fingerprint)
        if (source, epoch) not in self._windowed:
            if len(self._windowed) >= 2 * len(plan.datasets):
                self._windowed.pop(next(iter(self._windowed)))
            order = WindowedOrder(
                dataset.bounds(), plan.shuffle_shards, plan.seed, epoch, dataset.fingerprint
            )
            self._windowed[source, epoch] = order
        return self._windowed[source, epoch]

    def _lost(self, quarantine: Quarantine, places: Places, **which: bool) -> Flags:
        lost = np.zeros(len(places.numbers), bool)
        for one, mine in by_source(places.source):
            lost[mine] = quarantine.lost(self.plan.datasets[one], places.rows[mine], **which)
        return lost

    def captions_lost_at_first(self, places: Places) -> Flags:
        """Return whose captions the ledger named as lost when the run began: the same on all ranks that began together."""
        return (
            self._lost(self._quarantine, places, captions=True, at_first=True)
            if self._quarantine
            else np.zeros(len(places.numbers), bool)
        )

    def rows_there(self, places: Places) -> tuple[Places, TokenRows]:
        """Read as `read`; under quarantine, those of damaged shards are left out."""
        return self._there(places, self.read, captions=False)

    def captions_there(self, places: Places) -> tuple[Places, list[str]]:
        """Read as `captions`; under quarantine, those of damaged shards are left out."""
        return self._there(places, self.captions, captions=True)

    def _there(self, places: Places, read: Callable[[Places], T], *, captions: bool) -> tuple[Places, T]:
        while True:
            if self._quarantine:
                places = places.at(~self._lost(self._quarantine, places, captions=captions))
            try:
                return places, read(places)
            except DamagedShardError as error:
                if not self._quarantine:
                    raise
                self._quarantine.add(error, captions=captions)

    def captions_or_end(self, places: Places) -> list[str]:
        """Read as `captions`; under quarantine, a damaged shard is written into the ledger, and the run ends all the same."""
        try:
            return self.captions(places)
        except DamagedShardError as error:
            if self._quarantine:
                self._quarantine.add(error, captions=True)
                error.add_note(
                    f"{self._quarantine.ledger} names it now: repair it and take the line out, or go on without it from the last state. "
                    "The captions' lengths decide the sequences of all ranks, which must be the same ones."
                )
            raise

    def read(self, places: Places) -> TokenRows:
        """Return keys and codes; raises `DamagedShardError`."""
        datasets = self.plan.datasets
        if len(datasets) == 1:
            found = datasets[0].addresses(places.rows)
        else:
            found = {name: np.empty_like(places.rows) for name in ("key", *datasets[0].streams)}
            for one, mine in by_source(places.source):
                for name, addresses in datasets[one].addresses(places.rows[mine]).items():
                    found[name][mine] = addresses
        columns = {name: self._buffers.take(len(places.rows), datasets[0].width(name)) for name in found}
        for name, addresses in found.items():
            copy_rows(addresses, columns[name])
        return datasets[0].shaped(columns)

    def captions(self, places: Places) -> list[str]:
        """Return captions; raises `DamagedShardError`."""
        out = [""] * len(places.numbers)
        for one, mine in by_source(places.source):
            for place, caption in zip(
                mine.tolist(), self.plan.datasets[one].captions(places.rows[mine]), strict=True
            ):
                out[place] = caption
        return out


def by_source(source: Rows) -> list[tuple[int, Rows]]:
    """Part samples into (dataset, places)."""
    return [(int(one), np.flatnonzero(source == one)) for one in np.unique(source)]


@lru_cache(maxsize=64)
def _permutation(size: int, seed: int, epoch: int, name: str) -> Permutation:
    return Permutation(size, seed, epoch, name)


def require_same_plan(state: Mapping[str, Any], version: int, ours: Mapping[str, Any]) -> None:
    """Raise ValueError where a loader's state is of another version, or of other data, weights, order or settings."""
    if state.get("version") != version:
        raise ValueError(
            f"loader state has version {state.get('version')}, this reads {version}: start anew, or update dualtoken"
        )
    theirs = state["plan"]
    if differ := [name for name in ours if ours[name] != theirs.get(name)]:
        name = differ[0]
        raise ValueError(
            f"loader state has {name}={theirs.get(name)}, this run {ours[name]}: make them equal, or start anew"
        )
