"""Reads tables of JSON lines: an object a line, whole.

URLs and captions are strings or null. A column that is kept takes the type of its values; one that has a list
or an object is kept as JSON text.
"""

import json
from collections.abc import Sequence
from typing import IO, Any

import pyarrow as pa

from dualtoken.infra.machine_trouble import is_machine_trouble
from dualtoken.pipelines.core.damage import one_line
from dualtoken.pipelines.core.json_text import json_text
from dualtoken.pipelines.errors import UserError
from dualtoken.pipelines.images.text_tables import WantedColumns

_BOM = b"\xef\xbb\xbf"


def read_json_lines(stream: IO[bytes], wanted: WantedColumns, place: str) -> pa.Table:
    """Read columns of a file; a row without one of them has null there.

    Raises `UserError`, with the row's number, for a line that is no object, and for text columns of others.
    """
    values: dict[str, list[Any]] = {name: [] for name in wanted.names}
    found: dict[str, None] = {}
    row = 0
    for line in stream:
        if not line.strip():
            continue
        row += 1
        described = _parsed(line.removeprefix(_BOM), row, place)
        found.update(dict.fromkeys(described))
        for name, column in values.items():
            column.append(described.get(name))
    wanted.check(list(found))
    columns: list[pa.Array] = []
    for name, column in values.items():
        if name in wanted.texts:
            columns.append(_texts(name, column, place))
        else:
            columns.append(_kept(name, column, place))
    return pa.table(columns, names=list(values))


def _parsed(line: bytes, row: int, place: str) -> dict[str, Any]:
    try:
        value = json.loads(line, object_pairs_hook=_object)
    except UserError as error:
        raise UserError(f"{place}, row {row}, {error}") from None
    except UnicodeDecodeError:
        raise UserError(f"{place}, row {row}, is not UTF-8: save the file as UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{place}, row {row}, is no JSON ({one_line(error)}): give an object a line"
        ) from None
    if not isinstance(value, dict):
        raise UserError(f"{place}, row {row}, is no JSON object: give an object a line")
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"has {twice!r} twice: rename all but one of them")
    return values


def _texts(name: str, values: Sequence[Any], place: str) -> pa.Array:
    """Return strings; half of a surrogate pair, which no UTF-8 has, becomes bytes that are no text."""
    encoded: list[bytes | None] = []
    for row, value in enumerate(values, start=1):
        if value is None:
            encoded.append(None)
        elif isinstance(value, str):
            encoded.append(value.encode("utf-8", "surrogatepass"))
        else:
            raise UserError(f"{place}, row {row}, has a {name!r} that is {_kind(value)}: give text there")
    return pa.array(encoded, pa.binary())


def _kind(value: Any) -> str:  # noqa: ANN401  (any JSON value)
    if isinstance(value, list):
        return "a list"
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, bool):
        return "true or false"
    return "a number"


def _kept(name: str, values: Sequence[Any], place: str) -> pa.Array:
    if any(isinstance(value, (list, dict)) for value in values):
        return pa.array([None if value is None else json_text(value) for value in values], pa.string())
    try:
        return pa.array(values)
    except UnicodeEncodeError:
        raise UserError(
            f"{place} has half of a surrogate pair in {name!r}: mend it, or leave it out of keep_columns"
        ) from None
    except (pa.ArrowException, OverflowError) as error:
        if is_machine_trouble(error):
            raise
        raise UserError(
            f"{place} has values of several types in {name!r} ({one_line(error)}): "
            "give one type, or leave it out of keep_columns"
        ) from None
