"""Reads a finished token dataset: any rows, in any order, as views of memory-mapped shards whose checksums were looked at.

B rows, H by W positions, D depths. A shard is checked when its first row is asked for; a damaged one is never read. Remote shards
are copied into a bounded folder first.
"""

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa

from infra.storage import Store, digest
from pipelines.ledger import KEY_BYTES
from pipelines.samples import read_table
from pipelines.shard_cache import ShardCache
from pipelines.token_shards import ROWS_PER_BATCH, STREAMS, Ids, require_finished

Check = Literal["first_touch", "never"]
Rows = np.ndarray[Any, np.dtype[np.int64]]
Values = np.ndarray[Any, Any]
OPEN_SHARDS = 256
"""Memory maps held by one process; the least recently used is let go."""


class DamagedShardError(OSError):
    """A shard is not what its dataset's index says; training on it would be training on other codes."""

    def __init__(self, url: str, name: str, problem: str) -> None:
        super().__init__(f"{url}/{name} is damaged ({problem}): run `dualtoken verify {url} --repair`")
        self.url, self.name = url, name


class TokenRows(NamedTuple):
    """Some rows of a dataset, in the order asked for."""

    keys: np.ndarray[Any, np.dtype[np.uint8]]
    """(B, 16)"""
    semantic: Ids | None
    """(B, H, W, D); None where the stream was not asked for."""
    pixel: Ids | None


class _Shard(NamedTuple):
    batches: int
    """Whole ones, of `ROWS_PER_BATCH` rows."""
    whole: dict[str, Values]
    """By column, (batches, rows of a batch, values of a row)."""
    rest: dict[str, Values]
    """By column, (rows after the last whole batch, values of a row)."""


class TokenDataset:
    """Random access to a token dataset's rows; goes to other processes by fork or pickle."""

    def __init__(
        self, url: str, *, streams: Sequence[str] = STREAMS, check: Check = "first_touch", cache: ShardCache | None = None
    ) -> None:
        """Open the dataset at a folder or URL.

        Raises ValueError where it is unfinished, of a newer schema, or `streams` names none of its own.
        """
        store = Store(url)
        manifest = require_finished(store)
        details = manifest.details
        if unknown := [stream for stream in streams if stream not in STREAMS]:
            raise ValueError(f"streams has {unknown[0]!r}: use some of {', '.join(STREAMS)}")
        self.url, self.streams = store.url, tuple(streams)
        self.tokenizer_fingerprint, self.tokenizer_sha256 = details["tokenizer"]["fingerprint"], details["tokenizer"]["sha256"]
        self.fingerprint = manifest.root_hash
        self.shape = (*details["grid"], details["depth"])
        self.num_codes: dict[str, int] = dict(details["codes"])
        self._check, self._cache = check, cache
        index = read_table(store, "index.parquet", ["shard", "path", "meta_path", "rows", "bytes", "xxh3_128"]).to_pylist()
        self._index = sorted(index, key=lambda row: row["shard"])
        self._ends = np.cumsum([row["rows"] for row in self._index], dtype=np.int64)
        self._open: OrderedDict[int, _Shard] = OrderedDict()
        self._captions: OrderedDict[int, list[str]] = OrderedDict()

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getstate__(self) -> dict[str, Any]:
        """Leave the memory maps behind."""
        return {**self.__dict__, "_open": OrderedDict(), "_captions": OrderedDict()}

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
        names = ("key", *self.streams)
        kinds: dict[str, type[Any]] = {name: np.uint8 if name == "key" else np.uint16 for name in names}
        out: dict[str, Values] = {name: np.empty((len(rows), self._width(name)), kind) for name, kind in kinds.items()}
        for number, mine, local in self._by_shard(rows):
            shard = self._shard(number)
            batch, place = np.divmod(local, ROWS_PER_BATCH)
            in_whole = batch < shard.batches
            for name in names:
                if in_whole.all():
                    out[name][mine] = shard.whole[name][batch, place]
                    continue
                out[name][mine[in_whole]] = shard.whole[name][batch[in_whole], place[in_whole]]
                out[name][mine[~in_whole]] = shard.rest[name][place[~in_whole]]
        codes = (out[stream].reshape(-1, *self.shape) if stream in self.streams else None for stream in STREAMS)
        return TokenRows(out["key"], *codes)

    def captions(self, rows: Rows) -> list[str]:
        """Return the captions of rows."""
        out = [""] * len(rows)
        for number, mine, local in self._by_shard(rows):
            if number not in self._captions:
                table = read_table(Store(self.url), self._index[number]["meta_path"], ["caption"])
                _keep(self._captions, number, [caption or "" for caption in table["caption"].to_pylist()])
            captions = self._captions[number]
            for place, row in zip(mine.tolist(), local.tolist(), strict=True):
                out[place] = captions[row]
        return out

    def _width(self, name: str) -> int:
        return KEY_BYTES if name == "key" else int(np.prod(self.shape))

    def _by_shard(self, rows: Rows) -> list[tuple[int, Rows, Rows]]:
        """Part rows into (shard, places among `rows`, rows of that shard)."""
        assert len(rows) == 0 or (rows.min() >= 0 and rows.max() < len(self)), "a row outside the dataset"
        shards = np.searchsorted(self._ends, rows, side="right")
        order = np.argsort(shards, kind="stable")
        cuts = np.flatnonzero(np.diff(shards[order])) + 1
        starts = self._ends - [row["rows"] for row in self._index]
        return [(number := int(shards[mine[0]]), mine, rows[mine] - starts[number]) for mine in np.split(order, cuts) if len(mine)]

    def _shard(self, number: int) -> _Shard:
        if number in self._open:
            self._open.move_to_end(number)
        else:
            _keep(self._open, number, self._map(self._index[number]))
        return self._open[number]

    def _map(self, entry: dict[str, Any]) -> _Shard:
        path = self._whole_file(entry)
        try:
            return _views(path, ("key", *self.streams))
        except pa.ArrowInvalid as error:
            raise DamagedShardError(self.url, entry["path"], " ".join(str(error).split())[:120]) from None

    def _whole_file(self, entry: dict[str, Any]) -> Path:
        """Return a local path of a shard that is as the index says; a damaged copy of a remote one is fetched once more."""
        store, name = Store(self.url), entry["path"]
        try:
            path = Path(store.path(name)) if store.is_local else self._copy(store, entry)
            problem = self._problem(path, entry)
            if problem and not store.is_local:
                problem = self._problem(self._copy(store, entry, again=True), entry)
        except FileNotFoundError:
            raise DamagedShardError(self.url, name, "missing") from None
        if problem:
            raise DamagedShardError(self.url, name, problem)
        return path

    def _copy(self, store: Store, entry: dict[str, Any], *, again: bool = False) -> Path:
        if self._cache is None:
            raise ValueError(f"{self.url} is remote: give a cache folder to copy its shards into")
        return self._cache.get(store, entry["path"], entry["xxh3_128"], again=again)

    def _problem(self, path: Path, entry: dict[str, Any]) -> str | None:
        if (size := path.stat().st_size) != entry["bytes"]:
            return f"{size} bytes, the index says {entry['bytes']}"
        if self._check == "first_touch" and (found := digest(path).xxh3_128) != entry["xxh3_128"]:
            return f"xxh3 {found}, the index says {entry['xxh3_128']}"
        return None


def _keep(held: OrderedDict[int, Any], number: int, value: Any) -> None:  # noqa: ANN401
    held[number] = value
    if len(held) > OPEN_SHARDS:
        held.popitem(last=False)


def _views(path: Path, names: Sequence[str]) -> _Shard:
    """Map a shard; each column becomes one strided view over all whole batches, so that rows are gathered by numpy."""
    with pa.memory_map(str(path)) as source:
        reader = pa.ipc.open_file(source)
        batches = [reader.get_batch(number) for number in range(reader.num_record_batches)]
    whole = [batch for batch in batches if batch.num_rows == ROWS_PER_BATCH]
    rest = batches[len(whole) :]
    if len(rest) > 1 or any(batch.num_rows == ROWS_PER_BATCH for batch in rest):
        raise pa.ArrowInvalid(f"batches are not of {ROWS_PER_BATCH} rows")
    return _Shard(
        len(whole),
        {name: _joined([_values(batch, name) for batch in whole]) for name in names},
        {name: _values(batch, name) for batch in rest for name in names},
    )


def _values(batch: pa.RecordBatch, name: str) -> Values:
    """Return a column as (rows, values), without a copy."""
    column = batch.column(name)
    if pa.types.is_fixed_size_binary(column.type):
        data = np.frombuffer(column.buffers()[1], np.uint8, count=len(column) * KEY_BYTES, offset=column.offset * KEY_BYTES)
        return data.reshape(len(column), KEY_BYTES)
    return column.flatten().to_numpy().reshape(len(column), -1)


def _joined(parts: list[Values]) -> Values:
    """Return equal, evenly spaced arrays as one view of a further axis; copies where they are not evenly spaced."""
    if not parts:
        return np.zeros((0, ROWS_PER_BATCH, 1), np.uint16)
    addresses = np.array([part.ctypes.data for part in parts])
    steps = np.diff(addresses)
    if len(steps) and (steps != steps[0]).any():
        return np.stack(parts)
    first, step = parts[0], int(steps[0]) if len(steps) else 0
    # It holds `first`, and so the memory map that all parts lie in.
    return np.lib.stride_tricks.as_strided(first, (len(parts), *first.shape), (step, *first.strides), writeable=False)
