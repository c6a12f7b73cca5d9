"""One side of a CUSUM chart, and the nights that made it grow."""

from typing import NamedTuple

from dualtoken.pipelines.nightly.reference import Reference
from dualtoken.pipelines.nightly.ruleset import Ruleset


class Night(NamedTuple):
    """A night's value and residual, signed so that higher is better."""

    name: str
    value: float
    residual: float


class Excursion(NamedTuple):
    """The nights since a CUSUM was last 0 (Page, Biometrika 41, 1954): S = max(0, S + z - slack)."""

    cusum: float = 0.0
    start: str = ""
    nights: Reference = Reference()
    """Their values."""
    total: float = 0.0
    """Sum of their deviations, positive to this side."""
    farthest: float = 0.0
    """Largest of their deviations."""
    before: Reference = Reference()
    """Nights before them."""

    def grown(self, night: Night, side: int, reference: Reference, rules: Ruleset) -> "Excursion":
        """Return the excursion with one more night; `side` is 1 for better nights and -1 for worse ones."""
        deviation = side * night.residual
        step = max(-rules.clip, min(rules.clip, deviation)) - rules.slack
        cusum = self.cusum + step
        if cusum <= 0:
            return Excursion()
        if self.cusum == 0:
            nights = Reference().add(night.value)
            return Excursion(cusum, night.name, nights, deviation, deviation, reference)
        return Excursion(
            cusum,
            self.start,
            self.nights.add(night.value),
            self.total + deviation,
            max(self.farthest, deviation),
            self.before,
        )
