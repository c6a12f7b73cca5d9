"""Nodes that are about to be taken away, as Ray tells a training of them.

A cloud gives notice before it reclaims a spot machine, and the node is then drained. A watcher of Ray Train
tells all workers of a group that has a worker there.
"""

from ray.train import TrainingFailedError
from ray.train.v2._internal.execution.context import get_train_context
from ray.train.v2.api.exceptions import PreemptionError, WorkerGroupError
from ray.train.v2.api.preemption import PreemptionInfo

from dualtoken.infra.ray_errors import origin

WATCH_SECONDS = 1.0
"""Time between the watcher's looks for drained nodes, 5 s by Ray's default; some clouds give 30 s in all."""


class NodeIsLeaving(OSError):
    """A loop ended early for nodes that are about to be taken away; it goes on elsewhere."""

    def __init__(self, notice: PreemptionInfo) -> None:
        # The notice alone is an argument, so that the error can be pickled.
        super().__init__(notice)
        self.notice = notice

    def __str__(self) -> str:
        return f"nodes {', '.join(self.notice.preempted_node_ids)} are about to be taken away"


def preemption_notice() -> PreemptionInfo | None:
    """Return the notice that nodes of this worker's group are about to be taken away, if there is one.

    Ray's `get_preemption_info` does so too, but all workers have to call it equally often.
    """
    return get_train_context().preemption_context.preemption_info


def as_preemption(error: TrainingFailedError) -> TrainingFailedError:
    """Return the error of a group that left a node in time as the one by which Ray counts preemptions."""
    if isinstance(error, WorkerGroupError):
        for failure in error.worker_failures.values():
            found = origin(failure)
            if isinstance(found, NodeIsLeaving):
                return PreemptionError(found.notice, drain_timed_out=False)
    return error
