"""Sums of receipts, added up one at a time: a corpus of a billion images has a quarter of a million of them.

An unfinished stage's progress is the sum of its receipts. Where they are many, an even sample of them is
summed and scaled up.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Self

from dualtoken.infra.storage import Store
from dualtoken.pipelines.core.receipts import Manifest, Receipt, iter_receipts
from dualtoken.pipelines.core.timing import PARTS_DETAIL, time_breakdown


@dataclass(slots=True)
class Totals:
    """Sums over some receipts."""

    units: int = 0
    rows: int = 0
    """Samples in."""
    counts: Counter[str] = field(default_factory=Counter)
    """Samples by status and reason."""
    bytes: int = 0
    """Bytes of the units' files."""
    seconds: float = 0.0
    """Seconds of work, all units added up."""
    first_started_at: str = ""
    """Start of the first unit: UTC, ISO 8601; "" where there are no units."""
    last_finished_at: str = ""
    """End of the last unit, likewise."""
    parts: dict[str, float] = field(default_factory=dict)
    """Seconds by part of the work (`pipelines.core.timing`), of those receipts that tell."""
    estimated: bool = False
    """Whether the sums were scaled up from a sample of the receipts."""

    def add(self, receipt: Receipt) -> None:
        """Count one more unit."""
        self.units += 1
        self.rows += receipt.rows
        self.counts.update(receipt.counts)
        for file in receipt.files:
            self.bytes += file.bytes
        self.seconds += receipt.seconds
        for name, seconds in time_breakdown(receipt.facts, receipt.seconds).items():
            self.parts[name] = self.parts.get(name, 0.0) + seconds

        started_at = _started_at(receipt)
        if not self.first_started_at or started_at < self.first_started_at:
            self.first_started_at = started_at
        self.last_finished_at = max(self.last_finished_at, receipt.finished_at)

    @classmethod
    def of_manifest(cls, manifest: Manifest, units: int) -> Self:
        """Return the sums that a finished stage's manifest holds."""
        return cls(
            units=units,
            rows=manifest.rows_in,
            counts=Counter(manifest.counts),
            bytes=manifest.bytes,
            seconds=manifest.seconds,
            first_started_at=manifest.first_started_at,
            last_finished_at=manifest.last_finished_at,
            parts=dict(manifest.details.get(PARTS_DETAIL, {})),
        )

    def scaled(self, units: int) -> "Totals":
        """Return an estimate for `units` units, of which these are an even sample."""
        factor = units / self.units
        counts = Counter[str]()
        for status, count in self.counts.items():
            counts[status] = round(count * factor)
        return replace(
            self,
            units=units,
            rows=round(self.rows * factor),
            counts=counts,
            bytes=round(self.bytes * factor),
            seconds=self.seconds * factor,
            parts={name: seconds * factor for name, seconds in self.parts.items()},
            estimated=True,
        )


def sum_receipts(store: Store, done: Iterable[str], most: int | None = None) -> Totals:
    """Add up the receipts of the units that are `done`.

    Of more than `most` units an even sample is read, and the sum is an estimate.
    """
    units = sorted(done)
    step = 1
    if most is not None:
        step = max(1, -(-len(units) // most))  # rounded up
    totals = Totals()
    for receipt in iter_receipts(store, units[::step]):
        totals.add(receipt)
    if totals.units == len(units):
        return totals
    return totals.scaled(len(units))


def _started_at(receipt: Receipt) -> str:
    """Return the moment a unit was started: UTC, ISO 8601, to the millisecond."""
    started = datetime.fromisoformat(receipt.finished_at).timestamp() - receipt.seconds
    return datetime.fromtimestamp(started, UTC).isoformat(timespec="milliseconds")
