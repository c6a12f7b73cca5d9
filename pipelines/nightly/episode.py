"""Nights in a row that are worse or better than those before: while they add up, and while they alarm."""

import math
from dataclasses import dataclass
from typing import NamedTuple

from dualtoken.pipelines.nightly.reference import Reference
from dualtoken.pipelines.nightly.ruleset import MOST_EPISODE_NIGHTS, Ruleset, State


class Night(NamedTuple):
    """A night's value and residual, signed so that higher is better."""

    name: str
    value: float
    residual: float


class Episode(NamedTuple):
    """Nights in a row."""

    start: str = ""
    nights: Reference = Reference()
    first: tuple[float, ...] = ()
    """Values of the first `MOST_EPISODE_NIGHTS` of them."""

    def add(self, night: Night) -> "Episode":
        """Return the episode with one more night."""
        first = self.first
        if len(first) < MOST_EPISODE_NIGHTS:
            first = (*first, night.value)
        return Episode(self.start or night.name, self.nights.add(night.value), first)


class Excursion(NamedTuple):
    """The nights since a CUSUM was last 0 (Page, Biometrika 41, 1954): S = max(0, S + z - slack)."""

    cusum: float = 0.0
    episode: Episode = Episode()
    total: float = 0.0
    """Sum of their deviations, positive to this side."""
    farthest: float = 0.0
    """Largest of their deviations."""
    before: Reference = Reference()
    """Nights before them."""

    def add(self, night: Night, side: int, reference: Reference, rules: Ruleset) -> "Excursion":
        """Return the excursion with one more night; `side` is 1 for better nights and -1 for worse ones."""
        deviation = side * night.residual
        cusum = self.cusum + max(-rules.clip, min(rules.clip, deviation)) - rules.slack
        if cusum <= 0:
            return Excursion()
        before = reference if self.cusum == 0 else self.before
        farthest = max(self.farthest, deviation)
        return Excursion(cusum, self.episode.add(night), self.total + deviation, farthest, before)


@dataclass(slots=True)
class Alarm:
    """A step or drift that is not over."""

    side: int
    state: State
    depth: float
    """Mean deviation of the nights that alarmed, positive to the alarm's side."""
    episode: Episode
    """Its nights."""
    evidence: float = 0.0
    """Logarithm of the odds that the nights since are at the old level."""

    def goes_on(self, night: Night, rules: Ruleset) -> bool:
        """Tell whether one more night is still of the alarm, and take it in if so.

        A sequential probability ratio test of the old level against that of the alarm; it restarts at even
        odds.
        """
        deviation = max(-rules.clip, min(self.side * night.residual, self.depth + rules.clip))
        for_old_level = self.depth * (self.depth / 2 - deviation)
        self.evidence = max(0.0, self.evidence + for_old_level)
        if self.evidence >= math.log(rules.recovery_odds):
            return False
        self.episode = self.episode.add(night)
        return True
