"""`dualtoken submit` against a real cluster with token authentication on."""

import subprocess
from pathlib import Path

from ray.job_submission import JobSubmissionClient

from tests.helpers.command_line import run_dualtoken
from tests.helpers.tiny_run import TINY, LoadTiny, planned


def submit(stage: str, root: Path, address: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    arguments = ["submit", stage, TINY, "--root", root, "--address", address]
    arguments += ["--set", "cluster.max_workers=1"]  # a worker's imports are what takes time
    return run_dualtoken(*arguments, timeout_seconds=280, environment=environment)


def test_a_stage_runs_once_on_the_cluster_and_is_judged_by_its_receipts(
    dashboard: str, tmp_path: Path, load_tiny: LoadTiny
) -> None:
    first = submit("scenes", tmp_path, dashboard)
    assert first.returncode == 0, first.stderr
    assert "scenes tiny-train 00000 done" in first.stdout
    assert "core_worker.cc" not in first.stdout + first.stderr, "Ray's words about Ray Data"
    manifest = planned(load_tiny(tmp_path), "scenes", "tiny-train").manifest
    assert manifest is not None
    assert manifest.counts == {"ok": 40}
    again = submit("scenes", tmp_path, dashboard)
    assert again.returncode == 0
    assert again.stdout.splitlines() == ["scenes: done (nothing to submit)"]
    submitted = [job.submission_id or "" for job in JobSubmissionClient(dashboard).list_jobs()]
    assert sum(name.startswith("dualtoken-scenes-tiny-") for name in submitted) == 1


def test_a_wrong_token_is_told_in_one_line(dashboard: str, tmp_path: Path) -> None:
    refused = submit("scenes", tmp_path, dashboard, RAY_AUTH_TOKEN="0" * 64)
    assert refused.returncode == 2
    assert "refused this token" in refused.stderr.splitlines()[-1]
    assert "Traceback" not in refused.stderr


def test_a_cluster_that_does_not_answer_is_a_temporary_failure(tmp_path: Path) -> None:
    ended = submit("scenes", tmp_path, "http://127.0.0.1:9")
    assert ended.returncode == 75
    assert "Traceback" not in ended.stderr
