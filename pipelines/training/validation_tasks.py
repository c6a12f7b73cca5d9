"""Validation of checkpoints in tasks beside a training, which goes on meanwhile (`validate_in: task`).

The training asks for a validation once a step's checkpoint is whole. A task loads that into a model of its
own, measures it as a worker would, and stores the metrics in the stage's folder. There the training finds
them, and a run that goes on finds those that are missing.
"""

import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Any

from dualtoken.infra.scratch import scratch_folder
from dualtoken.pipelines.core.stage import StageJob
from dualtoken.pipelines.inference.networks import stage_device
from dualtoken.pipelines.training.checkpoint_saver import load_module
from dualtoken.pipelines.training.checkpoints import folder_name
from dualtoken.pipelines.training.process_settings import process_settings
from dualtoken.pipelines.training.resume import job_checkpoints
from dualtoken.pipelines.training.step_window import means
from dualtoken.pipelines.training.task import OpenTask, Validates
from dualtoken.pipelines.training.train_context import RequestsValidation, SingleProcessContext, TrainContext
from dualtoken.pipelines.training.worker_group import WorkerGroup

MOST_WAITING = 2
"""Validations that may wait for their tasks; what comes due beyond is left out."""
POLL_SECONDS = 1.0
"""Time between two looks for what tasks have stored."""
NOTING_SECONDS = 30.0
"""Time in which the end of a task that was killed is noted."""

WriteMetrics = Callable[[int, Mapping[str, float]], None]
"""Logs the metrics of a step's held-out samples, by their names in `task.Validates`."""


def validate_checkpoint(job: StageJob, open_task: OpenTask, step: int) -> dict[str, float]:
    """Measure the checkpoint of a step on the held-out samples, and store the metrics.

    With one worker they are those of the worker, to the bit; with several their sums come in another order.
    A step that workers ask for again, since they were started anew, is measured once.
    """
    checkpoints = job_checkpoints(job)
    known = checkpoints.validation(step)
    if known is not None:
        return known
    device = stage_device(job)
    num_threads = job.training.cpus_per_worker if device.type == "cpu" else None
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(scratch_folder()))
        stack.enter_context(process_settings(num_threads))
        task = stack.enter_context(closing(open_task(job, SingleProcessContext(device), scratch)))
        assert isinstance(task, Validates), "only such a task's checkpoints are validated"
        checkpoint = checkpoints.at_step(step)
        for name, module in task.parts.modules.items():
            load_module(checkpoint, name, module, scratch / "checkpoints")
        task.step = step + 1
        metrics = means([task.validate()])
    checkpoints.put_validation(step, metrics)
    return metrics


def give_up_validation(settings: dict[str, Any], step: int) -> None:
    """Note that a checkpoint of a job, which `settings` holds, could not be measured, unless it has been."""
    checkpoints = job_checkpoints(settings["job"])
    if checkpoints.validation(step) is None:
        checkpoints.put_validation(step, {})


class ValidationTasks:
    """The validations of one run, as its workers ask for them all together; rank 0 logs what comes back.

    `write` is called on rank 0 alone. Where the context has no tasks, `is_used` is false and the workers
    measure.
    """

    def __init__(self, job: StageJob, context: TrainContext, workers: WorkerGroup) -> None:
        self._job = job
        self._context = context
        self._workers = workers
        self._checkpoints = job_checkpoints(job)
        wanted = job.training.validate_in == "task" and bool(job.training.validate_every)
        self.is_used = wanted and isinstance(context, RequestsValidation)
        self._unasked: list[int] = []
        """Steps whose checkpoints are being saved; the same on all workers."""
        self._awaited: list[int] = []
        """Steps whose metrics are not logged yet; on rank 0."""
        self._looked_at = float("-inf")

    def go_on(self, last_step: int, logged: set[int]) -> None:
        """Ask for validations that earlier runs left; `logged` are the steps that rank 0 has lines of."""
        if not self.is_used:
            return
        done = self._workers.of_first(partial(self._checkpoints.validated_apart, last_step))
        missing = self._workers.of_first(partial(self._checkpoints.unvalidated, last_step))
        for step in missing:
            self._ask(step)
        if self._workers.rank == 0:
            self._awaited = [step for step in done if step not in logged]

    def has_room(self, step: int, *, is_last: bool) -> bool:
        """Tell whether a validation that is due can be made; tells the user where it is left out."""
        if is_last:
            return True
        waiting = [awaited for awaited in self._awaited if self._checkpoints.validation(awaited) is None]
        if not self._workers.any(value=len(waiting) >= MOST_WAITING):
            return True
        if self._workers.rank == 0:
            print(
                f"{self._job.label}: step {step} is not validated: {MOST_WAITING} validations before it are "
                "not done yet (train.validate_in=task)",
                file=sys.stderr,
                flush=True,
            )
        return False

    def checkpoint_begun(self, step: int) -> None:
        """Note that a checkpoint is being saved that is to be validated."""
        self._unasked.append(step)
        if self._workers.rank == 0:
            self._awaited.append(step)

    def step_taken(self, whole_step: int, write: WriteMetrics) -> None:
        """Ask for the validation of a checkpoint that is whole by now, and log what came back.

        `whole_step` is that of the last one that rank 0 knows to be whole. All workers call it after a step.
        """
        if self._unasked:
            is_whole = self._workers.rank == 0 and whole_step >= self._unasked[0]
            if self._workers.any(value=is_whole):
                self._ask(self._unasked.pop(0))
        if self._awaited and time.monotonic() >= self._looked_at + POLL_SECONDS:
            self._looked_at = time.monotonic()
            self._log_finished(write)

    def finish(self, write: WriteMetrics, is_alive: Callable[[], None]) -> bool:
        """Ask for what is left, now that all checkpoints are whole, and wait for it.

        Calls `is_alive` meanwhile. A task is killed after `hang_timeout_seconds`; what is not noted soon
        after that is given up. Returns false where the run is asked to stop: the run that goes on with it
        waits for what is missing.
        """
        while self._unasked:
            self._ask(self._unasked.pop(0))
        deadline = time.monotonic() + self._job.training.hang_timeout_seconds + NOTING_SECONDS
        self._log_finished(write)
        while self._workers.any(value=bool(self._awaited) and time.monotonic() < deadline):
            if self._workers.any(value=self._context.asked_to_stop()):
                return False
            is_alive()
            time.sleep(POLL_SECONDS)
            self._log_finished(write)
        if self._workers.rank == 0 and self._awaited:
            print(f"{self._job.label}: no validation of steps {self._awaited} came back", file=sys.stderr)
        return True

    def _ask(self, step: int) -> None:
        assert isinstance(self._context, RequestsValidation), "otherwise the workers measure"
        self._context.request_validation(folder_name(step), step)

    def _log_finished(self, write: WriteMetrics) -> None:
        """Log the metrics that tasks have stored since, in the order of steps."""
        while self._awaited:
            metrics = self._checkpoints.validation(self._awaited[0])
            if metrics is None:
                return
            write(self._awaited.pop(0), metrics)
