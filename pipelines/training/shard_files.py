"""Files of the image shards that a training reads: checked, copied where they are remote, and opened.

A receipt, which says what a shard's files must be, is read when the shard is first opened.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

from dualtoken.infra.storage import Store
from dualtoken.pipelines.core.receipts import DamagedRecordError, FileRecord, Receipt, receipt_name
from dualtoken.pipelines.core.stage import StageJob
from dualtoken.pipelines.errors import UserError
from dualtoken.pipelines.images.samples import is_heldout
from dualtoken.pipelines.images.shards import ImageShard, shard_files
from dualtoken.pipelines.tokens.checked_files import CheckedFiles, DamagedShardError
from dualtoken.pipelines.tokens.shard_cache import ShardCache
from dualtoken.pipelines.tokens.shards import read_data_shard
from dualtoken.pipelines.training.open_shard import OpenShard, OpenTar
from dualtoken.pipelines.training.row_table import RowTable, map_row_table, write_row_table
from dualtoken.pipelines.training.sample_index import SampleIndex, Selection, kept_keys
from dualtoken.pipelines.training.stored_targets import require_mode

_TRIES = 3
_RECORDS_KEPT = 4096
"""Shards whose records are kept in memory, about a kilobyte each."""


class ShardRecords(NamedTuple):
    """What a shard's files must be, by the receipts of the stages that wrote them."""

    tar: FileRecord
    table: FileRecord
    targets: FileRecord | None

    @property
    def bytes(self) -> int:
        """Bytes of all files."""
        return self.tar.bytes + self.table.bytes + (self.targets.bytes if self.targets else 0)


@dataclass(frozen=True, slots=True)
class CorpusFiles:
    """The folders of one corpus."""

    images: CheckedFiles
    targets: CheckedFiles | None

    @property
    def are_local(self) -> bool:
        """Whether no file has to be copied."""
        return self.images.is_local and (self.targets is None or self.targets.is_local)


class ShardFiles:
    """Opens shards by their number in the index; may be called by several threads."""

    def __init__(self, job: StageJob, index: SampleIndex, cache: ShardCache, samples: Selection) -> None:
        """Open nothing yet. Captions are read of samples as they were downloaded."""
        self._job = job
        self._index = index
        self._cache = cache
        self._samples: Selection = samples
        self._with_captions = samples == "download"
        self._corpora = _corpus_files(job, cache, with_targets=samples == "targets")
        self.records: Callable[[int], ShardRecords] = lru_cache(_RECORDS_KEPT)(self._read_records)
        """Returns what a shard's files must be; raises `DamagedShardError`."""

    @property
    def are_local(self) -> bool:
        """Whether no file has to be copied."""
        return all(files.are_local for files in self._corpora.values())

    def open(self, number: int) -> OpenShard:
        """Check and open a shard; raises `DamagedShardError`, once a remote one was fetched again."""
        corpus, shard = self._index.name(number)
        files = self._corpora[corpus]
        records = self.records(number)
        tar = files.images.open(files.images.store(), records.tar, OpenTar)
        targets = None
        if files.targets is not None:
            assert records.targets is not None
            targets = files.targets.open(files.targets.store(), records.targets, read_data_shard)
            stored = self._job.recipe.targets.stored
            assert stored is not None
            require_mode(targets.schema, stored, f"{files.targets.url}/{records.targets.name}")
        keys: Callable[[], list[bytes]] | None = None
        if targets is not None:
            keys = targets["key"].to_pylist
        elif self._samples == "filter":
            keys = partial(kept_keys, self._job, corpus, shard)
        rows = self._row_table(corpus, files.images, records, keys)
        expected = self._index.num_samples(number)
        if len(rows) != expected:
            problem = f"{len(rows)} samples, the index says {expected}"
            raise DamagedShardError.of(files.images.url, records.tar.name, problem)
        return OpenShard(files.images.url, records.tar.name, tar, rows, targets)

    def _row_table(
        self,
        corpus: str,
        images: CheckedFiles,
        records: ShardRecords,
        keys: Callable[[], list[bytes]] | None,
    ) -> RowTable:
        """Map a shard's table, which the first process that needs it writes into the cache."""
        name = self._row_table_name(records)

        def write(scratch: Path) -> Path:
            path = scratch / "rows.arrow"
            listed = keys() if keys is not None else None
            with ImageShard(tar, table) as shard:
                write_row_table(
                    path,
                    shard,
                    listed,
                    lambda key: is_heldout(self._job.recipe, corpus, key),
                    with_captions=self._with_captions,
                )
            return path

        store = images.store()
        for _ in range(_TRIES):
            # Paths are looked up before the cache is asked for the table: it holds a lock while one is made.
            tar = images.open(store, records.tar, _path)
            table = images.open(store, records.table, _path)
            try:
                return map_row_table(self._cache.get(name, write))
            except FileNotFoundError:
                continue  # evicted meanwhile
            except UserError as error:
                raise DamagedShardError.of(images.url, records.tar.name, str(error)) from None
        raise OSError(
            f"{self._cache.folder}: files go before they are read: raise reader.cache_gb="
            f"{self._job.recipe.reader.cache_gb:g}"
        )

    def _row_table_name(self, records: ShardRecords) -> str:
        """Name a table by all that decides it."""
        heldout = self._job.recipe.heldout.identity()
        parts = [records.tar.xxh3_128, records.table.xxh3_128, str(heldout), self._index.identity]
        if records.targets is not None:
            parts.append(records.targets.xxh3_128)
        return blake2b("\0".join(parts).encode(), digest_size=16).hexdigest()

    def _read_records(self, number: int) -> ShardRecords:
        corpus, shard = self._index.name(number)
        files = self._corpora[corpus]
        tar, table, _ = shard_files(shard)
        images = _recorded_files(files.images.store(), shard, (tar, table))
        targets = None
        if files.targets is not None:
            name = f"{shard}.arrow"
            targets = _recorded_files(files.targets.store(), shard, (name,))[name]
        return ShardRecords(images[tar], images[table], targets)


def _path(path: Path) -> Path:
    return path


def _corpus_files(job: StageJob, cache: ShardCache, *, with_targets: bool) -> dict[str, CorpusFiles]:
    check = job.recipe.reader.check
    corpora: dict[str, CorpusFiles] = {}
    for corpus in job.recipe.training_corpora:
        targets = None
        if with_targets:
            targets = CheckedFiles(job.input("targets", corpus).url, check, cache)
        images = CheckedFiles(job.input("download", corpus).url, check, cache)
        corpora[corpus] = CorpusFiles(images, targets)
    return corpora


def _recorded_files(store: Store, unit: str, names: tuple[str, ...]) -> Mapping[str, FileRecord]:
    """Return the records of a unit's files by name; raises `DamagedShardError` where they are lost."""
    try:
        receipt = Receipt.read(store, receipt_name(unit))
    except (FileNotFoundError, DamagedRecordError):
        raise DamagedShardError.of(
            store.url, receipt_name(unit), "missing, or not as it was written"
        ) from None
    records = {file.name: file for file in receipt.files}
    for name in names:
        if name not in records:
            raise DamagedShardError.of(store.url, receipt_name(unit), f"it names no {name}")
    return records
