"""A process that died is told from an exception that the code in it raised."""

import pytest
from ray.exceptions import ActorDiedError, RayTaskError, UserCodeException, WorkerCrashedError
from ray.train.v2._internal.exceptions import UserExceptionWithTraceback, WorkerHealthCheckFailedError
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

from dualtoken.infra.ray_errors import is_death, lost_workers

RAISED = RayTaskError("work", "Traceback ...\nKeyError: 'x'", KeyError("x"), "worker", 1, "127.0.0.1")
KILLED = WorkerHealthCheckFailedError("a worker does not answer", ActorDiedError())
OURS = UserExceptionWithTraceback(KeyError("x"), "Traceback ...")


@pytest.mark.parametrize("error", [ActorDiedError(), WorkerCrashedError(), KILLED])
def test_a_lost_process_is_a_death(error: Exception) -> None:
    assert is_death(error)


@pytest.mark.parametrize(
    "error",
    [
        RAISED,
        RAISED.as_instanceof_cause(),
        UserCodeException("x"),
        ActorDiedError(RAISED),
        OURS,
        KeyError("x"),
    ],
    ids=range(6),
)
def test_an_exception_of_our_own_is_none(error: Exception) -> None:
    assert not is_death(error)


def test_a_training_is_lost_with_a_worker_whatever_the_others_then_raise() -> None:
    assert lost_workers(WorkerGroupError("two failed", {0: OURS, 1: KILLED}))
    assert not lost_workers(WorkerGroupError("one failed", {0: OURS}))
    assert lost_workers(ControllerError(ActorDiedError()))
    assert not lost_workers(ControllerError(KeyError("x")))
