"""Random access to captions: the columns of the shards used last, and with a cache every column that was read before.

A caption file is compressed as a whole, so that one caption costs what all 4,096 do. With a cache, the column is written there as
Arrow, uncompressed, when it is first asked for, and mapped from then on, by any process.
"""

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from pipelines.shard_cache import ShardCache

CAPTION_BYTES = 1 << 28
"""Of columns, in memory or mapped, held by one process for one dataset; the least recently used are let go."""
_COLUMN, _SUM = "caption", b"xxh3_128"
ReadColumn = Callable[[int], pa.Array]


class CaptionColumns:
    """The caption columns of a dataset by number of shard."""

    def __init__(self, fingerprint: str, cache: ShardCache | None) -> None:
        """Hold none yet; `fingerprint` is that of the dataset's content."""
        self._fingerprint, self._cache = fingerprint, cache
        self._held: OrderedDict[int, pa.Array] = OrderedDict()
        self._bytes = 0
        self._whole = set[int]()
        """Shards whose copy was found whole by this process."""

    def get(self, number: int, read: ReadColumn) -> pa.Array:
        """Return a shard's column; `read` reads it from the dataset."""
        if number in self._held:
            self._held.move_to_end(number)
            return self._held[number]
        column = self._held[number] = self._copied(self._cache, number, read) if self._cache else read(number)
        self._bytes += column.nbytes
        while self._bytes > CAPTION_BYTES and len(self._held) > 1:
            self._bytes -= self._held.popitem(last=False)[1].nbytes
        return column

    def _copied(self, cache: ShardCache, number: int, read: ReadColumn) -> pa.Array:
        name = xxhash.xxh3_128_hexdigest(f"{self._fingerprint} captions {number}".encode())
        if (path := cache.find(name)) and (column := self._mapped(path, number)) is not None:
            return column
        # Before the cache is asked to make a copy: reading may itself ask it for one.
        column = read(number)
        cache.get(name, lambda folder: _write(column, folder / "column"), again=True)
        return column

    def _mapped(self, path: Path, number: int) -> pa.Array | None:
        """Return the column of a copy, None where it is gone or not what was written."""
        try:
            with pa.memory_map(str(path)) as source:
                reader = pa.ipc.open_file(source)
                column, told = reader.get_batch(0).column(_COLUMN), (reader.schema.metadata or {}).get(_SUM)
        except (FileNotFoundError, pa.ArrowException):
            return None
        if number not in self._whole and _sum(column) != told:
            return None
        self._whole.add(number)
        return column


def _write(column: pa.Array, path: Path) -> Path:
    column = pc.fill_null(column.cast(pa.string()), "")
    table = pa.table({_COLUMN: column}).replace_schema_metadata({_SUM: _sum(column)})
    with pa.ipc.new_file(str(path), table.schema) as writer:
        writer.write_table(table)
    return path


def _sum(column: pa.Array) -> bytes:
    _, offsets, text = column.buffers()
    assert offsets is not None
    assert column.offset == 0
    ends = np.frombuffer(offsets, np.int32, len(column) + 1)
    found = xxhash.xxh3_128(ends.tobytes())
    found.update(memoryview(text or b"")[: ends[-1]])
    return found.hexdigest().encode()
