"""Limits of the night chart from a history's own noise.

Years of nights are put together from blocks of the history, which keeps heavy tails and the likeness of
neighbouring nights, and the limits are raised until the chart has no more alarms a year than are allowed.
"""

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri, stdtr

from dualtoken.pipelines.errors import UserError
from dualtoken.pipelines.nightly.reference import LARGEST
from dualtoken.pipelines.nightly.ruleset import History, Ruleset

YEAR = 365
BLOCK_NIGHTS = 10
"""Nights that stay together, so that neighbours are as alike as they were."""
YEARS = 500
"""Years that are put together of each metric."""
MOST = 8.0
"""Largest factor of the limits that is tried."""

Nights = NDArray[np.float64]
"""Values or residuals by series and night."""


def calibrate(history: Mapping[str, History], rules: Ruleset, alarms_per_year: float, seed: int) -> Ruleset:
    """Return the rules with limits that give at most so many false alarms a year, over all metrics together.

    Limits are only raised, all by one factor. The history, by metric, should hold no step: give the nights of
    one segment. Margins are left out, so that fewer alarms are real. Raises `UserError` for a metric with too
    few nights of the newest protocol.
    """
    if not alarms_per_year > 0:
        raise UserError(f"alarms_per_year={alarms_per_year}: set it above 0")
    generator = np.random.default_rng(seed)
    values = {name: _newest(name, history[name], rules) for name in sorted(history)}
    if not values:
        raise UserError("the history to calibrate on names no metric: give one or more")
    years = np.concatenate([resampled(series, YEARS, YEAR, generator) for series in values.values()])
    found = residuals(years, rules.least_nights)

    def alarms(factor: float) -> float:
        return count_alarms(found, scaled(rules, factor)).sum() / YEARS

    num_nights = min(map(len, values.values()))
    factor = _least_factor(alarms, alarms_per_year)
    return dataclasses.replace(scaled(rules, factor), calibrated_from=num_nights)


def _least_factor(alarms: Callable[[float], float], allowed: float) -> float:
    """Return the least factor of at least 1 that keeps within the allowed alarms, to a thousandth."""
    if alarms(1.0) <= allowed:
        return 1.0
    if alarms(MOST) > allowed:
        raise UserError(
            f"the history has more than {allowed} alarms a year at {MOST:.0f} times the limits, so it holds "
            "a step: give the nights after it"
        )
    low, high = 1000, round(1000 * MOST)
    while high - low > 1:
        middle = (low + high) // 2
        if alarms(middle / 1000) <= allowed:
            high = middle
        else:
            low = middle
    return high / 1000


def scaled(rules: Ruleset, factor: float) -> Ruleset:
    """Return the rules with all limits of alarms multiplied."""
    return dataclasses.replace(
        rules,
        threshold=rules.threshold * factor,
        suspect=rules.suspect * factor,
        confirm=rules.confirm * factor,
        certain=rules.certain * factor,
    )


def _newest(name: str, history: History, rules: Ruleset) -> NDArray[np.float64]:
    """Return the values of the newest protocol, signed so that higher is better."""
    points = history.points
    values = [point.value for point in points if point.protocol_hash == points[-1].protocol_hash]
    if len(values) < rules.calibrated_nights:
        raise UserError(
            f"{name} has {len(values)} nights of its newest protocol: calibrate when there are "
            f"{rules.calibrated_nights}"
        )
    signed = np.array(values) if history.direction == "higher" else -np.array(values)
    if not np.isfinite(signed).all():
        raise UserError(f"{name} has a night whose value is no number: leave it out, it has failed")
    return signed


def resampled(
    values: NDArray[np.float64], num_series: int, num_nights: int, generator: np.random.Generator
) -> Nights:
    """Return series of nights made from random blocks of the values; blocks go round the end."""
    num_blocks = -(-num_nights // BLOCK_NIGHTS)
    starts = generator.integers(len(values), size=(num_series, num_blocks, 1))
    places = (starts + np.arange(BLOCK_NIGHTS)) % len(values)
    return values[places.reshape(num_series, -1)[:, :num_nights]]


def residuals(values: Nights, least_nights: int) -> Nights:
    """Return the self-starting residuals of the nights from number `least_nights` on."""
    centred = values - values[:, :1]  # a level far from 0 would cost digits
    num = np.arange(least_nights, values.shape[1])
    sums = centred.cumsum(axis=1)[:, least_nights - 1 : -1]
    squares = (centred**2).cumsum(axis=1)[:, least_nights - 1 : -1]
    mean = sums / num
    variance = np.maximum(squares - num * mean**2, 0) / (num - 1)
    error = np.sqrt(variance * (1 + 1 / num))
    difference = centred[:, least_nights:] - mean
    with np.errstate(divide="ignore", invalid="ignore"):
        quantile = np.where(difference == 0, 0.0, -np.abs(difference / error))
    deviate = np.minimum(-ndtri(stdtr(num - 1, quantile)), LARGEST)
    return np.copysign(deviate, difference)


def count_alarms(found: Nights, rules: Ruleset) -> NDArray[np.int64]:
    """Count each series' alarms of worse nights, as `judge` raises them without a margin.

    Here an alarm ends at once, and its nights stay in the reference; `judge` alarms no more often.
    """
    num_series, num_nights = found.shape
    cusum = np.zeros(num_series)
    is_suspected = np.zeros(num_series, dtype=bool)
    alarms = np.zeros(num_series, dtype=np.int64)
    steps = np.clip(-found, -rules.clip, rules.clip) - rules.slack
    for night in range(num_nights):
        residual = found[:, night]
        cusum = np.maximum(cusum + steps[:, night], 0)
        is_confirmed = is_suspected & (residual < rules.confirm)
        fired = (cusum > rules.threshold) | is_confirmed | (residual < rules.certain)
        alarms += fired
        cusum[fired] = 0
        is_suspected = (residual < rules.suspect) & ~fired
    return alarms
