"""Estimates with their errors: means, shares, and metrics that are no means but have influences.

After Miller, "Adding Error Bars to Evals" (arXiv:2411.00640): samples that belong together, such as the
questions about one image, are clusters, and the error counts them as such. Intervals are of 95 %. Everything
here is deterministic.
"""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from dualtoken.pipelines.errors import UserError

LEVEL = 0.95
"""Coverage of the intervals."""
ALPHA = 0.01
"""Chance that a harmless difference is called a loss, for the least detectable loss."""
POWER = 0.8
"""Chance that a loss of the least detectable size is found."""

Values = NDArray[np.float64]
Clusters = Sequence[object] | NDArray[np.generic]
"""Which cluster each sample is of, by any names."""


class Estimate(NamedTuple):
    """A value with its error over the samples."""

    value: float
    n: int
    """Samples."""
    error: float | None
    """Standard error."""
    low: float | None
    """Lower end of the 95 % interval; None where there are too few samples for one."""
    high: float | None
    method: str
    """How the interval was made, or why there is none."""
    freedom: int = 0
    """Degrees of freedom of the error."""
    p: float | None = None
    """Two-sided p that a difference is 0; None where the estimate is no difference."""


def mean_estimate(
    values: ArrayLike,
    clusters: Clusters | None = None,
    *,
    correction: Literal["CR0", "CR1"] = "CR1",
    name: str = "values",
) -> Estimate:
    """Return a mean with its t interval, its error clustered where clusters are given.

    `name` is the column that an error names. CR1 is CR0 times G / (G - 1) for G clusters.
    """
    column = checked(values, name)
    mean = float(column.mean())
    deviations = column - mean
    if clusters is None:
        num = len(column)
        error = standard_error(deviations, num)
        return _with_interval(mean, num, error, num - 1, "t")
    sums = sums_by_cluster(deviations, clusters, name)[0]
    error = standard_error(sums, len(column), correction)
    return _with_interval(mean, len(column), error, len(sums) - 1, f"t, {len(sums)} clusters, {correction}")


def influence_estimate(
    value: float, influences: ArrayLike, clusters: Clusters | None = None, *, name: str = "influences"
) -> Estimate:
    """Return a value that is no mean, such as a Fréchet distance, with its interval.

    A sample's influence is what the value changes by, times n, per weight added to the sample. To first order
    the value's error is that of the influences' mean.
    """
    around_zero = mean_estimate(influences, clusters, name=name)
    return _with_interval(
        value, around_zero.n, around_zero.error, around_zero.freedom, f"influence, {around_zero.method}"
    )


def share_estimate(values: ArrayLike, *, name: str = "values") -> Estimate:
    """Return the share of ones among zeros and ones, with Wilson's interval."""
    column = checked(values, name)
    if not np.isin(column, (0.0, 1.0)).all():
        raise UserError(f"the column {name} has values beside 0 and 1: take the interval of a mean")
    num = len(column)
    share = float(column.mean())
    interval = stats.binomtest(int(column.sum()), num).proportion_ci(LEVEL, method="wilson")
    error = math.sqrt(share * (1 - share) / num)
    return Estimate(share, num, error, float(interval.low), float(interval.high), "Wilson", num - 1)


def least_detectable_loss(estimate: Estimate) -> float | None:
    """Return the loss that a one-sided test at .01 finds with a power of .8; None without an error."""
    if estimate.error is None:
        return None
    quantiles = stats.t.ppf([1 - ALPHA, POWER], estimate.freedom)
    return float(quantiles.sum() * estimate.error)


def checked(values: ArrayLike, name: str) -> Values:
    """Return a column as float64; raises `UserError` if it is empty or holds what is no number."""
    column = np.asarray(values, dtype=np.float64)
    if column.ndim != 1 or len(column) == 0:
        raise UserError(f"the column {name} has the shape {column.shape}: give one value or more in a row")
    is_wrong = ~np.isfinite(column)
    if is_wrong.any():
        first = int(is_wrong.argmax())
        raise UserError(
            f"the column {name} has {int(is_wrong.sum())} values that are no numbers, the first of them "
            f"{column[first]} in row {first}: evaluate once more, or leave the metric out"
        )
    return column


def sums_by_cluster(values: Values, clusters: Clusters, name: str) -> tuple[Values, Values]:
    """Return each cluster's sum and number of samples."""
    names = np.asarray(clusters)
    if names.shape != values.shape:
        raise UserError(
            f"the column {name} has {len(values)} values and {len(names)} clusters: give one each"
        )
    places = np.unique(names, return_inverse=True)[1]
    sums = np.bincount(places, weights=values).astype(np.float64)
    return sums, np.bincount(places).astype(np.float64)


def standard_error(
    deviations: Values, num_samples: int, correction: Literal["CR0", "CR1"] = "CR1"
) -> float | None:
    """Return the standard error of a mean from deviations, each summed over what is independent.

    None for fewer than two of them.
    """
    num = len(deviations)
    if num < 2:
        return None
    variance = float(deviations @ deviations) / num_samples**2
    if correction == "CR1":
        variance *= num / (num - 1)
    return math.sqrt(variance)


def t_interval(value: float, error: float, freedom: int) -> tuple[float, float]:
    """Return the ends of the 95 % interval."""
    width = float(stats.t.ppf((1 + LEVEL) / 2, freedom)) * error
    return value - width, value + width


def _with_interval(value: float, num: int, error: float | None, freedom: int, method: str) -> Estimate:
    if error is None:
        return Estimate(value, num, None, None, None, "no interval: fewer than 2 independent samples")
    low, high = t_interval(value, error, freedom)
    return Estimate(value, num, error, low, high, method, freedom)
