"""Time breakdown of a unit's work by part (fetch, wait, encode, write, ...), and its sum over a corpus."""

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

PARTS = ("fetch", "wait", "encode", "write", "captions", "audit", "commit", "rest")
"""Parts of a unit's work, in its order; they add up to the unit's time.

`fetch` opens the image shard, `wait` waits for decoded images, `encode` runs the encoder, `write` waits for
rows to be written, `commit` is ledger and upload. `rest` is what a receipt does not tell apart, such as in
datasets from before all of these parts were timed.
"""
PARTS_DETAIL = "seconds_by_part"
"""Key of the seconds by part in a manifest's details."""

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


def time_breakdown(facts: Mapping[str, Any], seconds: float) -> dict[str, float]:
    """Return a receipt's seconds by part, with the rest of its unit's `seconds`.

    Returns nothing for a stage that does not time its parts.
    """
    by_part = facts.get("seconds")
    if not isinstance(by_part, Mapping) or "encode" not in by_part:
        return {}
    rest = seconds - sum(by_part.values())
    return {**by_part, "rest": max(0.0, rest)}


@dataclass(frozen=True, kw_only=True, slots=True)
class TimeBreakdown:
    """Seconds by part of the work, summed over a corpus's units and all workers."""

    corpus: str
    seconds: Mapping[str, float]
    """Seconds by part, as in `PARTS`."""

    @property
    def total(self) -> float:
        """Seconds of work."""
        return sum(self.seconds.values())

    @property
    def encoder_waits(self) -> float:
        """Share of the time in which the encoder had nothing to do, 0 to 1."""
        if not self.total:
            return 0.0
        return 1 - self.seconds["encode"] / self.total

    @property
    def longest_wait(self) -> str:
        """Part other than encoding that took most of the time; "" where there is none."""
        others = {name: seconds for name, seconds in self.seconds.items() if name != "encode"}
        if not others:
            return ""
        return max(others, key=others.__getitem__)
