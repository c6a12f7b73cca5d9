"""Tells a damaged table from one that cannot be read just now."""

from collections.abc import Iterator
from contextlib import contextmanager

import pyarrow as pa

from dualtoken.infra.machine_trouble import is_machine_trouble
from dualtoken.pipelines.errors import UserError

_LONGEST_REASON = 300
"""Letters of a library's message that are shown."""


def is_damage(error: BaseException) -> bool:
    """Tell whether an error speaks of a file's content, which trying again does not change.

    Arrow raises a plain OSError without an errno for bytes that do not decompress, and for a wrong checksum.
    """
    if is_machine_trouble(error):
        return False
    if isinstance(error, (pa.ArrowException, UnicodeDecodeError)):
        return True
    return type(error) is OSError and error.errno is None


@contextmanager
def naming_damage(place: str, advice: str) -> Iterator[None]:
    """Raise `UserError`, one line of place, reason and advice, where the block meets damaged content."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if not is_damage(error):
            raise
        raise UserError(f"{place} cannot be read: {one_line(error)}; {advice}") from error


def one_line(error: BaseException) -> str:
    """Return an error's message as one line, shortened."""
    message = " ".join(str(error).split())
    return message[:_LONGEST_REASON] or type(error).__name__
