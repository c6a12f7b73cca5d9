"""A real daemon of Dagster fires a real tick, is stopped, and fills the night that was missed meanwhile."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import dagster as dg
import pytest
from dagster._core.storage.tags import PARTITION_NAME_TAG, SCHEDULE_NAME_TAG, SENSOR_NAME_TAG

from dualtoken.pipelines.config.nightly import load_nightly
from dualtoken.pipelines.errors import ExitCode
from dualtoken.pipelines.nightly.check import check
from dualtoken.pipelines.nightly.history import History
from dualtoken.pipelines.nightly.session import Session
from dualtoken.pipelines.nightly.wiring import open_session
from tests.helpers.few_scenes_nightly import write_nightly
from tests.helpers.tiny_run import PROJECT
from tests.helpers.waiting import wait_until

MODULE = ("-m", "dualtoken.pipelines.workflow.definitions")
OVERDUE = "nightly_few_overdue"


@dataclass
class Served:
    """A nightly with a Dagster of its own."""

    folder: Path
    zone: str

    @property
    def spec(self) -> Path:
        return self.folder / "nightly.yaml"

    @property
    def environment(self) -> dict[str, str]:
        ours = {"DAGSTER_HOME": self.folder / "home", "DUALTOKEN_NIGHTLY": self.spec, "PYTHONPATH": PROJECT}
        return {
            **os.environ,
            "DUALTOKEN_RECIPE": "scenes",
            **{key: str(value) for key, value in ours.items()},
        }

    def day(self, ago: int = 0) -> str:
        """Return a date of the nightly's zone."""
        return (datetime.now(ZoneInfo(self.zone)) - timedelta(days=ago)).date().isoformat()

    def measured(self) -> dict[str, bool]:
        """Return the nights that have numbers, with whether they were backfilled."""
        nights = History(str(self.folder / "root"), "few").read().nights
        return {name: files.night.backfilled for name, files in nights.items() if files.night}

    def is_judged(self, night: str) -> bool:
        return bool(History(str(self.folder / "root"), "few").read().files(night).verdicts)

    def check(self, *, days_later: int = 0) -> tuple[ExitCode, list[str]]:
        lines: list[str] = []
        session = open_session(load_nightly(str(self.spec)), lines.append)
        later = timedelta(days=days_later)
        nightly = session.nightly._replace(clock=lambda: datetime.now(UTC) + later)
        return check(Session(session.spec, nightly), 14), lines

    def dagster(self, *arguments: str) -> None:
        command = [Path(sys.executable).with_name("dagster"), *arguments, *MODULE]
        subprocess.run(command, check=True, capture_output=True, cwd=self.folder, env=self.environment)

    @contextmanager
    def daemon(self) -> Iterator[None]:
        """Run the daemon; at its end it and all that it started are gone."""
        command = [Path(sys.executable).with_name("dagster-daemon"), "run", *MODULE]
        with (self.folder / "daemon.log").open("ab") as log:
            process = subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                env=self.environment,
                start_new_session=True,
            )
        try:
            yield
            assert process.poll() is None, (self.folder / "daemon.log").read_text()
        finally:
            process.terminate()
            try:
                process.wait(60)
            finally:
                # Its code server and the runs are of its group.
                if _is_there(process.pid):
                    os.killpg(process.pid, signal.SIGKILL)


def _is_there(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def _zone_at_noon() -> str:
    """Return a zone in which no midnight comes while the test runs."""
    ahead = 12 - datetime.now(UTC).hour
    return f"Etc/GMT{-ahead:+d}" if ahead else "Etc/GMT"


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Served:
    """A nightly of the canary alone, whose schedule fires every minute, and whose first night was missed."""
    ours = Served(tmp_path, _zone_at_noon())
    write_nightly(tmp_path, date.fromisoformat(ours.day(1)), timezone=ours.zone)
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "home"))
    return ours


def _by(night: str, tag: str) -> list[str]:
    """Return what asked for the runs of a night's measurement that succeeded."""
    chosen = dg.RunsFilter(
        job_name="nightly_few_job",
        tags={PARTITION_NAME_TAG: night},
        statuses=[dg.DagsterRunStatus.SUCCESS],
    )
    with dg.DagsterInstance.get() as instance:
        return [run.tags[tag] for run in instance.get_runs(chosen) if tag in run.tags]


@pytest.mark.slow
def test_a_real_tick_fires_a_stopped_daemon_misses_a_night_and_a_started_one_fills_it(served: Served) -> None:
    missed, tonight = served.day(1), served.day()
    served.dagster("sensor", "stop", OVERDUE)
    with served.daemon():
        wait_until(lambda: served.is_judged(tonight), 300)
        wait_until(lambda: bool(_by(tonight, SCHEDULE_NAME_TAG)), 60)
    assert served.measured() == {tonight: False}
    assert _by(tonight, SCHEDULE_NAME_TAG) == ["nightly_few_schedule"]

    code, lines = served.check()
    assert code == ExitCode.MISSED
    assert [line.split(",")[0] for line in lines] == [f"{missed}: missed"]

    served.dagster("sensor", "start", OVERDUE)
    with served.daemon():
        wait_until(lambda: served.is_judged(missed), 300)
        wait_until(lambda: bool(_by(missed, SENSOR_NAME_TAG)), 60)
    assert served.measured() == {missed: True, tonight: False}
    assert _by(missed, SENSOR_NAME_TAG) == [OVERDUE]
    assert served.check() == (ExitCode.DONE, ["few: nothing bad in 2 nights"])

    # Nobody starts the daemon again: whoever looks from outside sees the nights that do not come.
    code, lines = served.check(days_later=2)
    assert code == ExitCode.MISSED
    assert [line.split(",")[0] for line in lines] == [f"{served.day(-1)}: missed"]
