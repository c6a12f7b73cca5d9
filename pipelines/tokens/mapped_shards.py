"""Data shards in memory: where each row of each column lies, and the copy of any rows of any shards in one go.

B rows, V 16-bit values of a row. Rows are found by arithmetic on arrays and copied by one call, so a shuffled batch out of thousands
of shards costs what it costs out of one. Pages of a column that nobody asks for are never touched.
"""

import ctypes
import sys
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from dualtoken.pipelines.tokens.shards import ROWS_PER_BATCH, schema_metadata

Rows = np.ndarray[Any, np.dtype[np.int64]]
Words = np.ndarray[Any, np.dtype[np.uint16]]
_LOWEST = 1 << 16
"""No system maps anything below."""
_ADDRESSES = 1 << 48
"""Bytes that a process can map without asking for more, on x86-64 and 64-bit ARM."""
_KEPT = 16


class MappedShard(NamedTuple):
    """A shard whose file is mapped for as long as this is held."""

    path: Path
    inode: int
    """Of the file, which is another's when the path has another."""
    metadata: dict[str, str]
    """Of its schema."""
    rows: int
    addresses: dict[str, Rows]
    """By column, where each batch begins; a batch's rows lie side by side."""
    batches: list[pa.RecordBatch]


def map_shard(path: Path, types: Mapping[str, pa.DataType]) -> MappedShard:
    """Map columns of a data shard; raises `pa.ArrowInvalid` where it is cut or not laid out as the format says."""
    inode = path.stat().st_ino
    with pa.memory_map(str(path)) as source:
        reader = pa.ipc.open_file(source)
        if missing := [name for name in types if name not in reader.schema.names]:
            raise pa.ArrowInvalid(f"no column {missing[0]}")
        batches = [reader.get_batch(number) for number in range(reader.num_record_batches)]
    for batch in batches:
        batch.validate()
        if wrong := [
            name
            for name, kind in types.items()
            if batch.schema.field(name).type != kind or batch.column(name).null_count
        ]:
            raise pa.ArrowInvalid(f"{wrong[0]} is not {types[wrong[0]]}")
    if any(batch.num_rows != ROWS_PER_BATCH for batch in batches[:-1]) or (
        batches and batches[-1].num_rows > ROWS_PER_BATCH
    ):
        raise pa.ArrowInvalid(f"batches are not of {ROWS_PER_BATCH} rows")
    return MappedShard(
        path,
        inode,
        schema_metadata(reader.schema),
        sum(batch.num_rows for batch in batches),
        {name: np.array([_address(batch.column(name)) for batch in batches], np.int64) for name in types},
        batches,
    )


def _address(column: pa.Array) -> int:
    """Return where a column of fixed-size lists or bytes begins."""
    if isinstance(column, pa.FixedSizeListArray):
        return column.flatten().to_numpy().ctypes.data
    assert column.offset == 0
    data = column.buffers()[1]
    assert data is not None
    return data.address


def copy_rows(addresses: Rows, out: Words) -> None:
    """Copy rows of V values at even addresses, which must be mapped, to (B, V)."""
    if not len(out):
        return
    span, stride = int(addresses[-1]) - int(addresses[0]), out.strides[0]
    if span == (len(out) - 1) * stride and (np.diff(addresses) == stride).all():
        ctypes.memmove(out.ctypes.data, int(addresses[0]), out.nbytes)
        return
    import torch  # noqa: PLC0415  (seconds that a look at a few rows need not wait)

    torch.index_select(
        _memory(out.shape[1]), 0, torch.from_numpy((addresses - _LOWEST) >> 1), out=torch.from_numpy(out)
    )


@lru_cache(maxsize=8)
def _memory(width: int) -> Any:  # noqa: ANN401  (a tensor)
    """Return all memory as rows of `width` values, each one value after the last: row n begins at address `_LOWEST + 2 * n`.

    Numpy and torch gather rows of one array only, and shards are mapped wherever there is room. Taking rows one by one in Python
    takes half as long again, and several times as long where each is of another shard.
    """
    import torch  # noqa: PLC0415

    shape = {"data": (_LOWEST, False), "shape": (_ADDRESSES >> 1, width), "strides": (2, 2)}
    everything = SimpleNamespace(__array_interface__={"version": 3, "typestr": "<u2", **shape})
    return torch.from_numpy(np.asarray(everything))


class Buffers:
    """Arrays for batches, used again when nobody holds them: fresh memory from the system takes longer than copying into it."""

    def __init__(self) -> None:
        self._arrays: list[Words] = []

    def __getstate__(self) -> dict[str, Any]:
        return {"_arrays": []}

    def take(self, rows: int, width: int) -> Words:
        """Return an array of (rows, width) with any content."""
        for array in self._arrays:
            # Held by the list, by `array`, and by the call that counts.
            if sys.getrefcount(array) == 3 and array.shape == (rows, width):
                return array
        array = np.empty((rows, width), np.uint16)
        self._arrays = [*self._arrays[-_KEPT + 1 :], array]
        return array
