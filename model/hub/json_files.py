"""Reads the JSON of model folders from outside; what asks for code of the folder's own is refused.

Other libraries run such code where a file says so, or ask the user. Nothing here does.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_ASKS_FOR_CODE = frozenset({"auto_map", "custom_generate", "custom_pipelines", "trust_remote_code"})
"""Keys by which Hugging Face's libraries find and run Python files of a model's folder."""

_NO_FILE = (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError)
"""Errors that say that there is nothing to read; others are the machine's trouble, such as a failing disk."""


def read_json(path: str | Path) -> dict[str, Any]:
    """Read a JSON object; raises ValueError naming the file, for keys that ask for code or stand twice."""
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"), object_pairs_hook=_each_key_once)
    except (*_NO_FILE, ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(values, dict):
        # A user's mistake, so no TypeError.
        raise ValueError(f"{path} holds a {type(values).__name__}, not an object")  # noqa: TRY004
    for key in _keys(values):
        if key.rpartition(".")[2] in _ASKS_FOR_CODE:
            raise ValueError(
                f"{path} has {key}: code of a model's folder is never run here; "
                "take the key out if the model does without it"
            )
    return values


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in pairs:
        if key in values:
            raise ValueError(f"{key} stands twice: keep one of them")
        values[key] = value
    return values


def _keys(values: dict[str, Any]) -> Iterator[str]:
    """Yield all keys at any depth, as `outer.inner`."""
    waiting: list[tuple[str, Any]] = [("", values)]
    while waiting:
        prefix, value = waiting.pop()
        items: list[tuple[str, Any]] = []
        if isinstance(value, dict):
            for key, inner in value.items():
                yield f"{prefix}{key}"
                items.append((f"{prefix}{key}.", inner))
        elif isinstance(value, list):
            items = [(prefix, inner) for inner in value]
        waiting += items
