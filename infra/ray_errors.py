"""Classifies Ray's errors: a lost process, which may pass, or an exception of our own, which will not."""

from ray.exceptions import RayError, RayTaskError, UserCodeException
from ray.train import TrainingFailedError
from ray.train.v2._internal.exceptions import (
    RayTrainError,
    WorkerGroupStartupFailedError,
    WorkerGroupStartupTimeoutError,
    WorkerHealthCheckFailedError,
    WorkerHealthCheckTimeoutError,
)
from ray.train.v2.api.exceptions import ControllerError, PreemptionError, WorkerGroupError

_LOST_WORKER_ERRORS = (
    PreemptionError,
    WorkerGroupStartupFailedError,
    WorkerGroupStartupTimeoutError,
    WorkerHealthCheckFailedError,
    WorkerHealthCheckTimeoutError,
)
"""Ray Train's errors for workers that were lost, or never started."""


class ProcessesDied(OSError):
    """Ray lost the processes that did the work more often than they may be restarted; that may pass."""


def is_death(error: BaseException) -> bool:
    """Tell whether a process, a node or a connection was lost; false for an exception of our own code."""
    if not isinstance(error, RayError):
        return isinstance(error, _LOST_WORKER_ERRORS)
    is_of_our_code = isinstance(error, (RayTaskError, UserCodeException))
    return not is_of_our_code and not getattr(error, "actor_init_failed", False)


def lost_workers(error: TrainingFailedError) -> bool:
    """Tell whether a training ended because a worker died.

    The other workers of its group then fail as well, in code of ours that waits for it.
    """
    if isinstance(error, WorkerGroupError):
        return any(map(is_death, error.worker_failures.values()))
    if isinstance(error, ControllerError):
        return is_death(error.controller_failure)
    return is_death(error)


def origin(failure: BaseException) -> BaseException:
    """Return the error that a worker's code raised, without what Ray wraps it in."""
    while isinstance(failure, (RayTrainError, RayError)):
        cause = getattr(failure, "cause", None) or getattr(failure, "_base_exc", None)
        if cause is None:
            break
        failure = cause
    return failure


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message that is not blank; Ray's messages go on for a screen."""
    for line in str(error).splitlines():
        if line.strip():
            return line.strip()
    return type(error).__name__
