"""Reads the captions of one dataset's rows.

B rows. The captions may be in another dataset's folder (`pipelines.tokens.captions`).
"""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from dualtoken.infra.storage import Store
from dualtoken.pipelines.core.receipts import receipt_name
from dualtoken.pipelines.tokens.caption_cache import CaptionCache
from dualtoken.pipelines.tokens.captions import meta_record, resolve_meta_path
from dualtoken.pipelines.tokens.checked_files import CheckedFiles, DamagedShardError
from dualtoken.pipelines.tokens.dataset_index import DatasetIndex
from dualtoken.pipelines.tokens.mapped_shards import Rows
from dualtoken.pipelines.tokens.shard_bounds import ShardRows


class DatasetCaptions:
    """Captions of a dataset, and the tables that they are in; a pickled copy holds none of them."""

    def __init__(self, files: CheckedFiles, index: DatasetIndex, fingerprint: str) -> None:
        """Read nothing yet; `fingerprint` is that of the dataset's content."""
        self._files = files
        self._index = index
        self._columns = CaptionCache(fingerprint, files.cache, files.num_threads(index.largest))
        self._source_files: dict[str, CheckedFiles] = {}
        """Files of the datasets whose captions are shared, by folder."""

    def read(self, rows: Rows) -> list[str]:
        """Return the captions of rows, (B,), empty where there is none; raises `DamagedShardError`."""
        captions = [""] * len(rows)
        parts: dict[int, ShardRows] = {}
        for part in self._index.by_shard(rows):
            parts[part.number] = part
        store = self._files.store()
        columns = self._columns.get(list(parts), lambda number: self._read_column(store, number))
        for number, column in columns:
            part = parts[number]
            texts = column.take(pa.array(part.rows)).to_pylist()
            for place, text in zip(part.places.tolist(), texts, strict=True):
                captions[place] = text or ""
        return captions

    def table(self, number: int, columns: list[str] | None = None) -> pa.Table:
        """Return the captions' table of a shard, or some of its columns; raises `DamagedShardError`."""
        return self._read_table(self._files.store(), number, columns)

    def _read_column(self, store: Store, number: int) -> pa.Array:
        """Read a shard's captions; an error that is raised names the shard by its number too."""
        try:
            return self._read_table(store, number, ["caption"])["caption"].combine_chunks()
        except DamagedShardError as error:
            error.shard = (self._files.url, number)
            raise

    def _read_table(self, store: Store, number: int, columns: list[str] | None) -> pa.Table:
        entry = self._index.entry(number)
        try:
            folder, file = meta_record(store, entry.meta_path, entry.shard)
        except FileNotFoundError:
            folder, _ = resolve_meta_path(store, entry.meta_path)
            raise DamagedShardError.of(folder.url, receipt_name(entry.shard), "missing") from None
        files = self._files_in(folder.url)
        table = files.open(folder, file, lambda path: _read_columns(path, columns))
        if len(table) != entry.rows:
            raise DamagedShardError.of(
                folder.url, file.name, f"{len(table)} rows, the index says {entry.rows}"
            )
        return table

    def _files_in(self, url: str) -> CheckedFiles:
        if url == self._files.url:
            return self._files
        return self._source_files.setdefault(url, self._files.of_dataset(url))


def _read_columns(path: Path, columns: list[str] | None) -> pa.Table:
    """Read a Parquet file, or some of its columns; raises `pa.ArrowInvalid` where it lacks one."""
    with pq.ParquetFile(path) as file:
        for name in columns or ():
            if name not in file.schema_arrow.names:
                raise pa.ArrowInvalid(f"no column {name}")
        return file.read(columns)
