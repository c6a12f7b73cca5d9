"""Reads and writes image shards, in img2dataset's webdataset layout; the same rows give the same bytes.

A shard is `NNNNN.tar` (members `<key>.<jpg|png|webp>`, `<key>.json`, `<key>.txt`, in the order of the rows),
`NNNNN.parquet` (a row per input URL, failed ones too) and `NNNNN_stats.json`. The columns `sample_key` and
`reason` are added to img2dataset's; its `duration`, `start_time` and `end_time` are left out, so that bytes
repeat.
"""

import json
import os
import weakref
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import pyarrow as pa
import pyarrow.parquet as pq

from dualtoken.pipelines.core.json_text import json_text
from dualtoken.pipelines.core.ledger import KEY_BYTES, sample_key
from dualtoken.pipelines.errors import UserError
from dualtoken.pipelines.images.shard_tables import (
    FAILED_TO_DOWNLOAD,
    FAILED_TO_RESIZE,
    SUCCESS,
    read_metadata,
    with_member_keys,
)
from dualtoken.pipelines.images.tar_index import TarMember, index_tar

SHARD_SCHEMA = pa.schema(
    [
        pa.field("url", pa.string()),
        pa.field("caption", pa.string()),
        pa.field("key", pa.string(), nullable=False),
        pa.field("status", pa.string(), nullable=False),
        pa.field("error_message", pa.string()),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("original_width", pa.int32()),
        pa.field("original_height", pa.int32()),
        pa.field("sha256", pa.string()),
        pa.field("sample_key", pa.binary(KEY_BYTES), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
    ]
)
"""Columns of a shard's table; those kept of the source follow.

`sha256` is of the bytes as fetched; `reason` is "" where the status is success.
"""
SHARD_COLUMNS = frozenset(SHARD_SCHEMA.names)


class ShardRow(NamedTuple):
    """Outcome of one input: a row of the shard's table."""

    url: str | None
    caption: str
    sample_key: bytes
    status: str
    reason: str = ""
    error_message: str | None = None
    width: int | None = None
    height: int | None = None
    original_width: int | None = None
    original_height: int | None = None
    sha256: str | None = None


class ImageShardWriter:
    """Writes one shard's three files; rows come in the source's order, memory holds one image at a time."""

    def __init__(self, folder: Path, shard: str, suffix: str, kept: pa.Schema | None = None) -> None:
        """Open `<shard>.tar`; `suffix` is the images' encoding, `kept` has the columns kept of the source."""
        from webdataset.writer import TarWriter  # noqa: PLC0415  (imports torch, which no reader of shards needs)

        self._folder = folder
        self._shard = shard
        self._suffix = suffix
        self._schema = pa.schema([*SHARD_SCHEMA, *(kept or ())])
        self._rows: list[dict[str, Any]] = []
        self._stream = (folder / f"{shard}.tar").open("wb")
        self._tar = TarWriter(self._stream, user="dualtoken", group="dualtoken", mtime=0, encoder=False)

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def write(self, row: ShardRow, image: bytes | None, kept: Mapping[str, Any] | None = None) -> None:
        """Add a row, with its encoded image where the status is success."""
        has_image = image is not None
        assert has_image == (row.status == SUCCESS), f"{row.status} with {'an' if image else 'no'} image"
        key = f"{self._shard}{len(self._rows):04d}"
        metadata = {**row._asdict(), "key": key, **(kept or {})}
        self._rows.append(metadata)
        if image is None:
            return
        text = json_text(metadata, indent=4)
        self._tar.write(
            {"__key__": key, self._suffix: image, "txt": row.caption.encode(), "json": text.encode()}
        )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the tar; write the table and the statistics, unless the block raised."""
        with self._stream:
            self._tar.close()
        if error is None:
            table = pa.Table.from_pylist(self._rows, schema=self._schema)
            write_metadata(self._folder, self._shard, table)


def shard_files(shard: str) -> tuple[str, str, str]:
    """Return the names of a shard's files."""
    return f"{shard}.tar", f"{shard}.parquet", f"{shard}_stats.json"


def write_metadata(folder: Path, shard: str, table: pa.Table) -> None:
    """Write `<shard>.parquet` and the counts in `<shard>_stats.json`."""
    _, parquet, stats = shard_files(shard)
    pq.write_table(table, folder / parquet, compression="zstd")
    statuses = Counter(table["status"].to_pylist())
    reasons = Counter(table["reason"].to_pylist())
    counts = {
        "count": table.num_rows,
        "successes": statuses[SUCCESS],
        FAILED_TO_DOWNLOAD: statuses[FAILED_TO_DOWNLOAD],
        FAILED_TO_RESIZE: statuses[FAILED_TO_RESIZE],
        "status_dict": {reason or SUCCESS: count for reason, count in sorted(reasons.items())},
    }
    (folder / stats).write_text(json.dumps(counts, indent=4) + "\n")


class ImageShard:
    """Reads one shard on local disk: its successful rows in the tar's order, and their images at random.

    Reads img2dataset's own output too, which has no `sample_key`: the keys are made from the corpus and the
    source row of the shard's first input. Nothing is ever unpickled.
    """

    def __init__(self, tar: Path, parquet: Path, corpus: str | None = None, first_row: int = 0) -> None:
        """Index the tar; raises `UserError` naming the file that is damaged or lacks what the other has."""
        self.path = tar
        members = index_tar(tar)
        table = with_member_keys(read_metadata(parquet), members)
        if "sample_key" not in table.column_names:
            assert corpus is not None, f"{parquet} has no sample keys: name the corpus"
            sample_keys = _sample_keys(corpus, first_row, table.num_rows)
            table = table.append_column(SHARD_SCHEMA.field("sample_key"), sample_keys)
        self.table = table
        """All rows of the Parquet file."""
        rows = _rows_in_tar_order(table, members, tar)
        self.metadata = table.take(pa.array(rows, pa.int64()))
        """Rows of the Parquet file that have an image, in the tar's order."""
        self._members = [members[key] for key in self.metadata["key"].to_pylist()]
        self._descriptor = os.open(tar, os.O_RDONLY)
        self._close = weakref.finalize(self, os.close, self._descriptor)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._members)

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the tar."""
        self.close()

    def close(self) -> None:
        """Close the tar; images can be read no more."""
        self._close()

    @cached_property
    def keys(self) -> list[bytes]:
        """Sample keys, by row."""
        return self.metadata["sample_key"].to_pylist()

    @cached_property
    def captions(self) -> list[str]:
        """Captions, by row; "" where there is none."""
        return [caption or "" for caption in self._column("caption")]

    @cached_property
    def original_sizes(self) -> list[tuple[int, int] | None]:
        """(width, height) as fetched, in pixels, by row.

        As stored where the file does not say, and None where it says neither.
        """
        original = zip(self._column("original_width"), self._column("original_height"), strict=True)
        stored = zip(self._column("width"), self._column("height"), strict=True)
        sizes: list[tuple[int, int] | None] = []
        for first, second in zip(original, stored, strict=True):
            known = [size for size in (first, second) if all(size)]
            sizes.append(known[0] if known else None)
        return sizes

    def _column(self, name: str) -> list[Any]:
        if name not in self.metadata.column_names:
            return [None] * len(self)
        return self.metadata[name].to_pylist()

    def member(self, row: int) -> TarMember:
        """Return where a row's encoded image lies in the tar."""
        return self._members[row]

    def image(self, row: int) -> bytes:
        """Return a row's encoded image; may be called by several threads."""
        member = self._members[row]
        data = os.pread(self._descriptor, member.size, member.offset)
        if len(data) != member.size:
            raise UserError(f"{self.path} is cut short at {member.offset + len(data)} bytes: fetch it again")
        return data


def _rows_in_tar_order(table: pa.Table, members: Mapping[str, TarMember], tar: Path) -> list[int]:
    """Return the successful rows of a shard's table; raises `UserError` where the tar lacks one's image."""
    keys = table["key"].to_pylist()
    rows: list[int] = []
    missing: list[str] = []
    seen: set[str] = set()
    for row, status in enumerate(table["status"].to_pylist()):
        if status != SUCCESS:
            continue
        if keys[row] in seen:
            raise UserError(f"the table of {tar} has the key {keys[row]} twice: fetch it again")
        seen.add(keys[row])
        rows.append(row)
        if keys[row] not in members:
            missing.append(keys[row])
    if missing:
        raise UserError(
            f"{tar} lacks {len(missing)} of {len(rows)} images, {missing[0]} first: "
            "it is cut short; fetch it again"
        )
    rows.sort(key=lambda row: members[keys[row]].offset)
    return rows


def _sample_keys(corpus: str, first_row: int, num_rows: int) -> pa.Array:
    keys = [sample_key(corpus, row) for row in range(first_row, first_row + num_rows)]
    return pa.array(keys, pa.binary(KEY_BYTES))


def numbered(files: Iterable[str]) -> list[str]:
    """Return the names of shards with an NNNNN.parquet among the files, in the order of their numbers."""
    suffix = ".parquet"
    names: list[str] = []
    for file in files:
        name = file.removesuffix(suffix)
        if file.endswith(suffix) and name.isdecimal():
            names.append(name)
    return sorted(names, key=int)
