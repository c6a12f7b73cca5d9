"""The value that a person pinned, and whether nights are worse than it."""

from typing import Literal

from dualtoken.pipelines.nightly.reference import Reference
from dualtoken.pipelines.nightly.ruleset import Ruleset

LEAST_NIGHTS = 3
"""Nights that the noise is estimated from, at least."""


class BaselineWatch:
    """Follows nights against a pinned value. Values are signed so that higher is better.

    A baseline is worse by more than the margin only if that is confirmed as for the reference, by the noise
    of a difference of two nights: the baseline is one night's value and had its own luck.
    """

    def __init__(self, level: float, margin: float, rules: Ruleset) -> None:
        self._level = level
        self._margin = margin
        self._rules = rules
        self._suspected = False
        self._alarmed = False
        self._is_known = False

    def headroom(self, value: float) -> float:
        """Return how much may still be lost; negative where the value is worse by more than the margin."""
        return value - (self._level - self._margin)

    def look(self, value: float, reference: Reference) -> Literal["fine", "suspected", "worse"]:
        """Judge one more night; `reference` holds earlier nights."""
        if self.headroom(value) >= 0:
            self._suspected = False
            self._alarmed = False
            self._is_known = False
            return "fine"
        if self._alarmed:
            return "worse"
        if self._is_known or reference.num < LEAST_NIGHTS:
            return "fine"
        residual = reference.residual_from(value, self._level)
        is_confirmed = self._suspected and residual < self._rules.confirm
        self._alarmed = is_confirmed or residual < self._rules.certain
        self._suspected = residual < self._rules.suspect
        if self._alarmed:
            return "worse"
        return "suspected" if self._suspected else "fine"

    def acknowledge(self) -> None:
        """Say no more of it until a night has been within the margin again."""
        self._alarmed = False
        self._suspected = False
        self._is_known = True
