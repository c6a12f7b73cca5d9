"""Reads a finished token dataset: any rows, in any order, as views of memory-mapped shards whose checksums were looked at.

B rows, H by W positions, D depths. A file is checked when its first row is asked for; a damaged one is never read. Remote files
are copied into a bounded folder first.
"""

import hashlib
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dualtoken.infra.storage import Store
from dualtoken.pipelines.core.ledger import KEY_BYTES
from dualtoken.pipelines.core.receipts import FileRecord, Manifest, receipt_name
from dualtoken.pipelines.core.tables import read_table
from dualtoken.pipelines.core.threads import THREADS, map_ahead_unless_ready
from dualtoken.pipelines.tokens.caption_cache import CaptionCache
from dualtoken.pipelines.tokens.captions import meta_record, resolve_meta_path
from dualtoken.pipelines.tokens.checked_files import Check, CheckedFiles, DamagedShardError
from dualtoken.pipelines.tokens.facts import STREAMS, TokenDetails
from dualtoken.pipelines.tokens.mapped_shards import MappedShard, Rows, Words, copy_rows, map_shard
from dualtoken.pipelines.tokens.open_shards import ShardMaps
from dualtoken.pipelines.tokens.shard_cache import ShardCache
from dualtoken.pipelines.tokens.shards import INDEX_FILE, ROWS_PER_BATCH, Ids, require_finished

_INDEX_COLUMNS = ["shard", "path", "meta_path", "rows", "bytes", "sha256", "xxh3_128"]


class TokenRows(NamedTuple):
    """Some rows of a dataset, in the order asked for."""

    keys: np.ndarray[Any, np.dtype[np.uint8]]
    """(B, 16)"""
    semantic: Ids | None
    """(B, H, W, D); None where the stream was not asked for."""
    pixel: Ids | None


class TokenDataset:
    """Random access to a token dataset's rows; goes to other processes by fork or pickle."""

    def __init__(
        self,
        url: str,
        *,
        streams: Sequence[str] = STREAMS,
        check: Check = "first_touch",
        cache: ShardCache | None = None,
    ) -> None:
        """Open the dataset at a folder or URL; of `streams` that are not named, nothing but the checksum is read.

        Remote shards are copied into `cache`, and captions, those of a local dataset too if there is one.
        Raises ValueError where it is unfinished, of a newer schema, has another index than it was finished with, or `streams`
        names none of its own.
        """
        store = Store(url)
        manifest = require_finished(store)
        details = TokenDetails.of(manifest)
        if unknown := [stream for stream in streams if stream not in STREAMS]:
            raise ValueError(f"streams has {unknown[0]!r}: use some of {', '.join(STREAMS)}")
        self.url, self.streams = store.url, tuple(streams)
        self.tokenizer_fingerprint = details.tokenizer.fingerprint
        self.tokenizer_sha256 = details.tokenizer.sha256
        self.fingerprint = manifest.root_hash
        self.shape: tuple[int, int, int] = (*details.grid, details.depth)
        self._width = math.prod(self.shape)
        self.num_codes: dict[str, int] = dict(details.num_codes)
        self._files = CheckedFiles(self.url, check, cache)
        self._others: dict[str, CheckedFiles] = {}
        """Of datasets that captions are borrowed from."""
        _require_index(store, manifest)
        self._index = read_table(store, INDEX_FILE, _INDEX_COLUMNS).sort_by("shard").combine_chunks()
        rows = self._index["rows"].to_numpy()
        self._ends = np.cumsum(rows, dtype=np.int64)
        self._starts = self._ends - rows
        self._batches, self._cache = -(-int(rows.max(initial=0)) // ROWS_PER_BATCH), cache
        self._close()

    def _close(self) -> None:
        copies, self._threads = None if Store(self.url).is_local else self._cache, THREADS
        if self._cache:
            # Copies under way are a quarter of the cache at most, or they would push out one another.
            largest = int(self._index["bytes"].to_numpy().max(initial=1))
            self._threads = max(1, min(THREADS, self._cache.max_bytes // (4 * largest)))
        self._stores: dict[int, Store] = {}
        """By process, which may be a fork of the one that opened the dataset."""
        self._open = ShardMaps(len(self._index), self._batches, ("key", *self.streams), copies)
        self._captions = CaptionCache(self.fingerprint, self._cache, self._threads)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getstate__(self) -> dict[str, Any]:
        """Leave the memory maps behind."""
        return {
            name: value
            for name, value in self.__dict__.items()
            if name not in ("_open", "_captions", "_stores")
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._close()

    def shards(self) -> list[tuple[str, int]]:
        """Return the shards' names and rows, in the order of the rows."""
        return list(zip(self._index["shard"].to_pylist(), self._index["rows"].to_pylist(), strict=True))

    def bounds(self) -> Rows:
        """Return where each shard's rows begin, and the end."""
        return np.append(0, self._ends)

    def require_tokenizer(self, tokenizer: str) -> None:
        """Raise ValueError unless the tokens were made by the tokenizer with this fingerprint, or these weights by their SHA-256."""
        ours = (
            self.tokenizer_sha256
            if len(tokenizer) == len(self.tokenizer_sha256)
            else self.tokenizer_fingerprint
        )
        if tokenizer != ours:
            raise ValueError(
                f"{self.url} has tokens of tokenizer {ours}, the model reads those of {tokenizer}: "
                "pretokenize the corpus with the model's tokenizer, or name the other tokenizer's model"
            )

    def read(self, rows: Rows) -> TokenRows:
        """Return rows, 0 the first; raises `DamagedShardError` where a shard is not as committed."""
        found = self.addresses(rows)
        columns = {name: np.empty((len(rows), self.width(name)), np.uint16) for name in found}
        for name, addresses in found.items():
            copy_rows(addresses, columns[name])
        return self.shaped(columns)

    def addresses(self, rows: Rows) -> dict[str, Rows]:
        """Return by column where rows lie in memory, valid until the next call; raises as `read`."""
        shards = self.shards_of(rows)
        batches, places = np.divmod(rows - self._starts[shards], ROWS_PER_BATCH)
        begins = self._open.begins(shards, batches, self._map_all)
        return {name: begins[name] + places * (2 * self.width(name)) for name in ("key", *self.streams)}

    def width(self, name: str) -> int:
        """Return the 16-bit words of a row of a column."""
        return KEY_BYTES // 2 if name == "key" else self._width

    def shaped(self, columns: Mapping[str, Words]) -> TokenRows:
        """Return columns of words as rows."""
        codes = (
            columns[stream].reshape(-1, *self.shape) if stream in self.streams else None for stream in STREAMS
        )
        return TokenRows(columns["key"].view(np.uint8), *codes)

    def captions(self, rows: Rows) -> list[str]:
        """Return the captions of rows, empty where there is none; raises as `read`."""
        out = [""] * len(rows)
        parts = {number: part for number, *part in self._by_shard(rows)}
        store = self._store()
        for number, column in self._captions.get(
            list(parts), lambda number: self._read_captions(store, number)
        ):
            mine, local = parts[number]
            for place, caption in zip(mine.tolist(), column.take(pa.array(local)).to_pylist(), strict=True):
                out[place] = caption or ""
        return out

    def shards_of(self, rows: Rows) -> Rows:
        """Return the number of each row's shard."""
        assert len(rows) == 0 or (rows.min() >= 0 and rows.max() < len(self)), "a row outside the dataset"
        return np.searchsorted(self._ends, rows, side="right")

    def shard_name(self, number: int) -> tuple[str, int]:
        """Return a shard's name and number of rows."""
        entry = self._entry(number)
        return entry["shard"], entry["rows"]

    def shard_number(self, name: str) -> int:
        """Return the number of the shard with a name, -1 where there is none."""
        return self._index["shard"].index(name).as_py()

    def _entry(self, number: int) -> dict[str, Any]:
        return self._index.slice(number, 1).to_pylist()[0]

    @contextmanager
    def _blaming(self, number: int) -> Iterator[None]:
        try:
            yield
        except DamagedShardError as error:
            error.shard = (self.url, number)
            raise

    def _by_shard(self, rows: Rows) -> Iterator[tuple[int, Rows, Rows]]:
        """Part rows into (shard, places among `rows`, rows of that shard)."""
        shards = self.shards_of(rows)
        order = np.argsort(shards, kind="stable")
        cuts = np.flatnonzero(np.diff(shards[order])) + 1
        for mine in np.split(order, cuts):
            if len(mine):
                number = int(shards[mine[0]])
                yield number, mine, rows[mine] - self._starts[number]

    def _map_all(self, numbers: Sequence[int]) -> Iterator[MappedShard]:
        # Side by side: a batch shuffled over all shards lacks as many as it has rows at first.
        store, is_at_hand = (
            self._store(),
            lambda number: self._files.is_at_hand(_data_file(self._entry(number))),
        )
        return map_ahead_unless_ready(
            lambda number: self._map(store, number), numbers, is_at_hand, self._threads
        )

    def _map(self, store: Store, number: int) -> MappedShard:
        entry = self._entry(number)
        file = _data_file(entry)
        codes = pa.list_(pa.field("item", pa.uint16(), nullable=False), self.width("codes"))
        types = {"key": pa.binary(KEY_BYTES), **dict.fromkeys(self.streams, codes)}
        with self._blaming(number):
            shard = self._files.open(store, file, lambda path: map_shard(path, types))
            self._require_own(shard, file, entry["rows"])
        return shard

    def _require_own(self, shard: MappedShard, file: FileRecord, rows: int) -> None:
        if shard.rows != rows:
            raise DamagedShardError.of(self.url, file.name, f"{shard.rows} rows, the index says {rows}")
        if (sha256 := shard.metadata.get("dualtoken.tokenizer_sha256")) != self.tokenizer_sha256:
            raise DamagedShardError.of(
                self.url, file.name, f"codes of tokenizer {sha256}, the manifest says {self.tokenizer_sha256}"
            )

    def _read_captions(self, store: Store, number: int) -> pa.Array:
        with self._blaming(number):
            return self._meta(store, number, ["caption"])["caption"].combine_chunks()

    def _store(self) -> Store:
        """Return the folder for all threads of this process: fsspec makes a client for each thread that opens it, slowly."""
        process = os.getpid()
        if process not in self._stores:
            self._stores = {process: Store(self.url)}
        return self._stores[process]

    def _files_of(self, url: str) -> CheckedFiles:
        return (
            self._files
            if url == self.url
            else self._others.setdefault(url, CheckedFiles(url, self._files.check, self._files.cache))
        )

    def read_meta(self, number: int, columns: list[str] | None = None) -> pa.Table:
        """Return the captions' table of a shard, which may lie in another dataset's folder; raises as `read`."""
        return self._meta(self._store(), number, columns)

    def _meta(self, store: Store, number: int, columns: list[str] | None) -> pa.Table:
        entry = self._entry(number)
        try:
            folder, file = meta_record(store, entry["meta_path"], entry["shard"])
        except FileNotFoundError:
            folder, _ = resolve_meta_path(store, entry["meta_path"])
            raise DamagedShardError.of(folder.url, receipt_name(entry["shard"]), "missing") from None
        table = self._files_of(folder.url).open(folder, file, lambda path: _read_columns(path, columns))
        if len(table) != entry["rows"]:
            raise DamagedShardError.of(
                folder.url, file.name, f"{len(table)} rows, the index says {entry['rows']}"
            )
        return table


def _data_file(entry: Mapping[str, Any]) -> FileRecord:
    return FileRecord(name=entry["path"], **{name: entry[name] for name in ("bytes", "sha256", "xxh3_128")})


def _read_columns(path: Path, columns: list[str] | None) -> pa.Table:
    with pq.ParquetFile(path) as file:
        if missing := [name for name in columns or () if name not in file.schema_arrow.names]:
            raise pa.ArrowInvalid(f"no column {missing[0]}")
        return file.read(columns)


def _require_index(store: Store, manifest: Manifest) -> None:
    recorded = next((file.sha256 for file in manifest.files if file.name == INDEX_FILE), None)
    if recorded is None:
        raise ValueError(
            f"{store.url}/manifest.json names no {INDEX_FILE}: run `dualtoken pretokenize` again"
        )
    if store.exists(INDEX_FILE) and recorded == hashlib.sha256(store.read(INDEX_FILE)).hexdigest():
        return
    state = (
        "is stale: it is not the one that the manifest names" if store.exists(INDEX_FILE) else "is missing"
    )
    raise ValueError(f"{store.url}/{INDEX_FILE} {state}; run `dualtoken verify {store.url} --repair`")
