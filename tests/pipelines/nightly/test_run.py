"""A night from its lease to its verdict: measured fresh, once more before an alarm, and by one run alone."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dualtoken.infra.storage import Store
from dualtoken.pipelines.errors import ExitCode, UserError
from dualtoken.pipelines.nightly.decisions import Person, accept
from dualtoken.pipelines.nightly.history import History, Snapshot
from dualtoken.pipelines.nightly.records import VerdictRecord
from dualtoken.pipelines.nightly.run import run_night
from dualtoken.pipelines.nightly.session import Session
from dualtoken.pipelines.nightly.states import NightState, night_states
from tests.helpers.nights import FIRST, PSNR, RULES, SmallNightly, write_model
from tests.helpers.s3_servers import s3_server
from tests.helpers.tiny_run import PROJECT


@pytest.fixture
def small(tmp_path: Path) -> SmallNightly:
    return SmallNightly(tmp_path)


def run(small: SmallNightly, night: str, time: str = "01:00") -> ExitCode:
    small.at(night, time)
    return run_night(Session(small.spec, small.nightly))


def run_until(small: SmallNightly, last: int) -> None:
    """Run the nights of November from the first on."""
    for day in range(2, last + 1):
        run(small, f"2026-11-{day:02d}")


def read(small: SmallNightly) -> Snapshot:
    return History(small.spec.root, "small").read()


def states(small: SmallNightly) -> dict[str, NightState]:
    return {state.night: state for state in night_states(read(small), small.clock(), RULES)}


def verdict(small: SmallNightly, night: str) -> VerdictRecord:
    found = read(small).files(night).verdict(RULES)
    assert found is not None
    return found


def test_a_model_that_stays_is_ok_and_one_that_loses_has_regressed(small: SmallNightly) -> None:
    run_until(small, 5)
    write_model(small.models / "model", psnr=29.5)
    assert run(small, "2026-11-06") == ExitCode.REGRESSED
    assert [state.state for state in states(small).values()] == ["ok"] * 4 + ["regressed", "planned"]
    assert small.lines[-1] == f"2026-11-06: regressed, {PSNR}: -10 margins off."
    write_model(small.models / "model", psnr=30.5)
    assert run(small, "2026-11-07") == ExitCode.DONE
    assert states(small)["2026-11-07"].state == "improved"


def test_a_night_that_looks_bad_is_measured_once_more_and_no_other_is(small: SmallNightly) -> None:
    run_until(small, 5)
    write_model(small.models / "model", psnr=29.87)
    run(small, "2026-11-06")
    assert [
        (night[-2:], attempt) for night, attempt, subject in small.measure.measured if subject == "model"
    ] == [
        ("02", "0001"),
        ("03", "0001"),
        ("04", "0001"),
        ("05", "0001"),
        ("06", "0001"),
        ("06", "0001-again"),
    ]
    found = verdict(small, "2026-11-06")
    assert found.state == "suspected"
    assert found.confirmation is not None
    assert (found.confirmation.attempt, found.confirmation.differing) == ("0001-again", ())


def test_two_measurements_that_differ_accuse_the_evaluator_and_not_the_model(small: SmallNightly) -> None:
    run_until(small, 5)
    write_model(small.models / "model", psnr=29.5)
    small.measure.set_evaluator(unstable=1e-9)
    assert run(small, "2026-11-06") == ExitCode.BUG
    found = verdict(small, "2026-11-06")
    assert found.state == "evaluator-changed"
    assert found.reason.startswith(
        "measured twice, canary, model came out differently; first: model/heldout/"
    )


def test_weights_overwritten_under_one_path_are_measured_anew(small: SmallNightly) -> None:
    run_until(small, 3)
    write_model(small.models / "model", psnr=31.0)
    run(small, "2026-11-04")
    nights = [files.night for files in read(small).nights.values()]
    values = [night.subjects["model"].values["heldout/plain/psnr"].value for night in nights if night]
    assert values == [30.0, 30.0, 31.0]
    assert len({night.subjects["model"].digest for night in nights if night}) == 2


def test_another_bit_of_the_canary_is_an_evaluator_that_changed_until_a_person_accepts(
    small: SmallNightly,
) -> None:
    run_until(small, 5)
    small.measure.set_evaluator(offset=-1.0, scipy="1.18")
    assert run(small, "2026-11-06") == ExitCode.BUG
    assert run(small, "2026-11-07") == ExitCode.BUG
    found = verdict(small, "2026-11-07")
    assert (found.state, found.series) == ("evaluator-changed", {})
    assert found.reason == (
        f"the canary scores otherwise than on {FIRST}, in heldout/plain/psnr, heldout/plain/ssim"
    )
    assert found.changes == ("scipy: 1.17 to 1.18",)
    assert "    scipy: 1.17 to 1.18" in small.lines


OCR = {"rapidocr": "3.10.0", "rapidocr/det.onnx": "0123456789ab", "onnxruntime": "1.32.0"}


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"rapidocr": "3.11.0"}, "rapidocr 3.10.0 to 3.11.0"),
        ({"onnxruntime": "1.33.0"}, "onnxruntime 1.32.0 to 1.33.0"),
        ({"rapidocr/det.onnx": "ba9876543210"}, "rapidocr/det.onnx 0123456789ab to ba9876543210"),
    ],
)
def test_another_reader_of_text_is_an_evaluator_that_changed_though_no_bit_of_the_canary_did(
    changed: dict[str, str], told: str, small: SmallNightly
) -> None:
    small.measure.set_evaluator(packages=OCR)
    run_until(small, 5)
    small.measure.set_evaluator(packages=OCR | changed)
    write_model(small.models / "model", psnr=29.5)
    assert run(small, "2026-11-06") == ExitCode.BUG
    found = verdict(small, "2026-11-06")
    assert (found.state, found.series) == ("evaluator-changed", {})
    assert found.reason == f"text is read otherwise than on {FIRST}: {told}"
    person = Person("eva", "an upgrade")
    accept(Session(small.spec, small.nightly), None, person)
    assert run(small, "2026-11-07") == ExitCode.DONE


def test_a_protocol_that_begins_to_read_text_is_no_other_evaluator(small: SmallNightly) -> None:
    run_until(small, 5)
    small.measure.set_evaluator(packages=OCR)
    assert run(small, "2026-11-06") == ExitCode.DONE


def test_another_protocol_is_incomparable_and_its_field_is_named(small: SmallNightly) -> None:
    run_until(small, 5)
    small.measure.set_evaluator(resolution=32)
    assert run(small, "2026-11-06") == ExitCode.BUG
    found = verdict(small, "2026-11-06")
    assert found.state == "incomparable"
    assert found.reason == f"the protocol plain changed in resolution 64 to 32 (since {FIRST})"


@pytest.mark.parametrize(("strict", "state"), [(True, "incomparable"), (False, "ok")])
def test_a_note_makes_a_night_incomparable_where_the_spec_is_strict(
    strict: bool, state: str, tmp_path: Path
) -> None:
    small = SmallNightly(tmp_path, strict=strict)
    run_until(small, 5)
    small.measure.set_evaluator(notes=["batch halved"])
    run(small, "2026-11-06")
    found = verdict(small, "2026-11-06")
    assert found.state == state
    if strict:
        assert found.reason == "model: batch halved"
    # Its numbers are in no trend, and it is nobody's reference.
    small.measure.set_evaluator()
    run(small, "2026-11-07")
    assert verdict(small, "2026-11-07").reference == FIRST


@pytest.mark.parametrize("lost", ["gone", "nan"])
def test_a_primary_series_that_is_missing_or_no_number_leaves_the_night_incomplete(
    lost: str, small: SmallNightly
) -> None:
    run_until(small, 3)
    file = small.models / "model/values.json"
    file.write_text(json.dumps({"ssim": 0.9} if lost == "gone" else {"psnr": float("nan"), "ssim": 0.9}))
    assert run(small, "2026-11-04") == ExitCode.BUG
    found = verdict(small, "2026-11-04")
    assert (found.state, found.reason) == ("incomplete", "without model/heldout/plain/psnr")


def test_a_measurement_that_fails_leaves_its_reason_and_the_next_run_tries_again(small: SmallNightly) -> None:
    small.measure.set_evaluator(fails="no disk\nleft at https://user:secret@host/x")
    with pytest.raises(RuntimeError):
        run(small, FIRST)
    state = states(small)[FIRST]
    assert (state.state, state.reason) == ("failed", "RuntimeError: no disk left at https://host/x")
    small.measure.set_evaluator()
    assert run(small, FIRST, "03:00") == ExitCode.DONE
    assert list(read(small).files(FIRST).attempts) == ["0001", "0002"]
    assert states(small)[FIRST].state == "ok"


def test_a_night_is_begun_until_shortly_before_its_deadline_and_missed_after(small: SmallNightly) -> None:
    assert run(small, FIRST, "06:46") == ExitCode.MISSED
    assert small.measure.measured == []
    assert small.lines == [
        f"{FIRST}: could be begun until {FIRST} 06:45 UTC; measure it by `nightly backfill --from {FIRST}`"
    ]
    assert run(small, FIRST, "06:45") == ExitCode.DONE


def test_before_the_first_night_there_is_nothing_to_do(small: SmallNightly) -> None:
    assert run(small, "2026-11-01") == ExitCode.DONE
    assert small.lines == [f"no night has started yet: the first is {FIRST}"]


def test_a_night_that_has_not_started_cannot_be_named(small: SmallNightly) -> None:
    small.at(FIRST)
    with pytest.raises(UserError, match="2026-11-03 is no night of small that has started"):
        run_night(Session(small.spec, small.nightly), "2026-11-03")


def test_a_night_that_was_measured_is_not_measured_again_after_its_lease(tmp_path: Path) -> None:
    small = SmallNightly(tmp_path, schedule={"lease_hours": 1})
    run(small, FIRST)
    assert run(small, FIRST, "05:00") == ExitCode.DONE
    assert list(read(small).files(FIRST).attempts) == ["0001"]


def test_a_live_lease_is_left_alone_and_a_stale_one_taken_over(tmp_path: Path) -> None:
    small = SmallNightly(tmp_path, schedule={"lease_hours": 2})
    run(small, FIRST)
    store = History(small.spec.root, "small").store
    name = f"nights/{FIRST}/attempts/0001/started.json"
    record: dict[str, Any] = json.loads(store.read(name))
    store.remove(f"nights/{FIRST}/night.json")
    store.remove(f"nights/{FIRST}/verdict-{RULES}.json")
    store.put_bytes(json.dumps(record | {"host": "elsewhere", "pid": 7}).encode(), name)
    run(small, FIRST, "03:14")
    assert small.lines[-1] == f"{FIRST}: another run (process 7 on elsewhere) is at work on it"
    assert states(small)[FIRST].state == "running"
    small.clock.pass_(minutes=2)
    assert states(small)[FIRST].state == "failed"
    run_night(Session(small.spec, small.nightly))
    files = read(small).files(FIRST)
    assert files.night is not None
    assert files.night.attempt == "0002"
    failed = files.attempts["0001"].failed
    assert failed is not None
    assert (
        failed.reason
        == f"process 7 on elsewhere began it at {FIRST}T01:00:00.000+00:00, and ended without a word"
    )


def test_of_two_attempts_that_both_end_the_first_one_has_the_night(small: SmallNightly) -> None:
    winner: list[bytes] = []
    measure = small.measure

    def slow(*given: Any) -> Any:
        """Be overtaken by another run, which takes this one for dead."""
        summary = measure(*given)
        if given[0].name == "model" and not winner:
            winner.append(b"")
            store = History(small.spec.root, "small").store
            other = SmallNightly(Path(small.spec.root).parent).at(FIRST, "01:30")
            name = f"nights/{FIRST}/attempts/0001/started.json"
            store.put_bytes(store.read(name).replace(b'"pid": ', b'"pid": 999999'), name)
            run_night(Session(other.spec, other.nightly))
            winner[0] = store.read(f"nights/{FIRST}/night.json")
        return summary

    small.at(FIRST)
    run_night(Session(small.spec, small.nightly._replace(measure=slow)))
    night = read(small).files(FIRST).night
    assert night is not None
    assert night.attempt == "0002"
    assert History(small.spec.root, "small").store.read(f"nights/{FIRST}/night.json") == winner[0]
    assert f"{FIRST}: another attempt was complete first, its numbers stay" in small.lines


def test_an_evaluation_without_score_tables_is_no_night(small: SmallNightly) -> None:
    measure = small.measure

    def bare(*given: Any) -> Any:
        summary = measure(*given)
        given[1].remove(f"{summary.results[0].scores}/00000.parquet")
        return summary

    small.at(FIRST)
    with pytest.raises(FileNotFoundError, match=f"scores/heldout/plain/{FIRST}-0001 has no score tables"):
        run_night(Session(small.spec, small.nightly._replace(measure=bare)))
    assert states(small)[FIRST].state == "failed"


RUNNER = """
import sys
from pathlib import Path
from dualtoken.pipelines.nightly.run import run_night
from dualtoken.pipelines.nightly.session import Session
from tests.helpers.nights import SmallNightly, write_model
folder, root, night = sys.argv[1:]
alerts = {"log": {"kind": "file", "path": folder + "/alerts.jsonl"}}
small = SmallNightly(Path(folder), root, alerts=alerts).at(night)
write_model(small.models / "model", psnr=29.0)
print("ready", flush=True)
sys.stdin.readline()
code = run_night(Session(small.spec, small.nightly))
print(f"measured {len(small.measure.measured)}", *small.lines, sep="\\n", flush=True)
"""


def start(folder: Path, root: str, night: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", RUNNER, str(folder), root, night],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=PROJECT,
    )


def together(folder: Path, root: str, night: str, number: int) -> list[str]:
    """Run a night by so many processes at the same moment, and return what each printed."""
    processes = [start(folder, root, night) for _ in range(number)]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    printed = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * number
    return printed


def test_eight_runs_at_once_give_one_night_and_one_alert(tmp_path: Path) -> None:
    run_until(SmallNightly(tmp_path), 5)
    _eight_at_once(tmp_path, str(tmp_path / "root"))


def test_eight_runs_at_once_on_s3_give_one_night_and_one_alert(tmp_path: Path) -> None:
    with s3_server("moto", tmp_path / "s3") as url:
        run_until(SmallNightly(tmp_path, f"{url}/root"), 5)
        _eight_at_once(tmp_path, f"{url}/root")


def test_eight_runs_at_once_on_a_store_without_conditional_puts_give_one_night_and_one_alert(
    tmp_path: Path,
) -> None:
    served = tmp_path / "s3"
    served.mkdir()
    with s3_server("rclone", served) as url:
        run_until(SmallNightly(tmp_path, str(served / "test/root")), 5)
        _eight_at_once(tmp_path, f"{url}/root")
        assert list(Store(f"{url}/root/nightly/small").files("bids")) == []


def _eight_at_once(folder: Path, root: str) -> None:
    """Run a night that has regressed, after those until the fifth."""
    printed = together(folder, root, "2026-11-06", 8)
    # Both subjects, twice, by one process; the others measure nothing.
    assert sorted(text.splitlines()[0] for text in printed) == ["measured 0"] * 7 + ["measured 4"]
    store = Store(f"{root}/nightly/small")
    names = [name.removeprefix("nights/2026-11-06/") for name, _ in store.files("nights/2026-11-06")]
    assert names == [
        "alerts/regressed-onset-log.json",
        "alerts/regressed-onset-log.sending-1.json",
        "attempts/0001-again/started.json",
        "attempts/0001/started.json",
        f"details-{RULES}.json",
        "night.json",
        f"verdict-{RULES}.json",
    ]
    [line] = (folder / "alerts.jsonl").read_text().splitlines()
    assert json.loads(line)["key"] == "small/2026-11-06/regressed-onset"


def test_a_store_that_ignores_conditional_puts_is_named_and_a_night_comes_whole(tmp_path: Path) -> None:
    with s3_server("rclone", tmp_path) as url:
        small = SmallNightly(tmp_path, f"{url}/root")
        run(small, FIRST)
        assert small.lines[0] == (
            f"{url}/root/nightly/small ignores If-None-Match: a run waits 5 s before it has a night, "
            "and before it sends an alert, so that two at once see each other"
        )
        assert states(small)[FIRST].state == "ok"


def test_a_first_night_with_notes_is_nobodys_reference(small: SmallNightly) -> None:
    small.measure.set_evaluator(notes=["batch halved"])
    run(small, FIRST)
    small.measure.set_evaluator()
    run(small, "2026-11-03")
    run(small, "2026-11-04")
    assert verdict(small, "2026-11-04").reference == "2026-11-03"
