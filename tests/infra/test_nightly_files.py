"""What begins nights outside of Dagster: manifests, systemd's units, cron lines, with commands that exist."""

import configparser
import re
import shlex
import subprocess
from pathlib import Path
from shutil import which
from typing import Any

import pytest
import typer
import yaml
from pydantic import ValidationError

from dualtoken.jobs.cli import app
from dualtoken.model.config.base import is_url
from dualtoken.pipelines.config.cron import parse_cron
from dualtoken.pipelines.config.nightly import ScheduleConfig
from tests.helpers.kubernetes_manifests import CronJob, RayCronJob, read_manifest

ROOT = Path(__file__).parents[2]
KUBERAY = ROOT / "infra" / "kuberay"
SYSTEMD = ROOT / "infra" / "systemd"
SCHEDULE = ScheduleConfig.model_validate({"cron": "0 2 * * *", "timezone": "UTC", "start": "2026-11-29"})
README = (ROOT / "infra" / "README.md").read_text(encoding="utf-8")
CRON_LINES = re.findall(r"^((?:[\d*]\S* ){5})(.+)$", README, re.MULTILINE)


def document(name: str) -> dict[str, Any]:
    return yaml.safe_load((KUBERAY / name).read_text())


def cron_job(name: str) -> CronJob:
    manifest = read_manifest(document(name))
    assert isinstance(manifest, CronJob)
    return manifest


def ray_cron_job() -> RayCronJob:
    manifest = read_manifest(document("raycronjob.yaml"))
    assert isinstance(manifest, RayCronJob)
    return manifest


def nightly_command(words: list[str]) -> tuple[str, str]:
    """Parse a command by the program's own parser; return what it does and its spec."""
    program, group, name, *arguments = words
    assert (Path(program).name, group) == ("dualtoken", "nightly")
    nightly = typer.main.get_command(app).commands["nightly"]  # type: ignore[attr-defined]
    context = nightly.commands[name].make_context(name, arguments)
    return name, context.params["spec"]


@pytest.mark.parametrize("name", ["nightly-cronjob.yaml", "nightly-check.yaml"])
def test_a_job_of_kubernetes_runs_once_at_a_time_and_is_not_repeated(name: str) -> None:
    spec = cron_job(name).spec
    assert spec.concurrency_policy == "Forbid"
    job = spec.job_template.spec
    assert (job.backoff_limit, job.template.spec.restart_policy) == (0, "Never")
    for container in job.template.spec.containers:
        assert "memory" in container.resources.limits


def test_the_night_of_kubernetes_begins_before_its_deadline_and_ends_with_its_lease() -> None:
    spec = cron_job("nightly-cronjob.yaml").spec
    assert spec.starting_deadline_seconds <= (SCHEDULE.deadline_hours - 0.5) * 3600
    assert spec.job_template.spec.active_deadline_seconds <= SCHEDULE.lease_hours * 3600
    assert (spec.schedule, ray_cron_job().spec.schedule) == (SCHEDULE.cron, SCHEDULE.cron)


def test_the_commands_on_kubernetes_are_ours_and_their_spec_is_where_pods_come_and_go() -> None:
    (nightly,) = cron_job("nightly-cronjob.yaml").spec.job_template.spec.template.spec.containers
    place = nightly.command.index("--")
    assert nightly.command[:place] == ["ray", "job", "submit", "--address=http://dualtoken-head-svc:8265"]
    (check,) = cron_job("nightly-check.yaml").spec.job_template.spec.template.spec.containers
    commands = [
        nightly_command(nightly.command[place + 1 :]),
        nightly_command(check.command),
        nightly_command(shlex.split(ray_cron_job().spec.job_template.entrypoint)),
    ]
    assert [name for name, _ in commands] == ["run", "check", "run"]
    (spec,) = {spec for _, spec in commands}
    assert is_url(spec)


def test_the_pod_that_begins_nights_has_the_clusters_token_and_a_way_to_its_dashboard() -> None:
    template = cron_job("nightly-cronjob.yaml").spec.job_template.spec.template
    (container,) = template.spec.containers
    cluster = document("raycluster.yaml")["metadata"]["name"]
    variables = {variable.name: variable for variable in container.env}
    assert variables["RAY_AUTH_MODE"].value == "token"
    source = variables["RAY_AUTH_TOKEN"].value_from
    assert source is not None
    assert (source.secret_key_ref.name, source.secret_key_ref.key) == (cluster, "auth_token")
    assert ray_cron_job().spec.job_template.cluster_selector == {"ray.io/cluster": cluster}
    assert template.metadata is not None
    _, ray = yaml.safe_load_all((KUBERAY / "networkpolicy.yaml").read_text())
    allowed = [
        rule
        for rule in ray["spec"]["ingress"]
        if rule["from"] == [{"podSelector": {"matchLabels": template.metadata.labels}}]
    ]
    assert [rule["ports"] for rule in allowed] == [[{"protocol": "TCP", "port": 8265}]]


@pytest.mark.parametrize(
    ("name", "place", "value"),
    [
        ("nightly-cronjob.yaml", "spec.concurrencyPolcy", "Forbid"),
        ("nightly-cronjob.yaml", "spec.jobTemplate.backoffLimit", 0),
        ("nightly-cronjob.yaml", "spec.timeZone", "Europe/Berln"),
        ("nightly-cronjob.yaml", "spec.schedule", "0 2 * *"),
        ("raycronjob.yaml", "spec.concurrencyPolicy", "Forbid"),
        ("raycronjob.yaml", "spec.jobTemplate.backoffLimit", 2),
    ],
)
def test_a_field_that_is_misplaced_or_misspelt_is_refused(name: str, place: str, value: object) -> None:
    manifest = document(name)
    *path, field = place.split(".")
    part = manifest
    for step in path:
        part = part[step]
    part[field] = value
    with pytest.raises((ValidationError, KeyError), match=field if value != "Europe/Berln" else "Berln"):
        read_manifest(manifest)


def unit(name: str) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None, delimiters=("=",))
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read(SYSTEMD / name)
    return parser


def test_systemds_timer_begins_the_night_of_its_service_when_the_spec_does() -> None:
    service, timer = unit("dualtoken-nightly.service"), unit("dualtoken-nightly.timer")
    assert nightly_command(shlex.split(service["Service"]["ExecStart"])) == (
        "run",
        "/srv/dualtoken/nightly.yaml",
    )
    assert service["Service"]["Type"] == "oneshot"
    assert service["Service"]["TimeoutStartSec"] == "4h"
    hour, minute = SCHEDULE.line.hours[0], SCHEDULE.line.minutes[0]
    assert timer["Timer"]["OnCalendar"] == f"*-*-* {hour:02d}:{minute:02d}:00 {SCHEDULE.timezone}"
    assert timer["Timer"]["Persistent"] == "true"


@pytest.mark.skipif(which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_accepts_its_units(tmp_path: Path) -> None:
    program = tmp_path / "dualtoken"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    for name in ("dualtoken-nightly.service", "dualtoken-nightly.timer"):
        text = (SYSTEMD / name).read_text()
        (tmp_path / name).write_text(text.replace("/srv/dualtoken/.venv/bin/dualtoken", str(program)))
    units = [tmp_path / "dualtoken-nightly.service", tmp_path / "dualtoken-nightly.timer"]
    ended = subprocess.run(["systemd-analyze", "verify", *units], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_the_cron_lines_of_the_readme_are_some_and_begin_and_check_nights() -> None:
    names: list[str] = []
    for line, command in CRON_LINES:
        parse_cron(line)
        move, _, rest = command.partition(" && ")
        assert move == "cd /srv/dualtoken"
        names.append(nightly_command(shlex.split(rest.partition(" >>")[0]))[0])
    assert names == ["run", "check"]
