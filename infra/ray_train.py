"""Data-parallel training by Ray Train V2: the worker group and its restarts.

The training loop is the caller's, and so are its checkpoints: a loop begins with the last one that it finds.
"""

import logging
import math
import os
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import fsspec.core
import ray.train
import torch
from pyarrow.fs import FSSpecHandler, PyFileSystem
from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import (
    get_or_create_autoscaling_coordinator,
)
from ray.exceptions import RayActorError, RayError
from ray.train import (
    Checkpoint,
    CheckpointUploadMode,
    FailureConfig,
    RunConfig,
    ScalingConfig,
    TrainingFailedError,
    ValidationTaskConfig,
)
from ray.train.torch import TorchConfig, TorchTrainer, get_device
from ray.train.v2._internal import util as ray_train_util
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.constants import CHECKPOINT_MANAGER_SNAPSHOT_FILENAME
from ray.train.v2._internal.exceptions import RayTrainError
from ray.train.v2._internal.execution.failure_handling import DefaultFailurePolicy, FailureDecision
from ray.train.v2._internal.execution.scaling_policy import ElasticScalingPolicy
from ray.train.v2.api.config import LoggingConfig
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

from dualtoken.infra.ray_errors import ProcessesDied, lost_workers, origin
from dualtoken.infra.ray_preemption import WATCH_SECONDS, NodeIsLeaving, as_preemption, preemption_notice
from dualtoken.infra.ray_session import environment, is_cluster_own
from dualtoken.infra.ray_stop_notice import StopNotice, forwarding_stop_requests
from dualtoken.infra.ray_validation import Validation, validation_config

POLL_SECONDS = 0.5
"""Time between two looks of the controller at its workers; 2 s by Ray's default."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerRun:
    """The worker that a training loop runs in."""

    rank: int
    """Rank, 0 to world_size - 1; after a restart a worker may have another one."""
    world_size: int
    device: torch.device
    stop_notice: StopNotice

    def asked_to_stop(self) -> bool:
        """Tell whether the driver or a node of the group is to end soon; one of the workers hears of it."""
        if self.rank != 0:
            return False
        return self.stop_notice.is_given() or preemption_notice() is not None

    def request_validation(self, checkpoint: str, step: int) -> None:
        """Ask for the validation of a step's whole checkpoint, a folder of the run; all workers ask at once.

        The run needs a `Validation`. Of several requests one is done after the other.
        """
        storage: Any = ray.train.get_context().get_storage()  # Ray gives it no type
        ray.train.report(
            {"step": step},
            checkpoint=Checkpoint(f"{storage.experiment_fs_path}/{checkpoint}", storage.storage_filesystem),
            checkpoint_upload_mode=CheckpointUploadMode.NO_UPLOAD,
            validation=ValidationTaskConfig(fn_kwargs={"step": step}),
        )


Loop = Callable[[dict[str, Any], WorkerRun], bool]
"""Training loop; false where it ended before its last step, since it was asked to stop.

It runs in each worker, so: a function of an importable module, and settings that pickle."""
IsFinal = Callable[[BaseException], bool]
"""Tells of a loop's error whether the same would come again; pickled as well."""


def fit(
    loop: Loop,
    settings: dict[str, Any],
    *,
    name: str,
    storage_path: str,
    is_final: IsFinal,
    group_sizes: Sequence[int] = (1,),
    cpus_per_worker: int = 1,
    use_gpu: bool = False,
    max_failures: int = 0,
    progress: Callable[[], int | None] | None = None,
    collective_timeout_seconds: float = 1800.0,
    validation: Validation | None = None,
) -> None:
    """Run `loop` in a group of processes, on CPUs over gloo or one GPU each over nccl.

    The group has one of `group_sizes`, in rising order: the largest that the cluster has room for, whenever
    it starts, and a larger one once there is room for it.

    Needs a Ray session. `storage_path` is a folder or any fsspec URL that all nodes reach; Ray looks whether
    they do, by a file in its folder `name`. After a failure the workers are started again, `max_failures`
    times at most; where `progress` tells something new, such as the step of a checkpoint, the failures before
    it are forgotten. It is pickled too. Where the caller defers stop requests, workers are told of one.
    With `validation` a loop may have checkpoints measured beside it, each with the resources of one worker.

    Raises a loop's error that `is_final` at once, as it is. Raises ProcessesDied where workers died too
    often, and TrainingFailedError where the loop failed otherwise.

    Workers are told as well of a node of theirs that is about to be taken away, as by its cloud. A loop that
    ends early for it goes on in a new group on other nodes, and that counts as no failure.
    """
    notice = StopNotice(uuid.uuid4().hex)
    resources = _resources(cpus_per_worker, use_gpu)
    _remove_snapshot(name, storage_path)
    trainer = _Trainer(
        _Policy(is_final, progress, tuple(group_sizes), num_kept_free=int(validation is not None)),
        partial(_run_loop, loop, notice),
        train_loop_config=settings,
        torch_config=TorchConfig(
            backend="nccl" if use_gpu else "gloo", timeout_s=math.ceil(collective_timeout_seconds)
        ),
        scaling_config=ScalingConfig(
            num_workers=_num_workers(group_sizes),
            use_gpu=use_gpu,
            resources_per_worker=resources,
        ),
        run_config=_run_config(name, storage_path, max_failures),
        validation_config=(
            None if validation is None else validation_config(validation, settings, resources, notice)
        ),
    )
    # Train needs this actor; it starts now, beside the controller and not after it.
    get_or_create_autoscaling_coordinator()
    with environment(_variables()), forwarding_stop_requests(notice):
        try:
            trainer.fit()
        except TrainingFailedError as error:
            own_error = _find_final(error, is_final)
            if own_error is not None:
                raise own_error from error
            if lost_workers(error):
                raise ProcessesDied(
                    f"{name}: workers died more than {max_failures} times without a new checkpoint "
                    "(max_failures), "
                    "as of too little memory or a crash"
                ) from error
            raise


def _remove_snapshot(name: str, storage_path: str) -> None:
    """Remove Ray's list of the checkpoints that it made, of another run: we make ours, and ask it for none.

    Ray reads it before it starts any worker, and ends the run where it is cut.
    """
    filesystem, root = fsspec.core.url_to_fs(storage_path)
    with suppress(FileNotFoundError):
        filesystem.rm_file(f"{root}/{name}/{CHECKPOINT_MANAGER_SNAPSHOT_FILENAME}")


def _run_config(name: str, storage_path: str, max_failures: int) -> RunConfig:
    filesystem, root = fsspec.core.url_to_fs(storage_path)
    return RunConfig(
        name=name,
        storage_path=root,
        storage_filesystem=None if _is_local(filesystem) else PyFileSystem(FSSpecHandler(filesystem)),
        failure_config=FailureConfig(max_failures=max_failures),
        logging_config=LoggingConfig(log_level="WARNING"),
    )


def _is_local(filesystem: Any) -> bool:  # noqa: ANN401  (fsspec has no types)
    protocols = filesystem.protocol
    if isinstance(protocols, str):
        protocols = (protocols,)
    return "file" in protocols


class _Policy(NamedTuple):
    """The caller's part in what a failure leads to."""

    is_final: IsFinal
    progress: Callable[[], int | None] | None
    group_sizes: tuple[int, ...]
    num_kept_free: int
    """Workers that a group leaves room for, such as one for validation."""


def _num_workers(group_sizes: Sequence[int]) -> int | tuple[int, int]:
    """Return a fixed number of workers, or the fewest and the most of them."""
    if len(group_sizes) == 1:
        return group_sizes[0]
    return group_sizes[0], group_sizes[-1]


class _GroupSizes(ElasticScalingPolicy):
    """Takes the largest of the sizes that a group may have, and waits where there is room for none."""

    def __init__(self, scaling_config: ScalingConfig, policy: _Policy) -> None:
        # Room is asked for, and counted, up to the most workers and what is kept free beside them.
        most = scaling_config.max_workers + policy.num_kept_free
        super().__init__(replace(scaling_config, num_workers=(scaling_config.min_workers, most)))
        self._policy = policy

    def _count_possible_workers(self, reserved_resources: Any) -> int:  # noqa: ANN401  (Ray's own type)
        room = super()._count_possible_workers(reserved_resources) - self._policy.num_kept_free
        return max((size for size in self._policy.group_sizes if size <= room), default=0)


class _FailurePolicy(DefaultFailurePolicy):
    """Restarts the workers as Ray Train does by default, but for errors that would only come again.

    It counts failures since the last progress, not over a run's life: a long run meets many.
    """

    def __init__(self, failure_config: FailureConfig, policy: _Policy) -> None:
        super().__init__(failure_config)
        self._policy = policy
        self._last_progress: int | None = None

    def make_decision(self, training_failed_error: TrainingFailedError) -> FailureDecision:
        """Decide what a failure leads to."""
        training_failed_error = as_preemption(training_failed_error)
        if _find_final(training_failed_error, self._policy.is_final) is not None:
            return FailureDecision.RAISE
        self._forget_failures_before_progress()
        if isinstance(training_failed_error, ControllerError):
            failure = training_failed_error.controller_failure
            if isinstance(failure, RayActorError):
                # The controller called a worker that had just died, before it learnt of that.
                training_failed_error = WorkerGroupError(str(failure), {0: failure})
        return super().make_decision(training_failed_error)

    def _forget_failures_before_progress(self) -> None:
        if self._policy.progress is None:
            return
        progress = self._policy.progress()
        if progress != self._last_progress:
            self._last_progress = progress
            self._worker_group_failures = 0


class _Trainer(TorchTrainer):
    """Trainer with our failure policy.

    It has no watcher of orphaned placement groups, where they end with the session anyway.
    """

    def __init__(self, policy: _Policy, *arguments: Any, **options: Any) -> None:  # noqa: ANN401  (Ray's own)
        super().__init__(*arguments, **options)
        self._policy = policy

    def _initialize_and_run_controller(self, **options: Any) -> Any:  # noqa: ANN401
        failure_config = self.run_config.failure_config
        assert failure_config is not None
        options["failure_policy"] = _FailurePolicy(failure_config, self._policy)
        if self.scaling_config.elasticity_enabled:
            options["scaling_policy"] = _GroupSizes(self.scaling_config, self._policy)
        return super()._initialize_and_run_controller(**options)

    def _create_default_callbacks(self) -> list[Any]:
        callbacks = super()._create_default_callbacks()
        if not is_cluster_own():
            return callbacks
        # The watcher asks the dashboard each second, and says so each second where there is none.
        return [callback for callback in callbacks if not isinstance(callback, PlacementGroupCleanerCallback)]

    def _register_sigint_handler(self, controller: Any) -> None:  # noqa: ANN401  (an actor's handle)
        """Leave SIGINT to the program: Ray's own handler swallows it, and stays after the training."""


def _resources(cpus: int, use_gpu: bool) -> dict[str, float]:
    if use_gpu:
        return {"CPU": cpus, "GPU": 1}
    return {"CPU": cpus}


def _variables() -> dict[str, str]:
    """Return Ray Train's settings, which it reads from the environment only; the user's own come first."""
    variables = {
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": str(POLL_SECONDS),
        "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": str(WATCH_SECONDS),
        # It would show what workers print twice, where their root logger shows INFO.
        "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    }
    if is_cluster_own():
        # Its notice of a node's end is of use only where other nodes live on, or may come; it is a process.
        variables["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] = "0"
    return {name: value for name, value in variables.items() if name not in os.environ}


def _run_loop(loop: Loop, notice: StopNotice, settings: dict[str, Any]) -> None:
    """Run the caller's loop in a worker."""
    context = ray.train.get_context()
    device = get_device()
    assert isinstance(device, torch.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    # It prints the traceback of each error, which is raised in the driver as well.
    logging.getLogger(ray_train_util.__name__).setLevel(logging.CRITICAL)
    run = WorkerRun(
        rank=context.get_world_rank(),
        world_size=context.get_world_size(),
        device=device,
        stop_notice=notice,
    )
    is_done = loop(settings, run)
    preemption = preemption_notice()
    if run.rank != 0 or is_done or preemption is None or notice.is_given():
        return
    # A group that ended without an error would count as done.
    error = NodeIsLeaving(preemption)
    print(f"{error}: the training goes on from its last checkpoint on other nodes", flush=True)
    raise error


def _find_final(error: TrainingFailedError, is_final: IsFinal) -> BaseException | None:
    """Return the error of a worker's loop that would come again, if there is one.

    It comes wrapped, with a traceback that only a developer wants.
    """
    if not isinstance(error, WorkerGroupError):
        return None
    for failure in error.worker_failures.values():
        found = origin(failure)
        # Ray's own errors are of workers that died.
        if not isinstance(found, (RayTrainError, RayError)) and is_final(found):
            return found
    return None
