"""The night chart, on simulated nights: what it must see, what it must not, and what people change."""

from collections.abc import Sequence
from datetime import date, timedelta

import numpy as np
import pytest
from numpy.typing import NDArray

from dualtoken.pipelines.errors import UserError
from dualtoken.pipelines.evaluation.summary import Direction
from dualtoken.pipelines.nightly.chart import Judged, Point, Ruleset, judge

RULES = Ruleset()
METRICS = 8
BEFORE = 60
"""Nights before a step."""
ALARMS = {"regressed", "drifted"}
NIGHTS = tuple((date(2026, 1, 1) + timedelta(day)).isoformat() for day in range(400))


def points(values: Sequence[float] | NDArray[np.float64], protocol: str = "a") -> list[Point]:
    return [Point(NIGHTS[night], float(value), protocol * 64) for night, value in enumerate(values)]


def judged(
    values: Sequence[float] | NDArray[np.float64],
    *,
    direction: Direction = "higher",
    margin: float = 0.0,
    baseline: float | None = None,
    acknowledged: tuple[str, ...] = (),
) -> list[Judged]:
    return judge(points(values), direction, margin, RULES, baseline, acknowledged)


def onsets(nights: list[Judged], states: set[str]) -> int:
    hits = [night.state in states for night in nights]
    return sum(now and not before for now, before in zip(hits, [False, *hits], strict=False))


def noise(num: int, seed: int = 0) -> NDArray[np.float64]:
    """Return nights of which none stands out from those before."""
    values = np.random.default_rng(seed).standard_normal(num)
    return np.clip(values, -1.5, 1.5)


def stepped(size: float, before: int = BEFORE, after: int = 30) -> NDArray[np.float64]:
    values = noise(before + after)
    values[before:] += size
    return values


def share_seen(size: float, nights: int, draws: int = 300) -> float:
    generator = np.random.default_rng(11)
    seen = 0
    for _ in range(draws):
        values = generator.standard_normal(BEFORE + nights)
        values[BEFORE:] -= size
        seen += any(night.state in ALARMS for night in judged(values)[BEFORE:])
    return seen / draws


@pytest.fixture(scope="module")
def quiet_years() -> list[list[Judged]]:
    """Forty years of eight metrics without a step."""
    generator = np.random.default_rng(7)
    return [judged(generator.standard_normal(365)) for _ in range(40 * METRICS)]


def test_eight_metrics_of_normal_noise_alarm_once_a_year_or_less(quiet_years: list[list[Judged]]) -> None:
    alarms = sum(onsets(year, ALARMS) for year in quiet_years) / 40
    assert 0.3 < alarms <= 1.1  # .74 in 300 years; 40 of them have a standard error of .14


def test_better_nights_are_found_by_the_rules_of_worse_ones() -> None:
    generator = np.random.default_rng(9)
    mirrored = {"improved": ALARMS, "regressed": {"improved"}, "drifted": {"improved"}}
    found: set[str] = set()
    for _ in range(100):
        values = generator.standard_normal(200)
        nights = judged(values)
        first = next((night for night, judgement in enumerate(nights) if judgement.state in mirrored), None)
        if first is not None:
            state = nights[first].state
            found.add(state)
            opposite = judged(-values)
            assert opposite[first].state in mirrored[state]
            assert not {night.state for night in opposite[:first]} & mirrored.keys()
    assert {"improved"} < found


def test_residuals_of_normal_noise_are_standard_normal_from_the_first(
    quiet_years: list[list[Judged]],
) -> None:
    for night in (RULES.least_nights, 30, 364):
        residuals = np.array([year[night].residual for year in quiet_years], dtype=np.float64)
        assert abs(residuals.mean()) < 0.2  # standard error .056
        assert 0.85 < residuals.std() < 1.15
    early = [year[night].residual for year in quiet_years for night in range(14, 20)]
    assert 0.015 < np.mean(np.abs(np.array(early, dtype=np.float64)) > 2.3263) < 0.025  # expected: .02


def test_heavy_tails_alarm_three_times_a_year_or_less() -> None:
    generator = np.random.default_rng(8)
    years = [judged(generator.standard_t(4, 365)) for _ in range(20 * METRICS)]
    assert sum(onsets(year, ALARMS) for year in years) / 20 <= 3.5  # 2.8 in 300 years; standard error .37


@pytest.mark.parametrize(
    ("size", "nights", "least"),
    [(2, 7, 0.80), (3, 7, 0.99), (5, 2, 0.93), (8, 1, 0.70)],  # .86, 1, .97 and .77 of 1,000 draws
)
def test_a_step_is_seen_in_few_nights(size: float, nights: int, least: float) -> None:
    assert share_seen(size, nights) >= least


def test_a_step_of_half_a_deviation_is_seldom_seen_in_a_week() -> None:
    assert share_seen(0.5, 7) <= 0.1


def test_fewer_nights_than_needed_are_not_judged() -> None:
    nights = judged([*noise(RULES.least_nights), -50.0])
    assert [night.state for night in nights[:-1]] == ["too_few"] * RULES.least_nights
    assert nights[-2].residual is None
    assert nights[-2].reference_low is None
    assert nights[-2].reason == "Only 13 of 14 nights are there to compare it with."
    assert nights[-1].state == "regressed"


def test_a_bad_night_is_suspected_and_the_next_one_decides() -> None:
    values = noise(BEFORE)
    low = values.mean() - 4.5 * values.std()
    suspected, confirmed = judged([*values, low, low])[-2:]
    assert (suspected.state, confirmed.state) == ("suspected", "regressed")
    assert "the next night decides" in suspected.reason
    assert "on two nights in a row" in confirmed.reason
    suspected, refuted = judged([*values, low, 0.0])[-2:]
    assert (suspected.state, refuted.state) == ("suspected", "ok")


def test_two_wild_nights_apart_do_not_alarm() -> None:
    values = noise(BEFORE)
    values[-4:] = 0.8  # the CUSUM is at rest
    wild = values.mean() - 5.7 * values.std()
    nights = judged([*values, wild, values.mean(), wild * 1.05])
    assert [night.state for night in nights[-3:]] == ["suspected", "ok", "suspected"]
    depths = [-(night.residual or 0) for night in nights[-3:]]
    assert sum(depths) - 3 * RULES.slack > RULES.threshold  # the residuals are clipped for the CUSUM


def test_two_nights_confirm_each_other_only_by_more_than_the_margin_on_average() -> None:
    values = [*noise(BEFORE), -3.4, -1.7]
    assert judged(values, margin=2.0)[-1].state == "regressed"
    assert [night.state for night in judged(values, margin=3.0)[-2:]] == ["suspected", "ok"]


def test_a_terrible_night_alarms_at_once() -> None:
    night = judged([*noise(BEFORE), -12.0])[-1]
    assert night.state == "regressed"
    assert "in one night" in night.reason


def test_a_slow_loss_that_no_night_shows_is_a_drift() -> None:
    slow = noise(BEFORE + 60)
    slow[BEFORE:] -= np.linspace(0, 2.0, 60)
    nights = judged(slow)
    first = next(number for number, night in enumerate(nights) if night.state in ALARMS)
    assert nights[first].state == "drifted"
    assert "though no single night stands out" in nights[first].reason
    assert all(night.residual is None or night.residual > RULES.suspect for night in nights[: first + 1])
    assert nights[-1].state == "drifted"
    start = nights[first].reason.split("since ")[1][:10]
    assert nights[-1].num_reference == NIGHTS.index(start)


def test_a_shift_within_the_margin_never_alarms() -> None:
    values = stepped(-5.0)
    assert onsets(judged(values), ALARMS) == 1
    assert {night.state for night in judged(values, margin=8.0)[RULES.least_nights :]} == {"ok"}
    assert onsets(judged(values, margin=4.0), ALARMS) == 1


def test_lower_is_better_mirrors_higher_is_better() -> None:
    values = stepped(-5.0)
    higher = judged(values)
    lower = judged(-values, direction="lower")
    assert [night.state for night in lower] == [night.state for night in higher]
    assert [night.residual for night in lower] == [night.residual for night in higher]
    assert lower[-1].reference_low == -(higher[-1].reference_high or 0)
    assert onsets(judged(values, direction="lower"), ALARMS) == 0
    assert onsets(judged(values, direction="lower"), {"improved"}) == 1


def test_the_band_holds_what_is_not_suspected() -> None:
    values = noise(BEFORE)
    last = judged([*values, 0.0])[-1]
    assert last.reference_low is not None
    assert last.reference_high is not None
    assert judged([*values, last.reference_low - 1e-6])[-1].state == "suspected"
    assert judged([*values, last.reference_low + 1e-6])[-1].state == "ok"
    assert judged([*values, last.reference_high + 1e-6])[-1].residual == pytest.approx(3.0, abs=1e-4)


def test_an_alarm_lasts_while_nobody_acts() -> None:
    nights = judged(stepped(-4.0, after=200))
    assert onsets(nights, ALARMS) == 1
    assert nights[-1].state == "regressed"
    assert nights[-1].segment == NIGHTS[0]


def test_an_alarm_ends_when_the_level_is_back() -> None:
    values = stepped(-4.0, after=40)
    values[BEFORE + 20 :] += 4.0
    nights = judged(values)
    assert nights[BEFORE + 19].state == "regressed"
    back = nights[BEFORE + 20 : BEFORE + 23]
    assert "ok" in {night.state for night in back}
    assert any(f"back at the level before {NIGHTS[BEFORE]}" in night.reason for night in back)
    assert onsets(nights, ALARMS) == 1


def test_nights_of_an_alarm_do_not_widen_the_reference() -> None:
    values = stepped(-4.0, after=40)
    values[BEFORE + 20 :] += 4.0
    nights = judged(values)
    last, before = nights[-1], nights[BEFORE]
    assert last.reference_low is not None
    assert before.reference_low is not None
    assert abs(last.reference_low - before.reference_low) < 0.3
    assert last.num_reference <= BEFORE + 19


def test_one_broken_night_does_not_hide_the_next() -> None:
    broken = [*noise(BEFORE), -1000.0, *noise(10, seed=1), -30.0]
    nights = judged(broken)
    assert nights[BEFORE].state == "regressed"
    assert nights[BEFORE + 1].state == "ok"
    assert nights[-1].state == "regressed"
    assert nights[-1].num_reference == BEFORE + 11  # a short alarm that ended by itself was noise


def test_an_acknowledged_step_begins_a_segment_where_the_step_began() -> None:
    values = stepped(-4.0)
    alarm = next(night for night, found in enumerate(judged(values)) if found.state in ALARMS)
    nights = judged(values, acknowledged=(NIGHTS[alarm],))
    assert nights[alarm].state == "regressed"
    assert nights[alarm].segment == NIGHTS[0]
    assert {night.segment for night in nights[alarm + 1 :]} == {NIGHTS[BEFORE]}
    assert [night.state for night in nights[alarm + 1 : BEFORE + RULES.least_nights]] == ["too_few"] * (
        BEFORE + RULES.least_nights - alarm - 1
    )
    assert {night.state for night in nights[BEFORE + RULES.least_nights :]} == {"ok"}


def test_a_step_after_an_acknowledged_one_alarms_again() -> None:
    values = stepped(-4.0, after=60)
    values[BEFORE + 40 :] -= 6.0
    nights = judged(values, acknowledged=(NIGHTS[BEFORE + 1],))
    assert onsets(nights, ALARMS) == 2
    assert nights[-1].state == "regressed"


def test_an_improvement_that_lasts_becomes_the_reference() -> None:
    values = stepped(5.0, after=60)
    values[BEFORE + 40 :] -= 5.0  # all that was gained is lost again
    nights = judged(values)
    assert onsets(nights, {"improved"}) == 1
    assert nights[BEFORE + 30].state == "ok"
    assert nights[BEFORE + 30].segment == NIGHTS[BEFORE]
    assert nights[-1].state == "regressed"


def test_nights_of_another_protocol_are_never_compared() -> None:
    old = points(noise(BEFORE))
    new = [point._replace(protocol_hash="b" * 64) for point in points(noise(BEFORE + 20) - 50)[BEFORE:]]
    nights = judge([*old, *new], "higher", 0.0, RULES)
    assert [night.state for night in nights[BEFORE:]] == ["too_few"] * 14 + ["ok"] * 6
    assert nights[-1].segment == NIGHTS[BEFORE]


def test_later_nights_do_not_change_what_earlier_ones_came_to() -> None:
    values = stepped(-4.0)
    whole = judged(values, baseline=0.0, margin=0.5)
    for night in (10, 40, 61, 65, 80):
        assert judged(values[:night], baseline=0.0, margin=0.5) == whole[:night]


def test_a_changed_bit_of_identical_nights_stands_out_and_the_margin_decides() -> None:
    values = [30.0] * 20 + [30.0 - 1e-9] * 2
    assert judged(values)[-1].state == "regressed"
    assert judged(values, margin=0.05)[-1].state == "ok"
    assert judged([30.0] * 40)[-1].residual == 0


def test_a_loss_from_the_baseline_regresses_though_the_nights_before_are_alike() -> None:
    values = noise(BEFORE) * 0.01
    values[-2:] = 0.0
    nights = judged(values, baseline=1.0, margin=0.5)
    assert nights[-1].state == "regressed"
    assert nights[-1].headroom == pytest.approx(-0.5)
    assert "baseline" in nights[-1].reason
    assert judged(values, baseline=0.4, margin=0.5)[-1].state == "ok"
    assert judged(values, baseline=0.4, margin=0.5)[-1].headroom == pytest.approx(0.1)


def test_a_baseline_pinned_on_a_lucky_night_does_not_cry_wolf() -> None:
    generator = np.random.default_rng(3)
    alarms = 0
    for _ in range(40):
        values = generator.standard_normal(200)
        alarms += onsets(judged(values, baseline=1.0, margin=0.1), ALARMS)
    assert alarms <= 40 * 200 / 365  # one a year of each; two nights below .9 alone would be 7 times that


def test_an_acknowledged_loss_from_the_baseline_is_not_said_again_and_costs_no_reference() -> None:
    values = np.concatenate([noise(40) * 0.01 - 1.0, noise(3) * 0.01, noise(20) * 0.01 - 1.0])
    worse = next(
        night
        for night, found in enumerate(judged(values[:40], baseline=0.0, margin=0.5))
        if found.state == "regressed"
    )
    nights = judged(values[:40], baseline=0.0, margin=0.5, acknowledged=(NIGHTS[worse],))
    assert {night.state for night in nights[worse + 1 :]} <= {"ok", "too_few"}
    assert nights[-1].segment == NIGHTS[0]


@pytest.mark.parametrize(
    ("nights", "message"),
    [
        ([Point("2026-01-02", 1.0, "a"), Point("2026-01-01", 1.0, "a")], "2026-01-01 comes after 2026-01-02"),
        ([Point("2026-01-01", 1.0, "a"), Point("2026-01-01", 1.0, "b")], "give each night once"),
        ([Point("2026-01-01", float("nan"), "a")], "the night 2026-01-01 has the value nan"),
    ],
)
def test_nights_that_make_no_series_are_refused(nights: list[Point], message: str) -> None:
    with pytest.raises(UserError, match=message):
        judge(nights, "higher", 0.0, RULES)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"threshold": 0.0}, "threshold=0.0"),
        ({"suspect": -1.0}, "set them in this order"),
        ({"least_nights": 2}, "least_nights=2"),
        ({"recovery_odds": 1.0}, "recovery_odds=1.0"),
        ({"episode_nights": 17}, "episode_nights=17"),
    ],
)
def test_rules_that_make_no_sense_are_refused(changes: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Ruleset(**changes)  # pyright: ignore[reportArgumentType]


def test_any_changed_limit_changes_the_version() -> None:
    versions = {
        Ruleset().version,
        Ruleset(threshold=7.0).version,
        Ruleset(least_nights=15).version,
        Ruleset(calibrated_from=60).version,
    }
    assert len(versions) == 4
    assert Ruleset().version == Ruleset().version
