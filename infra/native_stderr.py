"""Keeps lines that native code writes to standard error from the user, where they tell of nothing.

Such code writes to the file descriptor, past Python's streams and logging.
"""

import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_STDERR = 2
_END = b"\0end of the block\0"
"""Written last: children may hold the pipe open, so its end may never come."""


@contextmanager
def without_lines(unwanted: re.Pattern[bytes], first_byte: bytes) -> Iterator[None]:
    """Drop lines that match, of all that reaches the descriptor of standard error in the block.

    What begins with another byte than `first_byte` is passed on at once, and other lines when they are
    whole. Standard error is no terminal in the block.
    """
    outside = os.dup(_STDERR)
    reader, writer = os.pipe()
    os.dup2(writer, _STDERR)
    filtering = threading.Thread(
        target=_filter, args=(reader, outside, unwanted, first_byte), name="native stderr", daemon=True
    )
    filtering.start()
    try:
        yield
    finally:
        if os.path.sameopenfile(_STDERR, writer):  # else it was silenced for good meanwhile, by a signal
            os.dup2(outside, _STDERR)
        os.write(writer, _END)
        filtering.join()
        for descriptor in (reader, writer, outside):
            os.close(descriptor)


def _filter(reader: int, outside: int, unwanted: re.Pattern[bytes], first_byte: bytes) -> None:
    held = b""
    while not held.endswith(_END):
        held += os.read(reader, 65536)
        *lines, held = held.split(b"\n")
        for line in lines:
            if not unwanted.match(line):
                _write(outside, line + b"\n")
        if held and not held.startswith((first_byte, _END[:1])):
            text, mark, _ = held.partition(_END)
            _write(outside, text)
            held = mark
    _write(outside, held.removesuffix(_END))


def _write(descriptor: int, content: bytes) -> None:
    """Write all, or nothing where nobody reads any more: writers to the pipe must not wait for ever."""
    with suppress(OSError):
        while content:
            content = content[os.write(descriptor, content) :]
