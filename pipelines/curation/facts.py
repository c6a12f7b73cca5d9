"""Typed record of what the filter's receipt says in `facts`, beyond every stage's fields."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from dualtoken.pipelines.core.receipts import Receipt


@dataclass(frozen=True, slots=True)
class FilterFacts:
    """Facts of the filter's one unit, which writes a decision for every shard of its corpus."""

    rows_by_shard: Mapping[str, int] | None
    """Samples kept, by shard; None in receipts that do not say so."""

    @classmethod
    def of(cls, receipt: Receipt) -> Self:
        """Read the facts of the filter's receipt."""
        return cls(receipt.facts.get("rows_out_by_shard"))

    def to_json(self) -> dict[str, Any]:
        """Return the facts as a receipt holds them."""
        if self.rows_by_shard is None:
            return {}
        return {"rows_out_by_shard": dict(self.rows_by_shard)}
