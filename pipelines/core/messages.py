"""Lines of text for the user: how they are printed, and how they count things."""

from collections.abc import Callable


def counted(number: int, noun: str) -> str:
    """Return `1 file`, `2 files`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


Say = Callable[[str], None]
"""Prints one line for the user."""
