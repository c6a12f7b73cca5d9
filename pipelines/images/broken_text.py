"""Rows of a table whose text is no UTF-8: no JSON and no tokenizer takes it, so they are named."""

from typing import NamedTuple

import pyarrow as pa

BAD_TEXT = "bad_text"
"""Reason of a row whose caption or kept column is no UTF-8; a URL that is none is a `bad_url`."""


class CheckedText(NamedTuple):
    """A table with UTF-8 alone, and what was broken in it."""

    table: pa.Table
    """Null stands in place of broken values."""
    broken: dict[int, str]
    """The first column that is broken, by row."""


def check_text(table: pa.Table) -> CheckedText:
    """Take what is no UTF-8 out of a table, nested values included."""
    broken: dict[int, str] = {}
    for number, name in enumerate(table.column_names):
        rows = _broken_rows(table[name])
        if rows:
            table = table.set_column(number, name, _without(table[name], rows))
        for row in rows:
            broken.setdefault(row, name)
    return CheckedText(table, broken)


def _broken_rows(column: pa.ChunkedArray) -> frozenset[int]:
    try:
        column.validate(full=True)
    except pa.ArrowInvalid:
        return frozenset(row for row in range(len(column)) if _is_broken(column[row]))
    return frozenset()


def _is_broken(value: pa.Scalar) -> bool:
    try:
        value.as_py()
    except UnicodeDecodeError:
        return True
    return False


def _without(column: pa.ChunkedArray, rows: frozenset[int]) -> pa.ChunkedArray:
    values = [None if row in rows else column[row].as_py() for row in range(len(column))]
    return pa.chunked_array([pa.array(values, column.type)])
