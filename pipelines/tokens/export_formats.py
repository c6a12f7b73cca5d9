"""Writers of exported token datasets, one class per format; each says what it writes, README.md lists them.

R rows, H by W positions, D depths, N = H * W * D. Codes are flattened position-major, depth-minor, as in our
own shards. Megatron's file layout: `megatron/core/datasets/indexed_dataset.py` of NVIDIA/Megatron-LM. Hugging
Face's: `Dataset.save_to_disk`.
"""

import io
import json
import struct
import tarfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dualtoken.pipelines.core.json_text import json_text
from dualtoken.pipelines.errors import UserError
from dualtoken.pipelines.tokens.shards import Ids

Open = Callable[[str], AbstractContextManager[Path]]
"""Gives a local path for a file's name; when its block ends, the file is complete."""


class Shape(NamedTuple):
    """What all rows of a dataset have in common."""

    grid: tuple[int, int]
    depth: int
    num_codes: dict[str, int]
    """Size of the codebook, by stream that is exported, in their order."""
    num_shards: int
    fingerprint: str
    """The dataset's root hash."""

    @property
    def codes_per_row(self) -> int:
        """Codes of one stream of a row, N."""
        rows, columns = self.grid
        return rows * columns * self.depth


class ShardRows(NamedTuple):
    """One shard's rows."""

    shard: str
    keys: list[bytes]
    codes: dict[str, Ids]
    """Codes by stream, (R, H, W, D)."""
    meta: pa.Table
    """Captions, URLs, scores and whatever the recipe carried along; without the keys."""


class FormatWriter(Protocol):
    """Writes shards in order, then what stands beside them."""

    def write(self, rows: ShardRows) -> None:
        """Add a shard."""
        ...

    def finish(self) -> None:
        """Write what is only known at the end."""
        ...


class WebDatasetWriter:
    """Writes a `<shard>.tar` per shard.

    A row is the files `<shard><row>.semantic.npy` and `.pixel.npy`, uint16 (H, W, D); `.txt`, its caption;
    `.json`, its key and meta.
    """

    def __init__(self, open_file: Open, shape: Shape, first_id: int) -> None:
        del shape, first_id
        self._open = open_file

    def write(self, rows: ShardRows) -> None:
        """Add a shard; times and owners are none, so that the same rows give the same bytes."""
        with (
            self._open(f"{rows.shard}.tar") as path,
            tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar,
        ):
            for row, meta in enumerate(rows.meta.to_pylist()):
                _add_row(tar, rows, row, meta)

    def finish(self) -> None:
        """Write nothing more."""


def _add_row(tar: tarfile.TarFile, rows: ShardRows, row: int, meta: dict[str, Any]) -> None:
    name = f"{rows.shard}{row:04d}"
    for stream, codes in rows.codes.items():
        array = io.BytesIO()
        np.save(array, codes[row], allow_pickle=False)
        _add(tar, f"{name}.{stream}.npy", array.getvalue())
    caption = meta.get("caption") or ""
    _add(tar, f"{name}.txt", caption.encode())
    described = {"key": rows.keys[row].hex(), **meta}
    _add(tar, f"{name}.json", json_text(described, ensure_ascii=False).encode())


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    member.mode = 0o644
    tar.addfile(member, io.BytesIO(data))


class ParquetWriter:
    """Writes a `<shard>.parquet` per shard, zstd.

    Columns: `key`, 16 bytes; `semantic` and `pixel`, fixed-size lists of N uint16; then the meta columns.
    """

    def __init__(self, open_file: Open, shape: Shape, first_id: int) -> None:
        del first_id
        self._open = open_file
        self._shape = shape

    def write(self, rows: ShardRows) -> None:
        """Add a shard."""
        table = _table(pa.array(rows.keys, pa.binary(16)), rows, self._shape.codes_per_row)
        with self._open(f"{rows.shard}.parquet") as path:
            pq.write_table(table, path, compression="zstd", row_group_size=1024)

    def finish(self) -> None:
        """Write nothing more."""


def _table(keys: pa.Array, rows: ShardRows, width: int) -> pa.Table:
    """Join codes and meta; a meta column that has the name of one of ours is called `meta_...`."""
    columns: dict[str, pa.Array | pa.ChunkedArray] = {"key": keys}
    for stream, ids in rows.codes.items():
        flat = pa.array(np.ascontiguousarray(ids).reshape(-1))
        columns[stream] = pa.FixedSizeListArray.from_arrays(flat, width)
    taken = set(columns)
    for name in rows.meta.column_names:
        free_name = f"meta_{name}" if name in taken else name
        columns[free_name] = rows.meta[name]
    return pa.table(columns)


class HuggingFaceWriter:
    """Writes a folder for `datasets.load_from_disk`.

    Columns: `key`, hexadecimal; `semantic` and `pixel`, lists of N uint16; then the meta columns.
    """

    def __init__(self, open_file: Open, shape: Shape, first_id: int) -> None:
        del first_id
        self._open = open_file
        self._shape = shape
        self._files: list[str] = []
        self._schema: pa.Schema | None = None

    def write(self, rows: ShardRows) -> None:
        """Add a shard, as an Arrow stream."""
        keys = pa.array([key.hex() for key in rows.keys])
        joined = _table(keys, rows, self._shape.codes_per_row)
        columns: dict[str, pa.Array] = {}
        for column in joined.column_names:
            columns[column] = _for_hugging_face(joined[column].combine_chunks())
        table = pa.table(columns)
        features = {"info": {"features": _features(table.schema)}}
        self._schema = table.schema.with_metadata({"huggingface": json.dumps(features)})
        name = f"data-{len(self._files):05d}-of-{self._shape.num_shards:05d}.arrow"
        with (
            self._open(name) as path,
            pa.OSFile(str(path), "wb") as sink,
            pa.ipc.new_stream(sink, self._schema) as stream,
        ):
            stream.write_table(table.cast(self._schema), max_chunksize=1000)
        self._files.append(name)

    def finish(self) -> None:
        """Write the two JSON files that make the folder a dataset."""
        assert self._schema is not None, "a dataset has a shard"
        info = {
            "citation": "",
            "description": "",
            "features": _features(self._schema),
            "homepage": "",
            "license": "",
        }
        state = {
            "_data_files": [{"filename": name} for name in self._files],
            "_fingerprint": self._shape.fingerprint[:16],
            "_format_columns": None,
            "_format_kwargs": {},
            "_format_type": None,
            "_output_all_columns": False,
            "_split": None,
        }
        self._write_json("dataset_info.json", info)
        self._write_json("state.json", state)

    def _write_json(self, name: str, values: dict[str, Any]) -> None:
        with self._open(name) as path:
            path.write_text(json.dumps(values, indent=2, sort_keys=True), encoding="utf-8")


_HUGGING_FACE = {"float": "float32", "double": "float64", "halffloat": "float16"}
"""Hugging Face's names of types, by Arrow's where they differ."""
_SIMPLE = {
    *("string", "large_string", "binary", "bool"),
    *("int8", "int16", "int32", "int64"),
    *("uint8", "uint16", "uint32", "uint64"),
}
"""Types that both name alike."""


def _for_hugging_face(column: pa.Array) -> pa.Array:
    """Return a column as a type that their features know: what is not simple becomes text."""
    kind = column.type
    known = str(kind) in _SIMPLE or str(kind) in _HUGGING_FACE
    if known or pa.types.is_fixed_size_list(kind):
        return column
    return pa.array([_json_text(value) for value in column.to_pylist()], pa.string())


def _json_text(value: Any) -> str | None:  # noqa: ANN401
    return None if value is None else json_text(value)


def _features(schema: pa.Schema) -> dict[str, Any]:
    """Return the features of a schema as `datasets` writes them."""
    return {field.name: _feature(field.type) for field in schema}


def _feature(kind: pa.DataType) -> dict[str, Any]:
    if pa.types.is_fixed_size_list(kind):
        return {"feature": _feature(kind.value_type), "length": kind.list_size, "_type": "Sequence"}
    return {"dtype": _HUGGING_FACE.get(str(kind), str(kind)), "_type": "Value"}


class _IdType(NamedTuple):
    """One of Megatron's types of ids."""

    dtype: type[Any]
    code: int
    """Number of the type in the index."""
    bound: int
    """Ids must be under it."""


class MegatronWriter:
    """Writes `tokens.bin` and `tokens.idx`, and beside them `tokens.parquet` with the rows' keys and meta.

    A row is a document of one sequence: the semantic codes, then the pixel codes, N each. The id of a code
    is the code, plus `first_id`, plus for pixel codes the size of the semantic codebook. Ids are uint16
    where all fit, as Megatron chooses it too, else int32.
    """

    _HEADER = b"MMIDIDX\x00\x00"
    _ID_TYPES = (_IdType(np.uint16, 8, bound=65_500), _IdType(np.int32, 4, bound=2**31))
    """Types from the narrowest on."""

    def __init__(self, open_file: Open, shape: Shape, first_id: int) -> None:
        self._open = open_file
        self._shape = shape
        self._files = ExitStack()
        """Files that are open until the end."""
        self._offsets: dict[str, int] = {}
        """Id of code 0, by stream."""
        end = first_id
        for stream, num_codes in shape.num_codes.items():
            self._offsets[stream] = end
            end += num_codes
        self._id_type = self._choose_type(first_id, end)
        path = self._files.enter_context(open_file("tokens.bin"))
        self._bin = self._files.enter_context(path.open("wb"))
        self._meta: pq.ParquetWriter | None = None
        self._rows = 0

    def _choose_type(self, first_id: int, end: int) -> _IdType:
        """Return the narrowest type for ids under `end`; raises `UserError` where none is wide enough."""
        for id_type in self._ID_TYPES:
            if end < id_type.bound:
                return id_type
        raise UserError(
            f"--first-id {first_id}: ids would go up to {end - 1:,}, beyond Megatron's int32: lower it"
        )

    def write(self, rows: ShardRows) -> None:
        """Add a shard's rows."""
        ids: list[np.ndarray[Any, np.dtype[np.int64]]] = []
        for stream, codes in rows.codes.items():
            flat = codes.reshape(len(rows.keys), -1).astype(np.int64)
            ids.append(flat + self._offsets[stream])
        sequences = np.concatenate(ids, axis=1).astype(self._id_type.dtype)
        self._bin.write(np.ascontiguousarray(sequences).data)
        self._write_meta(rows)
        self._rows += len(rows.keys)

    def _write_meta(self, rows: ShardRows) -> None:
        columns: dict[str, pa.Array | pa.ChunkedArray] = {"key": pa.array(rows.keys, pa.binary(16))}
        for name in rows.meta.column_names:
            columns[name] = rows.meta[name]
        table = pa.table(columns)
        if self._meta is None:
            path = self._files.enter_context(self._open("tokens.parquet"))
            writer = pq.ParquetWriter(path, table.schema, compression="zstd")
            self._meta = self._files.enter_context(writer)
        self._meta.write_table(table)

    def finish(self) -> None:
        """Write the index: all sequences are of one length, so their places are arithmetic."""
        self._files.close()
        length = self._shape.codes_per_row * len(self._shape.num_codes)
        sequence_bytes = length * np.dtype(self._id_type.dtype).itemsize
        with self._open("tokens.idx") as path, path.open("wb") as index:
            header = struct.pack("<QBQQ", 1, self._id_type.code, self._rows, self._rows + 1)
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


FORMATS: dict[str, Callable[[Open, Shape, int], FormatWriter]] = {
    "webdataset": WebDatasetWriter,
    "parquet": ParquetWriter,
    "hf": HuggingFaceWriter,
    "megatron": MegatronWriter,
}
