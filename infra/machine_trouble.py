"""Tells the machine's own trouble, such as full memory, from a fault of the data at hand.

The machine's trouble may pass, and says nothing about the input: the work at hand fails and is tried again,
and no row is given it as a reason.
"""

import errno
import socket
import ssl
from collections.abc import Iterator

_ERRNOS = frozenset(
    {
        *(errno.EMFILE, errno.ENFILE),  # open files, of this process and of all
        *(errno.ENOMEM, errno.ENOBUFS),
        *(errno.ENOSPC, errno.EDQUOT),
        *(errno.EIO, errno.ESTALE),  # a disk, and a network's disk, that gives no answer
        errno.EAGAIN,  # no process, thread or local port to be had
    }
)
_RESOLVER_CODES = frozenset({socket.EAI_MEMORY, socket.EAI_SYSTEM})
"""Codes of `socket.gaierror`, which are no errno, for a look-up that this machine could not even make."""
_TEXTS = (
    *("out of memory", "insufficient memory", "cannot allocate memory", "can't allocate memory"),
    "can't start new thread",
)
"""Words of libraries that raise an error without a number, in lower case."""
_ACCELERATOR_ERROR = "OutOfMemoryError"
"""Torch's error for an accelerator's memory; it does not pass by itself, since the recipe decides its use."""


def is_machine_trouble(error: BaseException) -> bool:
    """Tell whether the machine ran out of something, or its disk failed, in an error or in what led to it."""
    return any(map(_is_trouble_itself, _with_origins(error)))


def _with_origins(error: BaseException) -> Iterator[BaseException]:
    """Yield an error, the members of a group, and all errors that they were raised from or while handling."""
    waiting: list[BaseException | None] = [error]
    seen: set[int] = set()
    while waiting:
        found = waiting.pop()
        if found is None or id(found) in seen:
            continue
        seen.add(id(found))
        yield found
        waiting += [found.__cause__, found.__context__]
        if isinstance(found, BaseExceptionGroup):
            waiting += found.exceptions


def _is_trouble_itself(error: BaseException) -> bool:
    if isinstance(error, MemoryError):
        return True
    if isinstance(error, socket.gaierror):
        return error.errno in _RESOLVER_CODES
    if isinstance(error, ssl.SSLError):
        return False  # its numbers are OpenSSL's: a peer that hangs up gives 5, which is EIO elsewhere
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in _ERRNOS
    if type(error).__name__ == _ACCELERATOR_ERROR:
        return False
    text = str(error).lower()
    return any(words in text for words in _TEXTS)
