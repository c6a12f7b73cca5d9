"""The whole chain as jobs of a real cluster: planted secrets stand in no output, record, log or listing."""

import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray.job_submission import JobSubmissionClient

from dualtoken.pipelines.runtime.stages import commands
from tests.helpers.command_line import run_dualtoken
from tests.helpers.ray_head import BIN, RayHead
from tests.helpers.signed_tables import USER, has_password, has_query, serving_signed_table
from tests.helpers.tiny_run import TINY, LoadTiny, planned

pytestmark = pytest.mark.slow

SIGNATURE, PASSWORD = "S1GNED-QUERY", "PASSW0RD-OF-TABLE"
VARIABLES = {
    "HF_TOKEN": "hf_PLANTEDTOKEN",
    "AWS_SECRET_ACCESS_KEY": "PLANTED/AWS/SECRET",
    "AWS_SESSION_TOKEN": "PLANTED-SESSION",
}
"""Secrets in the environment of the cluster, of its jobs and of the command."""
ROWS = 32


@pytest.fixture(scope="module", autouse=True)
def planted_variables() -> Iterator[None]:
    """Plant the variables before the cluster starts."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in VARIABLES.items():
            patch.setenv(name, value)
        yield


def secrets() -> list[str]:
    return [SIGNATURE, PASSWORD, *VARIABLES.values(), os.environ["RAY_AUTH_TOKEN"]]


def files_with_secrets(folder: Path) -> list[Path]:
    """Return the files below a folder that hold a secret, as it is or in another spelling."""
    found: list[Path] = []
    for path in folder.rglob("*"):
        if path.is_file() and any(secret in text_of(path) for secret in secrets()):
            found.append(path)
    return found


def text_of(path: Path) -> str:
    return path.read_bytes().decode("latin-1").replace("%2F", "/")


def job_descriptions(address: str) -> str:
    """Return all that a cluster tells of its jobs: by its API, by `ray job`, and the logs that it serves."""
    client = JobSubmissionClient(address)
    jobs = client.list_jobs()
    told = [repr(job) for job in jobs]
    for job in jobs:
        if job.submission_id:
            told.append(client.get_job_logs(job.submission_id))
    listed = subprocess.run(
        [BIN / "ray", "job", "list", "--address", address], capture_output=True, text=True, check=True
    )
    return "\n".join([*told, listed.stdout, listed.stderr])


def assert_no_secret(text: str) -> None:
    for secret in secrets():
        assert secret not in text


def test_planted_secrets_stand_nowhere_after_a_whole_chain_of_jobs(
    ray_head: RayHead, tmp_path: Path, load_tiny: LoadTiny
) -> None:
    output = ""
    allowed = (has_password(PASSWORD), has_query(SIGNATURE))
    with serving_signed_table(lambda head: all(is_allowed(head) for is_allowed in allowed), ROWS) as server:
        address = server.base.replace("://", f"://{USER}:{PASSWORD}@")
        table = f"{address}/t.csv?X-Amz-Credential=KEY&Signature={SIGNATURE}"
        settings = [
            f"corpora.tiny-train.source={{kind: urls, table: '{table}'}}",
            "download.allow_private_addresses=true",
            "cluster.max_workers=1",
            "mllm.documents={shares: {draw: 0.5, describe: 0.5}}",  # a table of URLs has no questions
        ]
        for command in commands():
            arguments = ["submit", command, TINY, "--root", tmp_path, "--address", ray_head.address]
            for setting in settings:
                arguments += ["--set", setting]
            ended = run_dualtoken(*arguments, timeout_seconds=280)
            assert ended.returncode == 0, ended.stderr
            output += ended.stdout + ended.stderr
        # Planning reads the table.
        manifest = planned(load_tiny(tmp_path, *settings), "pretokenize", "tiny-train").manifest
    assert manifest is not None
    assert_no_secret(output)
    assert_no_secret(job_descriptions(ray_head.address))
    assert files_with_secrets(tmp_path) == []
    # Of the cluster's own files, the job's recipe alone holds what the job needs to read the table.
    for file in files_with_secrets(ray_head.folder):
        assert file.name == "recipe.json"
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
