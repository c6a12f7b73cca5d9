r"""Names of files below a folder, as listings, indexes and records from outside give them.

A name is joined to a folder, and what it leads to is then read, written, moved or removed. So it must lead to
a place below that folder on every system: no part is empty, `.` or `..`, whether parts are separated by `/`
or `\`, and it begins with no drive. `Store` checks each name that it is given, and records check theirs when
they are read.
"""

import re
from pathlib import PureWindowsPath

PLAIN_PART = r"[\w-][\w.-]*"
"""Pattern of a part that needs no further look, where `\\w` is of ASCII."""
PLAIN_NAME = rf"{PLAIN_PART}(/{PLAIN_PART})*"
"""Pattern of such names, which are nearly all."""
_PLAIN = re.compile(PLAIN_NAME, re.ASCII)
_SEPARATORS = re.compile(r"[/\\]")


class UnsafeNameError(ValueError):
    """A name from outside leads out of its folder."""

    exit_code = 2
    """Exit status of a command that ends with it: the user's data are at fault."""


def relative_name(name: str, folder: str = "its folder") -> str:
    """Return the name of a file or folder below `folder`; raises `UnsafeNameError` for any other."""
    if _PLAIN.fullmatch(name):
        return name
    parts = _SEPARATORS.split(name)
    if "\0" in name or PureWindowsPath(name).drive or not {"", ".", ".."}.isdisjoint(parts):
        raise UnsafeNameError(
            f"{name!r} is no name of a file below {folder}: take the data from a source you trust"
        )
    return name


def single_name(name: str) -> str:
    """Return the name of a file or folder right below another one; raises `UnsafeNameError` likewise."""
    if _SEPARATORS.search(name):
        raise UnsafeNameError(f"{name!r} is no name of one part: take the data from a source you trust")
    return relative_name(name)
