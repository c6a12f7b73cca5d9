"""Who expects a call each night gets one from every night that is finished, and from no other."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from dualtoken.pipelines.errors import ExitCode
from dualtoken.pipelines.nightly.run import run_night
from dualtoken.pipelines.nightly.session import Session
from tests.helpers.nights import FIRST, SmallNightly
from tests.helpers.scripted_server import Served, reply, serving


def run(small: SmallNightly, night: str = FIRST) -> ExitCode:
    return run_night(Session(small.spec, small.at(night).nightly))


def hook(served: Served, **changes: Any) -> dict[str, Any]:
    values = {"kind": "webhook", "url": f"{served.base}/ping/uuid", "retries": 0}
    return values | {"allow_private_addresses": True} | changes


def test_a_finished_night_is_called_for_with_its_key(tmp_path: Path) -> None:
    with serving(reply()) as served:
        assert run(SmallNightly(tmp_path, ping=hook(served))) == ExitCode.DONE
        [head] = served.requests
    assert head.startswith("POST /ping/uuid HTTP/1.1")
    assert f"Idempotency-Key: small/{FIRST}/finished" in head


def test_a_run_that_finds_its_night_finished_calls_too(tmp_path: Path) -> None:
    with serving(reply()) as served:
        small = SmallNightly(tmp_path, ping=hook(served))
        run(small)
        run(small)
        assert len(served.requests) == 2


def test_a_night_that_fails_is_not_called_for(tmp_path: Path) -> None:
    with serving(reply()) as served:
        small = SmallNightly(tmp_path, ping=hook(served))
        small.measure.set_evaluator(fails="no memory")
        with pytest.raises(RuntimeError, match="no memory"):
            run(small)
        assert served.requests == []


def test_a_night_without_numbers_that_it_is_too_late_for_is_not_called_for(tmp_path: Path) -> None:
    with serving(reply()) as served:
        small = SmallNightly(tmp_path, ping=hook(served))
        small.measure.set_evaluator(fails="no memory")
        with pytest.raises(RuntimeError, match="no memory"):
            run(small)
        failed_before = run_night(Session(small.spec, small.at(FIRST, "06:46").nightly))
        never_begun = run_night(Session(small.spec, small.at("2026-11-03", "06:46").nightly))
        assert (failed_before, never_begun) == (ExitCode.BUG, ExitCode.MISSED)
        assert served.requests == []


def test_a_ping_that_fails_costs_one_line_and_not_the_night(tmp_path: Path) -> None:
    with serving(reply(status="500 Oops")) as served:
        small = SmallNightly(tmp_path, ping=hook(served))
        assert run(small) == ExitCode.DONE
    assert (
        small.lines[-1] == f"{FIRST}: the ping was not sent, the server answers 500; the next run calls again"
    )


def test_a_ping_inside_is_refused_unless_the_spec_means_it(tmp_path: Path) -> None:
    with serving(reply()) as served:
        small = SmallNightly(tmp_path, ping=hook(served, allow_private_addresses=False))
        run(small)
        assert served.requests == []
    assert "no public address: set allow_private_addresses, if you mean it" in small.lines[-1]


def test_a_command_is_called_with_the_night_on_its_input(tmp_path: Path) -> None:
    file = tmp_path / "called.json"
    program = f"import sys, pathlib; pathlib.Path({str(file)!r}).write_text(sys.stdin.read())"
    run(SmallNightly(tmp_path, ping={"kind": "command", "command": [sys.executable, "-c", program]}))
    assert json.loads(file.read_text())["night"] == FIRST
