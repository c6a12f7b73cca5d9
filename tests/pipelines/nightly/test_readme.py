"""The README's commands run as they stand there, on real nights of a few scenes; its spec is one."""

import re
import shlex
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner, Result

from dualtoken.jobs.cli import app
from dualtoken.pipelines.config.nightly import validate_nightly
from dualtoken.pipelines.errors import ExitCode, exit_code
from tests.helpers.few_scenes_nightly import write_nightly
from tests.helpers.tiny_run import PROJECT

README = (PROJECT / "pipelines/nightly/README.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"^dualtoken nightly (.+?)(?: +#.*)?$", README, re.MULTILINE)
PRINTED = {
    "run": "{today}: ok",
    "check": "{yesterday}: missed, nobody began it by",
    "history": "{today}",
    "page": "pages: pages/index.html",
    "backfill": "{yesterday}: ok",
    "accept": "the first night with all sets",
    "ack": "a smaller decoder, on purpose",
    "pause": "paused from 2026-12-24 to 2027-01-01",
    "calibrate": "nights of its newest protocol: calibrate when",
}
"""A piece of what each command prints, in the README's order."""


def test_the_commands_of_the_readme_tell_the_story_that_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    zone = "Etc/GMT" if datetime.now(UTC).hour < 12 else "Etc/GMT+11"  # no midnight comes meanwhile
    today = datetime.now(UTC).date() if zone == "Etc/GMT" else _date_in(11)
    days = {"today": today.isoformat(), "yesterday": (today - timedelta(days=1)).isoformat()}
    by_example = {"2026-11-28": days["yesterday"], "2026-11-29": days["today"]}
    write_nightly(tmp_path, today - timedelta(days=1), timezone=zone)
    assert [example.split()[0] for example in EXAMPLES] == list(PRINTED)
    codes: dict[str, int] = {}
    for example, piece in zip(EXAMPLES, PRINTED.values(), strict=True):
        command = re.sub("2026-11-2[89]", lambda day: by_example[day[0]], example)
        command = command.replace("scenes-small/reconstruction/psnr", "few/plain/psnr")
        ended = CliRunner().invoke(app, ["nightly", *shlex.split(command)])
        assert piece.format(**days) in f"{ended.output}{ended.exception}", command
        codes[example.split()[0]] = _code(ended)
    assert codes.pop("check") == ExitCode.MISSED
    assert codes.pop("calibrate") == ExitCode.CONFIGURATION, "two nights are too few, as it says"
    assert set(codes.values()) == {ExitCode.DONE}


def _code(ended: Result) -> int:
    """Return the exit code that the program would have."""
    if isinstance(ended.exception, Exception):
        return exit_code(ended.exception)
    return ended.exit_code


def _date_in(hours_behind: int) -> date:
    return (datetime.now(UTC) - timedelta(hours=hours_behind)).date()


def test_the_spec_of_the_readme_is_one_and_takes_its_ping() -> None:
    spec, ping = [yaml.safe_load(text) for text in re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)]
    assert validate_nightly(spec, "the README").name == "tokens"
    assert list(ping) == ["ping"]
    assert validate_nightly(spec | ping, "the README").ping is not None


def test_the_root_readme_names_commands_of_this_one() -> None:
    section = (PROJECT / "README.md").read_text(encoding="utf-8").partition("## Every night")[2]
    commands = re.findall(r"^dualtoken nightly (\S+) nightly-scenes$", section, re.MULTILINE)
    assert commands == ["run", "check"]
    assert set(commands) <= set(PRINTED)
