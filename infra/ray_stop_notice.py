"""The driver's word to the workers of a training that they are to end by themselves."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from ray.exceptions import RayError
from ray.experimental.internal_kv import _internal_kv_get, _internal_kv_put

from dualtoken.infra.stop_request import stop_request

POLL_SECONDS = 0.5
"""Time between two looks for the notice."""


class StopNotice:
    """A word in the cluster's key-value store, of the run of a name that no other run has."""

    def __init__(self, run: str) -> None:
        self._key = f"dualtoken stop {run}".encode()
        self._looked_at = float("-inf")
        self._is_given = False

    def give(self) -> None:
        """Give the notice, in the driver."""
        _internal_kv_put(self._key, b"1")

    def is_given(self) -> bool:
        """Look for the notice, in a worker: at most every `POLL_SECONDS`."""
        now = time.monotonic()
        if not self._is_given and now >= self._looked_at + POLL_SECONDS:
            self._looked_at = now
            # A store that does not answer asks for nothing.
            with suppress(RayError, OSError, RuntimeError):
                self._is_given = _internal_kv_get(self._key) is not None
        return self._is_given


@contextmanager
def forwarding_stop_requests(notice: StopNotice) -> Iterator[None]:
    """In the block, give the notice once this process is asked to stop."""
    ended = threading.Event()

    def watch() -> None:
        while not ended.is_set():
            if stop_request.wait(POLL_SECONDS):
                notice.give()
                return

    thread = threading.Thread(target=watch, name="stop notice", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
