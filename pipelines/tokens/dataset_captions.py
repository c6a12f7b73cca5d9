"""Reads the captions of one dataset's rows, and other texts that were carried along with them.

B rows. The texts may be in another dataset's folder (`pipelines.tokens.captions`).
"""

from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from dualtoken.infra.storage import Store, join
from dualtoken.pipelines.core.receipts import FileRecord, receipt_name
from dualtoken.pipelines.errors import UserError
from dualtoken.pipelines.tokens.caption_cache import CAPTION, CaptionCache
from dualtoken.pipelines.tokens.captions import meta_record, resolve_meta_path
from dualtoken.pipelines.tokens.checked_files import CheckedFiles, DamagedShardError
from dualtoken.pipelines.tokens.dataset_index import DatasetIndex
from dualtoken.pipelines.tokens.mapped_shards import Rows
from dualtoken.pipelines.tokens.shard_bounds import ShardRows


class _MetaFile(NamedTuple):
    """The file with a shard's captions."""

    files: CheckedFiles
    """Files of the dataset that it belongs to."""
    folder: Store
    record: FileRecord
    num_rows: int
    """Rows that it has by the index."""


class DatasetCaptions:
    """Captions of a dataset and other texts of its rows; a pickled copy holds none of them."""

    def __init__(self, files: CheckedFiles, index: DatasetIndex, fingerprint: str) -> None:
        """Read nothing yet; `fingerprint` is that of the dataset's content."""
        self._files = files
        self._index = index
        self._fingerprint = fingerprint
        self._columns: dict[str, CaptionCache] = {}
        """Texts by the name of their column."""
        self._source_files: dict[str, CheckedFiles] = {}
        """Files of the datasets whose captions are shared, by folder."""

    def read(self, rows: Rows, column: str = CAPTION) -> list[str]:
        """Return the texts of rows in a column, (B,), empty where there is none.

        Raises `DamagedShardError`, and `UserError` where there is no such column of text.
        """
        texts = [""] * len(rows)
        parts: dict[int, ShardRows] = {}
        for part in self._index.by_shard(rows):
            parts[part.number] = part
        store = self._files.store()
        columns = self._cache_of(column).get(
            list(parts), lambda number: self._read_column(store, number, column)
        )
        for number, shard_texts in columns:
            part = parts[number]
            part_texts = shard_texts.take(pa.array(part.rows)).to_pylist()
            for place, text in zip(part.places.tolist(), part_texts, strict=True):
                texts[place] = text or ""
        return texts

    def table(self, number: int, columns: list[str] | None = None) -> pa.Table:
        """Return the captions' table of a shard, or some of its columns; raises `DamagedShardError`."""
        return _read_table(self._meta_file(self._files.store(), number), columns)

    def require_text(self, column: str, number: int) -> None:
        """Raise `UserError` unless the captions' table of a shard has a column of text; raises as `table`."""
        _require_text(self._meta_file(self._files.store(), number), column)

    def text_columns(self, number: int) -> tuple[str, ...]:
        """Return the columns of text that the captions' table of a shard has; raises as `table`."""
        meta = self._meta_file(self._files.store(), number)
        schema = meta.files.open(meta.folder, meta.record, pq.read_schema)
        return tuple(field.name for field in schema if _is_text(field.type))

    def _cache_of(self, column: str) -> CaptionCache:
        if column not in self._columns:
            threads = self._files.num_threads(self._index.largest)
            self._columns[column] = CaptionCache(self._fingerprint, self._files.cache, threads, column)
        return self._columns[column]

    def _read_column(self, store: Store, number: int, column: str) -> pa.Array:
        """Read a shard's texts; an error of damage names the shard by its number too."""
        try:
            meta = self._meta_file(store, number)
            # Every dataset has captions: a file without is damaged. Other columns are the recipe's choice.
            if column != CAPTION:
                _require_text(meta, column)
            return _read_table(meta, [column])[column].combine_chunks()
        except DamagedShardError as error:
            error.shard = (self._files.url, number)
            raise

    def _meta_file(self, store: Store, number: int) -> _MetaFile:
        entry = self._index.entry(number)
        try:
            folder, record = meta_record(store, entry.meta_path, entry.shard)
        except FileNotFoundError:
            folder, _ = resolve_meta_path(store, entry.meta_path)
            raise DamagedShardError.of(folder.url, receipt_name(entry.shard), "missing") from None
        return _MetaFile(self._files_in(folder.url), folder, record, entry.rows)

    def _files_in(self, url: str) -> CheckedFiles:
        if url == self._files.url:
            return self._files
        return self._source_files.setdefault(url, self._files.of_dataset(url))


def _is_text(column_type: pa.DataType) -> bool:
    return pa.types.is_string(column_type) or pa.types.is_large_string(column_type)


def _require_text(meta: _MetaFile, column: str) -> None:
    schema = meta.files.open(meta.folder, meta.record, pq.read_schema)
    path = join(meta.folder.url, meta.record.name)
    if column not in schema.names:
        raise UserError(
            f"{path} has no column {column!r}: use one of {', '.join(schema.names)}, "
            "or carry it along from the corpus and pretokenize again"
        )
    column_type = schema.field(column).type
    if not _is_text(column_type):
        raise UserError(f"{path} has {column_type} in column {column!r}: use a column of strings")


def _read_table(meta: _MetaFile, columns: list[str] | None) -> pa.Table:
    table = meta.files.open(meta.folder, meta.record, lambda path: _read_columns(path, columns))
    if len(table) != meta.num_rows:
        raise DamagedShardError.of(
            meta.folder.url, meta.record.name, f"{len(table)} rows, the index says {meta.num_rows}"
        )
    return table


def _read_columns(path: Path, columns: list[str] | None) -> pa.Table:
    """Read a Parquet file, or some of its columns; raises `pa.ArrowInvalid` where it lacks one."""
    with pq.ParquetFile(path) as file:
        for name in columns or ():
            if name not in file.schema_arrow.names:
                raise pa.ArrowInvalid(f"no column {name}")
        return file.read(columns)
