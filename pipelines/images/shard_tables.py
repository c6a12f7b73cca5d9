"""Reads the table of an image shard, ours or img2dataset's: checks its columns, and makes them our types."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from dualtoken.pipelines.errors import UserError
from dualtoken.pipelines.images.table_checks import as_strings, is_text, parquet_file

SUCCESS = "success"
FAILED_TO_DOWNLOAD = "failed_to_download"
FAILED_TO_RESIZE = "failed_to_resize"
STATUSES = (SUCCESS, FAILED_TO_DOWNLOAD, FAILED_TO_RESIZE)
"""Values of the column `status`, img2dataset's own."""
FETCH_AGAIN = "fetch it again"
_TEXTS = ("key", "url", "caption", "status", "error_message", "sha256")
_SIZES = ("width", "height", "original_width", "original_height")
_MOST_PIXELS = 2**31


def check_shard_columns(schema: pa.Schema, place: str) -> None:
    """Raise `UserError` for a table without img2dataset's columns, or with columns of other kinds."""
    for name in ("key", "status"):
        if name not in schema.names:
            raise UserError(
                f"{place} has no column {name!r}, so it is not img2dataset's: "
                "give a folder that img2dataset wrote"
            )
    for name in schema.names:
        if schema.names.count(name) > 1:
            raise UserError(f"{place} has two columns {name!r}: rename or leave out one of them")
    for name in _TEXTS:
        if name not in schema.names:
            continue
        column_type = schema.field(name).type
        if name == "key" and pa.types.is_integer(column_type):
            continue
        if not is_text(column_type):
            raise UserError(f"{place} has a column {name!r} of type {column_type}: write it as text")


def read_metadata(path: Path) -> pa.Table:
    """Read a shard's Parquet file; raises `UserError` where it is damaged or not img2dataset's.

    Text is of Arrow's plain type, sizes are whole and over 0, or null where they are not known.
    """
    with path.open("rb") as stream, parquet_file(stream, str(path), FETCH_AGAIN) as file:
        check_shard_columns(file.schema_arrow, str(path))
        table = file.read()
    for name in table.column_names:
        if name in _TEXTS and is_text(table.schema.field(name).type):
            table = _replaced(table, name, as_strings(table[name]))
        if name in _SIZES:
            sizes = [_known_size(value) for value in table[name].to_pylist()]
            table = _replaced(table, name, pa.chunked_array([pa.array(sizes, pa.int32())]))
    unknown_statuses = set(table["status"].to_pylist()) - set(STATUSES)
    if unknown_statuses:
        first = min(map(str, unknown_statuses))
        raise UserError(f"{path} has the status {first!r}: give a folder that img2dataset wrote")
    if table["key"].null_count:
        raise UserError(f"{path} has {table['key'].null_count} rows without a key: {FETCH_AGAIN}")
    return table


def _replaced(table: pa.Table, name: str, column: pa.ChunkedArray) -> pa.Table:
    index = table.schema.get_field_index(name)
    field = table.schema.field(name)
    if field.type == column.type and field.type != pa.int32():
        return table
    return table.set_column(index, field.with_type(column.type), column)


def _known_size(value: Any) -> int | None:  # noqa: ANN401
    """Return a side in pixels; None for null, 0, NaN and what is no number."""
    if isinstance(value, (int, float)) and 0 < value < _MOST_PIXELS:
        return int(value)
    return None


def with_member_keys(table: pa.Table, members: Mapping[str, Any]) -> pa.Table:
    """Return a table with whole numbers as keys with those that the tar has, which may begin with zeros."""
    if not pa.types.is_integer(table.schema.field("key").type):
        return table
    by_number = {int(key): key for key in members if key.isdecimal()}
    keys = [by_number.get(number, str(number)) for number in table["key"].to_pylist()]
    index = table.schema.get_field_index("key")
    return table.set_column(index, "key", pa.array(keys, pa.string()))
