"""Profiles some steps of a training by torch.profiler, for a timeline of what they do.

The trace is Chrome's JSON, which https://ui.perfetto.dev and TensorBoard's profiler show.
"""

from pathlib import Path
from types import TracebackType
from typing import Self

from torch.profiler import ProfilerActivity, profile

from dualtoken.pipelines.core.stage import StageJob
from dualtoken.pipelines.training.train_context import TrainContext

TRACE = "logs/profile/steps-{first}-{last}.json.gz"
"""File in the stage's folder with the trace of rank 0's steps, `first` to `last`, 0 the first of all."""


class StepProfiler:
    """Records the steps of `train.profile` on rank 0, with their waits for data."""

    def __init__(self, job: StageJob, context: TrainContext, scratch: Path) -> None:
        self._job = job
        self._steps = job.training.profiled_steps if context.rank == 0 else range(0)
        self._scratch = scratch
        self._activities = [ProfilerActivity.CPU]
        if context.device.type == "cuda":
            self._activities.append(ProfilerActivity.CUDA)
        self._profile: profile | None = None
        self._first = 0
        """First step that is recorded."""
        self._next = 0
        """Step that comes next."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Store what was recorded, where the training ends before the last step to record."""
        self._finish()

    def before_step(self, step: int) -> None:
        """Begin or end the record, given the step that comes next."""
        self._next = step
        if self._profile and step >= self._steps.stop:
            self._finish()
        if self._profile is None and step in self._steps:
            self._first = step
            self._profile = profile(activities=self._activities, acc_events=True)
            self._profile.start()

    def _finish(self) -> None:
        if self._profile is None:
            return
        self._profile.stop()
        name = TRACE.format(first=self._first, last=self._next - 1)
        file = self._scratch / "trace.json.gz"
        self._profile.export_chrome_trace(str(file))
        self._profile = None
        self._job.store().put(file, name)
        print(
            f"{self._job.label}: a trace of steps {self._first} to {self._next - 1} is in "
            f"{self._job.folder}/{name}: open it at https://ui.perfetto.dev",
            flush=True,
        )
