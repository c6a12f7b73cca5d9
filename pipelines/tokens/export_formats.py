"""Writers of exported token datasets, one class per format; each says what it writes, README.md lists them.

R rows, H by W positions, D depths, N = H * W * D. Codes are flattened position-major, depth-minor, as in our
own shards. Megatron's file layout: `megatron/core/datasets/indexed_dataset.py` of NVIDIA/Megatron-LM. Hugging
Face's: `Dataset.save_to_disk`.
"""

import io
import json
import tarfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dualtoken.pipelines.core.json_text import json_text
from dualtoken.pipelines.tokens.export_description import Description, Shape, schema_metadata
from dualtoken.pipelines.tokens.shards import Ids

Open = Callable[[str], AbstractContextManager[Path]]
"""Gives a local path for a file's name; when its block ends, the file is complete."""


class ShardRows(NamedTuple):
    """One shard's rows."""

    shard: str
    keys: list[bytes]
    codes: dict[str, Ids]
    """Codes by stream, (R, H, W, D)."""
    meta: pa.Table
    """Captions, URLs, scores and whatever the recipe carried along; without the keys."""


def hex_keys(rows: ShardRows) -> pa.Array:
    """Return the rows' keys as text, the one form that they have in every format."""
    return pa.array([key.hex() for key in rows.keys], pa.string())


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

    def __init__(self, open_file: Open, shape: Shape, description: Description) -> None:
        del shape, description
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

    Columns: `key`, hexadecimal; `semantic` and `pixel`, fixed-size lists of N uint16; then the meta columns.
    The schema's metadata describe the export.
    """

    def __init__(self, open_file: Open, shape: Shape, description: Description) -> None:
        self._open = open_file
        self._shape = shape
        self._metadata = schema_metadata(description)

    def write(self, rows: ShardRows) -> None:
        """Add a shard."""
        table = _table(rows, self._shape.codes_per_row).replace_schema_metadata(self._metadata)
        with self._open(f"{rows.shard}.parquet") as path:
            pq.write_table(table, path, compression="zstd", row_group_size=1024)

    def finish(self) -> None:
        """Write nothing more."""


def _table(rows: ShardRows, width: int) -> pa.Table:
    """Join codes and meta; a meta column that has the name of one of ours is called `meta_...`."""
    columns: dict[str, pa.Array | pa.ChunkedArray] = {"key": hex_keys(rows)}
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
    `dataset_info.json` describes the export.
    """

    def __init__(self, open_file: Open, shape: Shape, description: Description) -> None:
        self._description = description
        self._open = open_file
        self._shape = shape
        self._files: list[str] = []
        self._schema: pa.Schema | None = None

    def write(self, rows: ShardRows) -> None:
        """Add a shard, as an Arrow stream."""
        joined = _table(rows, self._shape.codes_per_row)
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
            "description": self._description.model_dump_json(),
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
