"""What people decide, with name and reason; what `check` says; nights that are measured after all."""

import json
from datetime import date
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from dualtoken.pipelines.errors import ExitCode, UserError
from dualtoken.pipelines.nightly.backfill import backfill
from dualtoken.pipelines.nightly.check import check
from dualtoken.pipelines.nightly.decisions import (
    Person,
    accept,
    acknowledge,
    calibrate,
    pause,
    stored_rules,
)
from dualtoken.pipelines.nightly.history import History
from dualtoken.pipelines.nightly.run import run_night
from dualtoken.pipelines.nightly.session import Session
from dualtoken.pipelines.nightly.states import night_states
from tests.helpers.nights import FIRST, PSNR, RULES, SmallNightly, write_model

EVA = Person("eva", "a reason")


@pytest.fixture
def small(tmp_path: Path) -> SmallNightly:
    return SmallNightly(tmp_path)


def session(small: SmallNightly) -> Session:
    return Session(small.spec, small.nightly)


def run(small: SmallNightly, day: int, psnr: float = 30.0) -> ExitCode:
    write_model(small.models / "model", psnr=psnr)
    return run_night(session(small.at(f"2026-11-{day:02d}")))


def run_until(small: SmallNightly, last: int) -> None:
    for day in range(2, last + 1):
        run(small, day)


def look(small: SmallNightly, day: int, time: str = "12:00") -> tuple[ExitCode, list[str]]:
    """Check from another machine, whose clock says this."""
    small.lines.clear()
    return check(session(small.at(f"2026-11-{day:02d}", time)), 14), list(small.lines)


def state_names(small: SmallNightly) -> list[str]:
    return [state.state for state in night_states(session(small).read(), small.clock(), RULES)]


def test_five_nights_without_a_scheduler_are_five_lines_and_exit_code_4_within_a_minute(
    small: SmallNightly,
) -> None:
    assert look(small, 2, "07:00") == (ExitCode.DONE, ["small: nothing bad in 0 nights"])
    assert look(small, 2, "07:01")[0] == ExitCode.MISSED
    code, lines = look(small, 6)
    assert code == ExitCode.MISSED
    assert lines == [
        f"2026-11-{day:02d}: missed, nobody began it by 2026-11-{day:02d} 07:00 UTC" for day in range(2, 7)
    ]
    assert not (Path(small.spec.root) / "nightly").exists(), "looking leaves nothing behind"


def test_a_regression_is_exit_code_3_while_it_stands(small: SmallNightly) -> None:
    run_until(small, 5)
    run(small, 6, 29.0)
    assert look(small, 6) == (ExitCode.REGRESSED, [f"2026-11-06: regressed, {PSNR}: -20 margins off."])
    run(small, 7)
    code, lines = look(small, 7)
    assert (code, len(lines)) == (ExitCode.DONE, 1)


def test_missed_wins_over_regressed_and_a_failed_night_is_exit_code_1(small: SmallNightly) -> None:
    run_until(small, 5)
    small.measure.set_evaluator(fails="no disk")
    with pytest.raises(RuntimeError):
        run(small, 6)
    assert look(small, 6) == (ExitCode.BUG, ["2026-11-06: failed, RuntimeError: no disk"])
    small.measure.set_evaluator()
    run(small, 7, 29.0)
    assert look(small, 7)[0] == ExitCode.REGRESSED
    assert look(small, 8)[0] == ExitCode.MISSED


def test_who_may_only_read_can_still_look(tmp_path: Path) -> None:
    sink = {"log": {"kind": "file", "path": str(tmp_path / "alerts.jsonl")}}
    reader = SmallNightly(tmp_path, root="memory://read-only", alerts=sink)
    history = History("memory://read-only", "small")

    def refuse(*_: object) -> bool:
        raise PermissionError(13, "no writing here")

    history.put = refuse  # pyright: ignore[reportAttributeAccessIssue]  # as a bucket's policy does
    code = check(Session(reader.spec, reader.at("2026-11-03").nightly, history), 14)
    assert code == ExitCode.MISSED
    assert reader.lines[-1].startswith("alerts cannot be sent from here: PermissionError: ")


def test_an_accepted_night_is_the_reference_of_later_ones(small: SmallNightly) -> None:
    run_until(small, 5)
    small.measure.set_evaluator(offset=-1.0)
    run(small, 6)
    assert look(small, 6)[0] == ExitCode.BUG
    accept(session(small), None, Person("eva", "SciPy 1.18"))
    assert look(small, 6)[0] == ExitCode.DONE
    assert run(small, 7) == ExitCode.DONE
    found = session(small).read().files("2026-11-07").verdict(RULES)
    assert found is not None
    assert (found.state, found.reference, found.baseline) == ("ok", "2026-11-06", 1)
    assert run(small, 8, 29.0) == ExitCode.REGRESSED
    [(number, baseline)] = session(small).read().baselines
    assert (number, baseline.who, baseline.reason, sorted(baseline.evaluations)) == (
        1,
        "eva",
        "SciPy 1.18",
        ["canary", "model"],
    )


def test_nights_of_an_evaluator_that_nobody_accepted_are_in_no_trend(small: SmallNightly) -> None:
    run(small, 2)
    small.measure.set_evaluator(offset=-1.0)
    run(small, 3)
    run(small, 4)
    small.measure.set_evaluator()
    for day in (5, 6):
        run(small, day)
    assert run(small, 7, 29.5) == ExitCode.REGRESSED


def test_baselines_are_numbered_and_the_newest_up_to_a_night_counts(small: SmallNightly) -> None:
    run_until(small, 4)
    accept(session(small), "2026-11-04", EVA)
    accept(session(small), "2026-11-03", EVA)
    run(small, 5)
    found = session(small).read().files("2026-11-05").verdict(RULES)
    assert found is not None
    assert (found.reference, found.baseline) == ("2026-11-03", 2)


def test_a_night_that_is_not_whole_or_not_there_cannot_be_accepted(small: SmallNightly) -> None:
    with pytest.raises(UserError, match="no night of small was measured"):
        accept(session(small), None, EVA)
    run(small, 2)
    with pytest.raises(UserError, match="the night 2026-11-03 of small was not measured"):
        accept(session(small), "2026-11-03", EVA)
    (small.models / "model/values.json").write_text(json.dumps({"ssim": 0.9}))
    run_night(session(small.at("2026-11-03")))
    with pytest.raises(UserError, match="without model/heldout/plain/psnr: accept a night that is whole"):
        accept(session(small), "2026-11-03", EVA)


def test_an_acknowledged_step_is_settled_and_begins_a_new_trend(small: SmallNightly) -> None:
    run_until(small, 5)
    run(small, 6, 29.0)
    acknowledge(session(small), "heldout/plain/psnr", "2026-11-06", EVA)
    assert look(small, 6)[0] == ExitCode.DONE
    assert run(small, 7, 29.0) == ExitCode.DONE
    with pytest.raises(UserError, match=rf"{PSNR} of 2026-11-06 is acknowledged by eva: a reason"):
        acknowledge(session(small), PSNR, "2026-11-06", EVA)


def test_an_acknowledged_step_does_not_cover_the_next_one(small: SmallNightly) -> None:
    run_until(small, 5)
    run(small, 6, 29.0)
    acknowledge(session(small), PSNR, "2026-11-06", EVA)
    for day in (7, 8, 9):
        assert run(small, day, 29.0) == ExitCode.DONE
    assert run(small, 10, 28.0) == ExitCode.REGRESSED


def test_a_baseline_is_no_reference_of_nights_before_it(small: SmallNightly) -> None:
    run(small, 2)
    run(small, 4)
    accept(session(small), "2026-11-04", EVA)
    backfill(session(small), "2026-11-03", "2026-11-03")
    found = session(small).read().files("2026-11-03").verdict(RULES)
    assert found is not None
    assert (found.reference, found.baseline) == (FIRST, None)


def test_the_chart_gets_the_pinned_value_and_the_nights_that_people_know_of(small: SmallNightly) -> None:
    given: list[tuple[object, ...]] = []
    judge = small.nightly.chart.judge

    def noting(*arguments: object) -> object:
        given.append(arguments[4:])
        return judge(*arguments)  # pyright: ignore[reportArgumentType]

    run_until(small, 4)
    acknowledge(session(small), PSNR, "2026-11-03", EVA)
    accept(session(small), "2026-11-04", EVA)
    chart = small.nightly.chart._replace(judge=noting)  # pyright: ignore[reportArgumentType]
    small.at("2026-11-05")
    run_night(Session(small.spec, small.nightly._replace(chart=chart)))
    primary, further = given
    assert primary == (30.0, {"2026-11-03", "2026-11-04"})
    assert further == (), "people decide nothing about metrics that do not alarm"


def test_a_series_that_is_not_primary_cannot_be_acknowledged(small: SmallNightly) -> None:
    run(small, 2)
    with pytest.raises(
        UserError, match=rf"'heldout/plain/psnt' is no primary series of small: did you mean {PSNR}"
    ):
        acknowledge(session(small), "heldout/plain/psnt", FIRST, EVA)


def test_a_pause_is_no_miss_and_a_run_in_it_does_nothing(small: SmallNightly) -> None:
    pause(session(small), date(2026, 11, 2), date(2026, 11, 4), EVA)
    assert run(small, 3) == ExitCode.DONE
    assert small.measure.measured == []
    assert small.lines[-1] == "2026-11-03: paused, a reason (eva)"
    assert look(small, 4) == (ExitCode.DONE, ["small: nothing bad in 3 nights"])
    assert look(small, 5)[0] == ExitCode.MISSED
    with pytest.raises(UserError, match="a pause from 2026-11-02 to 2026-11-04 is there by eva"):
        pause(session(small), date(2026, 11, 2), date(2026, 11, 9), EVA)
    with pytest.raises(UserError, match="--from 2026-11-09 is after --to 2026-11-08: exchange them"):
        pause(session(small), date(2026, 11, 9), date(2026, 11, 8), EVA)


def test_a_backfill_measures_what_was_missed_and_nothing_else(small: SmallNightly) -> None:
    run(small, 2)
    small.at("2026-11-06", "12:00")
    assert state_names(small) == ["ok", "missed", "missed", "missed", "missed", "planned"]
    pause(session(small), date(2026, 11, 4), date(2026, 11, 4), EVA)
    small.measure.measured.clear()
    assert backfill(session(small), FIRST, "2026-11-05") == ExitCode.DONE
    assert [(night, subject) for night, _, subject in small.measure.measured] == [
        ("2026-11-03", "canary"),
        ("2026-11-03", "model"),
        ("2026-11-05", "canary"),
        ("2026-11-05", "model"),
    ]
    assert state_names(small) == ["ok", "ok", "paused", "ok", "missed", "planned"]
    night = session(small).read().files("2026-11-03").night
    assert night is not None
    assert (night.backfilled, night.finished_at[:10]) == (True, "2026-11-06")
    assert small.lines[-4:-1] == [
        f"{FIRST}: ok, nothing to do",
        small.lines[-3],
        "2026-11-04: paused, nothing to do",
    ]


def test_a_backfilled_night_is_never_measured_twice_and_tells_the_evaluation_so(small: SmallNightly) -> None:
    run_until(small, 5)
    write_model(small.models / "model", psnr=29.0)
    requests: list[bool] = []
    measure = small.measure

    def told(*given: object) -> object:
        requests.append(given[0].backfilled)  # pyright: ignore[reportAttributeAccessIssue]
        return measure(*given)  # pyright: ignore[reportArgumentType]

    small.at("2026-11-06", "12:00")
    nightly = small.nightly._replace(measure=told)  # pyright: ignore[reportArgumentType]
    backfill(Session(small.spec, nightly), "2026-11-06", "2026-11-06")
    assert requests == [True, True]
    assert state_names(small)[4] == "regressed"


def test_a_backfill_the_wrong_way_round_is_refused(small: SmallNightly) -> None:
    with pytest.raises(UserError, match="--from 2026-11-03 is after --to 2026-11-02: exchange them"):
        backfill(session(small), "2026-11-03", "2026-11-02")


def test_calibrating_stores_the_rules_under_the_name_that_the_spec_takes(small: SmallNightly) -> None:
    run_until(small, 4)
    run(small, 5, 29.0)
    acknowledge(session(small), PSNR, "2026-11-04", EVA)
    seen: list[str] = []

    def propose(histories: object) -> dict[str, float]:
        [(name, history)] = histories.items()  # pyright: ignore[reportAttributeAccessIssue]
        seen.append(name)
        return {"threshold": 7.5, "nights": len(history.points)}

    name = calibrate(session(small), propose)
    assert seen == [PSNR]
    history = History(small.spec.root, "small")
    assert stored_rules(history, name) == {"threshold": 7.5, "nights": 2}, "those since the step"
    assert small.lines[-1] == f"rules {name} are stored: set `ruleset: {name}` in the spec to judge by them"
    with pytest.raises(
        UserError, match=r"ruleset=bbbbbbbbbbbb is not in .*: run `dualtoken nightly calibrate`"
    ):
        stored_rules(history, "b" * 12)


def test_a_new_ruleset_writes_its_verdict_beside_the_old_one(small: SmallNightly) -> None:
    run_until(small, 3)
    chart = small.nightly.chart._replace(version="bbbbbbbbbbbb")
    small.at("2026-11-04")
    run_night(Session(small.spec, small.nightly._replace(chart=chart)))
    assert sorted(session(small).read().files(FIRST).verdicts) == [RULES]
    assert sorted(session(small).read().files("2026-11-04").verdicts) == ["bbbbbbbbbbbb"]


def test_the_table_of_a_history_is_made_from_the_rest(small: SmallNightly) -> None:
    run_until(small, 3)
    file = Path(small.spec.root) / "nightly/small/history.parquet"
    rows = pq.read_table(file).to_pylist()
    assert len(rows) == 2 * 2 * 2
    assert {row["state"] for row in rows} == {"ok"}
    assert [row["series_state"] for row in rows if row["series"] == "heldout/plain/psnr"] == [
        None,
        "too_few",
        None,
        "too_few",
    ]
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + b"x")
    run_night(session(small))
    assert file.read_bytes() == whole
