"""`dualtoken submit` against a real cluster with token authentication on."""

import subprocess
from pathlib import Path

from ray.job_submission import JobSubmissionClient

from dualtoken.infra.storage import Store
from dualtoken.pipelines.evaluation.canary import write_canary
from dualtoken.pipelines.evaluation.summary import SUMMARY, EvaluationSummary
from tests.helpers.command_line import run_dualtoken
from tests.helpers.tiny_run import TINY, LoadTiny, planned

EVALUATION = """
name: small
cluster: {max_workers: 1}
sets: {few: {kind: scenes, num_images: 6}}
protocols: {pixels: {metrics: [psnr], batch_size: 3}}
"""


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
    assert len(submitted_names(dashboard, "dualtoken-scenes-tiny-")) == 1


def submitted_names(address: str, beginning: str) -> list[str]:
    names = [job.submission_id or "" for job in JobSubmissionClient(address).list_jobs()]
    return [name for name in names if name.startswith(beginning)]


def test_an_evaluation_runs_once_on_the_cluster_and_is_judged_by_its_summary(
    dashboard: str, tmp_path: Path
) -> None:
    model, _ = write_canary(tmp_path)
    file = tmp_path / "evaluation.yaml"
    file.write_text(EVALUATION)
    root = tmp_path / "results"
    called = f"{model}/"
    arguments = ["submit", "evaluate", called, "--evaluation", file, "--root", root, "--address", dashboard]
    first = run_dualtoken(*arguments, timeout_seconds=280)
    assert first.returncode == 0, first.stdout + first.stderr
    assert "evaluate few.pixels 00000 done (1/1): 6 ok" in first.stdout
    (found,) = (root / "summaries").iterdir()
    summary = EvaluationSummary.read(Store(str(found)), SUMMARY)
    assert summary.subject.name == called, "as it was called where it was submitted"
    assert summary.results[0].metrics["psnr"].n == 6
    assert (found / "index.html").is_file()
    again = run_dualtoken(*arguments)
    assert again.returncode == 0
    assert again.stdout.splitlines()[-1] == "evaluate: done (nothing to submit)"
    assert len(submitted_names(dashboard, "dualtoken-evaluate-small-")) == 1


def test_a_wrong_token_is_told_in_one_line(dashboard: str, tmp_path: Path) -> None:
    refused = submit("scenes", tmp_path, dashboard, RAY_AUTH_TOKEN="0" * 64)
    assert refused.returncode == 2
    assert "refused this token" in refused.stderr.splitlines()[-1]
    assert "Traceback" not in refused.stderr


def test_a_cluster_that_does_not_answer_is_a_temporary_failure(tmp_path: Path) -> None:
    ended = submit("scenes", tmp_path, "http://127.0.0.1:9")
    assert ended.returncode == 75
    assert "Traceback" not in ended.stderr
