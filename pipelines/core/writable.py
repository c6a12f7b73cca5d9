"""Finds out before any work whether files can be written into a folder."""

import tempfile
from pathlib import Path

from dualtoken.infra.machine_trouble import is_machine_trouble
from dualtoken.pipelines.errors import UserError


def require_writable(folder: Path, advice: str) -> None:
    """Make a folder, and raise `UserError`, which ends with the advice, if nothing can be written into it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        if is_machine_trouble(error):
            raise
        raise UserError(f"{folder} cannot be written ({error.strerror or error}): {advice}") from None
