"""A data shard in memory: each column one strided view of the memory map, so that numpy gathers rows without Arrow.

R rows of a batch, V values of a row. Pages of a column that nobody asks for are never touched.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from pipelines.ledger import KEY_BYTES
from pipelines.token_shards import ROWS_PER_BATCH

Rows = np.ndarray[Any, np.dtype[np.int64]]
Values = np.ndarray[Any, Any]


class ShardViews(NamedTuple):
    """The columns of a shard."""

    metadata: dict[str, str]
    """Of the shard's schema."""
    rows: int
    batches: int
    """Whole ones, of `ROWS_PER_BATCH` rows."""
    whole: dict[str, Values]
    """By column, (batches, R, V)."""
    rest: dict[str, Values]
    """By column, (rows after the last whole batch, V)."""

    def gather(self, rows: Rows, places: Rows, out: Mapping[str, Values]) -> None:
        """Copy rows of this shard to places of each column's array in `out`."""
        batch, place = np.divmod(rows, ROWS_PER_BATCH)
        in_whole = batch < self.batches
        if in_whole.all():
            for name, values in out.items():
                values[places] = self.whole[name][batch, place]
            return
        for name, values in out.items():
            values[places[in_whole]] = self.whole[name][batch[in_whole], place[in_whole]]
            values[places[~in_whole]] = self.rest[name][place[~in_whole]]


def map_shard(path: Path, names: Sequence[str]) -> ShardViews:
    """Map columns of a data shard; raises `pa.ArrowInvalid` where it is cut or not laid out as the format says."""
    with pa.memory_map(str(path)) as source:
        reader = pa.ipc.open_file(source)
        batches = [reader.get_batch(number) for number in range(reader.num_record_batches)]
    whole = [batch for batch in batches if batch.num_rows == ROWS_PER_BATCH]
    rest = batches[len(whole) :]
    if len(rest) > 1 or any(batch.num_rows == ROWS_PER_BATCH for batch in rest):
        raise pa.ArrowInvalid(f"batches are not of {ROWS_PER_BATCH} rows")
    return ShardViews(
        {key.decode(): value.decode() for key, value in (reader.schema.metadata or {}).items()},
        sum(batch.num_rows for batch in batches),
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
