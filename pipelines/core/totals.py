"""Adds receipts up one at a time: a corpus of a billion images has a quarter of a million of them.

What an unfinished stage has done is their sum; where they are many, that of an even sample of them, scaled.
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
    """What some receipts add up to."""

    units: int = 0
    rows: int = 0
    """Samples in."""
    counts: Counter[str] = field(default_factory=Counter)
    """Samples by status and reason."""
    bytes: int = 0
    seconds: float = 0.0
    first_started_at: str = ""
    """UTC, ISO 8601; "" where there are no units."""
    last_finished_at: str = ""
    parts: dict[str, float] = field(default_factory=dict)
    """Seconds by part of the work (`pipelines.core.timing`), of those receipts that tell."""
    estimated: bool = False
    """Scaled up from a sample of the receipts."""

    def add(self, receipt: Receipt) -> None:
        """Count one more unit."""
        self.units += 1
        self.rows += receipt.rows
        self.counts.update(receipt.counts)
        self.bytes += sum(file.bytes for file in receipt.files)
        self.seconds += receipt.seconds
        for name, seconds in time_breakdown(receipt.facts, receipt.seconds).items():
            self.parts[name] = self.parts.get(name, 0.0) + seconds
        started = _moment(datetime.fromisoformat(receipt.finished_at).timestamp() - receipt.seconds)
        self.first_started_at = min(self.first_started_at or started, started)
        self.last_finished_at = max(self.last_finished_at, receipt.finished_at)

    @classmethod
    def of_manifest(cls, manifest: Manifest, units: int) -> Self:
        """Return what a finished stage's manifest says its receipts add up to."""
        first, last = manifest.first_started_at, manifest.last_finished_at
        parts = dict(manifest.details.get(PARTS_DETAIL, {}))
        return cls(
            units,
            manifest.rows_in,
            Counter(manifest.counts),
            manifest.bytes,
            manifest.seconds,
            first,
            last,
            parts,
        )

    def scaled(self, units: int) -> "Totals":
        """Return an estimate for `units` units, of which these are an even sample."""
        share = units / self.units
        counts = Counter({status: round(count * share) for status, count in self.counts.items()})
        rows, size, seconds = round(self.rows * share), round(self.bytes * share), self.seconds * share
        parts = {name: part * share for name, part in self.parts.items()}
        return replace(
            self,
            units=units,
            rows=rows,
            counts=counts,
            bytes=size,
            seconds=seconds,
            parts=parts,
            estimated=True,
        )


def sum_receipts(store: Store, done: Iterable[str], most: int | None = None) -> Totals:
    """Add up the receipts of the units that are `done`; of more than `most`, an even sample is read, and the sum is an estimate."""
    units = sorted(done)
    step = 1 if most is None else max(1, -(-len(units) // most))
    totals = Totals()
    for receipt in iter_receipts(store, units[::step]):
        totals.add(receipt)
    return totals if totals.units == len(units) else totals.scaled(len(units))


def _moment(timestamp: float) -> str:
    return datetime.fromtimestamp(timestamp, UTC).isoformat(timespec="milliseconds")
