"""Token datasets of any size, written by the real writer, whose codes say which row they are of."""

import hashlib
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

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
from dualtoken.pipelines.loader.documents import Markers, PackPlan
from dualtoken.pipelines.loader.packed_loader import PackedLoader
from dualtoken.pipelines.loader.plan import LoadPlan
from dualtoken.pipelines.loader.token_loader import RankLoader, TokenLoader, iterate
from dualtoken.pipelines.tokens.reader import TokenDataset
from dualtoken.pipelines.tokens.shards import SCHEMA_VERSION, Ids, token_schema, write_data_shard, write_index

GRID, DEPTH = 2, 2


def config(grid: int = GRID, depth: int = DEPTH) -> TokenizerConfig:
    codes = QuantizerConfig(num_codes=16384, depth=depth, width=8)
    return TokenizerConfig(
        image_size=8 * grid,
        tower=TowerConfig(patch_size=8, width=32, depth=3, num_heads=2, mlp_width=32),
        pixel_block=1,
        semantic_block=2,
        pixel=codes,
        semantic=codes,
        decoder=DecoderConfig(latent_size=2 * grid, latent_width=32, width=32, multipliers=(1, 1, 1)),
    )


def key_of(name: str, row: int) -> bytes:
    return hashlib.blake2b(f"{name}{row}".encode(), digest_size=16).digest()


def codes_of_rows(first: int, rows: int, width: int, offset: int) -> Ids:
    """Return codes that name their row: distinct for neighbours, and by stream."""
    return ((np.arange(first, first + rows)[:, None] * 7 + np.arange(width) + offset) % 16384).astype(
        np.uint16
    )


def write_tokens(
    folder: Path,
    rows: int,
    *,
    name: str = "a",
    rows_per_shard: int = 300,
    grid: int = GRID,
    depth: int = DEPTH,
    tokenizer: str = "f" * 12,
) -> str:
    """Write a finished dataset and return its folder."""
    shape = config(grid, depth)
    schema = token_schema(shape, {"fingerprint": tokenizer, "sha256": tokenizer * 5}, "none")
    receipts, width = [], grid * grid * depth
    (folder / "meta").mkdir(parents=True)
    for unit, first in enumerate(range(0, rows, rows_per_shard)):
        count, shard = min(rows_per_shard, rows - first), f"{unit:05d}"
        keys = [key_of(name, row) for row in range(first, first + count)]
        files = (f"data/{shard}.arrow", f"meta/{shard}.parquet")
        write_data_shard(
            folder / files[0],
            schema,
            keys,
            codes_of_rows(first, count, width, 0),
            codes_of_rows(first, count, width, 5),
        )
        pq.write_table(
            pa.table({"key": keys, "caption": [f"{name} {row}" for row in range(first, first + count)]}),
            folder / files[1],
        )
        receipts.append(_receipt(folder, shard, count, files, depth))
        Store(str(folder)).put_bytes(receipts[-1].to_bytes(), receipt_name(shard))
    write_index(folder / "index.parquet", receipts)
    _write_manifest(folder, receipts, rows, shape, tokenizer)
    return str(folder)


def ok_keys(job: StageJob) -> Counter[bytes]:
    """Return the keys that the ledger of a corpus's tokens calls ok."""
    tables = [
        read_table(job.store(), f"ledger/{unit.id}.parquet", ["key", "status"]).to_pylist()
        for unit in job.units
    ]
    return Counter(row["key"] for rows in tables for row in rows if row["status"] == "ok")


def loaded_keys(url: str, num_workers: int = 0, **how: Any) -> list[Counter[bytes]]:
    """Read an epoch of single samples, and one of sequences; return the keys of each."""
    load = LoadPlan(datasets=(TokenDataset(url, **how),), with_captions=True)
    packing = PackPlan(
        load=load,
        capacity=1024,
        tokenize=lambda text: [len(text)],
        markers=Markers(image_start=1, image_end=2),
    )
    loaders: list[RankLoader[Any]] = [TokenLoader(load, 16), PackedLoader(packing, 2)]
    return [
        Counter(
            key.tobytes() for batch in iterate(loader, num_workers=num_workers) for key in batch.keys.numpy()
        )
        for loader in loaders
    ]


def _record(folder: Path, file: str) -> FileRecord:
    found = digest(folder / file)
    return FileRecord(name=file, bytes=found.bytes, sha256=found.sha256, xxh3_128=found.xxh3_128)


def _receipt(folder: Path, shard: str, rows: int, files: tuple[str, ...], depth: int) -> Receipt:
    usage = {"semantic_usage": [1.0] * depth, "pixel_usage": [1.0] * depth}
    return Receipt(
        stage="pretokenize", corpus="a", unit=shard, fingerprint="0" * 12, attempt="1", rows=rows, counts={"ok": rows},
        files=tuple(_record(folder, file) for file in files), facts=usage,
        finished_at=datetime(2020, 1, 1, tzinfo=UTC).isoformat(), seconds=1.0,
    )  # fmt: skip


def _write_manifest(
    folder: Path, receipts: list[Receipt], rows: int, shape: TokenizerConfig, tokenizer: str
) -> None:
    moment, index = datetime(2020, 1, 1, tzinfo=UTC).isoformat(), (_record(folder, "index.parquet"),)
    details = {
        "schema_version": SCHEMA_VERSION,
        "tokenizer": {"fingerprint": tokenizer, "sha256": tokenizer * 5},
        "grid": [shape.grid_size, shape.grid_size],
        "depth": shape.pixel.depth,
        "codes": {"semantic": 16384, "pixel": 16384},
        "rows": rows,
        "shards": len(receipts),
    }
    manifest = Manifest(
        stage="pretokenize", corpus="a", fingerprint="0" * 12,
        root_hash=root_hash((*(file for one in receipts for file in one.files), *index)),
        rows_in=rows, counts={"ok": rows}, units={one.unit: one.rows for one in receipts},
        bytes=sum(file.bytes for one in receipts for file in one.files), seconds=1.0, first_started_at=moment,
        last_finished_at=moment, files=index, details=details,
    )  # fmt: skip
    Store(str(folder)).put_bytes(manifest.to_bytes(), MANIFEST_FILE)
