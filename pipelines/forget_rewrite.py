"""Writes one unit of each stage again without some samples, in the bytes that the stage would have written without them.

In an image shard a sample's row stays, emptied, with the reason `forgotten`, so that its ledger closes and the names of the others
stay; everywhere after that its rows are gone.
"""

import tarfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from infra.storage import Store
from pipelines.captions import borrows
from pipelines.image_shards import FAILED_TO_DOWNLOAD, SHARD_COLUMNS, read_metadata, shard_files, write_metadata
from pipelines.ledger import LEDGER_SCHEMA, Status
from pipelines.receipts import LEDGERS, Receipt, StageRecord
from pipelines.stage import StageJob
from pipelines.token_shards import STREAMS, codes_of, read_data_shard, write_data_shard
from pipelines.tombstones import FORGOTTEN

Keys = frozenset[bytes]


class Rewritten(NamedTuple):
    """A unit's files in scratch."""

    files: tuple[str, ...]
    ledger: pa.Table
    facts: Mapping[str, Any]


class Rewriter(Protocol):
    """How one stage's shards are read and written."""

    def keys(self, store: Store, shard: str) -> Iterable[bytes]:
        """Return the keys of the samples that a shard holds."""
        ...

    def files(self, shard: str) -> Sequence[str]:
        """Return the names of a shard's files."""
        ...

    def rewrite(self, job: StageJob, receipt: Receipt, shards: Sequence[str], keys: Keys, scratch: Path) -> Rewritten:
        """Write shards of a unit without the samples that have these keys."""
        ...


class _Images:
    def keys(self, store: Store, shard: str) -> Iterable[bytes]:
        table = _read(store, f"{shard}.parquet", ["sample_key", "reason"])
        rows = zip(table["sample_key"].to_pylist(), table["reason"].to_pylist(), strict=True)
        return (key for key, reason in rows if reason != FORGOTTEN)

    def files(self, shard: str) -> Sequence[str]:
        return shard_files(shard)

    def rewrite(self, job: StageJob, receipt: Receipt, shards: Sequence[str], keys: Keys, scratch: Path) -> Rewritten:
        (shard,), store = shards, job.store()
        tar, parquet = (store.local_copy(name, scratch / "before") for name in shard_files(shard)[:2])
        drop_images(tar, read_metadata(parquet), keys, scratch, shard)
        ledger = _ledger(store, receipt)
        verdicts = [forgotten_verdict(row) if row["key"] in keys else row for row in ledger.to_pylist()]
        return Rewritten(shard_files(shard), pa.Table.from_pylist(verdicts, schema=LEDGER_SCHEMA), receipt.facts)


def forgotten_verdict(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the ledger's row of a sample that is not there any more."""
    return {"key": row["key"], "status": Status.FORGOTTEN.value, "reason": "", "detail": ""}


def drop_images(tar: Path, table: pa.Table, keys: Keys, folder: Path, shard: str) -> None:
    """Write an image shard's three files below `folder` without the samples of `keys`; their rows stay, emptied."""
    rows = table.to_pylist()
    dropped = {row["key"] for row in rows if row["sample_key"] in keys}
    target = folder / shard_files(shard)[0]
    with tarfile.open(tar, "r:") as source, tar.open("rb") as raw, target.open("wb") as out:
        members = source.getmembers()
        ends = [member.offset for member in members[1:]] + [source.offset]
        for member, end in zip(members, ends, strict=True):
            if Path(member.name).name.partition(".")[0] not in dropped:
                raw.seek(member.offset)
                out.write(raw.read(end - member.offset))
        out.write(bytes(2 * tarfile.BLOCKSIZE))
        out.write(bytes(-out.tell() % tarfile.RECORDSIZE))
    emptied = [empty_row(row, table.schema) if row["key"] in dropped else row for row in rows]
    write_metadata(folder, shard, pa.Table.from_pylist(emptied, schema=table.schema))


def empty_row(row: Mapping[str, Any], schema: pa.Schema) -> dict[str, Any]:
    """Return an image shard's row with nothing of the sample but its key."""
    kept = nothing_of(pa.schema([field for field in schema if field.name not in SHARD_COLUMNS]))
    said = {"status": FAILED_TO_DOWNLOAD, "error_message": FORGOTTEN, "reason": FORGOTTEN, "caption": ""}
    known = dict.fromkeys(schema.names)
    return known | {"key": row["key"], "sample_key": row["sample_key"]} | said | kept


def nothing_of(schema: pa.Schema) -> dict[str, Any]:
    """Return a row that says nothing: nulls, or empty values where a column takes none."""
    return {field.name: _nothing(field) for field in schema}


def _nothing(field: pa.Field) -> Any:  # noqa: ANN401
    if field.nullable:
        return None
    text = pa.types.is_string(field.type) or pa.types.is_large_string(field.type)
    return "" if text else pa.array([0], pa.int64()).cast(field.type)[0].as_py()


class _Rows:
    """A stage whose shard is one table that has a column of keys."""

    def __init__(self, suffix: str) -> None:
        self._suffix = suffix

    def keys(self, store: Store, shard: str) -> Iterable[bytes]:
        if self._suffix == "parquet":
            return _read(store, f"{shard}.parquet", ["key"])["key"].to_pylist()
        return _ledger_keys(store, shard)

    def files(self, shard: str) -> Sequence[str]:
        return (f"{shard}.{self._suffix}",)

    def rewrite(self, job: StageJob, receipt: Receipt, shards: Sequence[str], keys: Keys, scratch: Path) -> Rewritten:
        store = job.store()
        for shard in shards:
            name = f"{shard}.{self._suffix}"
            if self._suffix == "parquet":
                pq.write_table(_without(_read(store, name), keys), scratch / name, compression="zstd")
            else:
                table = _without(read_data_shard(store.local_copy(name, scratch / "before")), keys)
                with pa.OSFile(str(scratch / name), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
                    writer.write_table(table, max_chunksize=job.recipe.targets.batch_size)
        files = tuple(f"{shard}.{self._suffix}" for shard in shards)
        return Rewritten(files, _without(_ledger(store, receipt), keys), _shard_facts(receipt, shards, scratch))


def _shard_facts(receipt: Receipt, shards: Sequence[str], scratch: Path) -> Mapping[str, Any]:
    """Return a decision's counts by shard anew; other stages have none."""
    if "rows_out_by_shard" not in receipt.facts:
        return receipt.facts
    kept = {shard: sum(pq.read_table(scratch / f"{shard}.parquet")["keep"].to_pylist()) for shard in shards}
    return receipt.facts | {"rows_out_by_shard": receipt.facts["rows_out_by_shard"] | kept}


class _Codes:
    """A token dataset whose captions are another one's, which is rewritten before it."""

    def keys(self, store: Store, shard: str) -> Iterable[bytes]:
        return _ledger_keys(store, shard)

    def files(self, shard: str) -> Sequence[str]:
        return (f"data/{shard}.arrow",)

    def rewrite(self, job: StageJob, receipt: Receipt, shards: Sequence[str], keys: Keys, scratch: Path) -> Rewritten:
        (shard,), store = shards, job.store()
        data, *others = self.files(shard)
        before = read_data_shard(store.local_copy(data, scratch / "before"))
        stays = [row for row, key in enumerate(before["key"].to_pylist()) if key not in keys]
        table = before.take(pa.array(stays, pa.int64()))
        semantic, pixel = (codes_of(table, stream) for stream in STREAMS)
        write_data_shard(scratch / data, before.schema, table["key"].to_pylist(), semantic, pixel)
        for meta in others:
            (scratch / meta).parent.mkdir()
            pq.write_table(_without(_read(store, meta), keys), scratch / meta, compression="zstd")
        facts = _token_facts(receipt, shard, table, stays)
        return Rewritten((data, *others), _without(_ledger(store, receipt), keys), facts)


class _Tokens(_Codes):
    """A token dataset with its captions."""

    def keys(self, store: Store, shard: str) -> Iterable[bytes]:
        return {*_ledger_keys(store, shard), *_read(store, f"meta/{shard}.parquet", ["key"])["key"].to_pylist()}

    def files(self, shard: str) -> Sequence[str]:
        return (*super().files(shard), f"meta/{shard}.parquet")


def _token_facts(receipt: Receipt, shard: str, table: pa.Table, stays: list[int]) -> dict[str, Any]:
    """Return what a receipt says of a token shard's codes, of the rows that stay."""
    said = {key.decode(): value.decode() for key, value in table.schema.metadata.items()}
    facts, perplexity = dict(receipt.facts), {}
    for stream in STREAMS:
        codes, size = codes_of(table, stream).reshape(-1, int(said["dualtoken.depth"])), int(said[f"dualtoken.{stream}_codes"])
        counts = [np.bincount(column, minlength=size) for column in codes.T]
        facts[f"{stream}_usage"] = [round(int((count > 0).sum()) / size, 6) for count in counts]
        perplexity[f"{stream}_perplexity"] = [_perplexity(count) for count in counts]
    if "rows_out_by_shard" in facts:
        facts["rows_out_by_shard"] = {shard: len(stays)}
    if "audit" in facts:
        place = {row: at for at, row in enumerate(stays)}
        seen = zip(facts["audit"]["looked_at"], facts["audit"]["psnr"], strict=True)
        left = [(place[row], ratio) for row, ratio in seen if row in place]
        audit = {"rows": len(stays), "looked_at": [row for row, _ in left], "psnr": [ratio for _, ratio in left], **perplexity}
        facts["audit"] = facts["audit"] | audit
    return facts


def _perplexity(counts: np.ndarray[Any, Any]) -> float:
    shares = counts[counts > 0] / max(1, counts.sum())
    return round(float(np.exp(-(shares * np.log(shares)).sum())), 3)


def _read(store: Store, name: str, columns: list[str] | None = None) -> pa.Table:
    with store.fs.open(store.path(name), "rb") as file:
        return pq.ParquetFile(file).read(columns)


def _ledger(store: Store, receipt: Receipt) -> pa.Table:
    return _read(store, f"{LEDGERS}/{receipt.unit}.parquet")


def _ledger_keys(store: Store, unit: str) -> list[bytes]:
    return _read(store, f"{LEDGERS}/{unit}.parquet", ["key"])["key"].to_pylist()


def _without(table: pa.Table, keys: Keys) -> pa.Table:
    stays = [row for row, key in enumerate(table["key"].to_pylist()) if key not in keys]
    return table.take(pa.array(stays, pa.int64())).combine_chunks()


REWRITERS: dict[str, Rewriter] = {
    "download": _Images(),
    "score": _Rows("parquet"),
    "filter": _Rows("parquet"),
    "targets": _Rows("arrow"),
    "pretokenize": _Tokens(),
}


def rewriter(record: StageRecord) -> Rewriter:
    """Return how a folder's shards are written again."""
    return _Codes() if borrows(record) else REWRITERS[record.stage]
