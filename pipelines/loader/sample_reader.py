"""Random access to the samples of a load plan, by their index in the run.

B samples. Everything here is arithmetic and copying on whole batches in NumPy: the loader's speed is decided
here.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar

import numpy as np

from dualtoken.pipelines.core.ledger import key_fractions
from dualtoken.pipelines.loader.permutation import FeistelPermutation
from dualtoken.pipelines.loader.plan import LoadPlan
from dualtoken.pipelines.loader.quarantine import Mask, Quarantine
from dualtoken.pipelines.loader.windowed_order import WindowedEpochs
from dualtoken.pipelines.tokens.caption_cache import CAPTION
from dualtoken.pipelines.tokens.checked_files import DamagedShardError
from dualtoken.pipelines.tokens.mapped_shards import Buffers, Rows, Words, copy_rows
from dualtoken.pipelines.tokens.reader import TokenRows

Values = TypeVar("Values")
Bits = np.ndarray[Any, np.dtype[np.uint8]]


class SampleLocations(NamedTuple):
    """Samples of a run, and the rows that they are."""

    samples: Rows
    """(B,), index of each sample in the run."""
    sources: Rows
    """(B,), number of its dataset in the plan."""
    rows: Rows
    """(B,), row of that dataset."""

    def select(self, which: Mask | slice) -> "SampleLocations":
        """Return some of them."""
        return SampleLocations(self.samples[which], self.sources[which], self.rows[which])


class SampleReader:
    """Reads a plan's samples by their index in the run."""

    def __init__(self, plan: LoadPlan) -> None:
        self.plan = plan
        self.mixture = plan.mixture()
        self._buffers = Buffers()
        self._windowed_epochs: dict[int, WindowedEpochs] = {}
        """Windowed orders by source, where rows are shuffled within windows."""
        if plan.shuffle_shards is not None:
            for source, dataset in enumerate(plan.datasets):
                self._windowed_epochs[source] = WindowedEpochs(
                    dataset.bounds(), plan.shuffle_shards, plan.seed, dataset.fingerprint
                )
        self._heldout_bits: dict[tuple[int, int], Bits] = {}
        """Which rows are held out, packed, by source and number of the shard."""
        self._quarantine: Quarantine | None = None
        if plan.on_damage == "quarantine" and plan.damage_ledger:
            self._quarantine = Quarantine(plan.damage_ledger, plan.datasets)

    # From the index of a sample to its row.

    def locate(self, samples: Rows) -> SampleLocations:
        """Return which rows the samples are."""
        assignment = self.mixture.assign(samples)
        rows = np.empty_like(samples)
        for source, positions in group_by_source(assignment.sources):
            rows[positions] = self._rows_of_source(source, assignment.indices[positions])
        return SampleLocations(samples, assignment.sources, rows)

    def _rows_of_source(self, source: int, indices: Rows) -> Rows:
        """Return the rows of a source's samples, which are counted on over its epochs."""
        epochs, positions = np.divmod(indices, len(self.plan.datasets[source]))
        if not self.plan.shuffle:
            return positions
        rows = np.empty_like(positions)
        for epoch in np.unique(epochs).tolist():
            in_epoch = epochs == epoch
            order = self._epoch_order(source, epoch)
            rows[in_epoch] = order(positions[in_epoch])
        return rows

    def _epoch_order(self, source: int, epoch: int) -> Callable[[Rows], Rows]:
        """Return the function from positions of a source's epoch to rows."""
        if source in self._windowed_epochs:
            return self._windowed_epochs[source].epoch(epoch)
        dataset = self.plan.datasets[source]
        return _permutation(len(dataset), self.plan.seed, epoch, dataset.fingerprint)

    # From rows to what they hold.

    def read(self, locations: SampleLocations) -> TokenRows:
        """Return keys and codes; raises `DamagedShardError`."""
        datasets = self.plan.datasets
        if len(datasets) == 1:
            column_addresses = datasets[0].addresses(locations.rows)
        else:
            names = ("key", *datasets[0].streams)
            column_addresses = {name: np.empty_like(locations.rows) for name in names}
            for source, positions in group_by_source(locations.sources):
                source_addresses = datasets[source].addresses(locations.rows[positions])
                for name, addresses in source_addresses.items():
                    column_addresses[name][positions] = addresses

        columns: dict[str, Words] = {}
        for name, addresses in column_addresses.items():
            columns[name] = self._lent_or_copied(locations, name, addresses)
        return datasets[0].shaped(columns)

    def _lent_or_copied(self, locations: SampleLocations, name: str, addresses: Rows) -> Words:
        """Return a column's rows as they lie in their shard, if side by side in one, else a copy of them."""
        if len(addresses):
            dataset = self.plan.datasets[int(locations.sources[0])]
            lent = dataset.lend(int(locations.rows[0]), name, addresses)
            if lent is not None:
                return lent
        copied = self._buffers.take(len(addresses), self.plan.datasets[0].width(name))
        copy_rows(addresses, copied)
        return copied

    def texts(self, locations: SampleLocations, column: str = CAPTION) -> list[str]:
        """Return captions, or the texts of another column; raises as `TokenDataset.texts`."""
        texts = [""] * len(locations.samples)
        for source, positions in group_by_source(locations.sources):
            source_texts = self.plan.datasets[source].texts(locations.rows[positions], column)
            for position, text in zip(positions.tolist(), source_texts, strict=True):
                texts[position] = text
        return texts

    def require_text(self, column: str) -> None:
        """Raise `UserError` unless all datasets have a column of text.

        A shard stands for its dataset: the first one or, under quarantine, the first that can be read.
        """
        for dataset in self.plan.datasets:
            for number in range(len(dataset.shards())):
                try:
                    dataset.require_text(column, number)
                    break
                except DamagedShardError:
                    if self._quarantine is None:
                        raise

    def are_heldout(self, locations: SampleLocations) -> Mask:
        """Return which samples are in the held-out fraction of their dataset, by their keys.

        Keys are read from the captions' files, so that no codes are fetched for them. Raises as
        `texts_or_stop`.
        """
        are_heldout = np.zeros(len(locations.samples), bool)
        if not self.plan.heldout_fraction:
            return are_heldout
        for source, positions in group_by_source(locations.sources):
            dataset = self.plan.datasets[source]
            rows = locations.rows[positions]
            numbers = dataset.shards_of(rows)
            for number in np.unique(numbers).tolist():
                in_shard = numbers == number
                rows_of_shard = rows[in_shard] - int(dataset.bounds()[number])
                of_shard = self._heldout_rows(source, number)
                are_heldout[positions[in_shard]] = of_shard[rows_of_shard]
        return are_heldout

    def _heldout_rows(self, source: int, number: int) -> Mask:
        """Return which rows of a shard are held out."""
        dataset = self.plan.datasets[source]
        shard = (source, number)
        if shard not in self._heldout_bits:
            try:
                keys = dataset.read_meta(number, ["key"])["key"].to_pylist()
            except DamagedShardError as error:
                error.shard = (dataset.url, number)
                self._record(error)
                raise
            self._heldout_bits[shard] = np.packbits(self.are_keys_heldout(keys))
        _, num_rows = dataset.shard_name(number)
        return np.unpackbits(self._heldout_bits[shard], count=num_rows).astype(bool)

    def are_keys_heldout(self, keys: Sequence[bytes]) -> Mask:
        """Return which keys are those of held-out samples."""
        return key_fractions(keys) < self.plan.heldout_fraction

    def key(self, source: int, row: int) -> str:
        """Return the key of a row, hexadecimal; raises `DamagedShardError`."""
        dataset = self.plan.datasets[source]
        number = int(dataset.shards_of(np.array([row]))[0])
        keys = dataset.read_meta(number, ["key"])["key"]
        return keys[row - int(dataset.bounds()[number])].as_py().hex()

    def row_name(self, source: int, row: int) -> str:
        """Return a row's name in error messages: its dataset, shard and place there, 0 the first."""
        dataset = self.plan.datasets[source]
        number = int(dataset.shards_of(np.array([row]))[0])
        shard, _ = dataset.shard_name(number)
        return f"{dataset.url}, shard {shard}, row {row - int(dataset.bounds()[number])}"

    # The same under quarantine.

    def read_available(self, locations: SampleLocations) -> tuple[SampleLocations, TokenRows]:
        """Read as `read`; under quarantine, samples of damaged shards are left out."""
        return self._read_available(self.read, locations, captions=False)

    def texts_available(
        self, locations: SampleLocations, column: str = CAPTION
    ) -> tuple[SampleLocations, list[str]]:
        """Read as `texts`; under quarantine, samples of damaged shards are left out."""
        return self._read_available(lambda some: self.texts(some, column), locations, captions=True)

    def _read_available(
        self, read: Callable[[SampleLocations], Values], locations: SampleLocations, *, captions: bool
    ) -> tuple[SampleLocations, Values]:
        if self._quarantine is None:
            return locations, read(locations)
        while True:
            is_lost = self._lost(self._quarantine, locations, captions=captions)
            locations = locations.select(~is_lost)
            try:
                return locations, read(locations)
            except DamagedShardError as error:
                # Each try finds one damaged shard at least, so this ends.
                self._quarantine.add(error, captions=captions)

    def texts_or_stop(
        self, locations: SampleLocations, column: str = CAPTION
    ) -> tuple[SampleLocations, list[str]]:
        """Read as `texts`, of all samples; under quarantine, a damaged shard is recorded in the ledger.

        Raises `DamagedShardError` in either case.
        """
        try:
            return locations, self.texts(locations, column)
        except DamagedShardError as error:
            self._record(error)
            raise

    def _record(self, error: DamagedShardError) -> None:
        """Note under quarantine, in the ledger and beside the error, that a shard's captions are damaged."""
        if self._quarantine is None:
            return
        self._quarantine.add(error, captions=True)
        error.add_note(
            f"{self._quarantine.ledger} names it now: repair it and take the line out, "
            "or go on without it from the last state. "
            "The captions' lengths decide the sequences of all ranks, which must be the same ones."
        )

    def captions_lost_at_start(self, locations: SampleLocations) -> Mask:
        """Return which captions the ledger named as lost when the run began.

        The answer is the same on all ranks that began together.
        """
        if self._quarantine is None:
            return np.zeros(len(locations.samples), bool)
        return self._lost(self._quarantine, locations, captions=True, at_start=True)

    def _lost(
        self, quarantine: Quarantine, locations: SampleLocations, *, captions: bool, at_start: bool = False
    ) -> Mask:
        is_lost = np.zeros(len(locations.samples), bool)
        for source, positions in group_by_source(locations.sources):
            dataset = self.plan.datasets[source]
            rows = locations.rows[positions]
            is_lost[positions] = quarantine.lost(dataset, rows, captions=captions, at_start=at_start)
        return is_lost


def group_by_source(sources: Rows) -> Iterator[tuple[int, Rows]]:
    """Yield each source with the positions at which it stands in `sources`."""
    for source in np.unique(sources).tolist():
        yield source, np.flatnonzero(sources == source)


@lru_cache(maxsize=64)
def _permutation(size: int, seed: int, epoch: int, name: str) -> FeistelPermutation:
    return FeistelPermutation(size, seed, epoch, name)
