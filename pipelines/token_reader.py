"""Reads a finished token dataset: any rows, in any order, as views of memory-mapped shards whose checksums were looked at.

B rows, H by W positions, D depths. A file is checked when its first row is asked for; a damaged one is never read. Remote files
are copied into a bounded folder first.
"""

import hashlib
import math
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from infra.storage import Store
from pipelines.captions import meta_place, meta_record
from pipelines.checked_files import Check, CheckedFiles, DamagedShardError
from pipelines.ledger import KEY_BYTES
from pipelines.mapped_shards import MappedShard, Rows, Words, copy_rows, map_shard
from pipelines.receipts import FileRecord, Manifest, receipt_name
from pipelines.shard_cache import ShardCache
from pipelines.tables import read_table
from pipelines.token_shards import ROWS_PER_BATCH, STREAMS, Ids, require_finished

OPEN_SHARDS, OPEN_CAPTIONS = 4096, 1024
"""Memory maps, and shards' captions, held by one process; the oldest are let go."""
_INDEX, _INDEX_COLUMNS = "index.parquet", ["shard", "path", "meta_path", "rows", "bytes", "sha256", "xxh3_128"]


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
        self, url: str, *, streams: Sequence[str] = STREAMS, check: Check = "first_touch", cache: ShardCache | None = None
    ) -> None:
        """Open the dataset at a folder or URL; of `streams` that are not named, nothing but the checksum is read.

        Raises ValueError where it is unfinished, of a newer schema, has another index than it was finished with, or `streams`
        names none of its own.
        """
        store = Store(url)
        manifest = require_finished(store)
        details = manifest.details
        if unknown := [stream for stream in streams if stream not in STREAMS]:
            raise ValueError(f"streams has {unknown[0]!r}: use some of {', '.join(STREAMS)}")
        self.url, self.streams = store.url, tuple(streams)
        self.tokenizer_fingerprint, self.tokenizer_sha256 = details["tokenizer"]["fingerprint"], details["tokenizer"]["sha256"]
        self.fingerprint = manifest.root_hash
        self.shape: tuple[int, int, int] = (*details["grid"], details["depth"])
        self._width = math.prod(self.shape)
        self.num_codes: dict[str, int] = dict(details["codes"])
        self._files = CheckedFiles(self.url, check, cache)
        self._others: dict[str, CheckedFiles] = {}
        """Of datasets that captions are borrowed from."""
        _require_index(store, manifest)
        self._index = sorted(read_table(store, _INDEX, _INDEX_COLUMNS).to_pylist(), key=lambda row: row["shard"])
        self._ends = np.cumsum([row["rows"] for row in self._index], dtype=np.int64)
        self._starts = self._ends - np.array([row["rows"] for row in self._index], np.int64)
        self._close()

    def _close(self) -> None:
        self._open: dict[int, MappedShard] = {}
        self._free: list[int] = []
        """Slots of the tables that no shard has."""
        self._slots = np.full(len(self._index), -1, np.int64)
        batches = -(-max((row["rows"] for row in self._index), default=0) // ROWS_PER_BATCH)
        self._tables = {name: np.zeros((0, batches), np.int64) for name in ("key", *self.streams)}
        """By column, for each slot, where the shard's batches begin."""
        self._captions: OrderedDict[int, pa.Array] = OrderedDict()

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getstate__(self) -> dict[str, Any]:
        """Leave the memory maps behind."""
        held = ("_open", "_free", "_slots", "_tables", "_captions")
        return {name: value for name, value in self.__dict__.items() if name not in held}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._close()

    def shards(self) -> list[tuple[str, int]]:
        """Return the shards' names and rows, in the order of the rows."""
        return [(row["shard"], row["rows"]) for row in self._index]

    def require_tokenizer(self, fingerprint: str) -> None:
        """Raise ValueError unless the tokens were made by the tokenizer with this fingerprint."""
        if fingerprint != self.tokenizer_fingerprint:
            raise ValueError(
                f"{self.url} has tokens of tokenizer {self.tokenizer_fingerprint}, the model reads those of {fingerprint}: "
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
        self._require_open(shards)
        batch, place = np.divmod(rows - self._starts[shards], ROWS_PER_BATCH)
        slots = self._slots[shards]
        return {name: self._tables[name][slots, batch] + place * (2 * self.width(name)) for name in ("key", *self.streams)}

    def width(self, name: str) -> int:
        """Return the 16-bit words of a row of a column."""
        return KEY_BYTES // 2 if name == "key" else self._width

    def shaped(self, columns: Mapping[str, Words]) -> TokenRows:
        """Return columns of words as rows."""
        codes = (columns[stream].reshape(-1, *self.shape) if stream in self.streams else None for stream in STREAMS)
        return TokenRows(columns["key"].view(np.uint8), *codes)

    def captions(self, rows: Rows) -> list[str]:
        """Return the captions of rows, empty where there is none; raises as `read`."""
        out = [""] * len(rows)
        for number, mine, local in self._by_shard(rows):
            captions = self._caption_column(number).take(pa.array(local)).to_pylist()
            for place, caption in zip(mine.tolist(), captions, strict=True):
                out[place] = caption or ""
        return out

    def shards_of(self, rows: Rows) -> Rows:
        """Return the number of each row's shard."""
        assert len(rows) == 0 or (rows.min() >= 0 and rows.max() < len(self)), "a row outside the dataset"
        return np.searchsorted(self._ends, rows, side="right")

    def shard_name(self, number: int) -> tuple[str, int]:
        """Return a shard's name and number of rows."""
        return self._index[number]["shard"], self._index[number]["rows"]

    def touch(self, number: int, *, codes: bool = True, captions: bool = False) -> None:
        """Open what is asked for of a shard; raises as `read`."""
        if codes:
            self._require_open(np.array([number]))
        if captions:
            self._caption_column(number)

    def _by_shard(self, rows: Rows) -> Iterator[tuple[int, Rows, Rows]]:
        """Part rows into (shard, places among `rows`, rows of that shard)."""
        shards = self.shards_of(rows)
        order = np.argsort(shards, kind="stable")
        cuts = np.flatnonzero(np.diff(shards[order])) + 1
        for mine in np.split(order, cuts):
            if len(mine):
                number = int(shards[mine[0]])
                yield number, mine, rows[mine] - self._starts[number]

    def _require_open(self, shards: Rows) -> None:
        """Map shards that are not, and let go of those that were mapped first, but of none of these."""
        missing = np.unique(shards[self._slots[shards] < 0])
        for number in missing.tolist():
            shard = self._map(number)
            slot = self._free.pop() if self._free else self._grow()
            for name, addresses in shard.addresses.items():
                self._tables[name][slot, : len(addresses)] = addresses
            self._open[number], self._slots[number] = shard, slot
        if len(missing) and len(self._open) > OPEN_SHARDS:
            spare = [number for number in self._open if number not in set(shards.tolist())]
            for number in spare[: len(self._open) - OPEN_SHARDS]:
                del self._open[number]
                self._free.append(int(self._slots[number]))
                self._slots[number] = -1

    def _grow(self) -> int:
        """Double the tables of addresses; return a free slot."""
        size = len(self._tables["key"])
        self._tables = {
            name: np.concatenate([table, np.zeros((max(size, 16), table.shape[1]), np.int64)]) for name, table in self._tables.items()
        }
        self._free = list(range(size, len(self._tables["key"])))
        return self._free.pop()

    def _map(self, number: int) -> MappedShard:
        entry = self._index[number]
        file = FileRecord(name=entry["path"], **{name: entry[name] for name in ("bytes", "sha256", "xxh3_128")})
        codes = pa.list_(pa.field("item", pa.uint16(), nullable=False), self.width("codes"))
        types = {"key": pa.binary(KEY_BYTES), **dict.fromkeys(self.streams, codes)}
        shard = self._files.open(file, lambda path: map_shard(path, types))
        if shard.rows != entry["rows"]:
            raise DamagedShardError(self.url, file.name, f"{shard.rows} rows, the index says {entry['rows']}")
        if (sha256 := shard.metadata.get("dualtoken.tokenizer_sha256")) != self.tokenizer_sha256:
            raise DamagedShardError(self.url, file.name, f"codes of tokenizer {sha256}, the manifest says {self.tokenizer_sha256}")
        return shard

    def _caption_column(self, number: int) -> pa.Array:
        if number in self._captions:
            self._captions.move_to_end(number)
            return self._captions[number]
        self._captions[number] = captions = self._read_captions(number)
        if len(self._captions) > OPEN_CAPTIONS:
            self._captions.popitem(last=False)
        return captions

    def _read_captions(self, number: int) -> pa.Array:
        return self.read_meta(number, ["caption"])["caption"].combine_chunks()

    def _files_of(self, url: str) -> CheckedFiles:
        return self._files if url == self.url else self._others.setdefault(url, CheckedFiles(url, self._files.check, self._files.cache))

    def read_meta(self, number: int, columns: list[str] | None = None) -> pa.Table:
        """Return the captions' table of a shard, which may lie in another dataset's folder; raises as `read`."""
        entry = self._index[number]
        try:
            folder, file = meta_record(Store(self.url), entry["meta_path"], entry["shard"])
        except FileNotFoundError:
            folder, _ = meta_place(Store(self.url), entry["meta_path"])
            raise DamagedShardError(folder.url, receipt_name(entry["shard"]), "missing") from None
        table = self._files_of(folder.url).open(file, lambda path: pq.ParquetFile(path).read(columns))
        if len(table) != entry["rows"]:
            raise DamagedShardError(folder.url, file.name, f"{len(table)} rows, the index says {entry['rows']}")
        return table


def _require_index(store: Store, manifest: Manifest) -> None:
    recorded = next((file.sha256 for file in manifest.files if file.name == _INDEX), None)
    if recorded is None:
        raise ValueError(f"{store.url}/manifest.json names no {_INDEX}: run `dualtoken pretokenize` again")
    if store.exists(_INDEX) and recorded == hashlib.sha256(store.read(_INDEX)).hexdigest():
        return
    state = "is stale: it is not the one that the manifest names" if store.exists(_INDEX) else "is missing"
    raise ValueError(f"{store.url}/{_INDEX} {state}; run `dualtoken verify {store.url} --repair`")
