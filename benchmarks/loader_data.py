"""Data of `benchmarks/loader.py`: random codes as one array, and token datasets by the real writer."""

from pathlib import Path

import numpy as np

from benchmarks.loader_peers import SHAPE, SHARD, codes
from dualtoken.infra.storage import Store
from dualtoken.pipelines.core.receipts import MANIFEST_FILE, FileRecord, Receipt, read_receipts
from dualtoken.pipelines.tokens.shards import Ids
from tests.helpers.token_datasets import (
    NUM_CODES,
    DatasetRows,
    finish_dataset,
    key_of,
    tokenizer_config,
    write_rows,
)

GRID = 27
"""Image tokens along a side of the paper's grid."""


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
    finish_dataset(out, linked, tokenizer_config(GRID, SHAPE[-1]))
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
    keys = [key_of("", row) for row in range(len(captions))]
    write_rows(out, DatasetRows(keys, semantic, pixel, captions), grid, rows_per_shard=SHARD)
