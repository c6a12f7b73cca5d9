"""How a Ray job ended, as an exit code, and whether another attempt may help."""

import signal

from ray.dashboard.modules.job.common import JobErrorType
from ray.dashboard.modules.job.pydantic_models import JobDetails
from ray.job_submission import JobStatus

DONE = 0
_BUG = 1
_CONFIG = 2
_TEMPORARY = 75
_PREEMPTED = 143
_SIGNALLED = 128
"""What a shell adds to a signal's number for the exit code of a process that it ended."""

_LOST = {JobErrorType.JOB_SUPERVISOR_ACTOR_DIED, JobErrorType.JOB_SUPERVISOR_ACTOR_START_TIMEOUT}
"""Errors of jobs that were lost, not failed."""


def ended(job: JobDetails) -> bool:
    """Tell whether a job is neither pending nor running any more."""
    return job.status in {JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.STOPPED}


def exit_code(job: JobDetails | None) -> int:
    """Return the exit code of a job that ended without all its receipts."""
    if job is None or job.error_type in _LOST:
        return _TEMPORARY
    if job.status == JobStatus.STOPPED:
        return _PREEMPTED
    reported = _reported_exit_code(job)
    if reported in {_CONFIG, _TEMPORARY, _PREEMPTED}:
        return reported
    return _BUG


def may_be_retried(job: JobDetails | None) -> bool:
    """Tell whether another attempt may help a job that ended without all its receipts."""
    if job is None or job.error_type in _LOST:
        return True
    if job.status == JobStatus.STOPPED:
        return False  # somebody wanted it to stop
    return _reported_exit_code(job) not in {_CONFIG, _BUG, DONE}


def _reported_exit_code(job: JobDetails) -> int | None:
    """Return the exit code of the job's driver, None where Ray knows none.

    SIGTERM counts as preemption. SIGKILL is temporary: it is how a machine out of memory ends a process.
    """
    code = job.driver_exit_code
    if code is not None and code < 0:
        code = _SIGNALLED - code  # as a shell reports it
    if code == _SIGNALLED + signal.SIGKILL:
        return _TEMPORARY
    return code
