"""Data of `benchmarks/loader.py`: random codes as one array, and token datasets by the real writer."""

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

NUM_CODES = 16_384
GRID = 27
"""Image tokens along a side of the paper's grid."""
_TOKENIZER = TokenizerIdentity("f" * 12, "f" * 64)
_NOW = datetime(2026, 1, 1, tzinfo=UTC).isoformat()


def write_codes(folder: Path, rows: int) -> int:
    """Write codes.npy unless it is there; return the check sum that contestants must come to."""
    path = folder / "codes.npy"
    folder.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        out = np.lib.format.open_memmap(path, "w+", np.uint16, (rows, *SHAPE))
        random = np.random.default_rng(0)
        for first in range(0, rows, SHARD):
            count = min(SHARD, rows - first)
            out[first : first + count] = random.integers(0, NUM_CODES, (count, *SHAPE), np.uint16)
        out.flush()
    written = codes(folder)
    if len(written) != rows:
        raise SystemExit(f"{path} has {len(written)} rows, {rows} were asked for: give another --folder")
    return int(written[:, 0, 0, 0].sum()) + int(written[:, 1, -1, -1].sum())


def write_dataset(folder: Path, rows: int) -> None:
    """Write codes.npy as a token dataset below `ours`."""
    data = codes(folder)
    semantic = data[:, 0].reshape(rows, -1)
    pixel = data[:, 1].reshape(rows, -1)
    captions = [f"image {row}" for row in range(rows)]
    _write(folder / "ours", GRID, semantic, pixel, captions)


def write_links(folder: Path, num_shards: int) -> str:
    """Write a dataset of hard links to the shards below `ours`, and return its folder, `many`."""
    ours = Store(str(folder / "ours"))
    out = folder / "many"
    if (out / MANIFEST_FILE).exists():
        return str(out)
    receipts = list(read_receipts(ours).values())
    linked: list[Receipt] = []
    for number in range(num_shards):
        original = receipts[number % len(receipts)]
        copy = _renamed(original, f"{number:05d}")
        for old_file, new_file in zip(original.files, copy.files, strict=True):
            path = out / new_file.name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.hardlink_to(ours.path(old_file.name))
        linked.append(copy)
    write_index(out / "index.parquet", linked)
    _write_manifest(Store(str(out)), linked, _tokenizer_config(GRID, SHAPE[-1]))
    return str(out)


def _renamed(receipt: Receipt, unit: str) -> Receipt:
    """Return the receipt of another unit, with files of the same content."""
    files: list[FileRecord] = []
    for file in receipt.files:
        name = file.name.replace(receipt.unit, unit)
        files.append(file.model_copy(update={"name": name}))
    return receipt.model_copy(update={"unit": unit, "files": tuple(files)})


def write_captioned(folder: Path, grid: int, rows: int) -> str:
    """Write a dataset of depth 1 whose captions have as many ids as web captions.

    Their number is log-normal, median 33, from 4 to 256.
    """
    out = folder / f"captioned{grid}"
    random = np.random.default_rng(0)
    lengths = random.lognormal(3.5, 0.8, rows).astype(int).clip(4, 256)
    ids: Ids = random.integers(0, NUM_CODES, (rows, grid * grid), np.uint16)
    _write(out, grid, ids, ids, ["x" * length for length in lengths])
    return str(out)


def _write(out: Path, grid: int, semantic: Ids, pixel: Ids, captions: list[str]) -> None:
    """Write a dataset unless it is there; ids are (rows, grid * grid * depth)."""
    if (out / MANIFEST_FILE).exists():
        return
    depth = semantic.shape[1] // grid**2
    config = _tokenizer_config(grid, depth)
    schema = token_schema(config, _TOKENIZER, "none")
    store = Store(str(out))
    (out / "meta").mkdir(parents=True, exist_ok=True)
    receipts: list[Receipt] = []
    for number, first in enumerate(range(0, len(captions), SHARD)):
        shard = f"{number:05d}"
        rows = slice(first, first + SHARD)
        shard_captions = captions[rows]
        keys = [_key(row) for row in range(first, first + len(shard_captions))]
        write_data_shard(out / f"data/{shard}.arrow", schema, keys, semantic[rows], pixel[rows])
        meta = pa.table({"key": keys, "caption": shard_captions})
        pq.write_table(meta, out / f"meta/{shard}.parquet")
        receipt = _receipt(out, shard, len(keys), depth)
        store.put_bytes(receipt.to_bytes(), receipt_name(shard))
        receipts.append(receipt)
    write_index(out / "index.parquet", receipts)
    _write_manifest(store, receipts, config)


def _key(row: int) -> bytes:
    return hashlib.blake2b(str(row).encode(), digest_size=16).digest()


def _record(out: Path, name: str) -> FileRecord:
    hashes = digest(out / name)
    return FileRecord(name=name, bytes=hashes.bytes, sha256=hashes.sha256, xxh3_128=hashes.xxh3_128)


def _receipt(out: Path, shard: str, rows: int, depth: int) -> Receipt:
    return Receipt(
        stage="pretokenize",
        corpus="benchmark",
        unit=shard,
        fingerprint="0" * 12,
        attempt="1",
        rows=rows,
        counts={"ok": rows},
        files=(_record(out, f"data/{shard}.arrow"), _record(out, f"meta/{shard}.parquet")),
        facts={"semantic_usage": [1.0] * depth, "pixel_usage": [1.0] * depth},
        finished_at=_NOW,
        seconds=1.0,
    )


def _write_manifest(store: Store, receipts: list[Receipt], config: TokenizerConfig) -> None:
    index = _record(Path(store.root), "index.parquet")
    files: list[FileRecord] = []
    for receipt in receipts:
        files += receipt.files
    files.append(index)
    rows = sum(receipt.rows for receipt in receipts)
    details = {
        "schema_version": SCHEMA_VERSION,
        "tokenizer": _TOKENIZER._asdict(),
        "grid": [config.grid_size] * 2,
        "depth": config.pixel.depth,
        "codes": {"semantic": NUM_CODES, "pixel": NUM_CODES},
        "rows": rows,
        "shards": len(receipts),
    }
    manifest = Manifest(
        stage="pretokenize",
        corpus="benchmark",
        fingerprint="0" * 12,
        root_hash=root_hash(files),
        rows_in=rows,
        counts={"ok": rows},
        units={receipt.unit: receipt.rows for receipt in receipts},
        bytes=sum(file.bytes for file in files),
        seconds=1.0,
        first_started_at=_NOW,
        last_finished_at=_NOW,
        files=(index,),
        details=details,
    )
    store.put_bytes(manifest.to_bytes(), MANIFEST_FILE)


def _tokenizer_config(grid: int, depth: int) -> TokenizerConfig:
    """Return the smallest model with codes of this shape."""
    quantizer = QuantizerConfig(num_codes=NUM_CODES, depth=depth, width=8)
    tower = TowerConfig(patch_size=8, width=32, depth=3, num_heads=2, mlp_width=32)
    decoder = DecoderConfig(latent_size=2 * grid, latent_width=32, width=32, multipliers=(1, 1, 1))
    return TokenizerConfig(
        image_size=8 * grid,
        tower=tower,
        pixel_block=1,
        semantic_block=2,
        pixel=quantizer,
        semantic=quantizer,
        decoder=decoder,
    )
