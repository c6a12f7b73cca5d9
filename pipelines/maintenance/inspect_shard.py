"""Looks into one token shard: what it holds, whether it is as committed, its codebooks' use, and single rows.

N codes of a row: positions times depths. Imports no torch; `decode_row` does when it is called.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from PIL import Image
from pydantic import ValidationError

from dualtoken.infra.digests import digest
from dualtoken.infra.storage import Store, join
from dualtoken.model.hub.model_name import WEIGHTS
from dualtoken.model.metrics.arrays import perplexity
from dualtoken.pipelines.core.receipts import Receipt, receipt_name
from dualtoken.pipelines.core.tables import read_table
from dualtoken.pipelines.errors import UserError
from dualtoken.pipelines.maintenance.verify import check_file
from dualtoken.pipelines.runtime.stage_folder import input_folders, read_stage
from dualtoken.pipelines.tokens.captions import meta_path, resolve_meta_path
from dualtoken.pipelines.tokens.facts import STREAMS
from dualtoken.pipelines.tokens.shards import codes_of, data_path, read_data_shard, schema_metadata


class ShardView(NamedTuple):
    """An open token shard."""

    store: Store
    """Of its dataset."""
    unit: str
    table: pa.Table
    bytes: int
    grid: tuple[int, int]
    depth: int
    checksum: str
    """Its state, in words."""
    meta_path: str
    """Where its captions are, relative to the dataset."""

    @property
    def metadata(self) -> dict[str, str]:
        """Return what the schema says."""
        return schema_metadata(self.table.schema)

    def num_codes(self, stream: str) -> int:
        """Return the size of a stream's codebook."""
        return int(self.metadata[f"dualtoken.{stream}_codes"])


def open_shard(location: str, scratch: Path) -> ShardView:
    """Open `data/<shard>.arrow` of a token dataset, a path or URL; raises `UserError` where it is none, or is damaged."""
    folder, _, name = location.replace("\\", "/").rpartition("/")
    dataset, _, data = folder.rpartition("/")
    if (folder and not dataset and data != "data") or data != "data" or not name.endswith(".arrow"):
        raise UserError(
            f"{location}: give a shard of a token dataset, such as data/<corpus>/tokens/<fingerprint>/data/00000.arrow"
        )
    store, unit = Store(dataset or "."), name.removesuffix(".arrow")
    if (size := store.size(data_path(unit))) is None:
        raise UserError(f"{location} is not there: `dualtoken plan` names the datasets of a recipe")
    state, meta = _receipt(store, unit, size)
    try:
        table = read_data_shard(store.local_copy(data_path(unit), scratch))
        said = schema_metadata(table.schema)
        rows, columns = (int(side) for side in said["dualtoken.grid"].split("x"))
        return ShardView(store, unit, table, size, (rows, columns), int(said["dualtoken.depth"]), state, meta)
    except (pa.ArrowInvalid, KeyError, ValueError) as error:
        problem = " ".join(str(error).split())[:120]
        raise UserError(
            f"{location} is no whole token shard ({problem}); checksum: {state}; run `dualtoken verify --repair`"
        ) from None


def _receipt(store: Store, unit: str, size: int) -> tuple[str, str]:
    """Return what a shard's receipt makes of it: the state of its checksum, and where its captions are."""
    own = f"meta/{unit}.parquet"
    try:
        receipt = Receipt.from_bytes(store.read(receipt_name(unit)))
    except FileNotFoundError:
        return "unknown: the unit has no receipt, so it is unfinished", own
    except ValidationError:
        return "unknown: the receipt cannot be read", own
    record = next((file for file in receipt.files if file.name == data_path(unit)), None)
    if record is None:
        return "unknown: the receipt does not name it", own
    problem = check_file(store, record, size)
    return str(problem) if problem else f"as its receipt says, sha256 {record.sha256}", meta_path(receipt)


def describe(shard: ShardView) -> Iterator[str]:
    """Yield lines on a whole shard."""
    rows, columns = shard.grid
    yield f"{join(shard.store.url, 'data', shard.unit)}.arrow: {len(shard.table):,} rows, {shard.bytes:,} bytes"
    yield f"checksum: {shard.checksum}"
    yield f"captions: {shard.meta_path}"
    yield f"a row: {rows} x {columns} positions x {shard.depth} depths of each stream"
    yield from (f"column {field.name}: {field.type}" for field in shard.table.schema)
    yield from (f"{key}: {value}" for key, value in sorted(shard.metadata.items()))
    for stream in STREAMS:
        codes = codes_of(shard.table, stream).reshape(-1, shard.depth)
        for depth in range(shard.depth):
            yield f"{stream} depth {depth}: {_usage(codes[:, depth], shard.num_codes(stream))}"


def _usage(codes: np.ndarray[Any, Any], num_codes: int) -> str:
    counts = np.bincount(codes, minlength=num_codes)
    if not len(codes):
        return "no rows"
    used = int((counts > 0).sum())
    beyond = f", {counts[num_codes:].sum()} codes beyond the codebook" if len(counts) > num_codes else ""
    return f"{used} of {num_codes:,} codes used ({used / num_codes:.1%}), perplexity {perplexity(counts):,.1f}{beyond}"


def describe_row(shard: ShardView, row: int) -> Iterator[str]:
    """Yield lines on one row, 0 the first: its key, its meta columns such as caption and license, its codes."""
    _check_row(shard, row)
    yield f"row {row}: key {shard.table['key'][row].as_py().hex()}"
    try:
        (meta,) = read_table(*resolve_meta_path(shard.store, shard.meta_path)).slice(row, 1).to_pylist()
        same = meta.pop("key") == shard.table["key"][row].as_py()
        yield from (f"{name}: {value}" for name, value in meta.items())
        yield from (
            () if same else ("the meta file has another key in this row: run `dualtoken verify --deep`",)
        )
    except (FileNotFoundError, ValueError, pa.ArrowInvalid):
        yield f"{shard.meta_path} has no such row: run `dualtoken verify`"
    for stream in STREAMS:
        codes = codes_of(shard.table.slice(row, 1), stream)[0].reshape(-1, shard.depth)
        distinct = ", ".join(str(len(np.unique(codes[:, depth]))) for depth in range(shard.depth))
        yield f"{stream}: {codes.size:,} codes of {codes.min()} to {codes.max()}, distinct per depth {distinct}, first {codes[0].tolist()}"


def _check_row(shard: ShardView, row: int) -> None:
    if not 0 <= row < len(shard.table):
        raise UserError(
            f"--row {row}: the shard has {len(shard.table)} rows: use 0 to {len(shard.table) - 1}"
        )


def find_tokenizer(shard: ShardView) -> str:
    """Return the folder of the tokenizer that made a shard, as its dataset's `stage.json` names it."""
    folder = input_folders(shard.store, read_stage(shard.store))["train"]
    if not Store(folder).exists(WEIGHTS):
        wanted = shard.metadata["dualtoken.tokenizer_fingerprint"]
        raise UserError(f"{folder} has no {WEIGHTS}: name the folder of tokenizer {wanted} with --model")
    return folder


def decode_row(shard: ShardView, row: int, model: str, scratch: Path) -> Image.Image:
    """Return what a row's pixel codes say; raises `UserError` where `model` is another tokenizer than the shard's."""
    _check_row(shard, row)
    folder = Store(model).local_folder(scratch / "model")
    if not (folder / WEIGHTS).is_file():
        raise UserError(f"--model {model} has no {WEIGHTS}: name a folder of save_pretrained")
    wanted, found = shard.metadata["dualtoken.tokenizer_sha256"], digest(folder / WEIGHTS).sha256
    if wanted != found:
        raise UserError(
            f"{model} holds the weights {found[:12]}, the shard's codes are of {wanted[:12]}: name that tokenizer with --model"
        )
    from dualtoken.pipelines.inference.networks import (  # noqa: PLC0415  (PyTorch takes seconds)
        TokenizerRunner,
        best_device,
        prepare_process,
    )

    prepare_process(threads=None, exact_float32=True)
    codes = codes_of(shard.table.slice(row, 1), "pixel").reshape(1, *shard.grid, shard.depth)
    levels = TokenizerRunner(folder, best_device()).decode(codes)
    return Image.fromarray(levels[0].permute(1, 2, 0).cpu().numpy())
