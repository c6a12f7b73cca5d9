"""Nights that others are judged against: their sums, and a night's self-starting residual.

Hawkins, "Self-starting Cusum Charts for Location and Scale", The Statistician 36 (1987): with the mean m and
the standard deviation s of the n nights before, (x - m) / (s sqrt(1 + 1/n)) has Student's t distribution with
n - 1 degrees of freedom, and its quantile is mapped to that of the standard normal. The residuals of normal
nights are then independent standard normal deviates, whatever the mean and the variance.
"""

import math
from typing import NamedTuple

from scipy.special import ndtr, ndtri, stdtr, stdtrit

LARGEST = 37.0
"""Bound of residuals: the normal quantiles of double precision end there."""


class Reference(NamedTuple):
    """Number, mean and sum of squared deviations of some nights (Welford)."""

    num: int = 0
    mean: float = 0.0
    squares: float = 0.0

    def add(self, value: float) -> "Reference":
        """Return the sums with one more night."""
        num = self.num + 1
        before = value - self.mean
        mean = self.mean + before / num
        return Reference(num, mean, self.squares + before * (value - mean))

    @property
    def deviation(self) -> float:
        """Standard deviation of a night; needs two nights."""
        return math.sqrt(self.squares / (self.num - 1))

    def residual(self, value: float) -> float:
        """Return a further night's deviation from these, as a standard normal deviate."""
        return self._deviate(value - self.mean, self.deviation * math.sqrt(1 + 1 / self.num))

    def residual_from(self, value: float, level: float) -> float:
        """Return a night's deviation from another single night's value, likewise."""
        return self._deviate(value - level, self.deviation * math.sqrt(2))

    def band(self, residual: float) -> tuple[float, float]:
        """Return the values whose residuals are at most this far from 0."""
        quantile = -float(stdtrit(self.num - 1, ndtr(-min(residual, LARGEST))))
        width = quantile * self.deviation * math.sqrt(1 + 1 / self.num)
        return self.mean - width, self.mean + width

    def _deviate(self, difference: float, error: float) -> float:
        """Map a quantile of Student's t to the standard normal's, by the tail that is small."""
        if difference == 0:
            return 0.0
        if error == 0:
            return math.copysign(LARGEST, difference)
        tail = float(stdtr(self.num - 1, -abs(difference / error)))
        return math.copysign(min(-float(ndtri(tail)), LARGEST), difference)
