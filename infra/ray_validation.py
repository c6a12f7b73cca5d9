"""Measurement of a training's checkpoints in Ray Train's validation tasks, while the training goes on.

Ray Train ends a training whose validation task dies. So its own task only watches over another one, which
measures, and which may die.
"""

import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import ray
from ray.exceptions import RayError, RayTaskError, TaskCancelledError
from ray.train import Checkpoint
from ray.train.v2.api.validation_config import ValidationConfig

from dualtoken.infra.ray_errors import first_line
from dualtoken.infra.ray_stop_notice import StopNotice

POLL_SECONDS = 0.5
"""Time between two looks whether the run was asked to stop."""
KILL_SECONDS = 10.0
"""Time that the process of a task which is killed has to be gone."""


class Validation(NamedTuple):
    """What is done about a checkpoint; functions of importable modules, since both run in tasks."""

    measure: Callable[[dict[str, Any], int], dict[str, float]]
    """Measures the checkpoint of a step, stores the metrics where the training looks for them, and returns
    them; it is given the training's settings and the step."""
    give_up: Callable[[dict[str, Any], int], None]
    """Notes that a step's checkpoint is not measured, where its task died, failed or hung; given the same."""
    timeout_seconds: float
    """Time that a task has, with its wait for resources."""


def validation_config(
    validation: Validation, settings: dict[str, Any], resources: dict[str, float], notice: StopNotice
) -> ValidationConfig:
    """Return what a trainer needs to measure checkpoints; each takes `resources` while it is measured."""
    watch = partial(_watch, validation, settings, resources, notice)
    # Where a node is lost with it, the checkpoint is measured again.
    return ValidationConfig(fn=watch, ray_remote_kwargs={"num_cpus": 0, "max_retries": -1})


def _watch(
    validation: Validation,
    settings: dict[str, Any],
    resources: dict[str, float],
    notice: StopNotice,
    checkpoint: Checkpoint,  # noqa: ARG001  (the caller knows it by its step)
    *,
    step: int,
    **_: Any,  # noqa: ANN401
) -> dict[str, float]:
    """Let a task measure a step's checkpoint, and return the metrics.

    There are none where it died, failed, hung or has to stop.
    """
    if notice.is_given():
        return {}
    measure = ray.remote(num_cpus=resources["CPU"], num_gpus=resources.get("GPU", 0), max_retries=0)
    task = measure(validation.measure).remote(settings, step)
    deadline = time.monotonic() + validation.timeout_seconds
    while not ray.wait([task], timeout=POLL_SECONDS)[0]:
        if notice.is_given():
            # The run that goes on with this one measures it.
            _kill(task)
            return {}
        if time.monotonic() >= deadline:
            _kill(task)
            return _give_up(validation, settings, step, f"it took over {validation.timeout_seconds:g} s")
    try:
        return ray.get(task)
    except TaskCancelledError:
        return {}
    except RayError as error:
        reason = error.cause if isinstance(error, RayTaskError) else error
        return _give_up(validation, settings, step, first_line(reason))


def _kill(task: ray.ObjectRef) -> None:
    """End a task, and wait until its process is gone."""
    ray.cancel(task, force=True)
    ray.wait([task], timeout=KILL_SECONDS)


def _give_up(validation: Validation, settings: dict[str, Any], step: int, reason: str) -> dict[str, float]:
    """Note and tell that a step is not measured; return no metrics."""
    validation.give_up(settings, step)
    print(f"step {step} is not validated: {reason}", file=sys.stderr, flush=True)
    return {}
