"""Exports a token dataset to another tool's format (`pipelines.tokens.export_catalogue`), a shard at a time.

Every shard is compared with its checksums before it is read. README.md describes the files. `export.json` is
written last: the same as JSON, and each file's size and checksum. A folder without it is an export that did
not end.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from dualtoken.infra.digests import digest
from dualtoken.infra.scratch import scratch_folder
from dualtoken.infra.storage import Store
from dualtoken.pipelines.core.receipts import STAGE_FILE, FileRecord, StageRecord
from dualtoken.pipelines.errors import UserError
from dualtoken.pipelines.tokens.export_catalogue import FORMATS
from dualtoken.pipelines.tokens.export_description import README, Description, Shape, readme
from dualtoken.pipelines.tokens.export_formats import ShardRows
from dualtoken.pipelines.tokens.reader import TokenDataset
from dualtoken.pipelines.tokens.shard_cache import ShardCache
from dualtoken.pipelines.tokens.shards import STREAMS, Ids

EXPORT_FILE = "export.json"
CACHE_BYTES = 1 << 30
"""Bytes of a remote dataset's shards that are copied at once."""


class Export(Description):
    """What an exported folder is."""

    files: tuple[FileRecord, ...]


def export_tokens(
    dataset: str,
    kind: str,
    out: str,
    *,
    streams: Sequence[str] = STREAMS,
    first_id: int = 0,
    tokenizer: str | None = None,
) -> Export:
    """Write a dataset into a folder, a path or URL, that is empty; `first_id` is Megatron's alone.

    Raises `UserError` where the dataset is unfinished, foreign or newer, where `tokenizer` is another than
    its own, or where the folder holds files; `DamagedShardError` where a shard is not as committed.
    """
    with scratch_folder() as name:
        scratch = Path(name)
        tokens = open_tokens(dataset, streams, scratch, tokenizer)
        target = _Target(Store(out), scratch / "out")
        shape = _shape(tokens)
        description = _describe(tokens, kind, shape, first_id)
        writer = FORMATS[kind].writer(target.open, shape, description)
        rows_before = 0
        for number in range(shape.num_shards):
            shard = _read(tokens, number, rows_before)
            writer.write(shard)
            rows_before += len(shard.keys)
        writer.finish()
        with target.open(README) as page:
            page.write_text(readme(description), encoding="utf-8")
        export = Export(**dict(description), files=tuple(target.files))
        target.store.put_bytes(export.to_bytes(), EXPORT_FILE)
        return export


def open_tokens(
    dataset: str, streams: Sequence[str], scratch: Path, tokenizer: str | None = None
) -> TokenDataset:
    """Open a finished token dataset; raises `UserError` for anything else."""
    try:
        tokens = TokenDataset(dataset, streams=streams, cache=ShardCache(scratch / "cache", CACHE_BYTES))
        if tokenizer is not None:
            tokens.require_tokenizer(tokenizer)
    except ValueError as error:
        raise UserError(str(error)) from error
    if not len(tokens):
        raise UserError(f"{dataset} has no rows: there is nothing to export")
    return tokens


def _shape(tokens: TokenDataset) -> Shape:
    """Return what all rows of a dataset have in common; its streams are those that it was opened with."""
    rows, columns, depth = tokens.shape
    return Shape(
        grid=(rows, columns),
        depth=depth,
        num_codes={stream: tokens.num_codes[stream] for stream in tokens.streams},
        num_shards=len(tokens.shards()),
        fingerprint=tokens.fingerprint,
    )


def _describe(tokens: TokenDataset, kind: str, shape: Shape, first_id: int) -> Description:
    """Say what an export is going to hold; raises `UserError` where the format cannot."""
    export_format = FORMATS[kind]
    return Description(
        format=kind,
        dataset=tokens.url,
        root_hash=tokens.fingerprint,
        tokenizer={"fingerprint": tokens.tokenizer_fingerprint, "sha256": tokens.tokenizer_sha256},
        image_size=_image_size(Store(tokens.url)),
        preprocessing=tokens.metadata()["dualtoken.preprocessing"],
        grid=shape.grid,
        depth=shape.depth,
        codes=shape.num_codes,
        first_id=first_id,
        rows=len(tokens),
        places=export_format.places(tokens.streams),
        layout=export_format.layout(shape, first_id),
    )


def _image_size(store: Store) -> int | None:
    """Return the image size of the tokenizer that a dataset's recipe describes, None without a recipe."""
    if not store.exists(STAGE_FILE):
        return None
    return StageRecord.read(store, STAGE_FILE).recipe.get("tokenizer", {}).get("image_size")


def _read(tokens: TokenDataset, number: int, first: int) -> ShardRows:
    """Read a shard; `first` is the row of the dataset that it begins with."""
    shard, num_rows = tokens.shard_name(number)
    meta = tokens.read_meta(number).drop_columns("key")
    rows = tokens.read(np.arange(first, first + num_rows))
    by_stream = {"semantic": rows.semantic, "pixel": rows.pixel}
    codes: dict[str, Ids] = {}
    for stream in tokens.streams:
        ids = by_stream[stream]
        assert ids is not None, "a stream that was asked for is read"
        codes[stream] = ids
    keys = [key.tobytes() for key in rows.keys]
    return ShardRows(shard, keys, codes, meta)


class _Target:
    """Takes an export's files: written in place in a local folder, else in scratch and put from there."""

    def __init__(self, store: Store, scratch: Path) -> None:
        if next(store.files(), None):
            raise UserError(f"--out {store.url} holds files already: give an empty folder")
        self.store = store
        self.files: list[FileRecord] = []
        """Records of the files that are complete, in the order of writing."""
        self._folder = Path(store.path()) if store.is_local else scratch
        self._folder.mkdir(parents=True, exist_ok=True)

    @contextmanager
    def open(self, name: str) -> Iterator[Path]:
        """Yield a local path for a file; when the block ends, the file is put and recorded."""
        path = self._folder / name
        yield path
        found = digest(path)
        if not self.store.is_local:
            self.store.put(path, name)
            path.unlink()
        self.files.append(
            FileRecord(name=name, bytes=found.bytes, sha256=found.sha256, xxh3_128=found.xxh3_128)
        )
