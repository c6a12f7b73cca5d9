"""A token dataset's index in memory: which shard a row is in, and what the shard's files must be."""

import hashlib
import re
from typing import Any, NamedTuple

import pyarrow as pa

from dualtoken.infra.names import PLAIN_NAME, PLAIN_PART, UnsafeNameError
from dualtoken.infra.storage import Store
from dualtoken.pipelines.core.receipts import FileRecord, Manifest
from dualtoken.pipelines.core.tables import read_table
from dualtoken.pipelines.tokens.shard_bounds import ShardBounds
from dualtoken.pipelines.tokens.shards import INDEX_FILE, ROWS_PER_BATCH

_COLUMNS = ["shard", "path", "meta_path", "rows", "bytes", "sha256", "xxh3_128"]


class IndexEntry(NamedTuple):
    """One shard, as the index has it."""

    shard: str
    rows: int
    data: FileRecord
    """Record of the file that holds its codes."""
    meta_path: str
    """Path of the file that holds its captions, relative to the dataset's folder."""


class DatasetIndex(ShardBounds):
    """Index of a finished dataset, its shards in order of name."""

    def __init__(self, store: Store, manifest: Manifest) -> None:
        """Read the index.

        Raises ValueError where it is not the one that the dataset was finished with, or names anything but
        files of the dataset.
        """
        _require_index(store, manifest)
        self._table = read_table(store, INDEX_FILE, _COLUMNS).sort_by("shard").combine_chunks()
        _require_safe_names(store.url, self._table)
        rows = self._table["rows"].to_numpy()
        super().__init__(rows)
        self.max_batches = -(-int(rows.max(initial=0)) // ROWS_PER_BATCH)
        """Batches of the longest shard."""
        self.largest = int(self._table["bytes"].to_numpy().max(initial=1))
        """Bytes of the largest data file."""

    def __len__(self) -> int:
        return len(self._table)

    def names_and_rows(self) -> list[tuple[str, int]]:
        """Return each shard's name and number of rows."""
        names = self._table["shard"].to_pylist()
        rows = self._table["rows"].to_pylist()
        return list(zip(names, rows, strict=True))

    def entry(self, number: int) -> IndexEntry:
        """Return what the index says of a shard."""
        row: dict[str, Any] = self._table.slice(number, 1).to_pylist()[0]
        data = FileRecord(
            name=row["path"], bytes=row["bytes"], sha256=row["sha256"], xxh3_128=row["xxh3_128"]
        )
        return IndexEntry(row["shard"], row["rows"], data, row["meta_path"])

    def number_of(self, name: str) -> int:
        """Return the number of the shard with a name, -1 where there is none."""
        return self._table["shard"].index(name).as_py()


def _require_index(store: Store, manifest: Manifest) -> None:
    """Raise ValueError unless a dataset's index is the one that its manifest names."""
    recorded = None
    for file in manifest.files:
        if file.name == INDEX_FILE:
            recorded = file.sha256
    if recorded is None:
        raise ValueError(
            f"{store.url}/manifest.json names no {INDEX_FILE}: run `dualtoken pretokenize` again"
        )
    state = "is missing"
    if store.exists(INDEX_FILE):
        if hashlib.sha256(store.read(INDEX_FILE)).hexdigest() == recorded:
            return
        state = "is stale: it is not the one that the manifest names"
    raise ValueError(f"{store.url}/{INDEX_FILE} {state}; run `dualtoken verify {store.url} --repair`")


def _require_safe_names(url: str, table: pa.Table) -> None:
    """Raise `UnsafeNameError` where an index leads out of its dataset: whoever wrote it may be a stranger."""
    patterns = {"path": PLAIN_NAME, "sha256": "[0-9a-f]{64}", "xxh3_128": "[0-9a-f]{32}"}
    patterns |= {"shard": PLAIN_PART, "meta_path": rf"(\.\./{PLAIN_PART}/)?{PLAIN_NAME}"}
    for column, pattern in patterns.items():
        fits = re.compile(pattern, re.ASCII).fullmatch
        for value in table[column].to_pylist():
            if value is None or not fits(value):
                raise UnsafeNameError(
                    f"{url}/{INDEX_FILE} has {value!r} as {column}: "
                    "it is no dataset that dualtoken wrote; take it from a source you trust"
                )
