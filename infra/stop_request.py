"""A request that this process ends soon, for work that must not be interrupted at any moment.

A signal raises an error wherever the main thread stands, such as between two halves of a training step. Work
that would rather end by itself runs in a block of `deferred`: there SIGTERM and SIGHUP only make the request,
and the work has `grace_seconds` from then on.

Imports Python's own library only, so that a program is ready for signals before its own imports.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class StopRequest:
    """The request of this process: one object, since signals are for the whole process."""

    def __init__(self) -> None:
        self._asked = threading.Event()
        self._grace_seconds = 0.0
        self._num_blocks = 0

    @contextmanager
    def deferred(self, grace_seconds: float) -> Iterator[None]:
        """In the block, let signals make the request instead of raising an error."""
        if not self._num_blocks:
            self._asked.clear()
        self._grace_seconds = max(grace_seconds, self._grace_seconds)
        self._num_blocks += 1
        try:
            yield
        finally:
            self._num_blocks -= 1
            if not self._num_blocks:
                self._grace_seconds = 0.0

    @property
    def grace_seconds(self) -> float:
        """Time that the work in a block has after the request; 0 outside of one."""
        return self._grace_seconds

    def ask(self) -> bool:
        """Make the request; return whether there is a block that heeds it."""
        if not self._num_blocks:
            return False
        self._asked.set()
        return True

    def is_set(self) -> bool:
        """Tell whether the request was made."""
        return self._asked.is_set()

    def wait(self, seconds: float) -> bool:
        """Wait for the request; return whether it was made."""
        return self._asked.wait(seconds)


stop_request = StopRequest()
