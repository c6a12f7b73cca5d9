"""Token datasets of any rows, written by the real writer."""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dualtoken.infra.digests import digest
from dualtoken.infra.storage import Store
from dualtoken.model.config.quantizer import QuantizerConfig
from dualtoken.model.config.tokenizer import DecoderConfig, TokenizerConfig, TowerConfig
from dualtoken.pipelines.core.receipts import (
    MANIFEST_FILE,
    FileRecord,
    Manifest,
    Receipt,
    receipt_name,
    root_hash,
)
from dualtoken.pipelines.core.stage import StageJob
from dualtoken.pipelines.core.tables import read_table
from dualtoken.pipelines.tokens.facts import TokenizerIdentity
from dualtoken.pipelines.tokens.reader import TokenDataset
from dualtoken.pipelines.tokens.shards import SCHEMA_VERSION, Ids, token_schema, write_data_shard, write_index

GRID = 2
"""Image tokens along a side of the grid, if a test asks for no other number."""
DEPTH = 2
"""Codes per image token and stream, if a test asks for no other number."""
NUM_CODES = 16384
PREPROCESSING = "RGB over white, shorter side to 16 bicubic, centre crop, [-1, 1]"
"""What was done to the images, by the shards' own account."""
SEMANTIC_OFFSET = 0
PIXEL_OFFSET = 5
"""Added to a row's codes in each stream, so that no stream is taken for the other."""
TOKENIZER = TokenizerIdentity("f" * 12, "f" * 60)
MOMENT = datetime(2020, 1, 1, tzinfo=UTC).isoformat()
"""When everything was written, by its own account."""


def tokenizer_config(grid: int = GRID, depth: int = DEPTH) -> TokenizerConfig:
    """Return the config of a tokenizer with a grid and depth."""
    quantizer = QuantizerConfig(num_codes=NUM_CODES, depth=depth, width=8)
    return TokenizerConfig(
        image_size=8 * grid,
        tower=TowerConfig(patch_size=8, width=32, depth=3, num_heads=2, mlp_width=32),
        pixel_block=1,
        semantic_block=2,
        pixel=quantizer,
        semantic=quantizer,
        decoder=DecoderConfig(latent_size=2 * grid, latent_width=32, width=32, multipliers=(1, 1, 1)),
    )


def key_of(name: str, row: int) -> bytes:
    """Return the sample key of a dataset's row."""
    return hashlib.blake2b(f"{name}{row}".encode(), digest_size=16).digest()


def codes_of_rows(first: int, rows: int, width: int, offset: int) -> Ids:
    """Return codes that tell their row: different for neighbouring rows, and for each stream."""
    row_numbers = np.arange(first, first + rows)[:, None]
    codes = (row_numbers * 7 + np.arange(width) + offset) % NUM_CODES
    return codes.astype(np.uint16)


def write_tokens(
    folder: Path,
    rows: int,
    *,
    name: str = "a",
    rows_per_shard: int = 300,
    grid: int = GRID,
    depth: int = DEPTH,
    tokenizer: str = "f" * 12,
    columns: Mapping[str, Sequence[Any]] | None = None,
) -> str:
    """Write a finished dataset whose codes tell their row, and return its folder.

    `columns` are carried along with the captions.
    """
    width = grid * grid * depth
    content = DatasetRows(
        keys=[key_of(name, row) for row in range(rows)],
        semantic=codes_of_rows(0, rows, width, SEMANTIC_OFFSET),
        pixel=codes_of_rows(0, rows, width, PIXEL_OFFSET),
        captions=[f"{name} {row}" for row in range(rows)],
        columns=columns or {},
    )
    identity = TokenizerIdentity(tokenizer, tokenizer * 5)
    return write_rows(folder, content, grid, rows_per_shard=rows_per_shard, tokenizer=identity)


class DatasetRows(NamedTuple):
    """All rows of a dataset."""

    keys: list[bytes]
    semantic: Ids
    """(rows, grid * grid * depth)."""
    pixel: Ids
    """(rows, grid * grid * depth)."""
    captions: list[str]
    columns: Mapping[str, Sequence[Any]] = {}
    """What stands beside the captions, by column."""


def write_rows(
    folder: Path,
    content: DatasetRows,
    grid: int,
    *,
    rows_per_shard: int,
    tokenizer: TokenizerIdentity = TOKENIZER,
) -> str:
    """Write a finished dataset of these rows and return its folder."""
    depth = content.semantic.shape[1] // grid**2
    config = tokenizer_config(grid, depth)
    schema = token_schema(config, tokenizer, PREPROCESSING)
    store = Store(str(folder))
    (folder / "meta").mkdir(parents=True)
    receipts: list[Receipt] = []
    for unit, first in enumerate(range(0, len(content.keys), rows_per_shard)):
        shard = f"{unit:05d}"
        files = (f"data/{shard}.arrow", f"meta/{shard}.parquet")
        rows = slice(first, first + rows_per_shard)
        keys = content.keys[rows]
        write_data_shard(folder / files[0], schema, keys, content.semantic[rows], content.pixel[rows])
        meta = {"key": keys, "caption": content.captions[rows]}
        for column, values in content.columns.items():
            meta[column] = values[rows]
        pq.write_table(pa.table(meta), folder / files[1])
        receipt = _receipt(folder, shard, len(keys), files, depth)
        store.put_bytes(receipt.to_bytes(), receipt_name(shard))
        receipts.append(receipt)
    finish_dataset(folder, receipts, config, tokenizer)
    return str(folder)


def finish_dataset(
    folder: Path,
    receipts: Sequence[Receipt],
    config: TokenizerConfig,
    tokenizer: TokenizerIdentity = TOKENIZER,
) -> None:
    """Write the index and the manifest of a dataset whose shards are there."""
    write_index(folder / "index.parquet", receipts)
    shard_files: list[FileRecord] = []
    for receipt in receipts:
        shard_files += receipt.files
    index = _record(folder, "index.parquet")
    rows = sum(receipt.rows for receipt in receipts)
    details = {
        "schema_version": SCHEMA_VERSION,
        "tokenizer": tokenizer._asdict(),
        "grid": [config.grid_size, config.grid_size],
        "depth": config.pixel.depth,
        "codes": {"semantic": NUM_CODES, "pixel": NUM_CODES},
        "rows": rows,
        "shards": len(receipts),
    }
    manifest = Manifest(
        stage="pretokenize",
        corpus="a",
        fingerprint="0" * 12,
        root_hash=root_hash((*shard_files, index)),
        rows_in=rows,
        counts={"ok": rows},
        units={receipt.unit: receipt.rows for receipt in receipts},
        bytes=sum(file.bytes for file in shard_files),
        seconds=1.0,
        first_started_at=MOMENT,
        last_finished_at=MOMENT,
        files=(index,),
        details=details,
    )
    Store(str(folder)).put_bytes(manifest.to_bytes(), MANIFEST_FILE)


def rows_by_key(dataset: TokenDataset) -> dict[bytes, tuple[bytes, str]]:
    """Read a dataset whole; return each row's pixel codes and caption by its key."""
    numbers = np.arange(len(dataset))
    read = dataset.read(numbers)
    assert read.pixel is not None
    rows: dict[bytes, tuple[bytes, str]] = {}
    for key, pixel, caption in zip(read.keys, read.pixel, dataset.captions(numbers), strict=True):
        rows[key.tobytes()] = (pixel.tobytes(), caption)
    return rows


def ok_keys(job: StageJob) -> Counter[bytes]:
    """Return the keys that the ledger of a corpus's tokens calls ok."""
    keys: Counter[bytes] = Counter()
    for unit in job.units:
        ledger = read_table(job.store(), f"ledger/{unit.id}.parquet", ["key", "status"])
        for row in ledger.to_pylist():
            if row["status"] == "ok":
                keys[row["key"]] += 1
    return keys


def _record(folder: Path, file: str) -> FileRecord:
    hashes = digest(folder / file)
    return FileRecord(name=file, bytes=hashes.bytes, sha256=hashes.sha256, xxh3_128=hashes.xxh3_128)


def _receipt(folder: Path, shard: str, rows: int, files: tuple[str, ...], depth: int) -> Receipt:
    return Receipt(
        stage="pretokenize",
        corpus="a",
        unit=shard,
        fingerprint="0" * 12,
        attempt="1",
        rows=rows,
        counts={"ok": rows},
        files=tuple(_record(folder, file) for file in files),
        facts={"semantic_usage": [1.0] * depth, "pixel_usage": [1.0] * depth},
        finished_at=MOMENT,
        seconds=1.0,
    )
