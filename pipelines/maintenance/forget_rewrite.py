"""Writes units again without some samples, in the bytes that their stage would have written without them.

In an image shard a sample's row stays, emptied, with the reason `forgotten`, so that its ledger closes and
the names of the others stay. In every stage after that its rows are gone.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from dualtoken.infra.digests import digest
from dualtoken.infra.storage import Store
from dualtoken.pipelines.core.ledger import LEDGER_SCHEMA, Status
from dualtoken.pipelines.core.receipts import (
    LEDGERS,
    MANIFEST_FILE,
    STAGE_FILE,
    Receipt,
    StageRecord,
    done_units,
)
from dualtoken.pipelines.core.stage import StageJob
from dualtoken.pipelines.core.tables import read_table
from dualtoken.pipelines.core.tombstones import FORGOTTEN
from dualtoken.pipelines.curation.facts import FilterFacts
from dualtoken.pipelines.images.drop_samples import drop_samples
from dualtoken.pipelines.images.shard_tables import read_metadata
from dualtoken.pipelines.images.shards import shard_files
from dualtoken.pipelines.tokens.audit import CodeCounter
from dualtoken.pipelines.tokens.captions import own_meta_path, shares_captions
from dualtoken.pipelines.tokens.facts import STREAMS, ByDepth, ShardAudit, TokenFacts
from dualtoken.pipelines.tokens.shards import (
    codes_of,
    data_path,
    read_data_shard,
    schema_metadata,
    write_data_shard,
)

Keys = frozenset[bytes]
"""Keys of the samples to forget."""


class Rewritten(NamedTuple):
    """A unit's files in scratch, with its ledger and its receipt's facts."""

    files: tuple[str, ...]
    ledger: pa.Table
    facts: Mapping[str, Any]


class NeededFile(NamedTuple):
    """A file of another folder, without which a folder cannot be finished again."""

    what: str
    """Name for people, such as `its tokenizer`."""
    folder: str
    file: str


class Rewriter(ABC):
    """Reads and rewrites one stage's shards; by default a unit has one shard, and nothing else is needed."""

    @abstractmethod
    def keys(self, store: Store, shard: str) -> Iterable[bytes]:
        """Return the keys of the samples that a shard holds."""

    @abstractmethod
    def files(self, shard: str) -> Sequence[str]:
        """Return the names of a shard's files."""

    @abstractmethod
    def rewrite(
        self, job: StageJob, receipt: Receipt, shards: Sequence[str], keys: Keys, scratch: Path
    ) -> Rewritten:
        """Write shards of a unit without the samples that have these keys."""

    def shards(self, store: Store) -> list[str]:
        """Return the names of a folder's shards."""
        return sorted(done_units(store))

    def units(self, shards: Sequence[str]) -> dict[str, list[str]]:
        """Return shards by the unit that wrote them."""
        return {shard: [shard] for shard in shards}

    def addresses(self, store: Store, shard: str) -> Iterable[tuple[bytes, str | bytes | None]]:  # noqa: ARG002
        """Return (key, address) of a shard's samples, where the stage keeps addresses."""
        return ()

    def needs(self, record: StageRecord, folders: Mapping[str, str]) -> list[NeededFile]:  # noqa: ARG002
        """Return what must be there for a folder to be finished again; `folders` are its inputs', by name."""
        return []


class ImageShardRewriter(Rewriter):
    """Image shards: a forgotten sample's row stays, emptied."""

    def keys(self, store: Store, shard: str) -> Iterable[bytes]:
        """Return the keys of the samples that a shard holds."""
        table = read_table(store, f"{shard}.parquet", ["sample_key", "reason"])
        rows = zip(table["sample_key"].to_pylist(), table["reason"].to_pylist(), strict=True)
        return [key for key, reason in rows if reason != FORGOTTEN]

    def files(self, shard: str) -> Sequence[str]:
        """Return the names of a shard's files."""
        return shard_files(shard)

    def rewrite(
        self, job: StageJob, receipt: Receipt, shards: Sequence[str], keys: Keys, scratch: Path
    ) -> Rewritten:
        """Write the unit's shard without the samples that have these keys."""
        (shard,) = shards
        store = job.store()
        files = shard_files(shard)
        tar_name, table_name, *_ = files
        tar = store.local_copy(tar_name, scratch / "before")
        table = store.local_copy(table_name, scratch / "before")
        drop_samples(tar, read_metadata(table), keys, scratch, shard)
        rows: list[dict[str, Any]] = []
        for row in _read_ledger(store, receipt.unit).to_pylist():
            rows.append(forgotten_verdict(row) if row["key"] in keys else row)
        return Rewritten(files, pa.Table.from_pylist(rows, schema=LEDGER_SCHEMA), receipt.facts)

    def addresses(self, store: Store, shard: str) -> Iterable[tuple[bytes, str | bytes | None]]:
        """Return each sample's address."""
        return _read_addresses(store, f"{shard}.parquet", "sample_key")


def forgotten_verdict(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the ledger's row of a sample that is not there any more."""
    return {"key": row["key"], "status": Status.FORGOTTEN.value, "reason": "", "detail": ""}


class ParquetRewriter(Rewriter):
    """A stage whose shard is one Parquet table with a column of keys, such as the scores."""

    def keys(self, store: Store, shard: str) -> Iterable[bytes]:
        """Return the keys of the samples that a shard holds."""
        return _read_keys(store, f"{shard}.parquet")

    def files(self, shard: str) -> Sequence[str]:
        """Return the names of a shard's files."""
        return (f"{shard}.parquet",)

    def rewrite(
        self, job: StageJob, receipt: Receipt, shards: Sequence[str], keys: Keys, scratch: Path
    ) -> Rewritten:
        """Write the unit's shards without the samples that have these keys."""
        store = job.store()
        files = tuple(f"{shard}.parquet" for shard in shards)
        for name in files:
            _write_parquet(_without(read_table(store, name), keys), scratch / name)
        ledger = _without(_read_ledger(store, receipt.unit), keys)
        return Rewritten(files, ledger, self._facts(receipt, shards, scratch))

    def _facts(self, receipt: Receipt, shards: Sequence[str], scratch: Path) -> Mapping[str, Any]:
        """Return the receipt's facts for the shards as they are in scratch now."""
        del shards, scratch
        return receipt.facts


class DecisionRewriter(ParquetRewriter):
    """The filter: its one unit holds all shards of a corpus, and its receipt counts what each keeps."""

    def _facts(self, receipt: Receipt, shards: Sequence[str], scratch: Path) -> Mapping[str, Any]:
        rows_by_shard = FilterFacts.of(receipt).rows_by_shard
        if rows_by_shard is None:
            return receipt.facts
        counts = dict(rows_by_shard)
        for shard in shards:
            decision = pq.read_table(scratch / f"{shard}.parquet")
            counts[shard] = sum(decision["keep"].to_pylist())
        return receipt.facts | FilterFacts(counts).to_json()

    def shards(self, store: Store) -> list[str]:
        """Return the names of the decided shards."""
        names = [name for name, _ in store.files() if "/" not in name and name.endswith(".parquet")]
        return sorted(name.removesuffix(".parquet") for name in names)

    def units(self, shards: Sequence[str]) -> dict[str, list[str]]:
        """Return all shards as the filter's one unit."""
        return {"all": list(shards)}


class TargetsRewriter(Rewriter):
    """The teacher's targets, whose shard is one Arrow file with a column of keys."""

    def keys(self, store: Store, shard: str) -> Iterable[bytes]:
        """Return the keys of the samples that a shard holds."""
        return _ledger_keys(store, shard)

    def files(self, shard: str) -> Sequence[str]:
        """Return the names of a shard's files."""
        return (f"{shard}.arrow",)

    def rewrite(
        self, job: StageJob, receipt: Receipt, shards: Sequence[str], keys: Keys, scratch: Path
    ) -> Rewritten:
        """Write the unit's shards without the samples that have these keys."""
        store = job.store()
        files = tuple(f"{shard}.arrow" for shard in shards)
        for name in files:
            before = read_data_shard(store.local_copy(name, scratch / "before"))
            table = _without(before, keys)
            with (
                pa.OSFile(str(scratch / name), "wb") as sink,
                pa.ipc.new_file(sink, table.schema) as writer,
            ):
                writer.write_table(table, max_chunksize=job.recipe.targets.batch_size)
        return Rewritten(files, _without(_read_ledger(store, receipt.unit), keys), receipt.facts)


class CodesRewriter(Rewriter):
    """A token dataset that shares another one's captions; that one is rewritten before it."""

    def keys(self, store: Store, shard: str) -> Iterable[bytes]:
        """Return the keys of the samples that a shard holds."""
        return _ledger_keys(store, shard)

    def files(self, shard: str) -> Sequence[str]:
        """Return the names of a shard's files."""
        return (data_path(shard),)

    def rewrite(
        self, job: StageJob, receipt: Receipt, shards: Sequence[str], keys: Keys, scratch: Path
    ) -> Rewritten:
        """Write the unit's shard without the samples that have these keys."""
        (shard,) = shards
        store = job.store()
        data = data_path(shard)
        path = store.local_copy(data, scratch / "before")
        # A kill between data and receipt leaves other rows than those that the receipt's audit looked at.
        is_audited = _is_recorded(receipt, data, path)
        before = read_data_shard(path)
        kept = _kept_rows(before, keys)
        table = before.take(pa.array(kept, pa.int64()))
        write_data_shard(
            scratch / data,
            before.schema,
            table["key"].to_pylist(),
            codes_of(table, "semantic"),
            codes_of(table, "pixel"),
        )
        self._rewrite_captions(store, shard, keys, scratch)
        facts = _token_facts(receipt, table, kept if is_audited else [])
        ledger = _without(_read_ledger(store, receipt.unit), keys)
        return Rewritten(tuple(self.files(shard)), ledger, facts)

    def _rewrite_captions(self, store: Store, shard: str, keys: Keys, scratch: Path) -> None:
        """Write nothing: the captions are another dataset's."""

    def needs(self, record: StageRecord, folders: Mapping[str, str]) -> list[NeededFile]:
        """Return the tokenizer, and the dataset that captions are shared with."""
        needed = [NeededFile("its tokenizer", folders["train"], MANIFEST_FILE)]
        if shares_captions(record):
            needed.append(NeededFile("its captions", folders[f"{record.stage}/{record.corpus}"], STAGE_FILE))
        return needed


class TokenShardRewriter(CodesRewriter):
    """A token dataset with captions of its own."""

    def keys(self, store: Store, shard: str) -> Iterable[bytes]:
        """Return the keys of the samples that a shard holds."""
        return {*super().keys(store, shard), *_read_keys(store, own_meta_path(shard))}

    def files(self, shard: str) -> Sequence[str]:
        """Return the names of a shard's files."""
        return (*super().files(shard), own_meta_path(shard))

    def _rewrite_captions(self, store: Store, shard: str, keys: Keys, scratch: Path) -> None:
        name = own_meta_path(shard)
        (scratch / name).parent.mkdir()
        _write_parquet(_without(read_table(store, name), keys), scratch / name)

    def addresses(self, store: Store, shard: str) -> Iterable[tuple[bytes, str | bytes | None]]:
        """Return each row's address, which stands beside its caption."""
        return _read_addresses(store, own_meta_path(shard), "key")


def _is_recorded(receipt: Receipt, name: str, path: Path) -> bool:
    """Tell whether a file is the one that a receipt names."""
    sha256 = digest(path).sha256
    return any(file.name == name and file.sha256 == sha256 for file in receipt.files)


def _token_facts(receipt: Receipt, table: pa.Table, kept: Sequence[int]) -> dict[str, Any]:
    """Return the facts of a token shard's receipt for the rows that are left.

    `kept` are those rows' numbers in the shard that the receipt speaks of; none where it speaks of another
    file.
    """
    metadata = schema_metadata(table.schema)
    depth = int(metadata["dualtoken.depth"])
    usage: dict[str, ByDepth] = {}
    perplexity: dict[str, ByDepth] = {}
    for stream in STREAMS:
        counter = CodeCounter(depth, int(metadata[f"dualtoken.{stream}_codes"]))
        counter.add(codes_of(table, stream))
        usage[stream] = counter.usage()
        perplexity[stream] = counter.perplexity()

    before = TokenFacts.of(receipt)
    after = replace(before, usage=usage)
    if before.rows is not None:
        after = replace(after, rows=len(table))
    if before.audit is not None:
        ratios = _kept_ratios(before.audit, kept)
        audit = ShardAudit(
            rows=len(table), looked_at=list(ratios), psnr=list(ratios.values()), perplexity=perplexity
        )
        after = replace(after, audit=audit)
    return dict(receipt.facts) | after.to_json()


def _kept_ratios(audit: ShardAudit, kept: Sequence[int]) -> dict[int, float]:
    """Return the PSNR of the rows that were looked at and are left, by their new number."""
    new_rows = {row: new_row for new_row, row in enumerate(kept)}
    ratios: dict[int, float] = {}
    for row, ratio in zip(audit.looked_at, audit.psnr, strict=True):
        if row in new_rows:
            ratios[new_rows[row]] = ratio
    return ratios


def _read_ledger(store: Store, unit: str) -> pa.Table:
    return read_table(store, f"{LEDGERS}/{unit}.parquet")


def _ledger_keys(store: Store, unit: str) -> list[bytes]:
    return _read_keys(store, f"{LEDGERS}/{unit}.parquet")


def _read_keys(store: Store, name: str) -> list[bytes]:
    return read_table(store, name, ["key"])["key"].to_pylist()


def _write_parquet(table: pa.Table, path: Path) -> None:
    pq.write_table(table, path, compression="zstd")


def _without(table: pa.Table, keys: Keys) -> pa.Table:
    """Return a table without the rows of some samples."""
    return table.take(pa.array(_kept_rows(table, keys), pa.int64())).combine_chunks()


def _kept_rows(table: pa.Table, keys: Keys) -> list[int]:
    """Return the numbers of the rows that are not of these samples."""
    return [row for row, key in enumerate(table["key"].to_pylist()) if key not in keys]


def _read_addresses(store: Store, name: str, key_column: str) -> list[tuple[bytes, str | bytes | None]]:
    """Return (key, address) of a table's rows; other people's shards may have no addresses."""
    table = read_table(store, name, [key_column, "url"])
    if "url" not in table.column_names:
        return []
    return list(zip(table[key_column].to_pylist(), table["url"].to_pylist(), strict=True))


def image_shards(_: StageRecord) -> Rewriter:
    """Return the rewriter of image shards."""
    return ImageShardRewriter()


def parquet_rows(_: StageRecord) -> Rewriter:
    """Return the rewriter of a stage whose shards are Parquet tables with a column `key`."""
    return ParquetRewriter()


def decisions(_: StageRecord) -> Rewriter:
    """Return the rewriter of the filter's decisions."""
    return DecisionRewriter()


def targets(_: StageRecord) -> Rewriter:
    """Return the rewriter of the teacher's targets."""
    return TargetsRewriter()


def token_shards(record: StageRecord) -> Rewriter:
    """Return the rewriter of a token dataset, with captions of its own or another dataset's."""
    if shares_captions(record):
        return CodesRewriter()
    return TokenShardRewriter()
