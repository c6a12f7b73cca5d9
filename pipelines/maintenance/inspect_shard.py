"""Inspects one token shard: what it holds, whether it is as committed, its codebooks' use, and single rows.

Imports no torch; `decode_row` does when it is called.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from PIL import Image

from dualtoken.infra.digests import digest
from dualtoken.infra.storage import Store, join
from dualtoken.model.hub.model_name import WEIGHTS
from dualtoken.model.metrics.arrays import perplexity
from dualtoken.pipelines.core.lent_process import lent_process
from dualtoken.pipelines.core.receipts import DamagedRecordError, Receipt, receipt_name
from dualtoken.pipelines.core.tables import read_table
from dualtoken.pipelines.errors import UserError
from dualtoken.pipelines.maintenance.verify import check_file
from dualtoken.pipelines.runtime.stage_folder import input_folders, read_stage
from dualtoken.pipelines.tokens.captions import meta_path, own_meta_path, resolve_meta_path
from dualtoken.pipelines.tokens.facts import STREAMS
from dualtoken.pipelines.tokens.shards import codes_of, data_path, read_data_shard, schema_metadata


class ShardView(NamedTuple):
    """An open token shard."""

    store: Store
    """Folder of its dataset."""
    unit: str
    """Name of the shard."""
    table: pa.Table
    bytes: int
    """Size of its file."""
    grid: tuple[int, int]
    """Rows and columns of positions."""
    depth: int
    """Codes per position and stream."""
    checksum: str
    """State of its checksum, in words."""
    meta_path: str
    """Path of its captions, relative to the dataset."""

    @property
    def metadata(self) -> dict[str, str]:
        """Return the metadata of its schema."""
        return schema_metadata(self.table.schema)

    def num_codes(self, stream: str) -> int:
        """Return the size of a stream's codebook."""
        return int(self.metadata[f"dualtoken.{stream}_codes"])


def open_shard(location: str, scratch: Path) -> ShardView:
    """Open `data/<shard>.arrow` below a path or URL; raises `UserError` where it is no whole shard."""
    store, unit = _parse(location)
    size = store.size(data_path(unit))
    if size is None:
        raise UserError(f"{location} is not there: `dualtoken plan` names the datasets of a recipe")
    state, captions = _compare_with_receipt(store, unit, size)
    try:
        table = read_data_shard(store.local_copy(data_path(unit), scratch))
        metadata = schema_metadata(table.schema)
        rows, columns = metadata["dualtoken.grid"].split("x")
        return ShardView(
            store=store,
            unit=unit,
            table=table,
            bytes=size,
            grid=(int(rows), int(columns)),
            depth=int(metadata["dualtoken.depth"]),
            checksum=state,
            meta_path=captions,
        )
    except (pa.ArrowInvalid, KeyError, ValueError) as error:
        problem = " ".join(str(error).split())[:120]
        raise UserError(
            f"{location} is no whole token shard ({problem}); checksum: {state}; "
            "run `dualtoken verify --repair`"
        ) from None


def _parse(location: str) -> tuple[Store, str]:
    """Return the dataset's folder and the name of the shard that a path or URL names; raises `UserError`."""
    folder, _, name = location.replace("\\", "/").rpartition("/")
    dataset, _, data = folder.rpartition("/")
    if data != "data" or not name.endswith(".arrow"):
        raise UserError(
            f"{location}: give a shard of a token dataset, "
            "such as data/<corpus>/tokens/<fingerprint>/data/00000.arrow"
        )
    return Store(dataset or "."), name.removesuffix(".arrow")


def _compare_with_receipt(store: Store, unit: str, size: int) -> tuple[str, str]:
    """Return the state of a shard's checksum, in words, and the path of its captions."""
    captions = own_meta_path(unit)
    try:
        receipt = Receipt.read(store, receipt_name(unit))
    except FileNotFoundError:
        return "unknown: the unit has no receipt, so it is unfinished", captions
    except DamagedRecordError:
        return "unknown: the receipt cannot be read", captions
    records = {file.name: file for file in receipt.files}
    record = records.get(data_path(unit))
    if record is None:
        return "unknown: the receipt does not name it", captions
    problem = check_file(store, record, size)
    state = str(problem) if problem else f"as its receipt says, sha256 {record.sha256}"
    return state, meta_path(receipt)


def describe(shard: ShardView) -> Iterator[str]:
    """Yield lines on a whole shard."""
    rows, columns = shard.grid
    location = f"{join(shard.store.url, 'data', shard.unit)}.arrow"
    yield f"{location}: {len(shard.table):,} rows, {shard.bytes:,} bytes"
    yield f"checksum: {shard.checksum}"
    yield f"captions: {shard.meta_path}"
    yield f"a row: {rows} x {columns} positions x {shard.depth} depths of each stream"
    for field in shard.table.schema:
        yield f"column {field.name}: {field.type}"
    for key, value in sorted(shard.metadata.items()):
        yield f"{key}: {value}"
    for stream in STREAMS:
        codes = codes_of(shard.table, stream).reshape(-1, shard.depth)
        for depth in range(shard.depth):
            yield f"{stream} depth {depth}: {_usage(codes[:, depth], shard.num_codes(stream))}"


def _usage(codes: np.ndarray[Any, Any], num_codes: int) -> str:
    """Return in words how a codebook is used; `codes` are those of one depth."""
    if not len(codes):
        return "no rows"
    counts = np.bincount(codes, minlength=num_codes)
    used = int((counts > 0).sum())
    usage = (
        f"{used} of {num_codes:,} codes used ({used / num_codes:.1%}), perplexity {perplexity(counts):,.1f}"
    )
    if len(counts) > num_codes:
        usage += f", {counts[num_codes:].sum()} codes beyond the codebook"
    return usage


def describe_row(shard: ShardView, row: int) -> Iterator[str]:
    """Yield lines on one row, 0 the first: its key, its meta columns such as the caption, its codes."""
    _check_row(shard, row)
    key: bytes = shard.table["key"][row].as_py()
    yield f"row {row}: key {key.hex()}"
    yield from _describe_meta(shard, row, key)
    for stream in STREAMS:
        codes = codes_of(shard.table.slice(row, 1), stream)[0].reshape(-1, shard.depth)
        distinct = [str(len(np.unique(codes[:, depth]))) for depth in range(shard.depth)]
        yield (
            f"{stream}: {codes.size:,} codes of {codes.min()} to {codes.max()}, "
            f"distinct per depth {', '.join(distinct)}, first {codes[0].tolist()}"
        )


def _describe_meta(shard: ShardView, row: int, key: bytes) -> Iterator[str]:
    """Yield lines on a row's meta columns; `key` is the one beside its codes."""
    try:
        folder, name = resolve_meta_path(shard.store, shard.meta_path)
        (meta,) = read_table(folder, name).slice(row, 1).to_pylist()
    except (FileNotFoundError, ValueError, pa.ArrowInvalid):
        yield f"{shard.meta_path} has no such row: run `dualtoken verify`"
        return
    meta_key = meta.pop("key")
    for column, value in meta.items():
        yield f"{column}: {value}"
    if meta_key != key:
        yield "the meta file has another key in this row: run `dualtoken verify --deep`"


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
    """Decode a row's pixel codes; raises `UserError` where `model` is another tokenizer than the shard's."""
    _check_row(shard, row)
    folder = Store(model).local_folder(scratch / "model")
    if not (folder / WEIGHTS).is_file():
        raise UserError(f"--model {model} has no {WEIGHTS}: name a folder of save_pretrained")
    wanted = shard.metadata["dualtoken.tokenizer_sha256"]
    sha256 = digest(folder / WEIGHTS).sha256
    if wanted != sha256:
        raise UserError(
            f"{model} holds the weights {sha256[:12]}, the shard's codes are of {wanted[:12]}: "
            "name that tokenizer with --model"
        )
    from dualtoken.pipelines.inference.networks import (  # noqa: PLC0415  (PyTorch takes seconds)
        TokenizerRunner,
        best_device,
        prepare_process,
    )

    codes = codes_of(shard.table.slice(row, 1), "pixel").reshape(1, *shard.grid, shard.depth)
    with lent_process():
        prepare_process(threads=None)
        try:
            tokenizer = TokenizerRunner(folder, best_device())
        except ValueError as error:
            raise UserError(f"--model {model}: {' '.join(str(error).split())}") from error
        levels = tokenizer.decode(codes)
    return Image.fromarray(levels[0].permute(1, 2, 0).cpu().numpy())
