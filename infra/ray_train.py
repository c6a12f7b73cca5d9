"""Data-parallel training by Ray Train V2: the worker group and its restarts.

The training loop is the caller's, and so are its checkpoints: a loop begins with the last one that it finds.
"""

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import fsspec.core
import ray
import ray.train
import torch
from pyarrow.fs import FSSpecHandler, PyFileSystem
from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import (
    get_or_create_autoscaling_coordinator,
)
from ray.exceptions import RayError
from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
from ray.train.torch import TorchConfig, TorchTrainer, get_device, prepare_model
from ray.train.v2._internal import util as ray_train_util
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.exceptions import RayTrainError
from ray.train.v2._internal.execution.failure_handling import DefaultFailurePolicy, FailureDecision
from ray.train.v2.api.config import LoggingConfig
from ray.train.v2.api.exceptions import WorkerGroupError

from dualtoken.infra.ray_errors import ProcessesDied, lost_workers
from dualtoken.infra.ray_session import environment

POLL_SECONDS = 0.5
"""Time between two looks of the controller at its workers; 2 s by Ray's default."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerRun:
    """The worker that a training loop runs in."""

    rank: int
    """Rank, 0 to world_size - 1; after a restart a worker may have another one."""
    world_size: int
    device: torch.device

    def wrap(self, model: torch.nn.Module, **ddp_options: Any) -> torch.nn.Module:  # noqa: ANN401
        """Move a model to the device and average its gradients over the workers.

        Buffers are equal at the start only. `ddp_options` are those of DistributedDataParallel.
        """
        return prepare_model(model, parallel_strategy_kwargs={"forward_sync_buffers": False, **ddp_options})


Loop = Callable[[dict[str, Any], WorkerRun], None]
"""Training loop. It runs in each worker, so: a function of an importable module, and settings that pickle."""
IsFinal = Callable[[BaseException], bool]
"""Tells of a loop's error whether the same would come again; pickled as well."""


def fit(
    loop: Loop,
    settings: dict[str, Any],
    *,
    name: str,
    storage_path: str,
    is_final: IsFinal,
    num_workers: int = 1,
    cpus_per_worker: int = 1,
    use_gpu: bool = False,
    max_failures: int = 0,
) -> None:
    """Run `loop` in `num_workers` processes, on CPUs over gloo or one GPU each over nccl.

    Needs a Ray session. `storage_path` is a folder or any fsspec URL that all nodes reach; Ray looks whether
    they do, by a file in its folder `name`. After a failure the workers are started again, `max_failures`
    times at most.

    Raises a loop's error that `is_final` at once, as it is. Raises ProcessesDied where workers died too
    often, and TrainingFailedError where the loop failed otherwise.
    """
    trainer = _Trainer(
        is_final,
        partial(_run_loop, loop),
        train_loop_config=settings,
        torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=num_workers,
            use_gpu=use_gpu,
            resources_per_worker=_resources(cpus_per_worker, use_gpu),
        ),
        run_config=_run_config(name, storage_path, max_failures),
    )
    # Train needs this actor; it starts now, beside the controller and not after it.
    get_or_create_autoscaling_coordinator()
    with environment(_variables()):
        try:
            trainer.fit()
        except TrainingFailedError as error:
            own_error = _find_final(error, is_final)
            if own_error is not None:
                raise own_error from error
            if lost_workers(error):
                raise ProcessesDied(
                    f"{name}: workers died more than {max_failures} times (max_failures), "
                    "as of too little memory or a crash"
                ) from error
            raise


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


class _FailurePolicy(DefaultFailurePolicy):
    """Restarts the workers as Ray Train does by default, but for errors that would only come again."""

    def __init__(self, failure_config: FailureConfig, is_final: IsFinal) -> None:
        super().__init__(failure_config)
        self._is_final = is_final

    def make_decision(self, training_failed_error: TrainingFailedError) -> FailureDecision:
        """Decide what a failure leads to."""
        if _find_final(training_failed_error, self._is_final) is not None:
            return FailureDecision.RAISE
        return super().make_decision(training_failed_error)


class _Trainer(TorchTrainer):
    """Trainer with our failure policy.

    It has no watcher of orphaned placement groups, where they end with the session anyway.
    """

    def __init__(self, is_final: IsFinal, *arguments: Any, **options: Any) -> None:  # noqa: ANN401  (Ray's own)
        super().__init__(*arguments, **options)
        self._is_final = is_final

    def _initialize_and_run_controller(self, **options: Any) -> Any:  # noqa: ANN401
        failure_config = self.run_config.failure_config
        assert failure_config is not None
        options["failure_policy"] = _FailurePolicy(failure_config, self._is_final)
        return super()._initialize_and_run_controller(**options)

    def _create_default_callbacks(self) -> list[Any]:
        callbacks = super()._create_default_callbacks()
        if _many_nodes():
            return callbacks
        # The watcher asks the dashboard each second, and says so each second where there is none.
        return [callback for callback in callbacks if not isinstance(callback, PlacementGroupCleanerCallback)]

    def _register_sigint_handler(self, controller: Any) -> None:  # noqa: ANN401  (an actor's handle)
        """Leave SIGINT to the program: Ray's own handler swallows it, and stays after the training."""


def _many_nodes() -> bool:
    alive = [node for node in ray.nodes() if node["Alive"]]
    return len(alive) > 1


def _resources(cpus: int, use_gpu: bool) -> dict[str, float]:
    if use_gpu:
        return {"CPU": cpus, "GPU": 1}
    return {"CPU": cpus}


def _variables() -> dict[str, str]:
    """Return Ray Train's settings, which it reads from the environment only; the user's own come first."""
    variables = {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": str(POLL_SECONDS)}
    if not _many_nodes():
        # Its notice of a node's end is of use only where other nodes live on; it is a process.
        variables["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] = "0"
    return {name: value for name, value in variables.items() if name not in os.environ}


def _run_loop(loop: Loop, settings: dict[str, Any]) -> None:
    """Run the caller's loop in a worker."""
    context = ray.train.get_context()
    device = get_device()
    assert isinstance(device, torch.device)
    # It prints the traceback of each error, which is raised in the driver as well.
    logging.getLogger(ray_train_util.__name__).setLevel(logging.CRITICAL)
    run = WorkerRun(rank=context.get_world_rank(), world_size=context.get_world_size(), device=device)
    loop(settings, run)


def _find_final(error: TrainingFailedError, is_final: IsFinal) -> BaseException | None:
    """Return the error of a worker's loop that would come again, if there is one.

    It comes wrapped, with a traceback that only a developer wants.
    """
    if not isinstance(error, WorkerGroupError):
        return None
    for failure in error.worker_failures.values():
        origin = _origin(failure)
        # Ray's own errors are of workers that died.
        if not isinstance(origin, (RayTrainError, RayError)) and is_final(origin):
            return origin
    return None


def _origin(failure: BaseException) -> BaseException:
    """Return the error that a loop raised, without what Ray wraps it in."""
    while isinstance(failure, (RayTrainError, RayError)):
        cause = getattr(failure, "cause", None) or getattr(failure, "_base_exc", None)
        if cause is None:
            break
        failure = cause
    return failure
