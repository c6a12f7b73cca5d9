"""Tells what Ray's errors are about: a process that died, which may pass, or an exception of the code that it ran, which will not."""

from ray.exceptions import RayError, RayTaskError, UserCodeException
from ray.train import TrainingFailedError
from ray.train.v2._internal.exceptions import (
    WorkerGroupStartupFailedError,
    WorkerGroupStartupTimeoutError,
    WorkerHealthCheckFailedError,
    WorkerHealthCheckTimeoutError,
)
from ray.train.v2.api.exceptions import ControllerError, PreemptionError, WorkerGroupError

_OF_TRAIN = (
    PreemptionError,
    WorkerGroupStartupFailedError,
    WorkerGroupStartupTimeoutError,
    WorkerHealthCheckFailedError,
    WorkerHealthCheckTimeoutError,
)


class ProcessesDied(OSError):
    """Ray lost the processes that did the work, as often as they may be started anew; that may pass."""


def is_death(error: BaseException) -> bool:
    """Tell whether a process, a node or a connection was lost; false for an exception that our own code raised."""
    if isinstance(error, RayError):
        return not isinstance(error, (RayTaskError, UserCodeException)) and not getattr(
            error, "actor_init_failed", False
        )
    return isinstance(error, _OF_TRAIN)


def lost_workers(error: TrainingFailedError) -> bool:
    """Tell whether a training ended for a death; the others of its group then fail as well, in code of ours that waits for it."""
    if isinstance(error, WorkerGroupError):
        return any(map(is_death, error.worker_failures.values()))
    return is_death(error.controller_failure if isinstance(error, ControllerError) else error)


def first_line(error: BaseException) -> str:
    """Return what an error says first; Ray's go on for a screen."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
