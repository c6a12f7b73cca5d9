"""Random access to captions and other texts: an LRU cache of columns in memory, and copies of them on disk.

A caption file is compressed as a whole, so that one text costs what all 4,096 do. With a cache, the column
is written there when it is first asked for, and mapped from then on, by any process. Such a copy holds, in
this order:

| bytes | what |
|---|---|
| 16 | xxh3 of all that follows |
| 8 | number of rows, int64 |
| 4 a row, and 4 | where each row's text begins, and the end, int32 |
| the rest | the texts, UTF-8 |

An Arrow file took several times as long to open.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from dualtoken.pipelines.core.threads import THREADS, map_ahead_unless_ready
from dualtoken.pipelines.tokens.shard_cache import ShardCache

CAPTION = "caption"
"""Name of the column of captions."""
CAPTION_BYTES = 1 << 28
"""Bytes of one column of text that a process keeps for one dataset, in memory or mapped; the least recently
used shards are let go."""
_CHECKSUM_END = 16
_HEAD_END = 24
_OFFSET_BYTES = 4
ReadColumn = Callable[[int], pa.Array]
"""Reads the column of a shard, by its number."""


class CaptionCache:
    """A dataset's captions, or another column of text, by number of shard; a pickled copy holds none."""

    def __init__(
        self, fingerprint: str, cache: ShardCache | None, threads: int = THREADS, column: str = CAPTION
    ) -> None:
        """Hold none yet; `fingerprint` is that of the dataset's content, `threads` read the column."""
        self._arguments = (fingerprint, cache, threads, column)
        self._fingerprint = fingerprint
        self._column = column
        self._cache = cache
        self._threads = threads
        self._columns: OrderedDict[int, pa.Array] = OrderedDict()
        """Columns at hand by number of shard, the least recently used first."""
        self._bytes = 0
        """Bytes of those columns."""
        self._read_before = set[int]()
        """Numbers of shards whose column this process read before."""
        self._checked = dict[int, int]()
        """Bytes of the copies that this process found whole, by number of shard."""

    def __reduce__(self) -> tuple[type["CaptionCache"], tuple[Any, ...]]:
        return CaptionCache, self._arguments

    def get(self, numbers: Sequence[int], read: ReadColumn) -> Iterator[tuple[int, pa.Array]]:
        """Yield the columns of different shards with their numbers, those at hand first.

        The others are read with `read`, and side by side when it is for the first time.
        """
        present = {number: self._columns[number] for number in numbers if number in self._columns}
        for number, column in present.items():
            yield number, self._use(number, column)
        missing = [number for number in numbers if number not in present]
        columns = map_ahead_unless_ready(
            lambda number: self._read(number, read), missing, self._is_ready, self._threads
        )
        for number, column in zip(missing, columns, strict=True):
            self._read_before.add(number)
            yield number, self._use(number, column)

    def _is_ready(self, number: int) -> bool:
        """Tell whether reading a column takes so little that threads would cost more than they gain."""
        if number not in self._read_before:
            return False
        return self._cache is None or self._cache.find(self._name(number)) is not None

    def _name(self, number: int) -> str:
        text = "captions" if self._column == CAPTION else f"text {self._column}"
        return xxhash.xxh3_128_hexdigest(f"{self._fingerprint} {text} {number}".encode())

    def _use(self, number: int, column: pa.Array) -> pa.Array:
        """Keep a column as the one used last, and let go of those for which there is no room."""
        if self._columns.pop(number, None) is None:
            self._bytes += column.nbytes
        self._columns[number] = column
        while self._bytes > CAPTION_BYTES and len(self._columns) > 1:
            _, oldest = self._columns.popitem(last=False)
            self._bytes -= oldest.nbytes
        return column

    def _read(self, number: int, read: ReadColumn) -> pa.Array:
        if self._cache is None:
            return read(number)
        name = self._name(number)
        path = self._cache.find(name)
        copy = None if path is None else self._map(path, number)
        if copy is not None:
            return copy
        # Before the cache is asked to make a copy: reading may itself ask it for one.
        column = read(number)
        self._cache.get(name, lambda folder: _write(column, folder / "column"), again=True)
        return column

    def _map(self, path: Path, number: int) -> pa.Array | None:
        """Return the column of a copy, None where it is gone or not what was written."""
        try:
            with pa.memory_map(str(path)) as file:
                data = file.read_buffer()
        except FileNotFoundError:
            return None
        if self._checked.get(number) != len(data):
            checksum = data[:_CHECKSUM_END].to_pybytes()
            if xxhash.xxh3_128_digest(memoryview(data)[_CHECKSUM_END:]) != checksum:
                return None
            self._checked[number] = len(data)
        rows = int.from_bytes(data[_CHECKSUM_END:_HEAD_END].to_pybytes(), "little")
        offsets_end = _HEAD_END + _OFFSET_BYTES * (rows + 1)
        return pa.StringArray.from_buffers(rows, data[_HEAD_END:offsets_end], data[offsets_end:])


def _write(column: pa.Array, path: Path) -> Path:
    """Write a column as a copy; a text that is null is empty there."""
    texts = pc.fill_null(column.cast(pa.string()), "")
    _, offsets, characters = texts.buffers()
    assert offsets is not None
    assert texts.offset == 0
    begins = np.frombuffer(offsets, np.int32, len(texts) + 1)
    num_rows = np.int64(len(texts)).tobytes()
    text = memoryview(characters or b"")[: begins[-1]]
    body = b"".join([num_rows, begins.tobytes(), text])
    path.write_bytes(xxhash.xxh3_128_digest(body) + body)
    return path
