"""`dualtoken nightly` as a user calls it: exit codes, and one line for a mistake."""

import json
import subprocess
import sys
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from typer.testing import CliRunner, Result

from dualtoken.jobs.cli import app
from dualtoken.pipelines.errors import UserError
from dualtoken.pipelines.nightly import wiring
from tests.helpers.nights import FolderMeasure, small_rule, small_spec, write_model
from tests.helpers.tiny_run import PROJECT


@dataclass
class SmallRuleset:
    """Rules of the small rule, in the form of the chart's."""

    nights: int = 2

    @property
    def version(self) -> str:
        return f"{self.nights:012d}"


@pytest.fixture
def spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A spec of today, measured and judged by the small nightly's other side."""
    chart = ModuleType(wiring.CHART)
    chart.Ruleset = SmallRuleset  # pyright: ignore[reportAttributeAccessIssue]
    chart.judge = lambda points, direction, margin, rules, *given: small_rule(  # pyright: ignore[reportAttributeAccessIssue]
        points, direction, margin, rules.nights, *given
    )
    measure = ModuleType(wiring.MEASURE)
    measure.measure = FolderMeasure(tmp_path / "models")  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setitem(sys.modules, wiring.CHART, chart)
    monkeypatch.setitem(sys.modules, wiring.MEASURE, measure)
    for model in ("model", "canary"):
        write_model(tmp_path / "models" / model)
    today = datetime.now(UTC).date()
    schedule = {
        "cron": "0 0 * * *",
        "timezone": "UTC",
        "start": str(today - timedelta(days=2)),
        "deadline_hours": 24,
    }
    small = small_spec(tmp_path / "root", tmp_path / "models", schedule=schedule)
    evaluation = {
        "name": "small",
        "sets": {"heldout": {"kind": "scenes"}},
        "protocols": {"plain": {"metrics": ["psnr", "ssim"]}},
    }
    (tmp_path / "models/evaluation.yaml").write_text(yaml.safe_dump(evaluation))
    file = tmp_path / "nightly.yaml"
    file.write_text(yaml.safe_dump(json.loads(small.model_dump_json())))
    return file


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["nightly", *map(str, arguments)], catch_exceptions=False)


def day(ago: int) -> str:
    return str(datetime.now(UTC).date() - timedelta(days=ago))


def test_a_nightly_from_its_first_miss_to_a_decision(spec: Path, tmp_path: Path) -> None:
    missed = call("check", spec)
    assert missed.exit_code == 4
    assert [line.split(",")[0] for line in missed.output.splitlines()] == [
        f"{day(2)}: missed",
        f"{day(1)}: missed",
    ]
    assert call("backfill", spec, "--from", day(2), "--to", day(1)).exit_code == 0
    assert call("check", spec).exit_code == 0
    write_model(tmp_path / "models/model", psnr=29.0)
    run = call("run", spec)
    assert run.exit_code == 3
    assert f"{day(0)}: regressed, model/heldout/plain/psnr: -20 margins off." in run.output
    assert call("check", spec).exit_code == 3
    assert call("ack", spec, "heldout/plain/psnr", day(0), "--reason", "a smaller model").exit_code == 0
    assert call("check", spec).exit_code == 0
    assert call("accept", spec, "--reason", "it stays", "--by", "eva").output.endswith(": it stays\n")
    table = call("history", spec).output
    assert "backfilled" in table
    assert "settled" in table
    assert "29" in table


def test_pages_show_every_night_that_is_due(spec: Path, tmp_path: Path) -> None:
    assert call("run", spec).exit_code == 0
    written = call("page", spec, "--out", tmp_path / "pages")
    assert written.output == f"pages: {tmp_path / 'pages/index.html'}\n"
    assert day(0) in (tmp_path / "pages/index.html").read_text()
    nights = sorted(file.name for file in (tmp_path / "pages/nights").iterdir())
    assert nights == [f"{day(2)}.html", f"{day(1)}.html", f"{day(0)}.html"]


def test_a_pause_is_kept(spec: Path) -> None:
    assert call("pause", spec, "--from", day(2), "--to", day(1), "--reason", "a move").exit_code == 0
    assert call("check", spec).exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run", "nowhere.yaml"), "nightly 'nowhere.yaml' is no file"),
        (("run", "{spec}", "--night", "tomorrow"), "'tomorrow' is no night: write its date"),
        (("backfill", "{spec}", "--from", "x"), "'x' is no night: write its date"),
        (
            ("ack", "{spec}", "heldout/plain/psnr", "2020-01-01", "--reason", "x"),
            "the night 2020-01-01 of small was not",
        ),
    ],
)
def test_a_mistake_is_one_line(arguments: tuple[str, ...], message: str, spec: Path) -> None:
    with pytest.raises(UserError, match=message) as error:
        call(*(argument.replace("{spec}", str(spec)) for argument in arguments))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            ("heldout/plain/psnr", "heldout/plain/psrn"),
            "primary=heldout/plain/psrn: psrn is not among protocols.plain.metrics in .*: did you mean psnr?",
        ),
        (("plain", "plane"), "protocols=plane is not in .*: did you mean plain?"),
        (("heldout", "train"), "sets=train is not in .*: take one of heldout"),
    ],
)
@pytest.mark.parametrize("command", [("run",), ("backfill", "--from", "{yesterday}")])
def test_what_the_evaluation_has_not_is_told_before_a_night_is_spoilt(
    command: tuple[str, ...], change: tuple[str, str], message: str, spec: Path, tmp_path: Path
) -> None:
    spec.write_text(spec.read_text().replace(*change))
    name, *rest = (argument.replace("{yesterday}", day(1)) for argument in command)
    with pytest.raises(UserError, match=message) as error:
        call(name, spec, *rest)
    assert "\n" not in str(error.value)
    assert not list((tmp_path / "root").glob("nightly/small/nights/*"))


def test_a_ruleset_that_is_not_stored_is_named(spec: Path) -> None:
    spec.write_text(spec.read_text().replace("ruleset: null", "ruleset: abcdefabcdef"))
    with pytest.raises(UserError, match="ruleset=abcdefabcdef is not in"):
        call("check", spec)


def test_looking_at_a_history_brings_neither_torch_nor_ray() -> None:
    heavy = "import sys, dualtoken.jobs.nightly_commands; print(sorted({'torch', 'ray'} & set(sys.modules)))"
    found = subprocess.run(
        [sys.executable, "-c", heavy], capture_output=True, text=True, check=True, cwd=PROJECT
    )
    assert found.stdout.strip() == "[]"
