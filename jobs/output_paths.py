"""Where a command may write what its user names: checked before any work, and never over what is read."""

from collections.abc import Sequence
from pathlib import Path

from dualtoken.pipelines.core.writable import require_writable
from dualtoken.pipelines.errors import UserError

ANOTHER_PLACE = "name another place"
"""Advice for a folder that cannot be written."""


def require_safetensors(file: Path) -> None:
    """Raise `UserError` for a name that no file of safetensors has."""
    if file.suffix != ".safetensors":
        raise UserError(f"{file} does not end in .safetensors: name a file to write")


def require_new(path: Path) -> None:
    """Raise `UserError` for a place that something is in already, and for one that cannot be written."""
    if path.is_file() or (path.is_dir() and any(path.iterdir())):
        raise UserError(f"{path} is there already: name a new one, or remove it")
    require_writable(path.parent, ANOTHER_PLACE)


def require_apart(folder: Path, images: Sequence[str]) -> None:
    """Raise `UserError` for an output folder in which images lie that are to be read."""
    whole = folder.resolve()
    for image in map(Path, images):
        read = image.resolve() if image.is_dir() else image.resolve().parent
        if whole == read or (image.is_dir() and whole.is_relative_to(read)):
            raise UserError(f"--out {folder} is where images are read from ({image}): name another folder")
