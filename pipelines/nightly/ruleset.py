"""What the night chart reads and returns, and the rules that it judges by."""

import dataclasses
from dataclasses import dataclass
from typing import Literal, NamedTuple

from dualtoken.pipelines.core.receipts import fingerprint
from dualtoken.pipelines.errors import UserError
from dualtoken.pipelines.evaluation.summary import Direction

CHART = 1
"""Version of the chart's own arithmetic, part of each ruleset's version."""
MOST_EPISODE_NIGHTS = 16
"""Bound of `Ruleset.episode_nights`."""
State = Literal["too_few", "ok", "improved", "suspected", "regressed", "drifted"]
"""What a night is. `drifted` is a loss that no single night shows; `suspected` waits for the next night."""


class Point(NamedTuple):
    """A metric's value of a night."""

    night: str
    """ISO date of the day that the night starts on."""
    value: float
    protocol_hash: str
    """Only values of one protocol are compared."""


class History(NamedTuple):
    """A metric's values of all nights, in order of night."""

    points: tuple[Point, ...]
    direction: Direction
    """Which values are better."""


class Judged(NamedTuple):
    """What a night of a metric comes to."""

    state: State
    residual: float | None
    """Deviation from the earlier nights as a standard normal deviate, negative if worse."""
    cusum: float
    """CUSUM of worse nights after this one; 0 while there is an alarm."""
    reference_low: float | None
    """Lower end of the values that are not suspected, in the metric's own unit."""
    reference_high: float | None
    segment: str
    """Night that the current segment starts on."""
    reason: str
    """One sentence for people."""
    headroom: float | None = None
    """What may be lost until the night is worse than the baseline by more than the margin."""
    cusum_better: float = 0.0
    """CUSUM of better nights, likewise."""
    num_reference: int = 0
    """Earlier nights that this one was judged against."""


@dataclass(frozen=True, slots=True)
class Ruleset:
    """Limits of the night chart, in standard deviations of nights.

    A night's residual is its value against all earlier nights, as a standard normal deviate; worse nights
    have negative ones. The defaults give one false alarm a year on eight metrics with normal noise, or less.
    """

    threshold: float = 6.8
    """The CUSUM alarms above it."""
    slack: float = 0.5
    """What a residual must exceed for the CUSUM to grow."""
    clip: float = 3.5
    """Residuals count for the CUSUM up to here, so that one wild night does not fire it."""
    suspect: float = -3.0
    """A night below it is suspected."""
    confirm: float = -1.5
    """A night below it confirms a suspected one before it."""
    certain: float = -6.0
    """A night below it alarms at once."""
    least_nights: int = 14
    """Earlier nights that a night is judged against, at least."""
    calibrated_nights: int = 60
    """Nights of history that `calibrate` needs."""
    recovery_odds: float = 100.0
    """An alarm ends when the nights since speak for the old level by these odds."""
    episode_nights: int = 5
    """An alarm of at most so many nights that ends by itself is taken for noise."""
    calibrated_from: int = 0
    """Nights of history that the limits were calibrated on; 0 for limits that were not."""

    def __post_init__(self) -> None:
        for name in ("threshold", "slack", "clip"):
            if not getattr(self, name) > 0:
                raise UserError(f"{name}={getattr(self, name)} of the night chart's rules: set it above 0")
        if not self.certain <= self.suspect <= self.confirm < 0:
            raise UserError(
                f"certain={self.certain}, suspect={self.suspect}, confirm={self.confirm} of the night "
                "chart's rules: set them in this order, below 0"
            )
        if self.least_nights < 3:
            raise UserError(
                f"least_nights={self.least_nights} of the night chart's rules: set it to 3 or more"
            )
        if not 0 <= self.episode_nights <= MOST_EPISODE_NIGHTS:
            raise UserError(
                f"episode_nights={self.episode_nights} of the night chart's rules: set it from 0 to "
                f"{MOST_EPISODE_NIGHTS}"
            )
        if not self.recovery_odds > 1:
            raise UserError(f"recovery_odds={self.recovery_odds} of the night chart's rules: set it above 1")

    @property
    def version(self) -> str:
        """Hash of the chart's version and all limits."""
        return fingerprint({"chart": CHART, **dataclasses.asdict(self)})
