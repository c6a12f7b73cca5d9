"""Image shards on disk: img2dataset's webdataset layout, written the same way twice, and read wherever it comes from.

A shard is `NNNNN.tar` (members `<key>.<jpg|png|webp>`, `<key>.json`, `<key>.txt`, in the order of the rows),
`NNNNN.parquet` (a row per input URL, failed ones too) and `NNNNN_stats.json`. Beside img2dataset's columns ours
are `sample_key` and `reason`; its `duration`, `start_time` and `end_time` are left out, so that bytes repeat.
"""

import json
import os
import tarfile
import weakref
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any, NamedTuple, Self

import pyarrow as pa
import pyarrow.parquet as pq

from dualtoken.infra.storage import Store
from dualtoken.pipelines.core.ledger import KEY_BYTES, sample_key
from dualtoken.pipelines.errors import UserError

SUCCESS, FAILED_TO_DOWNLOAD, FAILED_TO_RESIZE = "success", "failed_to_download", "failed_to_resize"
STATUSES = (SUCCESS, FAILED_TO_DOWNLOAD, FAILED_TO_RESIZE)
"""img2dataset's, of the column `status`."""
IMAGE_SUFFIXES = frozenset({"jpg", "jpeg", "png", "webp"})
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
"""Kept columns follow. `sha256` is of the bytes as fetched; `reason` is "" where the status is success."""
SHARD_COLUMNS = frozenset(SHARD_SCHEMA.names)


class ShardRow(NamedTuple):
    """What became of one input."""

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
    """Writes one shard's three files; rows come in their source's order, and memory holds one image at a time."""

    def __init__(self, folder: Path, shard: str, suffix: str, kept: pa.Schema | None = None) -> None:
        """Open `<shard>.tar`; `shard` is a number, `suffix` the images' encoding, `kept` the further columns."""
        from webdataset.writer import TarWriter  # noqa: PLC0415  (imports torch, which no reader of shards needs)

        self._folder, self._shard, self._suffix = folder, shard, suffix
        self._schema = pa.schema([*SHARD_SCHEMA, *(kept or ())])
        self._rows: list[dict[str, Any]] = []
        self._stream = (folder / f"{shard}.tar").open("wb")
        self._tar = TarWriter(self._stream, user="dualtoken", group="dualtoken", mtime=0, encoder=False)

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def write(self, row: ShardRow, image: bytes | None, kept: Mapping[str, Any] | None = None) -> None:
        """Add a row, with its encoded image where the status is success."""
        assert (image is not None) == (row.status == SUCCESS), (
            f"{row.status} with {'an' if image else 'no'} image"
        )
        meta = {**row._asdict(), "key": f"{self._shard}{len(self._rows):04d}", **(kept or {})}
        self._rows.append(meta)
        if image is not None:
            text = json.dumps(meta | {"sample_key": row.sample_key.hex()}, indent=4, default=str)
            self._tar.write(
                {
                    "__key__": meta["key"],
                    self._suffix: image,
                    "txt": row.caption.encode(),
                    "json": text.encode(),
                }
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
    statuses, reasons = Counter(table["status"].to_pylist()), Counter(table["reason"].to_pylist())
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

    Reads img2dataset's own output too. Columns of ours that it lacks are made up for: `sample_key` from the
    corpus and the source row of the shard's first input. Nothing is ever unpickled.
    """

    def __init__(self, tar: Path, parquet: Path, corpus: str | None = None, first_row: int = 0) -> None:
        """Index the tar; raises `UserError` naming the file that is damaged or lacks what the other has."""
        self._path = tar
        places, table = index_tar(tar), read_metadata(parquet)
        if "sample_key" not in table.column_names:
            assert corpus is not None, f"{parquet} has no sample keys: name the corpus"
            table = table.append_column(
                SHARD_SCHEMA.field("sample_key"), _keys(corpus, first_row, table.num_rows)
            )
        names, statuses = table["key"].to_pylist(), table["status"].to_pylist()
        rows = [row for row, status in enumerate(statuses) if status == SUCCESS]
        if missing := [names[row] for row in rows if names[row] not in places]:
            raise UserError(
                f"{tar} lacks {len(missing)} of {len(rows)} images, {missing[0]} first: it is cut short; fetch it again"
            )
        rows.sort(key=lambda row: places[names[row]].offset)
        self.metadata = table.take(pa.array(rows, pa.int64()))
        """The rows of the parquet file that have an image, in the tar's order."""
        self._places = [places[names[row]] for row in rows]
        self._descriptor = os.open(tar, os.O_RDONLY)
        self._close = weakref.finalize(self, os.close, self._descriptor)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._places)

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
    def original_sizes(self) -> list[tuple[int, int]]:
        """(width, height) as fetched, in pixels, by row; as stored where the file does not say."""
        widths = zip(self._column("original_width"), self._column("width"), strict=True)
        heights = zip(self._column("original_height"), self._column("height"), strict=True)
        return [
            (one or other or 0, two or another or 0)
            for (one, other), (two, another) in zip(widths, heights, strict=True)
        ]

    def _column(self, name: str) -> list[Any]:
        return self.metadata[name].to_pylist() if name in self.metadata.column_names else [None] * len(self)

    def image(self, row: int) -> bytes:
        """Return a row's encoded image; may be called by several threads."""
        place = self._places[row]
        data = os.pread(self._descriptor, place.size, place.offset)
        if len(data) != place.size:
            raise UserError(f"{self._path} is cut short at {place.offset + len(data)} bytes: fetch it again")
        return data


class TarMember(NamedTuple):
    """Where an image's bytes are in a tar."""

    offset: int
    size: int


def member_key(name: str) -> str:
    """Return the key of a tar's member, with its folder: as webdataset does, it ends at the first dot of the file's name."""
    path = PurePosixPath(name)
    return str(path.parent / path.name.partition(".")[0])


def index_tar(path: Path) -> dict[str, TarMember]:
    """Map the keys of a tar's images to their places, from its headers; raises `UserError` where it is damaged."""
    places: dict[str, TarMember] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                suffix = PurePosixPath(member.name).name.partition(".")[2]
                if member.isreg() and suffix.lower() in IMAGE_SUFFIXES:
                    places[member_key(member.name)] = TarMember(member.offset_data, member.size)
    except tarfile.TarError as error:
        raise UserError(f"{path} is no whole tar ({error}): fetch it again") from error
    return places


def read_metadata(path: Path) -> pa.Table:
    """Read a shard's parquet file; raises `UserError` where it is damaged or not img2dataset's."""
    try:
        table = pq.ParquetFile(path).read()
    except pa.ArrowInvalid as error:
        raise UserError(
            f"{path} cannot be read ({' '.join(str(error).split())[:200]}): fetch it again"
        ) from error
    for name in ("key", "status"):
        if name not in table.column_names:
            raise UserError(
                f"{path} has no column {name!r}, so it is not img2dataset's: give a folder that img2dataset wrote"
            )
    if unknown := set(table["status"].to_pylist()) - set(STATUSES):
        raise UserError(
            f"{path} has the status {min(map(str, unknown))!r}: give a folder that img2dataset wrote"
        )
    return table


def _keys(corpus: str, first_row: int, rows: int) -> pa.Array:
    return pa.array([sample_key(corpus, first_row + row) for row in range(rows)], pa.binary(KEY_BYTES))


class SourceShard(NamedTuple):
    """A shard of an existing dataset."""

    name: str
    first_row: int
    """Rows of all shards before it."""
    rows: int


def numbered(files: Iterable[str]) -> list[str]:
    """Return the names of shards whose NNNNN.parquet is among files, in the order of their numbers."""
    suffix = ".parquet"
    names = (file.removesuffix(suffix) for file in files if file.endswith(suffix))
    return sorted((name for name in names if name.isdecimal()), key=int)


def find_shards(folder: str) -> list[SourceShard]:
    """List a folder's shards in the order of their numbers, with their rows; raises `UserError` where one is incomplete."""
    store = Store(folder)
    files = {name for name, _ in store.files()}
    names = numbered(files)
    if not names:
        raise UserError(
            f"folder={folder!r} has no NNNNN.parquet: set it to a folder that img2dataset wrote with output_format=webdataset"
        )
    shards, first = [], 0
    for name in names:
        if f"{name}.tar" not in files:
            raise UserError(
                f"folder={folder!r} has {name}.parquet but no {name}.tar: fetch it again, or take the parquet file away"
            )
        with store.fs.open(store.path(f"{name}.parquet"), "rb") as file:
            rows = pq.ParquetFile(file).metadata.num_rows
        shards.append(SourceShard(name, first, rows))
        first += rows
    return shards
