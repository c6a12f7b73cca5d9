"""Limits of the night chart from a history's own noise.

Years of nights are simulated from what the history tells: how alike neighbouring nights are, and how far
nights lie from what their neighbours say. The limits are raised until the chart has no more alarms a year
than are allowed: first those of single nights, then that of the CUSUM. One factor for both would blunt the
single nights, on which autocorrelation has little effect, as much as the CUSUM, on which it has a large one.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from datetime import date, timedelta

import numpy as np
from numpy.typing import NDArray

from dualtoken.pipelines.errors import UserError
from dualtoken.pipelines.nightly.judging import judge
from dualtoken.pipelines.nightly.ruleset import History, Judged, Point, Ruleset

YEAR = tuple((date(2001, 1, 1) + timedelta(day)).isoformat() for day in range(365))
"""Nights of the years that are simulated."""
BLOCK_NIGHTS = 10
"""Nights whose shocks stay together, so that what an autoregression does not explain stays as it was."""
AIM = 0.4
"""Share of the allowed alarms that limits aim at: a few months do not tell their own noise well.

With .6 the year that followed had 0.7 to 1.4 alarms after 120 or 365 nights, and 1.5 to 2.2 after 60. With
.4 it had 2.1 after 60 whose neighbours correlate by .5 (`benchmarks/nightly_noise.py`, 2026-11-30).
"""
NIGHTS_SHARE = 0.5
"""Share of these that single nights may raise; the rest is the CUSUM's."""
MOST_ALIKE = 0.95
"""Largest correlation of neighbours that is believed; nights of a drift have a larger one."""
STEP = 1.02
"""Ratio of neighbouring factors that are tried."""
STEPS = 141
"""The largest factor is the 141st, 16."""

_Values = NDArray[np.float64]


def calibrate(
    history: Mapping[str, History],
    rules: Ruleset,
    alarms_per_year: float,
    seed: int,
    *,
    years: int = 200,
) -> Ruleset:
    """Return the rules with limits that aim at no more than so many false alarms a year.

    They are counted over all metrics together. Limits are only raised. The history, by metric, should hold no
    step: give the nights of one segment. Margins are left out, so real alarms are fewer. `years` are
    simulated of each metric; 200 of eight metrics take 5 s a factor, and up to 21 are tried (2026-11-30, AMD
    EPYC). Raises `UserError` for a metric with too few nights of the newest protocol.
    """
    if not alarms_per_year > 0:
        raise UserError(f"alarms_per_year={alarms_per_year}: set it above 0")
    if not history:
        raise UserError("the history to calibrate on names no metric: give one or more")
    generator = np.random.default_rng(seed)
    simulated: list[History] = []
    lengths: list[int] = []
    for name in sorted(history):
        points = _newest(name, history[name], rules)
        lengths.append(len(points))
        values = np.array([point.value for point in points])
        for year in simulated_years(values, years, generator):
            nights = tuple(Point(night, value, "") for night, value in zip(YEAR, year.tolist(), strict=True))
            simulated.append(History(nights, history[name].direction))

    def is_quiet(tried: Ruleset, allowed_a_year: float) -> bool:
        allowed = allowed_a_year * years
        alarms = 0
        for year in simulated:
            alarms += num_alarms(judge(year.points, year.direction, 0.0, tried))
            if alarms > allowed:
                return False
        return True

    calibrated = rules
    if not is_quiet(rules, alarms_per_year):
        aim = AIM * alarms_per_year
        alone = dataclasses.replace(rules, threshold=math.inf)
        nights = _least_factor(lambda factor: is_quiet(raised(alone, factor, 1.0), NIGHTS_SHARE * aim))
        cusum = _least_factor(lambda factor: is_quiet(raised(rules, nights, factor), aim))
        calibrated = raised(rules, nights, cusum)
    return dataclasses.replace(calibrated, calibrated_from=min(lengths))


def raised(rules: Ruleset, nights: float, cusum: float) -> Ruleset:
    """Return the rules with the limits of single nights and that of the CUSUM multiplied."""
    return dataclasses.replace(
        rules,
        threshold=rules.threshold * cusum,
        suspect=rules.suspect * nights,
        confirm=rules.confirm * nights,
        certain=rules.certain * nights,
    )


def simulated_years(values: _Values, years: int, generator: np.random.Generator) -> _Values:
    """Return years of nights with the noise of a history, (years, nights).

    An autoregression of order one is taken out of the history; what it leaves, the shocks, is resampled in
    blocks and put through the same autoregression (a post-blackened block bootstrap: Davison and Hinkley,
    "Bootstrap Methods and their Application", 1997, 8.2). Blocks of the nights themselves would end the
    likeness of neighbours at each block's end. A little normal noise smooths the shocks, whose tails 60
    nights do not show.
    """
    num_nights = len(YEAR)
    if values.min() == values.max():
        return np.full((years, num_nights), values[0])
    centred = values - values.mean()
    alike = likeness(values)
    shocks = centred[1:] - alike * centred[:-1]
    shocks -= shocks.mean()
    smoothing = len(shocks) ** -0.2
    starts = generator.integers(len(shocks), size=(years, -(-num_nights // BLOCK_NIGHTS), 1))
    places = (starts + np.arange(BLOCK_NIGHTS)) % len(shocks)  # blocks go round the end
    drawn = shocks[places.reshape(years, -1)[:, :num_nights]]
    drawn = drawn + smoothing * shocks.std() * generator.standard_normal(drawn.shape)
    drawn /= math.sqrt(1 + smoothing**2)
    nights = np.empty_like(drawn)
    nights[:, 0] = drawn[:, 0] / math.sqrt(1 - alike**2)
    for night in range(1, num_nights):
        nights[:, night] = alike * nights[:, night - 1] + drawn[:, night]
    return values.mean() + nights


def likeness(values: _Values) -> float:
    """Return the correlation of neighbouring nights, without the bias that short histories have.

    The bias is -(1 + 3r) / n for n nights (Kendall, Biometrika 41, 1954). A negative one counts as none.
    """
    centred = values - values.mean()
    found = float(centred[1:] @ centred[:-1] / (centred @ centred))
    return min(MOST_ALIKE, max(0.0, found + (1 + 3 * found) / len(values)))


def num_alarms(nights: Sequence[Judged]) -> int:
    """Count the alarms of worse nights; one that lasts counts once."""
    alarms = 0
    was_alarmed = False
    for night in nights:
        is_alarmed = night.state in {"regressed", "drifted"}
        alarms += is_alarmed and not was_alarmed
        was_alarmed = is_alarmed
    return alarms


def _newest(name: str, history: History, rules: Ruleset) -> list[Point]:
    """Return the points of the newest protocol."""
    points = history.points
    newest = [point for point in points if point.protocol_hash == points[-1].protocol_hash]
    if len(newest) < rules.calibrated_nights:
        raise UserError(
            f"{name} has {len(newest)} nights of its newest protocol: calibrate when there are "
            f"{rules.calibrated_nights}"
        )
    return newest


def _least_factor(is_quiet: Callable[[float], bool]) -> float:
    """Return the first factor that is quiet, if quietness grows with it."""
    if is_quiet(1.0):
        return 1.0
    if not is_quiet(STEP**STEPS):
        raise UserError(
            f"the history has more alarms a year than are allowed at {STEP**STEPS:.0f} times the limits, so "
            "it holds a step: acknowledge the step, or give the nights after it"
        )
    low = 0
    high = STEPS
    while high - low > 1:
        middle = (low + high) // 2
        if is_quiet(STEP**middle):
            high = middle
        else:
            low = middle
    return STEP**high
