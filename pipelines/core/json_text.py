"""Writes any values of a table as valid JSON."""

import json
import math
from collections.abc import Mapping
from typing import Any


def json_text(value: Any, **settings: Any) -> str:  # noqa: ANN401  (any value of a table; json.dumps' settings)
    """Return a value as JSON text.

    A number that is not finite is null, as JSON has none. Bytes are hexadecimal. Other values that JSON has
    no type for, such as dates and decimals, are text.
    """
    return json.dumps(_plain(value), allow_nan=False, default=str, **settings)


def _plain(value: Any) -> Any:  # noqa: ANN401
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, Mapping):
        return {str(name): _plain(member) for name, member in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(member) for member in value]
    return value
