"""Differences of two models on the same samples, which are far less noisy than the models' own values.

Differences are the second model's value less the first's. From 2,000 independent samples on, the interval is
that of Student's t. Below, it is the bias-corrected and accelerated bootstrap's (BCa; Efron 1987), and p is
that of a permutation test, which changes the signs of differences. Draws are seeded.
"""

import math

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats
from scipy.special import ndtr, ndtri

from dualtoken.pipelines.errors import UserError
from dualtoken.pipelines.evaluation.statistics import (
    LEVEL,
    Clusters,
    Estimate,
    Values,
    checked,
    influence_estimate,
    mean_estimate,
    share_estimate,
    sums_by_cluster,
)

LEAST_FOR_T = 2000
"""Independent samples that Student's t is used from."""
LEAST_FOR_BOOTSTRAP = 5
"""Independent samples that intervals are made from."""
DRAWS = 9999
"""Draws of a bootstrap or permutation test."""
BATCH = 500
"""Draws at a time, which bounds the memory: 8 MB of 2,000 samples."""


def paired_difference(
    first: ArrayLike,
    second: ArrayLike,
    clusters: Clusters | None = None,
    *,
    seed: int = 0,
    name: str = "values",
) -> Estimate:
    """Return the difference of two means over the same samples, with interval and p.

    Clusters are resampled, and their signs changed, as wholes.
    """
    differences = _differences(first, second, name)
    plain = mean_estimate(differences, clusters, name=name)
    sums, sizes = differences, np.ones(len(differences))
    if clusters is not None:
        sums, sizes = sums_by_cluster(differences, clusters, name)
    if plain.error is None or len(sums) < LEAST_FOR_BOOTSTRAP:
        method = f"no interval: fewer than {LEAST_FOR_BOOTSTRAP} independent samples"
        return plain._replace(low=None, high=None, method=method)
    if plain.error == 0:
        return plain._replace(p=float(plain.value == 0), method="no difference varies")
    if len(sums) >= LEAST_FOR_T:
        return plain._replace(p=_p_of_t(plain))
    low, high = _bca(sums, sizes, seed)
    method = f"BCa, {DRAWS} draws"
    if clusters is not None:
        method = f"{method} of {len(sums)} clusters"
    return plain._replace(low=low, high=high, method=method, p=_p_of_signs(sums, seed))


def paired_shares(first: ArrayLike, second: ArrayLike, *, name: str = "values") -> Estimate:
    """Return the difference of two shares of ones over the same samples.

    p is that of McNemar's exact test, the interval Newcombe's: method 10 of "Improved Confidence Intervals
    for the Difference between Binomial Proportions Based on Paired Data", Statistics in Medicine 17 (1998).
    """
    shares = [share_estimate(values, name=name) for values in (first, second)]
    before, after = checked(first, name), checked(second, name)
    plain = mean_estimate(_differences(before, after, name), name=name)
    gained = int(((before == 0) & (after == 1)).sum())
    lost = int(((before == 1) & (after == 0)).sum())
    p_value = 1.0
    if gained + lost > 0:
        p_value = float(stats.binomtest(gained, gained + lost).pvalue)
    low, high = _newcombe(shares[0], shares[1], _correlation(before, after))
    return plain._replace(low=low, high=high, method="Newcombe, McNemar", p=p_value)


def influence_difference(
    first_value: float,
    second_value: float,
    first: ArrayLike,
    second: ArrayLike,
    clusters: Clusters | None = None,
    *,
    name: str = "influences",
) -> Estimate:
    """Return the difference of two values that are no means, from the influences of the same samples."""
    differences = _differences(first, second, name)
    estimate = influence_estimate(second_value - first_value, differences, clusters, name=name)
    if estimate.error is None:
        return estimate
    if estimate.error == 0:
        return estimate._replace(p=float(estimate.value == 0))
    return estimate._replace(p=_p_of_t(estimate))


def ratio_of_medians(
    first: ArrayLike, second: ArrayLike, *, seed: int = 0, name: str = "seconds"
) -> Estimate:
    """Return how many times the first's median the second's is, of rounds that took turns.

    Rounds are resampled in pairs, so what slowed both does not count. The value's error is that of the draws.
    """
    before, after = checked(first, name), checked(second, name)
    if before.shape != after.shape:
        raise UserError(f"{name}: {len(before)} and {len(after)} rounds do not pair: give as many of both")
    if not ((before > 0).all() and (after > 0).all()):
        raise UserError(f"{name} has a round that is not above 0: leave it out")
    num = len(before)
    ratio = float(np.median(after) / np.median(before))
    if num < LEAST_FOR_BOOTSTRAP:
        method = f"no interval: fewer than {LEAST_FOR_BOOTSTRAP} rounds"
        return Estimate(ratio, num, None, None, None, method)
    places = np.random.default_rng(seed).integers(num, size=(DRAWS, num))
    drawn = np.median(after[places], axis=1) / np.median(before[places], axis=1)
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    method = f"bootstrap of rounds, {DRAWS} draws"
    return Estimate(ratio, num, float(drawn.std(ddof=1)), float(low), float(high), method, num - 1)


def _differences(first: ArrayLike, second: ArrayLike, name: str) -> Values:
    before, after = checked(first, name), checked(second, name)
    if before.shape != after.shape:
        raise UserError(f"the column {name} has {len(before)} and {len(after)} values: give the same samples")
    return after - before


def _p_of_t(estimate: Estimate) -> float:
    assert estimate.error
    return float(2 * stats.t.sf(abs(estimate.value) / estimate.error, estimate.freedom))


def _bca(sums: Values, sizes: Values, seed: int) -> tuple[float, float]:
    """Return the ends of the interval of sum / size, resampled together (Efron 1987, eq. 2.3 and 6.6)."""
    estimate = sums.sum() / sizes.sum()
    drawn = _drawn_means(sums, sizes, seed)
    share_below = ((drawn < estimate).sum() + (drawn == estimate).sum() / 2) / DRAWS
    bias = float(ndtri(np.clip(share_below, 1 / DRAWS, 1 - 1 / DRAWS)))
    without_one = (sums.sum() - sums) / (sizes.sum() - sizes)
    influence = without_one.mean() - without_one
    acceleration = 0.0
    if influence.any():
        acceleration = float((influence**3).sum() / (6 * (influence**2).sum() ** 1.5))
    shifted = bias + ndtri([(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    levels = ndtr(bias + shifted / (1 - acceleration * shifted))
    low, high = np.quantile(drawn, levels)
    return float(low), float(high)


def _drawn_means(sums: Values, sizes: Values, seed: int) -> Values:
    generator = np.random.default_rng(seed)
    drawn: list[Values] = []
    for start in range(0, DRAWS, BATCH):
        num_draws = min(BATCH, DRAWS - start)
        places = generator.integers(len(sums), size=(num_draws, len(sums)))
        drawn.append(sums[places].sum(axis=1) / sizes[places].sum(axis=1))
    return np.concatenate(drawn)


def _p_of_signs(sums: Values, seed: int) -> float:
    """Return the share of random signs that give as large a sum or a larger; these draws count as one too."""
    generator = np.random.default_rng(seed)
    observed = abs(sums.sum()) * (1 - 1e-12)  # equal sums may differ in their last bits
    num_as_large = 0
    for start in range(0, DRAWS, BATCH):
        num_draws = min(BATCH, DRAWS - start)
        signs = generator.integers(2, size=(num_draws, len(sums)), dtype=np.int8) * 2 - 1
        num_as_large += int((np.abs(signs @ sums) >= observed).sum())
    return (num_as_large + 1) / (DRAWS + 1)


def _correlation(before: Values, after: Values) -> float:
    """Return the correlation (phi) of zeros and ones, with the continuity correction of method 10.

    It is 0 where one of them does not vary.
    """
    if before.std() == 0 or after.std() == 0:
        return 0.0
    covariance = float(((before - before.mean()) * (after - after.mean())).mean())
    if covariance > 0:
        covariance = max(0.0, covariance - 1 / (2 * len(before)))
    return covariance / float(before.std() * after.std())


def _newcombe(first: Estimate, second: Estimate, correlation: float) -> tuple[float, float]:
    assert first.low is not None
    assert first.high is not None
    assert second.low is not None
    assert second.high is not None
    difference = second.value - first.value

    def width(below: float, above: float) -> float:
        return math.sqrt(max(0.0, below**2 + above**2 - 2 * correlation * below * above))

    low = difference - width(second.value - second.low, first.high - first.value)
    high = difference + width(second.high - second.value, first.value - first.low)
    return low, high
