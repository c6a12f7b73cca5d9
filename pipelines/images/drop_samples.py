"""Rewrites an image shard without some samples: their files leave the tar, their rows stay, emptied."""

import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from dualtoken.pipelines.core.tombstones import FORGOTTEN
from dualtoken.pipelines.images.shards import (
    FAILED_TO_DOWNLOAD,
    SHARD_COLUMNS,
    shard_files,
    write_metadata,
)
from dualtoken.pipelines.images.tar_index import member_key


def drop_samples(tar: Path, table: pa.Table, keys: frozenset[bytes], folder: Path, shard: str) -> None:
    """Write a shard's three files below `folder` without the samples of `keys`; their rows stay, emptied."""
    rows = table.to_pylist()
    dropped = {row["key"] for row in rows if row["sample_key"] in keys}
    tar_name, *_ = shard_files(shard)
    _copy_members(tar, folder / tar_name, without=dropped)
    for index, row in enumerate(rows):
        if row["key"] in dropped:
            rows[index] = forgotten_row(row, table.schema)
    write_metadata(folder, shard, pa.Table.from_pylist(rows, schema=table.schema))


def _copy_members(tar: Path, target: Path, without: set[str]) -> None:
    """Copy a tar's members, byte for byte, except those with the given keys."""
    with tarfile.open(tar, "r:") as source, tar.open("rb") as raw, target.open("wb") as out:
        members = source.getmembers()
        ends = [member.offset for member in members[1:]]
        ends.append(source.offset)
        for member, end in zip(members, ends, strict=True):
            if member_key(member.name) not in without:
                raw.seek(member.offset)
                out.write(raw.read(end - member.offset))
        # A tar ends with two empty blocks, and is filled up to whole records.
        out.write(bytes(2 * tarfile.BLOCKSIZE))
        out.write(bytes(-out.tell() % tarfile.RECORDSIZE))


def forgotten_row(row: Mapping[str, Any], schema: pa.Schema) -> dict[str, Any]:
    """Return an image shard's row with nothing of the sample but its key."""
    emptied: dict[str, Any] = dict.fromkeys(schema.names)
    for field in schema:
        if field.name not in SHARD_COLUMNS:
            emptied[field.name] = _blank_value(field)
    emptied["key"] = row["key"]
    emptied["sample_key"] = row["sample_key"]
    emptied["status"] = FAILED_TO_DOWNLOAD
    emptied["error_message"] = FORGOTTEN
    emptied["reason"] = FORGOTTEN
    emptied["caption"] = ""
    return emptied


def blank_row(schema: pa.Schema) -> dict[str, Any]:
    """Return a row that says nothing: nulls, or empty values where a column takes none."""
    return {field.name: _blank_value(field) for field in schema}


def _blank_value(field: pa.Field) -> Any:  # noqa: ANN401
    if field.nullable:
        return None
    if pa.types.is_string(field.type) or pa.types.is_large_string(field.type):
        return ""
    return pa.array([0], pa.int64()).cast(field.type)[0].as_py()
