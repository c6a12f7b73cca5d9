"""People are told once of an onset and once of its end, by each sink, whatever a sink does."""

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dualtoken.pipelines.errors import ExitCode
from dualtoken.pipelines.nightly import sinks
from dualtoken.pipelines.nightly.backfill import backfill
from dualtoken.pipelines.nightly.check import check
from dualtoken.pipelines.nightly.decisions import Person, acknowledge
from dualtoken.pipelines.nightly.run import run_night
from dualtoken.pipelines.nightly.session import Session
from tests.helpers.nights import FIRST, PSNR, SmallNightly, write_model
from tests.helpers.scripted_server import Served, in_turn, reply, serving
from tests.helpers.waiting import wait_until

PERSON = Person("eva", "known")


def hook(served: Served, **changes: Any) -> dict[str, Any]:
    values = {"kind": "webhook", "url": f"{served.base}/hook?token=1", "allow_private_addresses": True}
    return {"hook": values | {"retries": 0} | changes}


def log(folder: Path) -> dict[str, Any]:
    return {"log": {"kind": "file", "path": str(folder / "alerts.jsonl")}}


def told(folder: Path) -> list[str]:
    file = folder / "alerts.jsonl"
    if not file.exists():
        return []
    return ["/".join(json.loads(line)["key"].split("/")[1:]) for line in file.read_text().splitlines()]


def session(small: SmallNightly) -> Session:
    return Session(small.spec, small.nightly)


def run(small: SmallNightly, day: int, psnr: float = 30.0) -> ExitCode:
    write_model(small.models / "model", psnr=psnr)
    return run_night(session(small.at(f"2026-11-{day:02d}")))


def run_until(small: SmallNightly, last: int) -> None:
    for day in range(2, last + 1):
        run(small, day)


def look(small: SmallNightly, day: int, time: str = "12:00") -> ExitCode:
    return check(session(small.at(f"2026-11-{day:02d}", time)), 14)


def test_one_message_comes_at_the_onset_and_one_at_the_end(tmp_path: Path) -> None:
    small = SmallNightly(tmp_path, alerts=log(tmp_path))
    run_until(small, 5)
    for day, psnr in ((6, 29.0), (7, 29.0), (8, 30.0), (9, 29.87), (10, 30.0), (11, 29.0)):
        run(small, day, psnr)
        look(small, day)
    assert told(tmp_path) == [
        "2026-11-06/regressed-onset",
        "2026-11-08/regressed-over",
        "2026-11-11/regressed-onset",
    ]
    event = json.loads((tmp_path / "alerts.jsonl").read_text().splitlines()[0])
    assert event == {
        "key": "small/2026-11-06/regressed-onset",
        "nightly": "small",
        "night": "2026-11-06",
        "event": "regressed-onset",
        "state": "regressed",
        "series": [PSNR],
        "text": f"small, night 2026-11-06: regressed: {PSNR}: -20 margins off.",
    }


def test_a_second_series_is_told_when_it_joins_the_first(tmp_path: Path) -> None:
    primary = ["heldout/plain/psnr", "heldout/plain/ssim"]
    small = SmallNightly(tmp_path, alerts=log(tmp_path), primary=primary)
    run_until(small, 5)
    run(small, 6, 29.0)
    write_model(small.models / "model", psnr=29.0, ssim=0.1)
    run_night(session(small.at("2026-11-07")))
    events = [json.loads(line) for line in (tmp_path / "alerts.jsonl").read_text().splitlines()]
    assert [event["series"] for event in events] == [[PSNR], ["model/heldout/plain/ssim"]]


def test_missed_nights_are_told_once_and_their_end_once(tmp_path: Path) -> None:
    small = SmallNightly(tmp_path, alerts=log(tmp_path))
    run(small, 2)
    for day in (3, 4, 5):
        assert look(small, day) == ExitCode.MISSED
    assert run(small, 6) == ExitCode.DONE
    assert told(tmp_path) == ["2026-11-03/missed-onset", "2026-11-06/missed-over"]


def test_a_missed_night_that_is_backfilled_ends_it_and_raises_no_alarm_itself(tmp_path: Path) -> None:
    small = SmallNightly(tmp_path, alerts=log(tmp_path))
    run_until(small, 5)
    look(small, 6)
    write_model(small.models / "model", psnr=29.0)
    backfill(session(small), "2026-11-06", "2026-11-06")
    assert told(tmp_path) == ["2026-11-06/missed-onset"]
    look(small, 6)
    assert told(tmp_path) == ["2026-11-06/missed-onset", "2026-11-06/missed-over"]


def test_alarms_of_models_are_held_while_the_evaluator_is_not_what_it_was(tmp_path: Path) -> None:
    small = SmallNightly(tmp_path, alerts=log(tmp_path))
    run_until(small, 5)
    small.measure.set_evaluator(offset=-1.0)
    run(small, 6)
    run(small, 7)
    assert told(tmp_path) == ["2026-11-06/evaluator-changed-onset"]


def test_a_failed_night_is_told(tmp_path: Path) -> None:
    small = SmallNightly(tmp_path, alerts=log(tmp_path))
    small.measure.set_evaluator(fails="no disk")
    with pytest.raises(RuntimeError):
        run(small, 2)
    assert told(tmp_path) == [f"{FIRST}/failed-onset"]


def test_what_a_person_acknowledged_alarms_no_more_and_its_end_is_no_news(tmp_path: Path) -> None:
    small = SmallNightly(tmp_path, alerts=log(tmp_path))
    run_until(small, 5)
    run(small, 6, 29.0)
    acknowledge(session(small), PSNR, "2026-11-06", PERSON)
    assert look(small, 6) == ExitCode.DONE
    for day in (7, 8, 9, 10):
        assert run(small, day, 29.0) == ExitCode.DONE
    assert told(tmp_path) == ["2026-11-06/regressed-onset"]


def test_a_webhook_gets_the_event_with_its_key_and_the_secret_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOOK_SECRET", "Bearer s3cret")
    with serving(reply(status="204 No Content")) as served:
        small = SmallNightly(tmp_path, alerts=hook(served, secret="HOOK_SECRET"))
        look(small, 2)
        look(small, 3)
        [head] = served.requests
    assert head.startswith("POST /hook?token=1 HTTP/1.1")
    assert "Idempotency-Key: small/2026-11-02/missed-onset" in head
    assert "Authorization: Bearer s3cret" in head
    history = b"".join(file.read_bytes() for file in (tmp_path / "root").rglob("*.json"))
    assert b"s3cret" not in history


def hang(connection: socket.socket, _head: str, _number: int) -> None:
    connection.recv(1 << 20)
    connection.recv(1 << 20)


FAULTS: dict[str, tuple[Callable[..., None], str]] = {
    "500": (reply(status="500 Oops"), "the server answers 500"),
    "404": (reply(status="404 Not Found"), "the server answers 404"),
    "redirect": (reply(status="302 Found", Location="http://127.0.0.1:1/"), "the server answers 302"),
    "hangs": (hang, "no answer within 0.3 s"),
    "no HTTP": (lambda connection, _head, _number: connection.sendall(b"?\r\n\r\n"), "Bad"),
    "hangs up": (lambda connection, _head, _number: connection.close(), "ServerDisconnectedError"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_webhook_that_fails_costs_one_line_and_the_next_command_tries_again(
    fault: str, tmp_path: Path
) -> None:
    answer, reason = FAULTS[fault]
    with serving(in_turn(answer, reply())) as served:
        small = SmallNightly(tmp_path, alerts=hook(served, timeout_seconds=0.3) | log(tmp_path))
        assert look(small, 2) == ExitCode.MISSED
        [line] = [line for line in small.lines if "not sent" in line]
        assert line.startswith("2026-11-02: missed-onset was not sent to hook, ")
        assert reason in line
        assert line.endswith("; the next command tries again")
        assert told(tmp_path) == ["2026-11-02/missed-onset"], "the other sink is told"
        for _ in range(2):
            look(small, 2)
        assert len(served.requests) == 2
    names = sorted(file.name for file in (tmp_path / "root").rglob("alerts/*hook*"))
    assert names == [
        "missed-onset-hook.json",
        "missed-onset-hook.sending-1.json",
        "missed-onset-hook.sending-2.json",
        "missed-onset-hook.unsent-1.json",
    ]


def test_a_webhook_is_tried_again_at_once_as_often_as_its_spec_says(tmp_path: Path) -> None:
    with serving(in_turn(reply(status="503 Busy"), reply(status="503 Busy"), reply())) as served:
        small = SmallNightly(tmp_path, alerts=hook(served, retries=2))
        look(small, 2)
        assert len(served.requests) == 3
    assert not [line for line in small.lines if "not sent" in line]


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "169.254.169.254", "10.0.0.1"])
def test_a_webhook_inside_is_refused_unless_the_spec_means_it(host: str, tmp_path: Path) -> None:
    with serving(reply()) as served:
        port = served.base.rpartition(":")[2]
        sink = {"kind": "webhook", "url": f"http://{host}:{port}/", "retries": 0}
        small = SmallNightly(tmp_path, alerts={"hook": sink})
        look(small, 2)
        assert served.requests == []
    [line] = [line for line in small.lines if "not sent" in line]
    assert "no public address: set allow_private_addresses, if you mean it" in line


def test_a_secret_that_is_not_set_is_named(tmp_path: Path) -> None:
    with serving(reply()) as served:
        small = SmallNightly(tmp_path, alerts=hook(served, secret="NO_SUCH_SECRET"))
        look(small, 2)
        assert served.requests == []
    assert "the environment variable NO_SUCH_SECRET of its secret is not set" in small.lines[-1]


def test_a_command_gets_the_event_on_its_input(tmp_path: Path) -> None:
    out = tmp_path / "got.json"
    small = SmallNightly(
        tmp_path, alerts={"mail": {"kind": "command", "command": ["sh", "-c", f"cat > {out}"]}}
    )
    look(small, 2)
    assert json.loads(out.read_text())["key"] == "small/2026-11-02/missed-onset"


COMMANDS = {
    "fails": (
        ["sh", "-c", "echo first >&2; echo no mail today >&2; exit 3"],
        "sh ended with 3: no mail today",
    ),
    "is missing": (["/nowhere/mail"], "/nowhere/mail cannot be started: No such file or directory"),
    "hangs": (["sh", "-c", "echo $$ > PID; sleep 600 & sleep 600"], "sh did not end within 0.3 s"),
    "reads nothing": (["true"], None),
}


@pytest.mark.parametrize("kind", COMMANDS)
def test_a_command_that_fails_costs_one_line(kind: str, tmp_path: Path) -> None:
    command, reason = COMMANDS[kind]
    command = [part.replace("PID", str(tmp_path / "pid")) for part in command]
    sink = {"kind": "command", "command": command, "timeout_seconds": 0.3}
    small = SmallNightly(tmp_path, alerts={"mail": sink})
    assert look(small, 2) == ExitCode.MISSED
    lines = [line for line in small.lines if "not sent" in line]
    assert [line.partition("to mail, ")[2].partition(";")[0] for line in lines] == (
        [reason] if reason else []
    )
    if kind == "hangs":  # what it had started ends with it
        group = int((tmp_path / "pid").read_text())
        wait_until(lambda: not is_group(group), seconds=10)


def is_group(group: int) -> bool:
    """Tell whether a process of a group lives; the one that was killed may still wait to be reaped."""
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == group and fields[0] != "Z":
            return True
    return False


def test_a_file_behind_a_line_cut_short_gets_a_whole_one_and_no_event_twice(tmp_path: Path) -> None:
    file = tmp_path / "deep/alerts.jsonl"
    small = SmallNightly(tmp_path, alerts={"log": {"kind": "file", "path": str(file)}})
    sink = small.spec.alerts["log"]
    file.parent.mkdir()
    file.write_text('{"key": "a"}\n{"key": "cut')
    for key in ("a", "b", "b"):
        sinks.send(sink, {"key": key})
    assert file.read_text().splitlines() == ['{"key": "a"}', '{"key": "cut', '{"key": "b"}']


def sending(small: SmallNightly, **changes: Any) -> Path:
    """Leave what a process leaves that was killed while it sent, and return the file."""
    look(small, 2)
    [file] = (tmp := Path(small.spec.root)).rglob("missed-onset-log.sending-1.json")
    [sent] = tmp.rglob("missed-onset-log.json")
    sent.unlink()
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return file


def test_who_died_while_sending_is_replaced_and_who_lives_is_left_alone(tmp_path: Path) -> None:
    small = SmallNightly(tmp_path, alerts=log(tmp_path))
    sending(small, host="elsewhere")
    (tmp_path / "alerts.jsonl").unlink()
    look(small, 2)
    assert told(tmp_path) == []
    look(small, 2, "12:46")
    assert told(tmp_path) == ["2026-11-02/missed-onset"]


def test_a_process_of_this_machine_that_is_gone_is_replaced_at_once(tmp_path: Path) -> None:
    small = SmallNightly(tmp_path, alerts=log(tmp_path))
    sending(small, pid=2**22 + 1)
    (tmp_path / "alerts.jsonl").unlink()
    look(small, 2)
    assert told(tmp_path) == ["2026-11-02/missed-onset"]
    assert os.getpid() < 2**22 + 1


def test_events_older_than_a_week_are_no_news(tmp_path: Path) -> None:
    quiet = SmallNightly(tmp_path)
    run(quiet, 2)
    small = SmallNightly(tmp_path, alerts=log(tmp_path))
    look(small, 12)
    assert told(tmp_path) == []
    run(small, 13)
    assert told(tmp_path) == ["2026-11-13/missed-over"]
