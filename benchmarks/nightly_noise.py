"""False alarms of the night chart where neighbouring nights are alike, before and after `nightly calibrate`.

Run: python -m benchmarks.nightly_noise [--histories 4] [--years 50]. Noise is an autoregression of order one,
simulated and seeded. Histories of eight metrics are calibrated on, and each goes on for years without a step:
printed are their alarms a year, those of years made of blocks of the history itself, the factors of the
limits, and the shares of steps that are seen behind the history. Nothing is timed.
"""

import argparse
import sys
from collections.abc import Sequence
from datetime import date, timedelta
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dualtoken.pipelines.nightly.calibration import BLOCK_NIGHTS, YEAR, num_alarms
from dualtoken.pipelines.nightly.chart import History, Point, Ruleset, calibrate, judge

METRICS = 8
CORRELATIONS = (0.0, 0.3, 0.5, 0.7)
LENGTHS = (60, 120, 365)
STEPS = ((2, 7), (3, 7), (5, 2), (8, 1))
"""Size of a step in standard deviations of nights, and nights until it must be seen."""
FIRST = date(2024, 1, 1)
BUDGET = 1.0
"""Alarms a year that `calibrate` allows."""

Values = NDArray[np.float64]


class Row(NamedTuple):
    """What rules come to on one history."""

    nights: float
    """Factor of the limits of single nights."""
    cusum: float
    own: float
    """Alarms a year on the history's own resampled years."""
    following: float
    """Alarms in the year that follows the history."""
    power: tuple[float, ...]
    """Shares of the steps that are seen."""


def autoregression(
    generator: np.random.Generator, correlation: float, shape: tuple[int, int], before: Values | None = None
) -> Values:
    """Return nights of variance 1, (series, nights), that go on from the values before."""
    series, num_nights = shape
    shocks = generator.standard_normal(shape) * np.sqrt(1 - correlation**2)
    last = generator.standard_normal(series) if before is None else before
    nights = np.empty(shape)
    for night in range(num_nights):
        last = correlation * last + shocks[:, night]
        nights[:, night] = last
    return nights


def resampled(
    generator: np.random.Generator, values: Values, num_nights: int, block: int = BLOCK_NIGHTS
) -> Values:
    """Return nights made of blocks of a history, which go round its end."""
    starts = generator.integers(len(values), size=-(-num_nights // block))
    places = (starts[:, None] + np.arange(block)) % len(values)
    return values[places.reshape(-1)[:num_nights]]


def points(values: Values) -> tuple[Point, ...]:
    """Return values as nights."""
    return tuple(
        Point((FIRST + timedelta(night)).isoformat(), value, "")
        for night, value in enumerate(values.tolist())
    )


def alarms(values: Values, rules: Ruleset, skip: int = 0) -> int:
    """Count the alarms behind the first nights."""
    return num_alarms(judge(points(values), "higher", 0.0, rules)[skip:])


def row(
    history: Values, rules: Ruleset, correlation: float, years: int, generator: np.random.Generator
) -> Row:
    """Return what rules come to on a history, (metrics, nights)."""
    num_nights = history.shape[1]
    own = 0
    following = 0
    for _ in range(years):
        later = autoregression(generator, correlation, (METRICS, len(YEAR)), history[:, -1])
        for known, new in zip(history, later, strict=True):
            following += alarms(np.concatenate([known, new]), rules, num_nights)
            own += alarms(resampled(generator, known, len(YEAR)), rules)
    power: list[float] = []
    for size, nights in STEPS:
        seen = 0
        for _ in range(years):
            later = autoregression(generator, correlation, (METRICS, nights), history[:, -1]) - size
            for known, new in zip(history, later, strict=True):
                seen += alarms(np.concatenate([known, new]), rules, num_nights) > 0
        power.append(seen / years / METRICS)
    base = Ruleset()
    factors = rules.suspect / base.suspect, rules.threshold / base.threshold
    return Row(*factors, own / years, following / years, tuple(power))


def calibrated(history: Values, seed: int, years: int) -> Ruleset:
    """Return the rules that fit a history."""
    named = {f"metric {number}": History(points(values), "higher") for number, values in enumerate(history)}
    return calibrate(named, Ruleset(), BUDGET, seed, years=years)


def print_rows(name: str, rows: Sequence[Row]) -> None:
    """Print the mean over histories, and the most alarms of one."""
    means = [float(np.mean(column)) for column in list(zip(*rows, strict=True))[:4]]
    power = np.mean([row.power for row in rows], axis=0)
    most = max(row.following for row in rows)
    cells = [f"{value:8.2f}" for value in (*means, most)] + [f"{value:12.2f}" for value in power]
    print(f"{name:28}" + "".join(cells), flush=True)


def main(arguments: list[str]) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--histories", type=int, default=4)
    parser.add_argument("--years", type=int, default=50, help="Simulated by `calibrate`, of each metric.")
    parser.add_argument("--following", type=int, default=10, help="Years that follow each history.")
    parser.add_argument("--correlations", type=float, nargs="+", default=CORRELATIONS)
    parser.add_argument("--nights", type=int, nargs="+", default=LENGTHS)
    options = parser.parse_args(arguments)
    steps = "".join(f"{f'{size} SD in {nights}':>12}" for size, nights in STEPS)
    columns = "".join(f"{name:>8}" for name in ("nights", "cusum", "own", "next", "most"))
    print(f"{'':28}{columns}{steps}")
    for correlation in options.correlations:
        for num_nights in options.nights:
            before: list[Row] = []
            after: list[Row] = []
            for number in range(options.histories):
                generator = np.random.default_rng([number, num_nights, round(100 * correlation)])
                history = autoregression(generator, correlation, (METRICS, num_nights))
                rules = calibrated(history, number, options.years)
                before.append(row(history, Ruleset(), correlation, options.following, generator))
                after.append(row(history, rules, correlation, options.following, generator))
            print_rows(f"{correlation:g}, {num_nights} nights, before", before)
            print_rows(f"{correlation:g}, {num_nights} nights, after", after)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
