"""Where a unit's time goes, by part of its work, so that a receipt tells what a stage waits for."""

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

Item = TypeVar("Item")


class Stopwatch:
    """Adds up seconds by name."""

    def __init__(self) -> None:
        self._seconds: defaultdict[str, float] = defaultdict(float)

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Add the block's time."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[name] += time.perf_counter() - started

    def waiting(self, name: str, items: Iterable[Item]) -> Iterator[Item]:
        """Yield the items, adding the time that each takes to come."""
        source = iter(items)
        while True:
            with self.timed(name):
                item = next(source, None)
            if item is None:
                return
            yield item

    def seconds(self) -> dict[str, float]:
        """Return the sums, to the millisecond."""
        return {name: round(value, 3) for name, value in self._seconds.items()}
