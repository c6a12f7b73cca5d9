"""Lines of text for the user: how they are printed, and how they count things."""

from collections.abc import Callable


def pluralized(number: int, noun: str) -> str:
    """Return `1 file`, `2 files`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


PrintLine = Callable[[str], None]
"""Prints one line for the user."""
