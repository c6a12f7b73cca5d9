"""Lines of text for the user: the type of what prints them, and how they count things."""

from collections.abc import Callable

PrintLine = Callable[[str], None]
"""Prints one line for the user."""


def pluralized(number: int, noun: str) -> str:
    """Return `1 file`, `2 files`."""
    if number == 1:
        return f"{number:,} {noun}"
    return f"{number:,} {noun}s"


def printable(name: str) -> str:
    """Return a file's name with bytes that are not UTF-8 escaped, as Arrow, JSON and terminals take it."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
