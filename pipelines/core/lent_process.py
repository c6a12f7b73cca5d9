"""Settings of the whole process that a library's caller finds again as they were.

Some settings cannot be made for a part of a process alone, such as the number of PyTorch's threads. A process
of our own, as a Ray worker is, keeps them. Where a caller lends its process for the length of a call, they
are put back.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

_borrowers: list[ExitStack] = []
"""The calls that the process is lent to, the innermost last."""


@contextmanager
def lent_process() -> Iterator[None]:
    """Put back at the end of the block what was changed in it and handed to `put_back_later`."""
    with ExitStack() as settings:
        _borrowers.append(settings)
        try:
            yield
        finally:
            _borrowers.remove(settings)


def put_back_later(restore: Callable[[], object]) -> None:
    """Have a function called when the process is given back; never, where it is lent by nobody."""
    if _borrowers:
        _borrowers[-1].callback(restore)
