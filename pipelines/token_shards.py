"""Token shards: what the MLLM stage trains from.

    manifest.json         schema version, tokenizer, counts, root hash; written last
    index.parquet         a row per shard
    data/00000.arrow      Arrow IPC *file*, uncompressed, batches of 256 rows
    meta/00000.parquet    caption, url, scores, in the same row order

The IPC file format fails loudly when it is cut (the stream format loses rows silently), and a row is one
contiguous read or a view of a memory map. Neither notices a flipped byte, hence the checksums.
"""

from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from infra.storage import Store
from model.config import TokenizerConfig
from pipelines.ledger import KEY_BYTES
from pipelines.receipts import MANIFEST_FILE, Manifest, Receipt, read_manifest

SCHEMA_VERSION = 1
ROWS_PER_BATCH = 256
STREAMS = ("semantic", "pixel")

INDEX_SCHEMA = pa.schema(
    [
        pa.field("shard", pa.string(), nullable=False),
        pa.field("path", pa.string(), nullable=False),
        pa.field("meta_path", pa.string(), nullable=False),
        pa.field("rows", pa.int64(), nullable=False),
        pa.field("bytes", pa.int64(), nullable=False),
        pa.field("sha256", pa.string(), nullable=False),
        pa.field("xxh3_128", pa.string(), nullable=False),
        pa.field("semantic_usage", pa.list_(pa.float32()), nullable=False),
        pa.field("pixel_usage", pa.list_(pa.float32()), nullable=False),
        pa.field("statuses", pa.map_(pa.string(), pa.int64()), nullable=False),
    ]
)
"""Usage is the share of a codebook's codes that the shard uses, per depth."""

Ids = np.ndarray[Any, np.dtype[np.uint16]]


def token_schema(config: TokenizerConfig, tokenizer: Mapping[str, str]) -> pa.Schema:
    """Return the schema of a data shard; `tokenizer` holds its fingerprint and its weights' SHA-256."""
    codes = pa.list_(pa.field("item", pa.uint16(), nullable=False), config.grid_size**2 * config.pixel.depth)
    metadata = {
        "dualtoken.schema_version": str(SCHEMA_VERSION),
        "dualtoken.tokenizer_fingerprint": tokenizer["fingerprint"],
        "dualtoken.tokenizer_sha256": tokenizer["sha256"],
        "dualtoken.preprocessing": f"RGB over white, shorter side to {config.image_size} bicubic, centre crop, [-1, 1]",
        "dualtoken.grid": f"{config.grid_size}x{config.grid_size}",
        "dualtoken.depth": str(config.pixel.depth),
        "dualtoken.semantic_codes": str(config.semantic.num_codes),
        "dualtoken.pixel_codes": str(config.pixel.num_codes),
        "dualtoken.order": "position-major, depth-minor",
        "dualtoken.precision": "float32",
    }
    key = pa.field("key", pa.binary(KEY_BYTES), nullable=False)
    return pa.schema([key, *(pa.field(stream, codes, nullable=False) for stream in STREAMS)], metadata=metadata)


def write_data_shard(path: Path, schema: pa.Schema, keys: list[bytes], semantic: Ids, pixel: Ids) -> None:
    """Write one data shard; `semantic` and `pixel` are (rows, codes of a row)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        for first in range(0, len(keys), ROWS_PER_BATCH):
            rows = slice(first, first + ROWS_PER_BATCH)
            columns = [
                pa.array(keys[rows], pa.binary(KEY_BYTES)),
                *(_fixed_lists(ids[rows], schema.field(1).type) for ids in (semantic, pixel)),
            ]
            writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=schema))


def _fixed_lists(ids: Ids, kind: pa.DataType) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(ids).reshape(-1)), type=kind)


def read_data_shard(path: Path) -> pa.Table:
    """Map a data shard into memory; a cut file raises `pa.ArrowInvalid`."""
    with pa.memory_map(str(path)) as source:
        return pa.ipc.open_file(source).read_all()


def codes_of(table: pa.Table, stream: str) -> Ids:
    """Return a stream's codes as (rows, codes of a row)."""
    column = table[stream].combine_chunks()
    width = table.schema.field(stream).type.list_size
    return column.flatten().to_numpy().reshape(-1, width) if len(column) else np.zeros((0, width), np.uint16)


def write_index(path: Path, receipts: Iterable[Receipt]) -> pa.Table:
    """Write the index from the receipts of a finished corpus, and return it; rows become columns some at a time, which takes less room."""
    rows, parts = map(_index_row, receipts), [INDEX_SCHEMA.empty_table()]
    while some := list(islice(rows, 4096)):
        parts.append(pa.Table.from_pylist(some, schema=INDEX_SCHEMA))
    index = pa.concat_tables(parts).combine_chunks()
    pq.write_table(index, path)
    return index


def _index_row(receipt: Receipt) -> dict[str, Any]:
    files = {file.name: file for file in receipt.files}
    data = files[f"data/{receipt.unit}.arrow"]
    return {
        "shard": receipt.unit,
        "path": data.name,
        "meta_path": f"meta/{receipt.unit}.parquet",
        "rows": receipt.rows_out,
        "bytes": data.bytes,
        "sha256": data.sha256,
        "xxh3_128": data.xxh3_128,
        "semantic_usage": receipt.facts["semantic_usage"],
        "pixel_usage": receipt.facts["pixel_usage"],
        "statuses": list(receipt.counts.items()),
    }


def require_finished(store: Store) -> Manifest:
    """Return a token dataset's manifest; raises ValueError when it is unfinished or newer than this reader."""
    manifest = read_manifest(store)
    if manifest is None:
        raise ValueError(f"{store.url} has no {MANIFEST_FILE}: it is unfinished; run `dualtoken pretokenize` again")
    if (version := manifest.details["schema_version"]) > SCHEMA_VERSION:
        raise ValueError(f"{store.url} has schema version {version}, this reader knows {SCHEMA_VERSION}: update dualtoken")
    return manifest
