"""Limits of the night chart from a history's own noise.

Years of nights are put together from blocks of the history, which keeps heavy tails and the likeness of
neighbouring nights. The limits are raised until the chart has no more alarms a year than are allowed.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from datetime import date, timedelta

import numpy as np

from dualtoken.pipelines.errors import UserError
from dualtoken.pipelines.nightly.judging import judge
from dualtoken.pipelines.nightly.ruleset import History, Judged, Point, Ruleset

YEAR = tuple((date(2001, 1, 1) + timedelta(day)).isoformat() for day in range(365))
"""Nights of the years that are put together."""
BLOCK_NIGHTS = 10
"""Nights that stay together, so that neighbours are as alike as they were."""
STEP = 1.02
"""Ratio of neighbouring factors that are tried."""
STEPS = 105
"""The largest factor is the 105th, 8.0."""


def calibrate(
    history: Mapping[str, History],
    rules: Ruleset,
    alarms_per_year: float,
    seed: int,
    *,
    years: int = 200,
) -> Ruleset:
    """Return the rules with limits that give at most so many false alarms a year, over all metrics together.

    Limits are only raised, all by one factor. The history, by metric, should hold no step: give the nights of
    one segment. Margins are left out, so real alarms are fewer. `years` are put together of each metric; 200
    of eight metrics take some 7 s a factor, and up to 8 factors are tried (2026-11-29, AMD EPYC). Raises
    `UserError` for a metric with too few nights of the newest protocol.
    """
    if not alarms_per_year > 0:
        raise UserError(f"alarms_per_year={alarms_per_year}: set it above 0")
    if not history:
        raise UserError("the history to calibrate on names no metric: give one or more")
    generator = np.random.default_rng(seed)
    drawn: list[History] = []
    lengths: list[int] = []
    for name in sorted(history):
        points = _newest(name, history[name], rules)
        lengths.append(len(points))
        direction = history[name].direction
        for _ in range(years):
            drawn.append(History(resampled_year(points, generator), direction))

    most = alarms_per_year * years
    most -= math.sqrt(most)  # the draws' own chance must not be what keeps within the budget

    def is_quiet(step: int) -> bool:
        tried = scaled(rules, STEP**step)
        alarms = sum(num_alarms(judge(year.points, year.direction, 0.0, tried)) for year in drawn)
        return alarms <= most

    factor = STEP ** _least_step(is_quiet, alarms_per_year)
    return dataclasses.replace(scaled(rules, factor), calibrated_from=min(lengths))


def scaled(rules: Ruleset, factor: float) -> Ruleset:
    """Return the rules with all limits of alarms multiplied."""
    return dataclasses.replace(
        rules,
        threshold=rules.threshold * factor,
        suspect=rules.suspect * factor,
        confirm=rules.confirm * factor,
        certain=rules.certain * factor,
    )


def resampled_year(points: Sequence[Point], generator: np.random.Generator) -> tuple[Point, ...]:
    """Return a year made from random blocks of the points; blocks go round the end."""
    starts = generator.integers(len(points), size=-(-len(YEAR) // BLOCK_NIGHTS))
    year: list[Point] = []
    for start in starts:
        for place in range(start, start + BLOCK_NIGHTS):
            if len(year) < len(YEAR):
                year.append(points[place % len(points)]._replace(night=YEAR[len(year)]))
    return tuple(year)


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


def _least_step(is_quiet: Callable[[int], bool], alarms_per_year: float) -> int:
    """Return the first step that is quiet, if quietness grows with it."""
    if is_quiet(0):
        return 0
    low, high = 0, STEPS
    if not is_quiet(high):
        raise UserError(
            f"the history has more than {alarms_per_year} alarms a year at {STEP**STEPS:.0f} times the "
            "limits, so it holds a step: give the nights after it"
        )
    while high - low > 1:
        middle = (low + high) // 2
        if is_quiet(middle):
            high = middle
        else:
            low = middle
    return high
