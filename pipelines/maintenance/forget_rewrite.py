"""Writes one unit of each stage again without some samples, in the bytes that the stage would have written without them.

In an image shard a sample's row stays, emptied, with the reason `forgotten`, so that its ledger closes and the names of the others
stay; everywhere after that its rows are gone.
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
from dualtoken.pipelines.images.shards import read_metadata, shard_files
from dualtoken.pipelines.tokens.audit import CodeCounter
from dualtoken.pipelines.tokens.captions import shares_captions
from dualtoken.pipelines.tokens.facts import STREAMS, ByDepth, ShardAudit, TokenFacts
from dualtoken.pipelines.tokens.shards import (
    codes_of,
    data_path,
    read_data_shard,
    schema_metadata,
    write_data_shard,
)

Keys = frozenset[bytes]


class Rewritten(NamedTuple):
    """A unit's files in scratch."""

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

    def addresses(self, store: Store, shard: str) -> Iterable[tuple[bytes, str | None]]:  # noqa: ARG002
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
        return (key for key, reason in rows if reason != FORGOTTEN)

    def files(self, shard: str) -> Sequence[str]:
        """Return the names of a shard's files."""
        return shard_files(shard)

    def rewrite(
        self, job: StageJob, receipt: Receipt, shards: Sequence[str], keys: Keys, scratch: Path
    ) -> Rewritten:
        """Write the unit's shards without the samples that have these keys."""
        (shard,), store = shards, job.store()
        tar, parquet = (store.local_copy(name, scratch / "before") for name in shard_files(shard)[:2])
        drop_samples(tar, read_metadata(parquet), keys, scratch, shard)
        ledger = _ledger(store, receipt)
        verdicts = [forgotten_verdict(row) if row["key"] in keys else row for row in ledger.to_pylist()]
        return Rewritten(
            shard_files(shard), pa.Table.from_pylist(verdicts, schema=LEDGER_SCHEMA), receipt.facts
        )

    def addresses(self, store: Store, shard: str) -> Iterable[tuple[bytes, str | None]]:
        """Return each sample's address."""
        return _addresses(store, f"{shard}.parquet", "sample_key")


def forgotten_verdict(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the ledger's row of a sample that is not there any more."""
    return {"key": row["key"], "status": Status.FORGOTTEN.value, "reason": "", "detail": ""}


class TableRewriter(Rewriter):
    """A stage whose shard is one table that has a column of keys."""

    def __init__(self, suffix: str) -> None:
        self._suffix = suffix

    def keys(self, store: Store, shard: str) -> Iterable[bytes]:
        """Return the keys of the samples that a shard holds."""
        if self._suffix == "parquet":
            return read_table(store, f"{shard}.parquet", ["key"])["key"].to_pylist()
        return _ledger_keys(store, shard)

    def files(self, shard: str) -> Sequence[str]:
        """Return the names of a shard's files."""
        return (f"{shard}.{self._suffix}",)

    def rewrite(
        self, job: StageJob, receipt: Receipt, shards: Sequence[str], keys: Keys, scratch: Path
    ) -> Rewritten:
        """Write the unit's shards without the samples that have these keys."""
        store = job.store()
        for shard in shards:
            name = f"{shard}.{self._suffix}"
            if self._suffix == "parquet":
                pq.write_table(_without(read_table(store, name), keys), scratch / name, compression="zstd")
            else:
                table = _without(read_data_shard(store.local_copy(name, scratch / "before")), keys)
                with (
                    pa.OSFile(str(scratch / name), "wb") as sink,
                    pa.ipc.new_file(sink, table.schema) as writer,
                ):
                    writer.write_table(table, max_chunksize=job.recipe.targets.batch_size)
        files = tuple(f"{shard}.{self._suffix}" for shard in shards)
        return Rewritten(
            files, _without(_ledger(store, receipt), keys), _shard_facts(receipt, shards, scratch)
        )


def _shard_facts(receipt: Receipt, shards: Sequence[str], scratch: Path) -> Mapping[str, Any]:
    """Return a decision's counts by shard anew; other stages have none."""
    rows_by_shard = FilterFacts.of(receipt).rows_by_shard
    if rows_by_shard is None:
        return receipt.facts
    kept = {shard: sum(pq.read_table(scratch / f"{shard}.parquet")["keep"].to_pylist()) for shard in shards}
    return receipt.facts | FilterFacts({**rows_by_shard, **kept}).to_json()


class DecisionRewriter(TableRewriter):
    """The filter's decisions: its one unit wrote a file per shard."""

    def shards(self, store: Store) -> list[str]:
        """Return the names of the decided shards."""
        names = [name for name, _ in store.files() if "/" not in name and name.endswith(".parquet")]
        return sorted(name.removesuffix(".parquet") for name in names)

    def units(self, shards: Sequence[str]) -> dict[str, list[str]]:
        """Return all shards as the filter's one unit."""
        return {"all": list(shards)}


class CodesRewriter(Rewriter):
    """A token dataset whose captions are another one's, which is rewritten before it."""

    def keys(self, store: Store, shard: str) -> Iterable[bytes]:
        """Return the keys of the samples that a shard holds."""
        return _ledger_keys(store, shard)

    def files(self, shard: str) -> Sequence[str]:
        """Return the names of a shard's files."""
        return (data_path(shard),)

    def rewrite(
        self, job: StageJob, receipt: Receipt, shards: Sequence[str], keys: Keys, scratch: Path
    ) -> Rewritten:
        """Write the unit's shards without the samples that have these keys."""
        (shard,), store = shards, job.store()
        data, *others = self.files(shard)
        path = store.local_copy(data, scratch / "before")
        # A kill between data and receipt leaves other rows than those that the receipt's audit looked at.
        same = any(file.sha256 == digest(path).sha256 for file in receipt.files if file.name == data)
        before = read_data_shard(path)
        stays = [row for row, key in enumerate(before["key"].to_pylist()) if key not in keys]
        table = before.take(pa.array(stays, pa.int64()))
        semantic, pixel = (codes_of(table, stream) for stream in STREAMS)
        write_data_shard(scratch / data, before.schema, table["key"].to_pylist(), semantic, pixel)
        for meta in others:
            (scratch / meta).parent.mkdir()
            pq.write_table(_without(read_table(store, meta), keys), scratch / meta, compression="zstd")
        facts = _token_facts(receipt, table, stays if same else None)
        return Rewritten((data, *others), _without(_ledger(store, receipt), keys), facts)

    def needs(self, record: StageRecord, folders: Mapping[str, str]) -> list[NeededFile]:
        """Return the tokenizer, and the dataset that captions are shared with."""
        needed = [NeededFile("its tokenizer", folders["train"], MANIFEST_FILE)]
        if shares_captions(record):
            needed.append(NeededFile("its captions", folders[f"{record.stage}/{record.corpus}"], STAGE_FILE))
        return needed


class TokenShardRewriter(CodesRewriter):
    """A token dataset with its captions."""

    def keys(self, store: Store, shard: str) -> Iterable[bytes]:
        """Return the keys of the samples that a shard holds."""
        return {
            *_ledger_keys(store, shard),
            *read_table(store, f"meta/{shard}.parquet", ["key"])["key"].to_pylist(),
        }

    def files(self, shard: str) -> Sequence[str]:
        """Return the names of a shard's files."""
        return (*super().files(shard), f"meta/{shard}.parquet")

    def addresses(self, store: Store, shard: str) -> Iterable[tuple[bytes, str | None]]:
        """Return each row's address, which stands beside its caption."""
        return _addresses(store, f"meta/{shard}.parquet", "key")


def _token_facts(receipt: Receipt, table: pa.Table, stays: list[int] | None) -> dict[str, Any]:
    """Return what a receipt says of a token shard's codes, of the rows that stay; None where it speaks of another file's rows."""
    metadata = schema_metadata(table.schema)
    before = TokenFacts.of(receipt)
    usage: dict[str, ByDepth] = {}
    perplexity: dict[str, ByDepth] = {}
    for stream in STREAMS:
        tally = CodeCounter(int(metadata["dualtoken.depth"]), int(metadata[f"dualtoken.{stream}_codes"]))
        tally.add(codes_of(table, stream))
        usage[stream] = tally.usage()
        perplexity[stream] = tally.perplexity()
    audit = None
    if before.audit is not None:
        places = {row: place for place, row in enumerate(stays or ())}
        ratios = zip(before.audit.looked_at, before.audit.psnr, strict=True)
        left = {places[row]: ratio for row, ratio in ratios if row in places}
        audit = ShardAudit(
            rows=len(table), looked_at=list(left), psnr=list(left.values()), perplexity=perplexity
        )
    rows = None if before.rows is None else len(table)
    after = replace(before, usage=usage, audit=audit, rows=rows)
    return dict(receipt.facts) | after.to_json()


def _ledger(store: Store, receipt: Receipt) -> pa.Table:
    return read_table(store, f"{LEDGERS}/{receipt.unit}.parquet")


def _ledger_keys(store: Store, unit: str) -> list[bytes]:
    return read_table(store, f"{LEDGERS}/{unit}.parquet", ["key"])["key"].to_pylist()


def _without(table: pa.Table, keys: Keys) -> pa.Table:
    stays = [row for row, key in enumerate(table["key"].to_pylist()) if key not in keys]
    return table.take(pa.array(stays, pa.int64())).combine_chunks()


def _addresses(store: Store, name: str, key_column: str) -> list[tuple[bytes, str | None]]:
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
    return TableRewriter("parquet")


def arrow_rows(_: StageRecord) -> Rewriter:
    """Return the rewriter of a stage whose shards are Arrow files with a column `key`."""
    return TableRewriter("arrow")


def decisions(_: StageRecord) -> Rewriter:
    """Return the rewriter of the filter's decisions."""
    return DecisionRewriter("parquet")


def token_shards(record: StageRecord) -> Rewriter:
    """Return the rewriter of a token dataset, with captions of its own or another dataset's."""
    if shares_captions(record):
        return CodesRewriter()
    return TokenShardRewriter()
