"""How often the night chart is wrong, how soon it sees a step, and how often intervals hold the truth.

Run: python -m benchmarks.nightly_chart [--years 250] [--draws 1000]. All noise is simulated and seeded.
Printed are the false alarms a year of eight metrics and the shares of steps seen, of our rules and of two
others in use; and coverages of 95 % intervals. Nothing here is timed but the chart itself.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from dualtoken.pipelines.evaluation.paired_statistics import influence_difference, paired_difference
from dualtoken.pipelines.evaluation.statistics import (
    Estimate,
    influence_estimate,
    mean_estimate,
    share_estimate,
)
from dualtoken.pipelines.nightly.calibration import YEAR
from dualtoken.pipelines.nightly.chart import Point, Ruleset, judge

METRICS = 8
BEFORE = 60
"""Nights before a step."""
WINDOW = 14
PROTOCOL = "a" * 64
STEPS = ((2, 7), (3, 7), (5, 1), (5, 2), (8, 1))
"""Size of a step in standard deviations, and nights until it must be seen."""

Values = NDArray[np.float64]
Noise = Callable[[np.random.Generator, int], Values]
Rule = Callable[[Values], list[bool]]
"""Tells of each night whether it alarms."""


def normal(generator: np.random.Generator, num: int) -> Values:
    """Return normal noise."""
    return generator.standard_normal(num)


def heavy_tailed(generator: np.random.Generator, num: int) -> Values:
    """Return noise of Student's t with 4 degrees of freedom."""
    return generator.standard_t(4, num)


def autocorrelated(generator: np.random.Generator, num: int) -> Values:
    """Return normal noise where neighbours correlate by .3."""
    shocks = generator.standard_normal(num + BEFORE)
    values = np.zeros(num + BEFORE)
    for night in range(1, num + BEFORE):
        values[night] = 0.3 * values[night - 1] + shocks[night]
    return values[BEFORE:]


NOISES: dict[str, Noise] = {"normal": normal, "t4": heavy_tailed, "autocorrelated .3": autocorrelated}


def points(values: Values) -> list[Point]:
    """Return values as nights."""
    return [Point(YEAR[night], float(value), PROTOCOL) for night, value in enumerate(values)]


def ours(values: Values) -> list[bool]:
    """Alarm as the chart does, without a margin."""
    nights = judge(points(values), "higher", 0.0, Ruleset())
    return [night.state in {"regressed", "drifted"} for night in nights]


def last_fourteen(values: Values) -> list[bool]:
    """Alarm 3 standard deviations below the mean, both of the last 14 nights."""
    alarms = [False] * len(values)
    for night in range(WINDOW, len(values)):
        window = values[night - WINDOW : night]
        alarms[night] = bool(values[night] < window.mean() - 3 * window.std(ddof=1))
    return alarms


def yesterday(values: Values) -> list[bool]:
    """Alarm if worse than the night before by 3 known standard deviations, which are 1."""
    return [False, *(np.diff(values) < -3).tolist()]


RULES: dict[str, Rule] = {"ours": ours, "last 14, 3 sigma": last_fourteen, "yesterday, 3 sigma": yesterday}


def onsets(alarms: Sequence[bool]) -> int:
    """Count alarms; one that lasts counts once."""
    before = [False, *alarms[:-1]]
    return sum(now and not earlier for now, earlier in zip(alarms, before, strict=True))


def false_alarms(rule: Rule, noise: Noise, num_years: int, seed: int) -> float:
    """Return the alarms a year of all metrics, without any step."""
    generator = np.random.default_rng(seed)
    found = [onsets(rule(noise(generator, len(YEAR)))) for _ in range(num_years * METRICS)]
    return METRICS * float(np.mean(found))


def power(rule: Rule, size: float, nights: int, draws: int, seed: int) -> float:
    """Return the share of steps down that a rule sees in so many nights."""
    generator = np.random.default_rng(seed)
    seen = 0
    for _ in range(draws):
        values = generator.standard_normal(BEFORE + nights)
        values[BEFORE:] -= size
        seen += any(rule(values)[BEFORE:])
    return seen / draws


def distance(features: Values, mean: Values, covariance: Values) -> tuple[float, Values]:
    """Return the Fréchet distance of features to a Gaussian, and each sample's influence on it."""
    centre = features.mean(axis=0)
    centred = features - centre
    own = centred.T @ centred / len(features)
    root = power_of(own, 0.5)
    inverse = power_of(own, -0.5)
    between = power_of(root @ covariance @ root, 0.5)
    optimal_map = inverse @ between @ inverse
    gap = np.eye(len(centre)) - optimal_map
    value = float(((centre - mean) ** 2).sum() + np.trace(own) + np.trace(covariance) - 2 * np.trace(between))
    influence = 2 * centred @ (centre - mean) + ((centred @ gap) * centred).sum(axis=1) - np.trace(gap @ own)
    return value, influence


def power_of(matrix: Values, exponent: float) -> Values:
    """Return a power of a symmetric positive matrix."""
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * values**exponent) @ vectors.T


def print_coverage(name: str, estimates: Sequence[Estimate], truth: float | None = None) -> None:
    """Print how often intervals hold the truth, and their error by the standard deviation of the values."""
    values = np.array([estimate.value for estimate in estimates])
    if truth is None:
        truth = float(values.mean())  # a distance has a bias of its own, which depends on n alone
    held = 0
    errors: list[float] = []
    for estimate in estimates:
        assert estimate.low is not None
        assert estimate.high is not None
        assert estimate.error is not None
        held += estimate.low <= truth <= estimate.high
        errors.append(estimate.error)
    ratio = float(np.mean(errors)) / float(values.std(ddof=1))
    print(f"{name:44} {held / len(estimates):9.3f} {ratio:22.2f}")


def print_coverages(draws: int) -> None:
    """Print the coverage of each kind of interval."""
    generator = np.random.default_rng(5)
    print(f"{'intervals of 95 %':44} {'coverage':>9} {'error / Monte-Carlo SD':>22}")
    means = [mean_estimate(generator.standard_normal(100)) for _ in range(draws)]
    print_coverage("mean, t, n 100", means, 0.0)
    shares = [share_estimate((generator.random(400) < 0.9).astype(float)) for _ in range(draws)]
    print_coverage("0/1, Wilson, n 400, share .9", shares, 0.9)
    names = np.repeat(np.arange(100), 5)
    clustered: list[Estimate] = []
    ignored: list[Estimate] = []
    for _ in range(draws):
        values = np.repeat(generator.standard_normal(100), 5) + generator.standard_normal(500)
        clustered.append(mean_estimate(values, names))
        ignored.append(mean_estimate(values))
    print_coverage("mean, 100 clusters of 5", clustered, 0.0)
    print_coverage("  the same, clusters ignored", ignored, 0.0)
    skewed: list[Estimate] = []
    for _ in range(draws):
        zeros = np.zeros(200)
        skewed.append(paired_difference(zeros, generator.exponential(size=200)))
    print_coverage("paired difference, BCa, n 200, exponential", skewed, 1.0)
    print_distances(draws, generator)


def print_distances(draws: int, generator: np.random.Generator) -> None:
    """Print the coverage for a Fréchet distance, and for the difference of two models'."""
    width, num = 16, 1000
    mean, covariance = np.zeros(width), np.diag(np.linspace(0.5, 1.5, width))
    single: list[Estimate] = []
    paired: list[Estimate] = []
    for _ in range(draws):
        features = generator.standard_normal((num, width)) + 0.2
        other = 0.9 * features + 0.3 * generator.standard_normal((num, width))
        first, first_influence = distance(features, mean, covariance)
        second, second_influence = distance(other, mean, covariance)
        single.append(influence_estimate(first, first_influence))
        paired.append(influence_difference(first, second, first_influence, second_influence))
    print_coverage("Fréchet distance, influence, n 1000, d 16", single)
    print_coverage("difference of two, paired influence", paired)


def main(arguments: list[str]) -> int:
    """Print all tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--years", type=int, default=250)
    parser.add_argument("--draws", type=int, default=1000)
    options = parser.parse_args(arguments)
    values = points(np.random.default_rng(0).standard_normal(len(YEAR)))
    started = time.perf_counter()
    for _ in range(METRICS):
        judge(values, "higher", 0.0, Ruleset())
    print(f"{len(YEAR)} nights of {METRICS} metrics: {time.perf_counter() - started:.3f} s\n")

    steps = [f"{size} SD in {nights}" for size, nights in STEPS]
    print(f"{'false alarms a year':20}" + "".join(f"{name:>19}" for name in (*NOISES, *steps)))
    for name, rule in RULES.items():
        alarms = [false_alarms(rule, noise, options.years, seed=1) for noise in NOISES.values()]
        shares = [power(rule, size, nights, options.draws, seed=2) for size, nights in STEPS]
        cells = [f"{value:19.2f}" for value in (*alarms, *shares)]
        print(f"{name:20}" + "".join(cells), flush=True)
    print()
    print_coverages(2 * options.draws)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
