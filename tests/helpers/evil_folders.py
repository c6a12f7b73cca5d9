"""Model folders from outside that ask for code to run; the code leaves a file behind when it does."""

import json
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

SENTINEL_VARIABLE = "DUALTOKEN_TEST_SENTINEL"
"""Environment variable with the file that the code touches."""
EVIL_CODE = f"""
import os, pathlib
pathlib.Path(os.environ["{SENTINEL_VARIABLE}"]).write_text("code of a folder has run")
from transformers import PreTrainedTokenizerFast as Evil
"""


class EvilPickle:
    """A pickle that touches the sentinel when it is read without care."""

    def __init__(self, sentinel: Path) -> None:
        self._sentinel = sentinel

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self._sentinel,)


def change_json(file: Path, *keys: str, value: object) -> None:
    """Set a key of a JSON file, made if missing, at any depth."""
    values = json.loads(file.read_text()) if file.is_file() else {}
    group = values
    for key in keys[:-1]:
        group = group.setdefault(key, {})
    group[keys[-1]] = value
    file.write_text(json.dumps(values))


def add_evil_code(folder: Path) -> None:
    """Put a Python file into a folder that touches the sentinel when it is imported."""
    (folder / "evil.py").write_text(EVIL_CODE)


def write_evil_pickle(file: Path, sentinel: Path, inside: Mapping[str, object] | None = None) -> None:
    """Write a checkpoint whose reading touches the sentinel."""
    file.write_bytes(pickle.dumps({"state_dict": EvilPickle(sentinel), **(inside or {})}))
