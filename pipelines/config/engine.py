"""How a training runs: checkpoints, failures and log, for every trained model; imports neither torch nor ray.

Nothing here decides what is learnt, so none of it is part of a fingerprint.
"""

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from dualtoken.model.config.base import Config, PositiveInt, not_in_fingerprint
from dualtoken.pipelines.config.loggers import LoggerConfig


def _as_steps(written: str) -> str:
    """Check a range of steps; raises ValueError."""
    found = re.fullmatch(r"(\d+):(\d+)", written)
    if found is None or int(found[1]) >= int(found[2]):
        raise ValueError(
            f"{written!r} is no range of steps: write START:STOP, such as 20:25 for the five from step 20 on"
        )
    return written


StepRange = Annotated[str, AfterValidator(_as_steps)]
"""Steps START:STOP, the first of all is 0 and STOP is left out, as in Python."""


VALIDATION = "validation_"
"""Beginning of the names of metrics on held-out samples."""


class BestConfig(Config):
    """A metric of the training's log by which one checkpoint is kept beside the newest."""

    metric: str
    """Name of the metric, such as `loss`, or `validation_loss` with `validate_every`."""
    mode: Literal["min", "max"] = "min"
    """Whether a lower value is better, or a higher one."""


class EngineConfig(Config):
    """Checkpoints, failures and log of every training of a recipe."""

    checkpoint_every: PositiveInt = not_in_fingerprint(default=100)
    """Steps between checkpoints."""
    keep_checkpoints: PositiveInt = not_in_fingerprint(default=2)
    """Newest checkpoints that are kept."""
    keep_best: BestConfig | None = not_in_fingerprint(default=None)
    """Metric whose best checkpoint is kept too, such as `{metric: loss}`."""
    log_every: PositiveInt = not_in_fingerprint(default=10)
    """Steps between log lines."""
    log_images_every: Annotated[int, Field(ge=0)] = not_in_fingerprint(default=500)
    """Steps between pictures and code histograms in TensorBoard's files; the last step has some too. 0: none.
    The tokenizer's are of a few training images, the unified model's of held-out ones, with answers about
    them, and `forget` deletes them."""
    validate_every: Annotated[int, Field(ge=0)] = not_in_fingerprint(default=0)
    """Steps between measurements on held-out images; the last step has one too. 0: none. Their names begin
    with `validation_`."""
    validation_images: PositiveInt = not_in_fingerprint(default=256)
    """Held-out images that are measured each time, the first of all."""
    validate_in: Literal["worker", "task"] = not_in_fingerprint(default="worker")
    """Where held-out images are measured: by the `worker`s, between two steps, or in a `task` of Ray with the
    resources of one worker, from a checkpoint of the step, while the training goes on. Without Ray the worker
    does it."""
    max_failures: Annotated[int, Field(ge=0)] = not_in_fingerprint(default=2)
    """Restarts of the workers without a new checkpoint between them, before the run fails."""
    max_bad_steps: PositiveInt = not_in_fingerprint(default=3)
    """Steps in a row with a loss or gradient that is not finite, or a spike, that end the run; fewer are
    skipped."""
    max_gradient_spike: Annotated[float, Field(gt=1)] | None = not_in_fingerprint(default=None)
    """Times the median gradient norm of the last steps from which on a step is skipped as a spike."""
    max_upload_attempts: PositiveInt = not_in_fingerprint(default=4)
    """Attempts to store a checkpoint's file before the run fails."""
    stop_grace_seconds: Annotated[float, Field(gt=0)] = not_in_fingerprint(default=30.0)
    """Time that a training has from SIGTERM, or a notice of preemption, to end its step and store a
    checkpoint."""
    hang_timeout_seconds: Annotated[float, Field(gt=0)] = not_in_fingerprint(default=1800.0)
    """Time that one step may take before its process writes its stacks and ends, and that the task of a
    validation may take, with its wait for resources, before it is killed."""
    collective_timeout_seconds: Annotated[float, Field(gt=0)] = not_in_fingerprint(default=1800.0)
    """Time that a worker waits for the others in one operation of the process group."""
    loggers: tuple[LoggerConfig, ...] = not_in_fingerprint(default=())
    """Services that get the log too, such as `[{kind: wandb, mode: offline}]`; none of them can end a
    training."""
    profile: StepRange | None = not_in_fingerprint(default=None)
    """Steps that torch.profiler records, such as `20:25`; the trace is stored in the stage's `logs/`."""

    @model_validator(mode="after")
    def _best_checkpoints_are_validated(self) -> "EngineConfig":
        best = self.keep_best
        if best is None or not best.metric.startswith(VALIDATION):
            return self
        if self.validate_every and self.validate_in == "task":
            # Each validation is of a checkpoint.
            return self
        if not self.validate_every or self.checkpoint_every % self.validate_every:
            raise ValueError(
                f"keep_best.metric={best.metric} is measured every validate_every={self.validate_every} "
                f"steps: set validate_every so that it divides checkpoint_every={self.checkpoint_every}"
            )
        return self

    @property
    def profiled_steps(self) -> range:
        """Steps to profile, an empty range by default."""
        if self.profile is None:
            return range(0)
        start, _, stop = self.profile.partition(":")
        return range(int(start), int(stop))
