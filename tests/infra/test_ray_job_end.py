"""How a job's driver ended, as an exit code."""

import pytest
from ray.dashboard.modules.job.pydantic_models import JobDetails, JobType
from ray.job_submission import JobStatus

from dualtoken.infra.ray_job_end import exit_code, may_be_retried


@pytest.mark.parametrize(
    ("driver", "code", "again"),
    [(137, 75, True), (-9, 75, True), (143, 143, True), (-15, 143, True), (2, 2, False), (1, 1, False)],
)
def test_a_killed_driver_is_a_temporary_failure_and_a_stopped_one_a_preemption(
    driver: int, code: int, *, again: bool
) -> None:
    values = {"type": JobType.SUBMISSION, "status": JobStatus.FAILED, "entrypoint": "true"}
    job = JobDetails.model_validate({**values, "driver_exit_code": driver})
    assert exit_code(job) == code
    assert may_be_retried(job) == again
