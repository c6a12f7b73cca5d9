"""Reads files of weights from outside: safetensors, and pickles of tensors alone.

A pickle can hold code. It is read by torch's reader that knows tensors and containers of them only, and what
holds more is refused.
"""

import re
from pathlib import Path

import torch
from torch import Tensor

from dualtoken.model.hub.saved_model import read_safetensors

_LOOKED_AT = 512
"""Bytes at the beginning of a file by which a web page or a pointer is told."""
_NO_WEIGHTS = {
    rb"\s*<(!doctype|html|\?xml)": "is a web page: download the file itself",
    rb"version https://git-lfs": "is a pointer of Git LFS: run git lfs pull",
    rb"\Z": "is empty: download it again",
}
"""What stands in a file's place where a download went wrong, by its beginning, a regular expression."""
_GLOBAL = re.compile(r"GLOBAL ([\w.]+)")
"""Name of the class or function for which torch refuses a pickle."""


def read_weights_file(file: Path) -> dict[str, Tensor]:
    """Read a file of weights; a checkpoint's `state_dict` is taken out of it.

    Raises ValueError, one line, for anything else.
    """
    with file.open("rb") as opened:
        beginning = opened.read(_LOOKED_AT)
    for pattern, problem in _NO_WEIGHTS.items():
        if re.match(pattern, beginning, re.IGNORECASE):
            raise ValueError(f"{file} {problem}")
    if file.suffix == ".safetensors":
        return read_safetensors(file)
    try:
        loaded = torch.load(file, map_location="cpu", weights_only=True)
    except (MemoryError, OSError):
        raise
    except Exception as error:  # noqa: BLE001  (torch raises many kinds for what is no checkpoint)
        raise ValueError(f"{file} {_why_not_read(str(error))}") from None
    state = loaded
    if isinstance(loaded, dict):
        state = loaded.get("state_dict", loaded)
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{file} holds no state dict: save one, or a dictionary with one under state_dict")
    return state


def _why_not_read(message: str) -> str:
    """Say why torch could not read a pickle; its own advice, to run what the file holds, is left out."""
    refused = _GLOBAL.search(message)
    if refused is None:
        return "cannot be read as weights alone: it is no checkpoint of torch, or a damaged one"
    return (
        f"holds {refused[1]} beside weights, and is not read, since that could be code: "
        "save the state dict alone, best as .safetensors"
    )
