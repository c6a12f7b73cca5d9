"""Limits of the night chart from a history's own noise."""

from datetime import date, timedelta
from itertools import pairwise

import numpy as np
import pytest

from dualtoken.pipelines.errors import UserError
from dualtoken.pipelines.nightly.calibration import num_alarms, resampled_year
from dualtoken.pipelines.nightly.chart import History, Point, Ruleset, calibrate, judge

RULES = Ruleset()
YEARS = 20


def history(*, autocorrelation: float, num_metrics: int = 3, num_nights: int = 120) -> dict[str, History]:
    generator = np.random.default_rng(5)
    series: dict[str, History] = {}
    for metric in range(num_metrics):
        value = 0.0
        nights: list[Point] = []
        for night in range(num_nights):
            value = autocorrelation * value + generator.standard_normal()
            nights.append(Point((date(2026, 1, 1) + timedelta(night)).isoformat(), value, "a"))
        series[f"metric {metric}"] = History(tuple(nights), "higher")
    return series


def alarms_a_year(series: dict[str, History], rules: Ruleset) -> float:
    generator = np.random.default_rng(6)
    alarms = 0
    for metric in series.values():
        for _ in range(YEARS):
            alarms += num_alarms(judge(resampled_year(metric.points, generator), "higher", 0.0, rules))
    return alarms / YEARS


def test_a_history_whose_nights_are_alike_alarms_no_more_than_allowed_once_calibrated() -> None:
    series = history(autocorrelation=0.5)
    rules = calibrate(series, RULES, alarms_per_year=1.0, seed=1, years=YEARS)
    assert alarms_a_year(series, RULES) > 3
    assert alarms_a_year(series, rules) <= 1.5  # of other draws; standard error .22
    assert rules.calibrated_from == 120
    assert rules.version != RULES.version


def test_independent_normal_noise_keeps_its_limits() -> None:
    series = history(autocorrelation=0.0)
    rules = calibrate(series, RULES, alarms_per_year=1.0, seed=1, years=10)
    assert rules.threshold <= 1.1 * RULES.threshold
    assert rules.threshold >= RULES.threshold


def test_equal_seeds_give_equal_limits() -> None:
    series = history(autocorrelation=0.5, num_metrics=1)
    limits = {calibrate(series, RULES, alarms_per_year=0.5, seed=2, years=8) for _ in range(2)}
    assert len(limits) == 1
    assert limits.pop().threshold > RULES.threshold


def test_a_year_is_made_of_blocks_of_the_history() -> None:
    points = history(autocorrelation=0.0, num_metrics=1)["metric 0"].points
    year = resampled_year(points, np.random.default_rng(0))
    place = {point.value: number for number, point in enumerate(points)}
    numbers = [place[point.value] for point in year]
    steps = [(second - first) % len(points) for first, second in pairwise(numbers)]
    assert len(year) == 365
    assert len({point.night for point in year}) == 365
    assert steps.count(1) >= 365 * 0.85


def test_too_short_a_history_is_refused_by_name() -> None:
    with pytest.raises(UserError, match="metric 0 has 59 nights of its newest protocol"):
        calibrate(history(autocorrelation=0.0, num_nights=59), RULES, alarms_per_year=1.0, seed=0, years=1)


def test_nights_of_an_older_protocol_do_not_count() -> None:
    points = list(history(autocorrelation=0.0, num_metrics=1)["metric 0"].points)
    points[-1] = points[-1]._replace(protocol_hash="b")
    with pytest.raises(UserError, match="has 1 nights"):
        calibrate({"metric 0": History(tuple(points), "lower")}, RULES, 1.0, seed=0, years=1)


def test_a_budget_of_nothing_is_refused() -> None:
    with pytest.raises(UserError, match="alarms_per_year=0"):
        calibrate(history(autocorrelation=0.0), RULES, alarms_per_year=0.0, seed=0, years=1)
