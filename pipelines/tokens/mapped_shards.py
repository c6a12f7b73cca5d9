"""Memory-mapped data shards: the address of each row, and the copy of any rows of any shards in one call.

B rows, V 16-bit values of a row. Rows are found by arithmetic on arrays and copied by one call, so a shuffled
batch out of thousands of shards costs what it costs out of one. Pages of a column that nobody asks for are
never touched.

Two tricks are fenced in here, and used nowhere else: `copy_rows` gathers from all memory as if it were one
tensor, and `Buffers` counts references to find out which arrays are free. Each stands beside the measurement
that justifies it and its slow, obvious twin (`take_rows`, `FreshBuffers`), which
`tests/pipelines/tokens/test_mapped_shards.py` compares it with.
"""

import ctypes
import sys
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from dualtoken.pipelines.tokens.lent_rows import RowLender, Words
from dualtoken.pipelines.tokens.shards import ROWS_PER_BATCH, schema_metadata

Rows = np.ndarray[Any, np.dtype[np.int64]]
"""Numbers of rows, or addresses of them."""
_LOWEST_ADDRESS = 1 << 16
"""Address that no system maps anything below."""
_ADDRESSES = 1 << 48
"""Bytes that a process can map without asking for more, on x86-64 and 64-bit ARM."""
_MAX_BUFFERS = 16
"""Number of arrays that `Buffers` keeps."""


class MappedShard(NamedTuple):
    """A shard whose file stays mapped for as long as this is held."""

    path: Path
    inode: int
    """Inode of the mapped file; the path has another once the file was replaced."""
    metadata: dict[str, str]
    """Metadata of the schema."""
    rows: int
    addresses: dict[str, Rows]
    """Address of each batch's first row, by column; the rows of a batch lie side by side."""
    batches: list[pa.RecordBatch]
    """Batches that keep the map alive."""
    begin: int
    """Address of the file's first byte."""
    lender: RowLender


def map_shard(path: Path, types: Mapping[str, pa.DataType]) -> MappedShard:
    """Map columns of a data shard, given with their types.

    Raises `pa.ArrowInvalid` where the shard is cut, or not laid out as the format says.
    """
    inode = path.stat().st_ino
    with pa.memory_map(str(path)) as source:
        reader = pa.ipc.open_file(source)
        for name in types:
            if name not in reader.schema.names:
                raise pa.ArrowInvalid(f"no column {name}")
        batches = [reader.get_batch(number) for number in range(reader.num_record_batches)]
        source.seek(0)
        begin = source.read_buffer(1).address
    for batch in batches:
        batch.validate()
        _require_types(batch, types)
    _require_sizes(batches)
    addresses: dict[str, Rows] = {}
    for name in types:
        first_rows = [_first_row(batch.column(name)) for batch in batches]
        addresses[name] = np.array(first_rows, np.int64)
    rows = sum(batch.num_rows for batch in batches)
    metadata = schema_metadata(reader.schema)
    return MappedShard(path, inode, metadata, rows, addresses, batches, begin, RowLender(path, inode))


def _require_types(batch: pa.RecordBatch, types: Mapping[str, pa.DataType]) -> None:
    for name, kind in types.items():
        if batch.schema.field(name).type != kind or batch.column(name).null_count:
            raise pa.ArrowInvalid(f"{name} is not {kind}")


def _require_sizes(batches: Sequence[pa.RecordBatch]) -> None:
    """Raise unless all batches but the last are full: rows are found by arithmetic."""
    sizes = [batch.num_rows for batch in batches]
    whole = all(size == ROWS_PER_BATCH for size in sizes[:-1])
    if not whole or (sizes and sizes[-1] > ROWS_PER_BATCH):
        raise pa.ArrowInvalid(f"batches are not of {ROWS_PER_BATCH} rows")


def _first_row(column: pa.Array) -> int:
    """Return the address of the first row of a column of fixed-size lists or bytes."""
    if isinstance(column, pa.FixedSizeListArray):
        return column.flatten().to_numpy().ctypes.data
    assert column.offset == 0
    data = column.buffers()[1]
    assert data is not None
    return data.address


# --- Trick 1: all memory as one tensor ----------------------------------------------------------------------
#
# Numpy and torch gather rows of one array only, and shards are mapped wherever there is room. So rows are
# gathered by address from a tensor that begins at `_LOWEST_ADDRESS` and spans all memory that a process can
# map.
#
# Measured on 2026-11-29 (Intel Xeon, one core, 64 rows of 729 x 8 codes, CPU time of a batch): gather 48 us
# out of one shard and 56 us out of 12; numpy row by row 68 and 78; `ctypes.memmove` row by row 79 and 89;
# numpy by shard and Arrow batch 114 and 410.
#
# WARNING: an address that is not mapped, or no longer, ends the process with SIGSEGV, and a wrong one reads
# another array's bytes. Callers hold the `MappedShard` of every address until the copy is made. Nothing may
# read, print or compare the tensor as a whole.


def copy_rows(addresses: Rows, out: Words) -> None:
    """Copy rows of V values at even addresses, which must be mapped, to `out`, (B, V)."""
    if not len(out):
        return
    if are_side_by_side(addresses, out.strides[0]):
        ctypes.memmove(out.ctypes.data, int(addresses[0]), out.nbytes)
        return
    import torch  # noqa: PLC0415  (seconds that a look at a few rows need not wait)

    memory = _memory(out.shape[1])
    rows = torch.from_numpy((addresses - _LOWEST_ADDRESS) >> 1)
    torch.index_select(memory, 0, rows, out=torch.from_numpy(out))


def are_side_by_side(addresses: Rows, row_bytes: int) -> bool:
    """Tell whether rows, one at least, lie one after the other in memory."""
    span = int(addresses[-1]) - int(addresses[0])
    if span != (len(addresses) - 1) * row_bytes:
        return False
    return bool((np.diff(addresses) == row_bytes).all())


@lru_cache(maxsize=8)
def _memory(width: int) -> Any:  # noqa: ANN401  (a tensor; torch is not imported here)
    """Return all memory as rows of `width` values, each one value after the last.

    Row n begins at address `_LOWEST_ADDRESS + 2 * n`, so that rows overlap and every even address begins one.
    """
    import torch  # noqa: PLC0415

    interface = {
        "version": 3,
        "typestr": "<u2",
        "data": (_LOWEST_ADDRESS, False),
        "shape": (_ADDRESSES >> 1, width),
        "strides": (2, 2),
    }
    everything = SimpleNamespace(__array_interface__=interface)
    return torch.from_numpy(np.asarray(everything))


def take_rows(shard: MappedShard, name: str, rows: Rows) -> Words:
    """Return rows of a shard's column, (B, V): the slow, obvious twin of `copy_rows`."""
    column = pa.Table.from_batches(shard.batches)[name].take(pa.array(rows)).combine_chunks()
    if pa.types.is_fixed_size_list(column.type):
        return column.flatten().to_numpy().reshape(len(rows), -1)
    return np.frombuffer(b"".join(column.to_pylist()), np.uint16).reshape(len(rows), -1)


# --- Trick 2: free arrays found by counting references ------------------------------------------------------
#
# Arrays of some megabytes go back to the system when they are freed, and each page of a new one costs a
# fault. Measured on 2026-11-29 (Intel Xeon, one core, shuffled samples of 2 x 729 x 8 codes, CPU time): in
# batches of 256, 263,000 samples a second with arrays that are used again, 108,000 with new ones, which take
# 675 page faults a batch; in batches of 1,024, 188,000 and 157,000. In batches of 64 the allocator itself
# keeps the memory, and there is no difference.
#
# WARNING: the count is CPython's, and of the versions that `requires-python` names: from 3.14 on a call may
# count one reference less. An array that another library holds without a reference, as by its bare address,
# would count as free.


class Buffers:
    """Arrays for batches, used again once nobody else holds them or a view of them; pickled without any."""

    def __init__(self) -> None:
        self._arrays: list[Words] = []

    def __getstate__(self) -> dict[str, Any]:
        return {"_arrays": []}

    def take(self, rows: int, width: int) -> Words:
        """Return an array of (rows, width) with any content."""
        for array in self._arrays:
            # Three references: the list's, the loop variable's, and that of the call which counts.
            if sys.getrefcount(array) == 3 and array.shape == (rows, width):
                return array
        array = np.empty((rows, width), np.uint16)
        self._arrays = [*self._arrays[-_MAX_BUFFERS + 1 :], array]
        return array


class FreshBuffers:
    """A new array for every batch: the slow, obvious twin of `Buffers`."""

    def take(self, rows: int, width: int) -> Words:
        """Return an array of (rows, width) with any content."""
        return np.empty((rows, width), np.uint16)
