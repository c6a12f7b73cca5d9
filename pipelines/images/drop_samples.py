"""Writes an image shard again without some samples: their files are gone from the tar, their rows stay, emptied."""

import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from dualtoken.pipelines.core.tombstones import FORGOTTEN
from dualtoken.pipelines.images.shards import (
    FAILED_TO_DOWNLOAD,
    SHARD_COLUMNS,
    member_key,
    shard_files,
    write_metadata,
)


def drop_samples(tar: Path, table: pa.Table, keys: frozenset[bytes], folder: Path, shard: str) -> None:
    """Write an image shard's three files below `folder` without the samples of `keys`; their rows stay, emptied."""
    rows = table.to_pylist()
    dropped = {row["key"] for row in rows if row["sample_key"] in keys}
    target = folder / shard_files(shard)[0]
    with tarfile.open(tar, "r:") as source, tar.open("rb") as raw, target.open("wb") as out:
        members = source.getmembers()
        ends = [member.offset for member in members[1:]] + [source.offset]
        for member, end in zip(members, ends, strict=True):
            if member_key(member.name) not in dropped:
                raw.seek(member.offset)
                out.write(raw.read(end - member.offset))
        out.write(bytes(2 * tarfile.BLOCKSIZE))
        out.write(bytes(-out.tell() % tarfile.RECORDSIZE))
    emptied = [forgotten_row(row, table.schema) if row["key"] in dropped else row for row in rows]
    write_metadata(folder, shard, pa.Table.from_pylist(emptied, schema=table.schema))


def forgotten_row(row: Mapping[str, Any], schema: pa.Schema) -> dict[str, Any]:
    """Return an image shard's row with nothing of the sample but its key."""
    kept = blank_row(pa.schema([field for field in schema if field.name not in SHARD_COLUMNS]))
    said = {"status": FAILED_TO_DOWNLOAD, "error_message": FORGOTTEN, "reason": FORGOTTEN, "caption": ""}
    known = dict.fromkeys(schema.names)
    return known | {"key": row["key"], "sample_key": row["sample_key"]} | said | kept


def blank_row(schema: pa.Schema) -> dict[str, Any]:
    """Return a row that says nothing: nulls, or empty values where a column takes none."""
    return {field.name: _blank_value(field) for field in schema}


def _blank_value(field: pa.Field) -> Any:  # noqa: ANN401
    if field.nullable:
        return None
    text = pa.types.is_string(field.type) or pa.types.is_large_string(field.type)
    return "" if text else pa.array([0], pa.int64()).cast(field.type)[0].as_py()
