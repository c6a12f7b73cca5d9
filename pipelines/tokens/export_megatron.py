"""Writes tokens as Megatron-LM's indexed dataset; EXPORTS.md lists the bytes.

The layout is that of `megatron/core/datasets/indexed_dataset.py` of NVIDIA/Megatron-LM.
"""

import struct
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dualtoken.pipelines.errors import UserError
from dualtoken.pipelines.tokens.export_description import Description, Shape, schema_metadata
from dualtoken.pipelines.tokens.export_formats import Open, ShardRows, hex_keys


class _IdType(NamedTuple):
    """One of Megatron's types of ids."""

    dtype: type[Any]
    code: int
    """Number of the type in the index."""
    bound: int
    """Ids must be under it."""


_ID_TYPES = (_IdType(np.uint16, 8, bound=65_500), _IdType(np.int32, 4, bound=2**31))
"""Types from the narrowest on."""


class MegatronIds(NamedTuple):
    """Ids of an export: what is added to the codes of each stream, and the type that holds all of them."""

    offsets: dict[str, int]
    """Id of code 0, by stream in the order of a sequence."""
    end: int
    """One more than the largest id, the least vocabulary of a model."""
    type: _IdType

    @classmethod
    def of(cls, shape: Shape, first_id: int) -> "MegatronIds":
        """Return the ids from `first_id` on; raises `UserError` where no type is wide enough."""
        offsets: dict[str, int] = {}
        end = first_id
        for stream, num_codes in shape.num_codes.items():
            offsets[stream] = end
            end += num_codes
        for id_type in _ID_TYPES:
            if end < id_type.bound:
                return cls(offsets, end, id_type)
        raise UserError(
            f"--first-id {first_id}: ids would go up to {end - 1:,}, beyond Megatron's int32: lower it"
        )


def megatron_layout(shape: Shape, first_id: int) -> dict[str, Any]:
    """Return what a reader of `tokens.bin` must know, as values of JSON."""
    ids = MegatronIds.of(shape, first_id)
    dtype = np.dtype(ids.type.dtype)
    streams: dict[str, Any] = {}
    for number, (stream, offset) in enumerate(ids.offsets.items()):
        begin = number * shape.codes_per_row
        streams[stream] = {
            "positions": [begin, begin + shape.codes_per_row],
            "first_id": offset,
            "end_id": offset + shape.num_codes[stream],
        }
    return {
        "dtype": dtype.name,
        "dtype_code": ids.type.code,
        "byte_order": "little-endian",
        "sequence_length": shape.codes_per_row * len(shape.num_codes),
        "streams": streams,
        "vocabulary_size": ids.end,
        "documents": "one a row, of one sequence",
        "separator": "none: no end-of-document id is written",
        "depths": "side by side at each position; all depths of a stream share its ids",
    }


class MegatronWriter:
    """Writes `tokens.bin` and `tokens.idx`, and beside them `tokens.parquet` with the rows' keys and meta.

    A row is a document of one sequence: the semantic codes, then the pixel codes, N each. The id of a code
    is the code, plus `first_id`, plus for pixel codes the size of the semantic codebook. Ids are uint16
    where all fit, as Megatron chooses it too, else int32.
    """

    _HEADER = b"MMIDIDX\x00\x00"

    def __init__(self, open_file: Open, shape: Shape, description: Description) -> None:
        self._open = open_file
        self._shape = shape
        self._description = description
        self._ids = MegatronIds.of(shape, description.first_id)
        self._files = ExitStack()
        """Files that are open until the end."""
        path = self._files.enter_context(open_file("tokens.bin"))
        self._bin = self._files.enter_context(path.open("wb"))
        self._meta: pq.ParquetWriter | None = None
        self._rows = 0

    def write(self, rows: ShardRows) -> None:
        """Add a shard's rows."""
        ids: list[np.ndarray[Any, np.dtype[np.int64]]] = []
        for stream, codes in rows.codes.items():
            flat = codes.reshape(len(rows.keys), -1).astype(np.int64)
            ids.append(flat + self._ids.offsets[stream])
        sequences = np.concatenate(ids, axis=1).astype(self._ids.type.dtype)
        self._bin.write(np.ascontiguousarray(sequences).data)
        self._write_meta(rows)
        self._rows += len(rows.keys)

    def _write_meta(self, rows: ShardRows) -> None:
        columns: dict[str, pa.Array | pa.ChunkedArray] = {"key": hex_keys(rows)}
        for name in rows.meta.column_names:
            columns[name] = rows.meta[name]
        table = pa.table(columns).replace_schema_metadata(schema_metadata(self._description))
        if self._meta is None:
            path = self._files.enter_context(self._open("tokens.parquet"))
            writer = pq.ParquetWriter(path, table.schema, compression="zstd")
            self._meta = self._files.enter_context(writer)
        self._meta.write_table(table)

    def finish(self) -> None:
        """Write the index: all sequences are of one length, so their places are arithmetic."""
        self._files.close()
        length = self._shape.codes_per_row * len(self._shape.num_codes)
        sequence_bytes = length * np.dtype(self._ids.type.dtype).itemsize
        with self._open("tokens.idx") as path, path.open("wb") as index:
            header = struct.pack("<QBQQ", 1, self._ids.type.code, self._rows, self._rows + 1)
            index.write(self._HEADER + header)
            for first, last in _spans(self._rows):
                lengths = np.full(last - first, length, "<i4")
                index.write(lengths.tobytes())
            for first, last in _spans(self._rows):
                places = np.arange(first, last, dtype="<i8") * sequence_bytes
                index.write(places.tobytes())
            for first, last in _spans(self._rows + 1):
                documents = np.arange(first, last, dtype="<i8")
                index.write(documents.tobytes())


def _spans(count: int, size: int = 1 << 20) -> Iterator[tuple[int, int]]:
    """Yield the bounds of parts of a range, so that no array of all of it is made."""
    for first in range(0, count, size):
        yield first, min(count, first + size)
