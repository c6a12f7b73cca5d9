"""Data of `benchmarks/loader.py`: random codes as one array, and token datasets of ours by the real writer."""

import hashlib
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.loader_peers import SHAPE, SHARD, codes
from dualtoken.infra.digests import digest
from dualtoken.infra.storage import Store
from dualtoken.model.config.quantizer import QuantizerConfig
from dualtoken.model.config.tokenizer import DecoderConfig, TokenizerConfig, TowerConfig
from dualtoken.pipelines.core.receipts import (
    MANIFEST_FILE,
    FileRecord,
    Manifest,
    Receipt,
    read_receipts,
    receipt_name,
    root_hash,
)
from dualtoken.pipelines.tokens.facts import TokenizerIdentity
from dualtoken.pipelines.tokens.shards import SCHEMA_VERSION, Ids, token_schema, write_data_shard, write_index

_TOKENIZER = TokenizerIdentity("f" * 12, "f" * 64)
_NOW = datetime(2026, 1, 1, tzinfo=UTC).isoformat()


def write_codes(folder: Path, rows: int) -> int:
    """Write codes.npy unless it is there; return the sum that contestants must come to."""
    path = folder / "codes.npy"
    folder.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        out = np.lib.format.open_memmap(path, "w+", np.uint16, (rows, *SHAPE))
        random = np.random.default_rng(0)
        for first in range(0, rows, SHARD):
            out[first : first + SHARD] = random.integers(
                0, 16_384, (min(SHARD, rows - first), *SHAPE), np.uint16
            )
        out.flush()
    found = codes(folder)
    if len(found) != rows:
        raise SystemExit(f"{path} has {len(found)} rows, {rows} were asked for: give another --folder")
    return int(found[:, 0, 0, 0].sum()) + int(found[:, 1, -1, -1].sum())


def write_dataset(folder: Path, rows: int) -> None:
    """Write codes.npy as a token dataset below `ours`."""
    data = codes(folder)
    captions = [f"image {row}" for row in range(rows)]
    _write(folder / "ours", 27, [data[:, 0].reshape(rows, -1), data[:, 1].reshape(rows, -1)], captions)


def write_links(folder: Path, num_shards: int) -> str:
    """Write a dataset of so many shards below `many`, hard links of those below `ours`, and return its folder."""
    ours, out = Store(str(folder / "ours")), folder / "many"
    receipts = [*read_receipts(ours).values()]
    names = [f"{number:05d}" for number in range(num_shards)]
    linked = [_linked(receipts[number % len(receipts)], name) for number, name in enumerate(names)]
    if not (out / MANIFEST_FILE).exists():
        for number, one in enumerate(linked):
            for before, after in zip(receipts[number % len(receipts)].files, one.files, strict=True):
                (out / after.name).parent.mkdir(parents=True, exist_ok=True)
                (out / after.name).hardlink_to(ours.path(before.name))
        write_index(out / "index.parquet", linked)
        _write_manifest(Store(str(out)), linked, _config(27, SHAPE[-1]), sum(one.rows for one in linked))
    return str(out)


def _linked(receipt: Receipt, unit: str) -> Receipt:
    files = tuple(
        file.model_copy(update={"name": file.name.replace(receipt.unit, unit)}) for file in receipt.files
    )
    return receipt.model_copy(update={"unit": unit, "files": files})


def captioned(folder: Path, grid: int, rows: int) -> str:
    """Write a dataset of depth 1 whose captions have as many ids as web captions: log-normal, median 33, 4 to 256."""
    out, random = folder / f"captioned{grid}", np.random.default_rng(0)
    lengths = random.lognormal(3.5, 0.8, rows).astype(int).clip(4, 256)
    ids: Ids = random.integers(0, 16_384, (rows, grid * grid), np.uint16)
    _write(out, grid, [ids, ids], ["x" * length for length in lengths])
    return str(out)


def _write(out: Path, grid: int, streams: list[Ids], captions: list[str]) -> None:
    if (out / MANIFEST_FILE).exists():
        return
    depth = streams[0].shape[1] // grid**2
    config, receipts, store = _config(grid, depth), [], Store(str(out))
    schema = token_schema(config, _TOKENIZER, "none")
    (out / "meta").mkdir(parents=True, exist_ok=True)
    for first in range(0, len(captions), SHARD):
        rows, shard = range(first, min(first + SHARD, len(captions))), f"{first // SHARD:05d}"
        keys = [hashlib.blake2b(str(row).encode(), digest_size=16).digest() for row in rows]
        write_data_shard(
            out / f"data/{shard}.arrow", schema, keys, *(ids[rows.start : rows.stop] for ids in streams)
        )
        pq.write_table(
            pa.table({"key": keys, "caption": captions[rows.start : rows.stop]}),
            out / f"meta/{shard}.parquet",
        )
        receipts.append(_receipt(out, shard, len(rows), depth))
        store.put_bytes(receipts[-1].to_bytes(), receipt_name(shard))
    write_index(out / "index.parquet", receipts)
    _write_manifest(store, receipts, config, len(captions))


def _record(out: Path, name: str) -> FileRecord:
    found = digest(out / name)
    return FileRecord(name=name, bytes=found.bytes, sha256=found.sha256, xxh3_128=found.xxh3_128)


def _receipt(out: Path, shard: str, rows: int, depth: int) -> Receipt:
    return Receipt(
        stage="pretokenize", corpus="benchmark", unit=shard, fingerprint="0" * 12, attempt="1", rows=rows, counts={"ok": rows},
        files=tuple(_record(out, name) for name in (f"data/{shard}.arrow", f"meta/{shard}.parquet")),
        facts={"semantic_usage": [1.0] * depth, "pixel_usage": [1.0] * depth}, finished_at=_NOW, seconds=1.0,
    )  # fmt: skip


def _write_manifest(store: Store, receipts: list[Receipt], config: TokenizerConfig, rows: int) -> None:
    index = _record(Path(store.root), "index.parquet")
    files = [*(file for one in receipts for file in one.files), index]
    details = {
        "schema_version": SCHEMA_VERSION, "tokenizer": _TOKENIZER._asdict(), "grid": [config.grid_size] * 2, "depth": config.pixel.depth,
        "codes": {"semantic": 16_384, "pixel": 16_384}, "rows": rows, "shards": len(receipts),
    }  # fmt: skip
    manifest = Manifest(
        stage="pretokenize", corpus="benchmark", fingerprint="0" * 12, root_hash=root_hash(files), rows_in=rows, counts={"ok": rows},
        units={one.unit: one.rows for one in receipts}, bytes=sum(file.bytes for file in files), seconds=1.0,
        first_started_at=_NOW, last_finished_at=_NOW, files=(index,), details=details,
    )  # fmt: skip
    store.put_bytes(manifest.to_bytes(), MANIFEST_FILE)


def _config(grid: int, depth: int) -> TokenizerConfig:
    """Return the least model with codes of this shape."""
    codebook = QuantizerConfig(num_codes=16_384, depth=depth, width=8)
    tower = TowerConfig(patch_size=8, width=32, depth=3, num_heads=2, mlp_width=32)
    decoder = DecoderConfig(latent_size=2 * grid, latent_width=32, width=32, multipliers=(1, 1, 1))
    return TokenizerConfig(
        image_size=8 * grid,
        tower=tower,
        pixel_block=1,
        semantic_block=2,
        pixel=codebook,
        semantic=codebook,
        decoder=decoder,
    )
