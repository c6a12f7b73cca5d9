"""Checks of tables from outside, before any row is read: URL tables, and the tables of existing shards.

Each raises `UserError`, one line with the file, what is wrong with it, and what to do.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dualtoken.pipelines.core.damage import naming_damage
from dualtoken.pipelines.errors import UserError

SHOWN_COLUMNS = 20
"""Columns of a table that a message lists."""


@contextmanager
def parquet_file(stream: Any, place: str, advice: str) -> Iterator[pq.ParquetFile]:  # noqa: ANN401
    """Open a Parquet file of any store; `UserError` names `place` for damage, there and within the block."""
    with naming_damage(place, advice):
        if not stream.seek(0, 2):
            raise UserError(f"{place} is empty, 0 bytes; {advice}")
        stream.seek(0)
        yield pq.ParquetFile(stream, page_checksum_verification=True)


def read_row_group(
    table: pq.ParquetFile, group: int, columns: Sequence[str], place: str, advice: str
) -> pa.Table:
    """Read columns of a row group, each of which the file must have once."""
    with naming_damage(f"{place}, row group {group},", advice):
        rows = table.read_row_group(group, columns=list(columns))
        promised = table.metadata.row_group(group).num_rows
        if rows.num_rows != promised:
            raise UserError(f"{place}, row group {group}, has {rows.num_rows} rows of {promised}; {advice}")
        return rows


def require_column(found: Sequence[str], setting: str, name: str, place: str) -> None:
    """Require that a table has a column, and has it once; `setting` is the key that names it."""
    if name not in found:
        shown = ", ".join(found[:SHOWN_COLUMNS])
        if len(found) > SHOWN_COLUMNS:
            shown += ", ..."
        raise UserError(
            f"{setting}={name!r} is no column of {place}, which has {shown}: set it to one of them"
        )
    if found.count(name) > 1:
        raise UserError(
            f"{setting}={name!r}: {place} has {found.count(name)} columns of this name: "
            "rename all but one of them"
        )


def require_text(column_type: pa.DataType, setting: str, name: str, place: str) -> None:
    """Require that a column holds text."""
    if not is_text(column_type):
        raise UserError(f"{setting}={name!r} of {place} is of type {column_type}: set it to a column of text")


def is_text(column_type: pa.DataType) -> bool:
    """Tell whether a column holds text or its bytes, plain or dictionary-encoded, or nothing but nulls."""
    value_type = _value_type(column_type)
    tests = (
        pa.types.is_string,
        pa.types.is_large_string,
        pa.types.is_string_view,
        pa.types.is_binary,
        pa.types.is_large_binary,
        pa.types.is_binary_view,
        pa.types.is_null,
    )
    return any(test(value_type) for test in tests)


def _value_type(column_type: pa.DataType) -> pa.DataType:
    if isinstance(column_type, pa.BaseExtensionType):
        return _value_type(column_type.storage_type)
    if isinstance(column_type, pa.DictionaryType):
        return _value_type(column_type.value_type)
    return column_type


def as_strings(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return a column of text (see `is_text`) as strings; bytes that are not UTF-8 stay as they are."""
    chunks = [_plain_strings(chunk) for chunk in column.chunks]
    return pa.chunked_array(chunks, pa.string())


def _plain_strings(values: pa.Array) -> pa.Array:
    if isinstance(values, pa.ExtensionArray):
        return _plain_strings(values.storage)
    if isinstance(values, pa.DictionaryArray):
        words = _plain_strings(values.dictionary)
        return pa.DictionaryArray.from_arrays(values.indices, words).dictionary_decode()
    return values.cast(options=pc.CastOptions(pa.string(), allow_invalid_utf8=True))
