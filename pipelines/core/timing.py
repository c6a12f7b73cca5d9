"""Time breakdown of a unit's work by part (fetch, wait, encode, write, ...), and its sum over a corpus."""

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

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


PARTS = ("fetch", "wait", "encode", "write", "captions", "audit", "commit", "rest")
"""In the order of a unit's work, which they add up to: opening the image shard, waiting for decoded images, the encoder, waiting for rows
to be written, captions, the audit, ledger and upload, and what a receipt does not tell apart, as of datasets from before there were all of
these."""


PARTS_DETAIL = "seconds_by_part"
"""Where a manifest's details have them."""


def time_breakdown(facts: Mapping[str, Any], seconds: float) -> dict[str, float]:
    """Return a receipt's seconds by part, with the rest of its unit's `seconds`; nothing where its stage times no parts."""
    known = facts.get("seconds")
    if not isinstance(known, Mapping) or "encode" not in known:
        return {}
    return {**known, "rest": max(0.0, seconds - sum(known.values()))}


@dataclass(frozen=True, kw_only=True, slots=True)
class TimeBreakdown:
    """What the parts of a corpus's units add up to, over all workers."""

    corpus: str
    seconds: Mapping[str, float]
    """By part, as in `PARTS`."""

    @property
    def total(self) -> float:
        """Seconds of work."""
        return sum(self.seconds.values())

    @property
    def encoder_waits(self) -> float:
        """The share of the time that the encoder had nothing to do."""
        return 1 - self.seconds["encode"] / self.total if self.total else 0.0

    @property
    def longest_wait(self) -> str:
        """The part that the encoder waited for most."""
        others = {name: seconds for name, seconds in self.seconds.items() if name != "encode"}
        return max(others, key=lambda name: others[name], default="")
