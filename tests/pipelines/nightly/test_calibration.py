"""Limits of the night chart from a history's own noise."""

import math
from datetime import date, timedelta

import numpy as np
import pytest

from dualtoken.pipelines.errors import UserError
from dualtoken.pipelines.nightly.calibration import YEAR, likeness, num_alarms, simulated_years
from dualtoken.pipelines.nightly.chart import History, Point, Ruleset, calibrate, judge

RULES = Ruleset()
YEARS = 20
FIRST = date(2024, 1, 1)


def noise(
    generator: np.random.Generator, autocorrelation: float, num_nights: int, before: float = 0.0
) -> list[float]:
    """Return nights of variance 1 that go on from the one before."""
    value = before
    values: list[float] = []
    for shock in generator.standard_normal(num_nights).tolist():
        value = autocorrelation * value + shock * math.sqrt(1 - autocorrelation**2)
        values.append(value)
    return values


def points(values: list[float]) -> tuple[Point, ...]:
    return tuple(
        Point((FIRST + timedelta(night)).isoformat(), value, "a") for night, value in enumerate(values)
    )


def history(*, autocorrelation: float, num_metrics: int = 3, num_nights: int = 120) -> dict[str, History]:
    generator = np.random.default_rng(5)
    return {
        f"metric {metric}": History(points(noise(generator, autocorrelation, num_nights)), "higher")
        for metric in range(num_metrics)
    }


def alarms_behind(
    series: dict[str, History], rules: Ruleset, autocorrelation: float, num_nights: int, step: float = 0.0
) -> float:
    """Return the alarms in the nights that follow a history, lower by a step, over all of its metrics."""
    generator = np.random.default_rng(6)
    alarms = 0
    for metric in series.values():
        known = [point.value for point in metric.points]
        for _ in range(YEARS):
            later = [value - step for value in noise(generator, autocorrelation, num_nights, known[-1])]
            nights = judge(points(known + later), "higher", 0.0, rules)
            alarms += num_alarms(nights[len(known) :])
    return alarms / YEARS


@pytest.fixture(scope="module")
def rules() -> Ruleset:
    """Rules that fit 120 nights whose neighbours correlate by .5."""
    return calibrate(history(autocorrelation=0.5), RULES, alarms_per_year=1.0, seed=1, years=YEARS)


def test_nights_that_are_alike_alarm_once_in_the_year_to_come_once_calibrated(rules: Ruleset) -> None:
    series = history(autocorrelation=0.5)
    assert alarms_behind(series, RULES, 0.5, len(YEAR)) > 8
    assert alarms_behind(series, rules, 0.5, len(YEAR)) <= 1
    assert rules.calibrated_from == 120
    assert rules.version != RULES.version


def test_calibrated_limits_still_see_a_broken_night(rules: Ruleset) -> None:
    series = history(autocorrelation=0.5)
    assert alarms_behind(series, rules, 0.5, 2, step=5.0) >= 0.8 * len(series)
    assert rules.threshold / RULES.threshold > 1.5 * rules.suspect / RULES.suspect


@pytest.mark.parametrize("autocorrelation", [0.0, 0.5, 0.7])
def test_the_likeness_of_nights_is_found_without_the_bias_of_short_histories(autocorrelation: float) -> None:
    generator = np.random.default_rng(2)
    found = [likeness(np.array(noise(generator, autocorrelation, 60))) for _ in range(300)]
    if autocorrelation:
        assert np.mean(found) == pytest.approx(autocorrelation, abs=0.02)
    else:
        assert np.mean(found) < 0.07
        assert min(found) == 0


def test_simulated_years_have_the_noise_of_the_history() -> None:
    values = np.array(noise(np.random.default_rng(3), 0.6, 365)) + 40
    years = simulated_years(values, 100, np.random.default_rng(0))
    assert years.shape == (100, 365)
    assert years.mean() == pytest.approx(values.mean(), abs=0.05)
    assert years.std() == pytest.approx(values.std(), rel=0.05)
    centred = years - years.mean()
    alike = (centred[:, 1:] * centred[:, :-1]).mean() / centred.var()
    assert alike == pytest.approx(likeness(values), abs=0.02)
    assert centred[:, 0].std() == pytest.approx(centred.std(), rel=0.25), "the first night is one like others"


def test_a_history_that_never_moves_keeps_its_limits() -> None:
    still = {"metric": History(points([0.5] * 60), "higher")}
    assert calibrate(still, RULES, 1.0, seed=0, years=2).threshold == RULES.threshold


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


def test_too_short_a_history_is_refused_by_name() -> None:
    with pytest.raises(UserError, match="metric 0 has 59 nights of its newest protocol"):
        calibrate(history(autocorrelation=0.0, num_nights=59), RULES, alarms_per_year=1.0, seed=0, years=1)


def test_nights_of_an_older_protocol_do_not_count() -> None:
    nights = list(history(autocorrelation=0.0, num_metrics=1)["metric 0"].points)
    nights[-1] = nights[-1]._replace(protocol_hash="b")
    with pytest.raises(UserError, match="has 1 nights"):
        calibrate({"metric 0": History(tuple(nights), "lower")}, RULES, 1.0, seed=0, years=1)


def test_a_budget_of_nothing_is_refused() -> None:
    with pytest.raises(UserError, match="alarms_per_year=0"):
        calibrate(history(autocorrelation=0.0), RULES, alarms_per_year=0.0, seed=0, years=1)
