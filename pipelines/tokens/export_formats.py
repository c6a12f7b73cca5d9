"""The writers of exported token datasets, one per format; what each holds is said at its class, and README.md lists them.

R rows, H by W positions, D depths, N = H * W * D. Codes are flattened position-major, depth-minor, as in our own shards.
Megatron's file layout: `megatron/core/datasets/indexed_dataset.py` of NVIDIA/Megatron-LM. Hugging Face's: `Dataset.save_to_disk`.
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

from dualtoken.pipelines.errors import UserError
from dualtoken.pipelines.tokens.shards import Ids

Open = Callable[[str], AbstractContextManager[Path]]
"""Gives a local path for a file's name; when its block ends, the file is complete."""


class Shape(NamedTuple):
    """What all rows of a dataset have in common."""

    grid: tuple[int, int]
    depth: int
    num_codes: dict[str, int]
    """By stream that is exported, in their order."""
    num_shards: int
    fingerprint: str
    """The dataset's root hash."""

    @property
    def codes_per_row(self) -> int:
        """Codes of one stream of a row."""
        return self.grid[0] * self.grid[1] * self.depth


class ShardRows(NamedTuple):
    """One shard's rows."""

    shard: str
    keys: list[bytes]
    codes: dict[str, Ids]
    """By stream, (R, H, W, D)."""
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
    """A `<shard>.tar` per shard; `<shard><row>.semantic.npy`, `.pixel.npy`: uint16 (H, W, D); `.txt`: caption; `.json`: key and meta."""

    def __init__(self, open_file: Open, shape: Shape, first_id: int) -> None:
        del shape, first_id
        self._open = open_file

    def write(self, rows: ShardRows) -> None:
        """Add a shard; times and owners are none, so that the same rows give the same bytes."""
        with (
            self._open(f"{rows.shard}.tar") as path,
            tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar,
        ):
            for row, (key, meta) in enumerate(zip(rows.keys, rows.meta.to_pylist(), strict=True)):
                name = f"{rows.shard}{row:04d}"
                for stream, codes in rows.codes.items():
                    array = io.BytesIO()
                    np.save(array, codes[row], allow_pickle=False)
                    _add(tar, f"{name}.{stream}.npy", array.getvalue())
                _add(tar, f"{name}.txt", (meta.get("caption") or "").encode())
                _add(
                    tar,
                    f"{name}.json",
                    json.dumps({"key": key.hex(), **meta}, ensure_ascii=False, default=_plain).encode(),
                )

    def finish(self) -> None:
        """Write nothing more."""


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mode = len(data), 0o644
    tar.addfile(member, io.BytesIO(data))


def _plain(value: Any) -> str:  # noqa: ANN401
    return value.hex() if isinstance(value, bytes) else str(value)


class ParquetWriter:
    """A `<shard>.parquet` per shard, zstd: `key` (16 bytes), `semantic`, `pixel`: fixed-size lists of N uint16, then the meta columns."""

    def __init__(self, open_file: Open, shape: Shape, first_id: int) -> None:
        del first_id
        self._open, self._shape = open_file, shape

    def write(self, rows: ShardRows) -> None:
        """Add a shard."""
        table = _table(pa.array(rows.keys, pa.binary(16)), rows, self._shape.codes_per_row)
        with self._open(f"{rows.shard}.parquet") as path:
            pq.write_table(table, path, compression="zstd", row_group_size=1024)

    def finish(self) -> None:
        """Write nothing more."""


def _table(keys: pa.Array, rows: ShardRows, width: int) -> pa.Table:
    """Join codes and meta; a meta column that has the name of one of ours is called `meta_...`."""
    codes = {
        stream: pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(ids).reshape(-1)), width)
        for stream, ids in rows.codes.items()
    }
    ours = {"key": keys, **codes}
    return pa.table(
        ours | {f"meta_{name}" if name in ours else name: rows.meta[name] for name in rows.meta.column_names}
    )


class HuggingFaceWriter:
    """A folder for `datasets.load_from_disk`: `key` (hexadecimal), `semantic`, `pixel`: lists of N uint16, then the meta columns."""

    def __init__(self, open_file: Open, shape: Shape, first_id: int) -> None:
        del first_id
        self._open, self._shape = open_file, shape
        self._files: list[str] = []
        self._schema: pa.Schema | None = None

    def write(self, rows: ShardRows) -> None:
        """Add a shard, as an Arrow stream."""
        table = _table(pa.array([key.hex() for key in rows.keys]), rows, self._shape.codes_per_row)
        table = pa.table(
            {name: _for_hugging_face(table[name].combine_chunks()) for name in table.column_names}
        )
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
        for name, values in (("dataset_info.json", info), ("state.json", state)):
            with self._open(name) as path:
                path.write_text(json.dumps(values, indent=2, sort_keys=True), encoding="utf-8")


_HUGGING_FACE = {"float": "float32", "double": "float64", "halffloat": "float16"}
"""Arrow's names of types where theirs differ."""
_SIMPLE = {
    "string",
    "large_string",
    "binary",
    "bool",
    *(f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)),
}


def _for_hugging_face(column: pa.Array) -> pa.Array:
    """Return a column as a type that their features know: what is not simple becomes text."""
    kind = column.type
    if str(kind) in _SIMPLE | set(_HUGGING_FACE) or pa.types.is_fixed_size_list(kind):
        return column
    return pa.array(
        [None if value is None else json.dumps(value, default=_plain) for value in column.to_pylist()],
        pa.string(),
    )


def _features(schema: pa.Schema) -> dict[str, Any]:
    def feature(kind: pa.DataType) -> dict[str, Any]:
        if pa.types.is_fixed_size_list(kind):
            return {"feature": feature(kind.value_type), "length": kind.list_size, "_type": "Sequence"}
        return {"dtype": _HUGGING_FACE.get(str(kind), str(kind)), "_type": "Value"}

    return {field.name: feature(field.type) for field in schema}


class MegatronWriter:
    """`tokens.bin` and `tokens.idx`: a document per row, of one sequence; `tokens.parquet`: key and meta of the same rows.

    A sequence is the semantic codes, then the pixel codes, N each. The id of a code is the code, plus `first_id`, plus for pixel
    codes the size of the semantic codebook. Ids are uint16 where all fit, as Megatron chooses it too, else int32.
    """

    _HEADER = b"MMIDIDX\x00\x00"
    _KINDS: tuple[tuple[int, type[Any], int], ...] = ((65_500, np.uint16, 8), (2**31, np.int32, 4))
    """Ids under the first number have this type, which has this number in the index."""

    def __init__(self, open_file: Open, shape: Shape, first_id: int) -> None:
        self._open, self._shape, self._files = open_file, shape, ExitStack()
        sizes = list(shape.num_codes.values())
        self._offsets = {
            stream: first_id + sum(sizes[:place]) for place, stream in enumerate(shape.num_codes)
        }
        kinds = ((kind, code) for bound, kind, code in self._KINDS if first_id + sum(sizes) < bound)
        if (chosen := next(kinds, None)) is None:
            raise UserError(
                f"--first-id {first_id}: ids would go up to {first_id + sum(sizes) - 1:,}, beyond Megatron's int32: lower it"
            )
        self._kind, self._code = chosen
        self._bin = self._files.enter_context(self._files.enter_context(open_file("tokens.bin")).open("wb"))
        self._meta: pq.ParquetWriter | None = None
        self._rows = 0

    def write(self, rows: ShardRows) -> None:
        """Add a shard's rows."""
        ids = [
            codes.reshape(len(rows.keys), -1).astype(np.int64) + self._offsets[stream]
            for stream, codes in rows.codes.items()
        ]
        self._bin.write(np.ascontiguousarray(np.concatenate(ids, axis=1).astype(self._kind)).data)
        meta = pa.table(
            {
                "key": pa.array(rows.keys, pa.binary(16)),
                **{name: rows.meta[name] for name in rows.meta.column_names},
            }
        )
        if self._meta is None:
            path = self._files.enter_context(self._open("tokens.parquet"))
            self._meta = self._files.enter_context(pq.ParquetWriter(path, meta.schema, compression="zstd"))
        self._meta.write_table(meta)
        self._rows += len(rows.keys)

    def finish(self) -> None:
        """Write the index: all sequences are of one length, so their places are arithmetic."""
        self._files.close()
        length = self._shape.codes_per_row * len(self._shape.num_codes)
        step = length * np.dtype(self._kind).itemsize
        with self._open("tokens.idx") as path, path.open("wb") as index:
            index.write(self._HEADER + struct.pack("<QBQQ", 1, self._code, self._rows, self._rows + 1))
            for first, last in _spans(self._rows):
                index.write(np.full(last - first, length, "<i4").tobytes())
            for first, last in _spans(self._rows):
                index.write((np.arange(first, last, dtype="<i8") * step).tobytes())
            for first, last in _spans(self._rows + 1):
                index.write(np.arange(first, last, dtype="<i8").tobytes())


def _spans(count: int, size: int = 1 << 20) -> Iterator[tuple[int, int]]:
    for first in range(0, count, size):
        yield first, min(count, first + size)


FORMATS: dict[str, Callable[[Open, Shape, int], FormatWriter]] = {
    "webdataset": WebDatasetWriter,
    "parquet": ParquetWriter,
    "hf": HuggingFaceWriter,
    "megatron": MegatronWriter,
}
