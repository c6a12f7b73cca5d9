"""Random access to captions: the columns of the shards used last, and with a cache every column that was read before.

A caption file is compressed as a whole, so that one caption costs what all 4,096 do. With a cache, the column is written there when
it is first asked for, and mapped from then on, by any process: xxh3 of all that follows (16 bytes), number of rows (int64), where
each row's text begins, and the end (int32 each), the texts in UTF-8. An Arrow file took several times as long to open.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from dualtoken.pipelines.core.threads import THREADS, map_ahead_unless_ready
from dualtoken.pipelines.tokens.shard_cache import ShardCache

CAPTION_BYTES = 1 << 28
"""Of columns, in memory or mapped, held by one process for one dataset; the least recently used are let go."""
_SUM, _HEAD = 16, 24
ReadColumn = Callable[[int], pa.Array]


class CaptionCache:
    """The caption columns of a dataset by number of shard."""

    def __init__(self, fingerprint: str, cache: ShardCache | None, threads: int = THREADS) -> None:
        """Hold none yet; `fingerprint` is that of the dataset's content, `threads` read columns."""
        self._fingerprint, self._cache, self._threads = fingerprint, cache, threads
        self._held: OrderedDict[int, pa.Array] = OrderedDict()
        self._bytes = 0
        self._seen = set[int]()
        """Numbers of shards whose column this process read before."""
        self._whole = dict[int, int]()
        """Bytes of the copies that this process found whole."""

    def get(self, numbers: Sequence[int], read: ReadColumn) -> Iterator[tuple[int, pa.Array]]:
        """Yield different shards' columns by number; those that are not held are read by `read`, for the first time side by side."""
        held = {number: self._held[number] for number in numbers if number in self._held}
        for number, column in held.items():
            yield number, self._used(number, column)
        missing = [number for number in numbers if number not in held]
        columns = map_ahead_unless_ready(
            lambda number: self._read(number, read), missing, self._is_at_hand, self._threads
        )
        for number, column in zip(missing, columns, strict=True):
            self._seen.add(number)
            yield number, self._used(number, column)

    def _is_at_hand(self, number: int) -> bool:
        return number in self._seen and (
            self._cache is None or self._cache.find(self._name(number)) is not None
        )

    def _name(self, number: int) -> str:
        return xxhash.xxh3_128_hexdigest(f"{self._fingerprint} captions {number}".encode())

    def _used(self, number: int, column: pa.Array) -> pa.Array:
        """Hold a column as the one used last."""
        if self._held.pop(number, None) is None:
            self._bytes += column.nbytes
        self._held[number] = column
        while self._bytes > CAPTION_BYTES and len(self._held) > 1:
            self._bytes -= self._held.popitem(last=False)[1].nbytes
        return column

    def _read(self, number: int, read: ReadColumn) -> pa.Array:
        return self._copied(self._cache, number, read) if self._cache else read(number)

    def _copied(self, cache: ShardCache, number: int, read: ReadColumn) -> pa.Array:
        name = self._name(number)
        if (path := cache.find(name)) and (column := self._mapped(path, number)) is not None:
            return column
        # Before the cache is asked to make a copy: reading may itself ask it for one.
        column = read(number)
        cache.get(name, lambda folder: _write(column, folder / "column"), again=True)
        return column

    def _mapped(self, path: Path, number: int) -> pa.Array | None:
        """Return the column of a copy, None where it is gone or not what was written."""
        try:
            with pa.memory_map(str(path)) as file:
                data = file.read_buffer()
        except FileNotFoundError:
            return None
        if self._whole.get(number) != len(data):
            if xxhash.xxh3_128_digest(memoryview(data)[_SUM:]) != data[:_SUM].to_pybytes():
                return None
            self._whole[number] = len(data)
        rows = int.from_bytes(data[_SUM:_HEAD].to_pybytes(), "little")
        text = _HEAD + 4 * (rows + 1)
        return pa.StringArray.from_buffers(rows, data[_HEAD:text], data[text:])


def _write(column: pa.Array, path: Path) -> Path:
    column = pc.fill_null(column.cast(pa.string()), "")
    _, offsets, text = column.buffers()
    assert offsets is not None
    assert column.offset == 0
    begins = np.frombuffer(offsets, np.int32, len(column) + 1)
    body = b"".join(
        [np.int64(len(column)).tobytes(), begins.tobytes(), memoryview(text or b"")[: begins[-1]]]
    )
    path.write_bytes(xxhash.xxh3_128_digest(body) + body)
    return path
