"""What the engine does about a step that fails: it is skipped, or taken in smaller parts, or ends the run."""

import json
import statistics
import sys
from collections import deque
from collections.abc import Mapping
from typing import Any

import torch

from dualtoken.pipelines.core.stage import StageJob
from dualtoken.pipelines.errors import UserError
from dualtoken.pipelines.inference.adaptive_batch import is_out_of_memory
from dualtoken.pipelines.training.task import Task
from dualtoken.pipelines.training.worker_group import WorkerGroup

BAD_STEP = "logs/bad-steps/step-{step:09d}-rank{rank}.json"
"""File in the stage's folder with the samples of a step that was skipped, and why."""
ACCUMULATE = "logs/accumulate_steps.json"
"""File with the parts that a group of workers takes its batch in, since one of them ran out of memory."""
SPIKE_WINDOW = 100
"""Last gradient norms whose median a spike is measured by."""
MIN_NORMS = 20
"""Gradient norms before which nothing is a spike."""


class OutOfMemory(OSError):
    """A worker of several ran out of memory: they start again, with smaller parts of a batch."""


class GradientSpike(FloatingPointError):
    """A gradient is far longer than those before it."""


class StepPolicy:
    """Takes a task's steps, and decides about those that fail; the same on all workers."""

    def __init__(self, job: StageJob, task: Task[Any], workers: WorkerGroup) -> None:
        self._job = job
        self._config = job.training
        self._task = task
        self._workers = workers
        self._num_bad = 0
        """Bad steps in a row."""
        self._norms: deque[float] = deque(maxlen=SPIKE_WINDOW)
        """Norms of the last gradients that were no spikes."""
        self._is_changing = False
        """Whether the step got as far as to change weights."""
        self._restore_accumulation()

    def take_step(self, batch: Any) -> Mapping[str, float]:  # noqa: ANN401  (the task's own type)
        """Take the next step and return its metrics; none for a bad one, which is skipped.

        Raises `UserError` for the last of too many bad steps, and where one sample is too large for the
        memory; `OutOfMemory` where several workers are to start again.
        """
        step = self._task.step
        try:
            metrics = self._step_within_memory(batch)
        except FloatingPointError as error:
            self._skip(step, str(error))
            return {}
        self._num_bad = 0
        return metrics

    def _step_within_memory(self, batch: Any) -> Mapping[str, float]:  # noqa: ANN401
        while True:
            self._is_changing = False
            try:
                return self._task.train_step(batch, self._check)
            except RuntimeError as error:
                if not is_out_of_memory(error) or self._is_changing:
                    raise
            # Past the handler, which keeps the step's tensors alive.
            self._accumulate_more()

    def _check(self, gradient_norm: float, problem: str) -> None:
        """Raise FloatingPointError for a step that is not finite on some worker, and for a spike.

        From here on a step changes weights, those of all workers or of none.
        """
        if self._workers.any(value=bool(problem)):
            raise FloatingPointError(problem or f"step {self._task.step} is not finite on another worker")
        factor = self._config.max_gradient_spike
        if factor is not None and len(self._norms) >= MIN_NORMS:
            usual = statistics.median(self._norms)
            if gradient_norm > factor * usual:
                raise GradientSpike(
                    f"step {self._task.step} has gradient norm {gradient_norm:.4g}, "
                    f"over {factor:g} times the median of {usual:.4g} (train.max_gradient_spike)"
                )
        self._norms.append(gradient_norm)
        self._is_changing = True

    def _skip(self, step: int, reason: str) -> None:
        """Note a bad step's samples and go on after it.

        Raises `UserError` for too many in a row, and for the last step: a training ends with a good one.
        """
        self._num_bad += 1
        name = BAD_STEP.format(step=step, rank=self._workers.rank)
        dump = {"step": step, "reason": reason, "samples": self._task.sample_keys(step)}
        self._job.store().put_bytes(json.dumps(dump, indent=1).encode(), name)
        limit = self._config.max_bad_steps
        if step == self._task.steps - 1:
            raise UserError(f"{reason}; it is the last step, samples in {name}")
        if self._num_bad >= limit:
            raise UserError(f"{reason}; {_in_a_row(limit)} (train.max_bad_steps={limit}), samples in {name}")
        if self._workers.rank == 0:
            _warn(f"{self._job.label}: {reason}; the step is skipped, samples in {name}")
        self._task.step = step + 1

    def _accumulate_more(self) -> None:
        task = self._task
        if not task.accumulate_more():
            raise UserError(
                f"{self._job.label}: a step in {task.accumulate_steps} parts is too large for the memory of "
                f"{self._device()}: {task.smaller}"
            )
        _free_cached_memory()
        _warn(
            f"{self._job.label}: out of memory on {self._device()}: a share of the batch is taken in "
            f"{task.accumulate_steps} parts from now on (train.accumulate_steps)"
        )
        if self._workers.size > 1:
            # The others wait in this step's sum of gradients, which has to begin anew.
            parts = {"num_workers": self._workers.size, "accumulate_steps": task.accumulate_steps}
            self._job.store().put_bytes(json.dumps(parts).encode(), ACCUMULATE)
            raise OutOfMemory(f"{self._job.label}: out of memory on worker {self._workers.rank}")

    def _restore_accumulation(self) -> None:
        """Take the parts that this group of workers found out before it started again."""
        store = self._job.store()
        if self._workers.size == 1 or not store.exists(ACCUMULATE):
            return
        parts = json.loads(store.read(ACCUMULATE))
        if parts["num_workers"] != self._workers.size:
            return
        while self._task.accumulate_steps < parts["accumulate_steps"] and self._task.accumulate_more():
            pass

    def _device(self) -> str:
        return f"worker {self._workers.rank}" if self._workers.size > 1 else "this machine"


def _warn(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _in_a_row(count: int) -> str:
    return "the first bad step ends the run" if count == 1 else f"{count} bad steps in a row end the run"


def _free_cached_memory() -> None:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
