"""The pace of a training's last steps, and what it says of the time that is left."""

import pytest

from dualtoken.pipelines.training.pace import MIN_STEPS, WINDOW_SECONDS, PaceMeter, duration


def test_the_time_left_follows_the_last_steps_and_not_those_before_a_resume() -> None:
    # Resumed after step 400 of 1,000; the first step took a minute.
    meter = PaceMeter(steps=1000, batch_size=16)
    meter.step_taken(60.0)
    assert meter.pace(401) is None
    for number in range(1, 100):
        meter.step_taken(60.0 + number * 2.0)
    pace = meter.pace(500)
    assert pace is not None
    assert pace.steps_per_second == pytest.approx(0.5)
    assert pace.samples_per_second == pytest.approx(8.0)
    assert str(pace) == "8 images/s, 0.5 steps/s, ETA 16 min 40 s"


def test_a_pace_calls_samples_by_their_name() -> None:
    meter = PaceMeter(steps=10, batch_size=2, sample_name="sequences")
    meter.step_taken(0.0)
    meter.step_taken(1.0)
    assert str(meter.pace(2)).startswith("2 sequences/s, ")


def test_a_pace_forgets_what_was_longer_ago_than_its_window() -> None:
    meter = PaceMeter(steps=10_000, batch_size=1)
    now = 0.0
    for seconds in [10.0] * 50 + [0.5] * 200:
        now += seconds
        meter.step_taken(now)
    pace = meter.pace(250)
    assert pace is not None
    assert pace.steps_per_second == pytest.approx(2.0)


def test_slow_steps_are_measured_over_some_of_them() -> None:
    meter = PaceMeter(steps=1000, batch_size=1)
    for number in range(30):
        meter.step_taken(number * 2 * WINDOW_SECONDS)
    pace = meter.pace(30)
    assert pace is not None
    assert pace.steps_per_second == pytest.approx(1 / (2 * WINDOW_SECONDS))
    meter.step_taken(30 * 2 * WINDOW_SECONDS + 20 * WINDOW_SECONDS)
    slower = meter.pace(31)
    assert slower is not None
    assert slower.steps_per_second == pytest.approx(MIN_STEPS / ((2 * (MIN_STEPS) + 20) * WINDOW_SECONDS))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "0 s"),
        (59.4, "59 s"),
        (60, "1 min"),
        (200, "3 min 20 s"),
        (3600, "1 h"),
        (7500, "2 h 5 min"),
        (86_400 * 3 + 3600 * 4 + 59, "3 d 4 h"),
    ],
)
def test_a_duration_is_said_in_its_two_largest_units(seconds: float, text: str) -> None:
    assert duration(seconds) == text
