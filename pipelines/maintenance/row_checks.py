"""Checks of rows: each is a function that yields problems, and says in its first line what must hold.

`LEDGER_CHECKS` are for units of every stage, `SHARD_CHECKS` for token shards by themselves, `INDEX_CHECKS`
for token shards beside their dataset's index and manifest.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dualtoken.infra.storage import Store
from dualtoken.pipelines.core.damage import is_damage
from dualtoken.pipelines.core.ledger import Status, count_statuses
from dualtoken.pipelines.core.receipts import LEDGERS, Receipt
from dualtoken.pipelines.core.tables import read_table
from dualtoken.pipelines.tokens.captions import meta_path, resolve_meta_path
from dualtoken.pipelines.tokens.facts import STREAMS, TokenDetails
from dualtoken.pipelines.tokens.shards import SCHEMA_VERSION, codes_of, data_path


def _rows_unlike_samples(ledger: pa.Table, receipt: Receipt) -> Iterator[str]:
    """Every sample that came in has one row."""
    keys = ledger["key"].to_pylist()
    distinct = len(set(keys))
    if not distinct == len(keys) == receipt.rows:
        yield f"{distinct} keys in {len(keys)} rows, {receipt.rows} samples came in"


def _counts_unlike_receipt(ledger: pa.Table, receipt: Receipt) -> Iterator[str]:
    """The rows' statuses are those that the receipt counts."""
    counts = count_statuses(ledger)
    if counts != receipt.counts:
        yield f"counts {counts}, its receipt says {receipt.counts}"


LEDGER_CHECKS: tuple[Callable[[pa.Table, Receipt], Iterator[str]], ...] = (
    _rows_unlike_samples,
    _counts_unlike_receipt,
)


class OpenTokenShard(NamedTuple):
    """One data shard, with what its checks compare it with."""

    store: Store
    """Folder of its dataset."""
    receipt: Receipt
    table: pa.Table
    keys: list[bytes]
    metadata: dict[str, str]
    """Metadata of the schema."""


def _nulls(shard: OpenTokenShard) -> Iterator[str]:
    """Keys and codes are never null."""
    if any(shard.table[name].null_count for name in ("key", *STREAMS)):
        yield "it has nulls"


def _codes_beyond_codebook(shard: OpenTokenShard) -> Iterator[str]:
    """Codes are numbers of their stream's codebook."""
    for stream in STREAMS:
        codes = codes_of(shard.table, stream)
        num_codes = int(shard.metadata[f"dualtoken.{stream}_codes"])
        largest = int(codes.max(initial=0))
        if len(codes) and largest >= num_codes:
            row = int(np.flatnonzero((codes >= num_codes).any(axis=1))[0])
            yield f"row {row}: {stream} code {largest} of a codebook of {num_codes}"


def _keys_unlike_captions(shard: OpenTokenShard) -> Iterator[str]:
    """Captions are of the same samples, row by row."""
    if shard.keys != _caption_keys(shard):
        yield f"its keys are not those of {meta_path(shard.receipt)}, row by row"


def _caption_keys(shard: OpenTokenShard) -> list[bytes]:
    """Return the keys beside a shard's captions; none where another dataset's are gone or damaged."""
    folder, name = resolve_meta_path(shard.store, meta_path(shard.receipt))
    try:
        return read_table(folder, name, ["key"])["key"].to_pylist()
    except FileNotFoundError:
        return []
    except (OSError, pa.ArrowException) as error:
        if not is_damage(error):
            raise
        return []


def _keys_unlike_ledger(shard: OpenTokenShard) -> Iterator[str]:
    """Rows are the samples that the ledger passed on, each as often as the recipe has crops."""
    unit = shard.receipt.unit
    ledger = read_table(shard.store, f"{LEDGERS}/{unit}.parquet")
    kept = ledger.filter(pc.field("status") == Status.OK.value)["key"].to_pylist()
    variants = len(shard.keys) // len(kept) if kept else 1
    expected: list[bytes] = []
    for key in kept:
        expected += [key] * variants
    if shard.keys != expected:
        yield f"its keys are not those that ledger/{unit}.parquet passed on"


SHARD_CHECKS: tuple[Callable[[OpenTokenShard], Iterator[str]], ...] = (
    _nulls,
    _codes_beyond_codebook,
    _keys_unlike_captions,
    _keys_unlike_ledger,
)


class IndexedShard(NamedTuple):
    """One data shard, and what the dataset's index and manifest say of it."""

    shard: OpenTokenShard
    row: dict[str, Any]
    """Row of the index."""
    details: TokenDetails
    """Details of the manifest."""

    @property
    def unit(self) -> str:
        """Name of the shard."""
        return self.shard.receipt.unit


def _record_unlike_index(indexed: IndexedShard) -> Iterator[str]:
    """The index repeats the receipt's record of the file."""
    shard = indexed.shard
    record = next(file for file in shard.receipt.files if file.name == data_path(indexed.unit))
    expected = {
        "path": record.name,
        "meta_path": meta_path(shard.receipt),
        "rows": len(shard.table),
        "bytes": record.bytes,
        "sha256": record.sha256,
        "xxh3_128": record.xxh3_128,
    }
    for name, value in expected.items():
        if indexed.row[name] != value:
            yield f"{name} of shard {indexed.unit} is {indexed.row[name]}, the shard's is {value}"


def _usage_unlike_index(indexed: IndexedShard) -> Iterator[str]:
    """The index says which share of each codebook is used, per depth."""
    shard = indexed.shard
    depth = int(shard.metadata["dualtoken.depth"])
    for stream in STREAMS:
        codes = codes_of(shard.table, stream).reshape(-1, depth)
        num_codes = indexed.details.num_codes[stream]
        usage = [len(np.unique(codes[:, level])) / num_codes for level in range(depth)]
        if not np.allclose(usage, indexed.row[f"{stream}_usage"], atol=1e-5):
            yield f"{stream}_usage of shard {indexed.unit} is not that of its codes"


def _metadata_unlike_manifest(indexed: IndexedShard) -> Iterator[str]:
    """The shard says of tokenizer and codes what the manifest says."""
    details = indexed.details
    promised = {
        "schema_version": str(SCHEMA_VERSION),
        "tokenizer_sha256": details.tokenizer.sha256,
        "grid": "x".join(map(str, details.grid)),
        "depth": str(details.depth),
    }
    for stream in STREAMS:
        promised[f"{stream}_codes"] = str(details.num_codes[stream])
    for name, value in promised.items():
        stored = indexed.shard.metadata[f"dualtoken.{name}"]
        if stored != value:
            yield f"shard {indexed.unit} has {name} {stored}, the manifest says {value}"


INDEX_CHECKS: tuple[Callable[[IndexedShard], Iterator[str]], ...] = (
    _record_unlike_index,
    _usage_unlike_index,
    _metadata_unlike_manifest,
)
