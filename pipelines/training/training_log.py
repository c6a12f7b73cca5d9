"""What the engine tells of a training: a line of the log every few steps, made by all workers together.

Workers measure their own steps, and exchange a few numbers for each line. Rank 0 writes it.
"""

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from torch import Tensor

from dualtoken.pipelines.config.engine import VALIDATION
from dualtoken.pipelines.core.stage import StageJob
from dualtoken.pipelines.training.logger_session import End
from dualtoken.pipelines.training.loggers import Loggers
from dualtoken.pipelines.training.metrics_log import MetricsLog, code_use
from dualtoken.pipelines.training.pace import PaceMeter
from dualtoken.pipelines.training.step_cost import flop_utilization
from dualtoken.pipelines.training.step_window import StepWindow, Window, means
from dualtoken.pipelines.training.task import (
    CountsCodes,
    CountsLostSamples,
    CountsOperations,
    ShowsPictures,
    ShowsTexts,
    Task,
    Validates,
)
from dualtoken.pipelines.training.train_context import TrainContext
from dualtoken.pipelines.training.validation_tasks import ValidationTasks
from dualtoken.pipelines.training.worker_group import WorkerGroup

Batch = TypeVar("Batch")


class TrainingLog:
    """Log of a run of a task from the step that comes next; each worker has one."""

    def __init__(
        self,
        job: StageJob,
        task: Task[Any],
        context: TrainContext,
        workers: WorkerGroup,
        scratch: Path,
        validations: ValidationTasks,
    ) -> None:
        self._config = job.training
        self._task = task
        self._context = context
        self._workers = workers
        self._validations = validations
        self.wants_checkpoint = False
        """Whether a task is to validate the next checkpoint."""
        self.validated_steps: set[int] = set()
        """Steps whose validation is logged already, on rank 0."""
        self._window = StepWindow(workers)
        self._pace = PaceMeter(task.steps, task.batch_size, task.sample_name)
        self._began = time.monotonic()
        self._is_due = False
        self._are_pictures_due = False
        self._is_validation_due = False
        self._stack = ExitStack()
        self._file: MetricsLog | None = None
        self._loggers: Loggers | None = None
        if workers.rank == 0:
            file = MetricsLog(job.store(), scratch, job.label, task.steps, task.step)
            self._file = self._stack.enter_context(file)
            self._loggers = Loggers(job, file.logs_folder)
            self.validated_steps = file.steps_with(VALIDATION)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the log, and copy it to storage."""
        if self._loggers:
            self._loggers.close(self._end(error))
        self._stack.__exit__(kind, error, trace)

    def _end(self, error: BaseException | None) -> End:
        if error is not None:
            return "failed"
        return "done" if self._task.step == self._task.steps else "stopped"

    def waited_for(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Yield batches, and measure how long steps wait for them."""
        return self._window.waited_for(batches)

    def step_taken(
        self, metrics: Mapping[str, float], stalled_seconds: float, *, must_stop: bool = False
    ) -> dict[str, float]:
        """Add a step's metrics, none for a bad one, and write a line where one is due.

        Returns what the held-out samples give after this step; nothing where no validation is due. A line or
        validation that is due at a bad step is made at the next good one. `stalled_seconds` is the time that
        steps have waited for checkpoints so far. A run that must stop has a line of this step too; it has no
        time for a validation and pictures that are not due anyway.
        """
        self._window.add(metrics)
        self._pace.step_taken(time.monotonic())
        step = self._task.step - 1
        is_last = self._task.step == self._task.steps
        every = self._config.log_images_every
        self._is_due = self._is_due or is_last or must_stop or step % self._config.log_every == 0
        if every:
            is_at_interval = self._task.step % every == 0
            self._are_pictures_due = self._are_pictures_due or is_last or is_at_interval
        validate_every = self._config.validate_every
        if validate_every:
            is_at_interval = self._task.step % validate_every == 0
            self._is_validation_due = self._is_validation_due or is_last or is_at_interval
        if not metrics:
            return {}
        validation = self._validation()
        if self._is_due or validation:
            self._is_due = False
            self._write_line(step, stalled_seconds, validation)
        if self._are_pictures_due:
            self._are_pictures_due = False
            self._show(step)
        return validation

    def _validation(self) -> dict[str, float]:
        """Return the metrics of the held-out samples over all workers, if they are due."""
        if not self._is_validation_due or not isinstance(self._task, Validates):
            return {}
        self._is_validation_due = False
        if self._validations.is_used:
            is_last = self._task.step == self._task.steps
            self.wants_checkpoint = self._validations.has_room(self._task.step - 1, is_last=is_last)
            return {}
        return _named(means(self._workers.gather(dict(self._task.validate()))))

    def take_checkpoint(self) -> bool:
        """Tell of the checkpoint that is being saved now whether a task is to validate it."""
        is_wanted = self.wants_checkpoint
        self.wants_checkpoint = False
        if is_wanted:
            self._validations.checkpoint_begun(self._task.step - 1)
        return is_wanted

    def write_validation(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log what a task measured of an earlier step's checkpoint, nothing where it failed; on rank 0."""
        if metrics and self._file and self._loggers:
            self._file.write(step, _named(metrics))
            self._loggers.write(step, _named(metrics))

    def _write_line(self, step: int, stalled_seconds: float, validation: Mapping[str, float]) -> None:
        cost = self._task.step_cost() if isinstance(self._task, CountsOperations) else None
        window = self._window.close(self._num_lost(), cost)
        if self._file and self._loggers:
            values = {**window.metrics, **validation, **self._measured(window, stalled_seconds)}
            self._file.write(step, values, self._pace.pace(self._task.step))
            self._loggers.write(step, values)

    def _show(self, step: int) -> None:
        """Write pictures, texts, and how often codes are used, where the task has them."""
        pictures = self._task.pictures() if isinstance(self._task, ShowsPictures) else {}
        texts = self._task.texts() if isinstance(self._task, ShowsTexts) else {}
        counts: dict[str, Tensor] = {}
        if isinstance(self._task, CountsCodes):
            for stream, own in self._task.code_counts().items():
                counts[stream] = self._workers.sum(own)
        if self._file and self._loggers:
            self._file.write_pictures(step, pictures)
            self._file.write_texts(step, texts)
            self._file.write_code_counts(step, counts)
            self._loggers.write_pictures(step, pictures)
            if counts:
                self._loggers.write(step, code_use(counts))

    def save(self) -> None:
        """Copy the log to storage, where that is not a local folder."""
        if self._file:
            self._file.save()

    def _num_lost(self) -> int | None:
        if isinstance(self._task, CountsLostSamples):
            return self._task.num_lost()
        return None

    def _measured(self, window: Window, stalled_seconds: float) -> dict[str, float]:
        """Return what is measured of the steps themselves."""
        num_samples = window.num_steps * self._task.batch_size
        values: dict[str, float] = {
            "num_steps": window.num_steps,
            "num_bad_steps": window.num_bad_steps,
            f"{self._task.sample_name}_per_second": round(num_samples / window.seconds, 1),
            "data_wait": round(window.data_wait, 5),
            # Over the run since its start or restart: checkpoints are rarer than lines.
            "checkpoint_stall": round(stalled_seconds / (time.monotonic() - self._began), 5),
        }
        if window.num_lost is not None:
            values["num_lost"] = window.num_lost
        if window.cost is not None:
            share = flop_utilization(window.cost, window.num_steps / window.seconds, self._context)
            if share is not None:
                values["mfu"] = round(share, 4)
        return values


def _named(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return the metrics of held-out samples by their names in the log."""
    return {f"{VALIDATION}{name}": value for name, value in metrics.items()}
