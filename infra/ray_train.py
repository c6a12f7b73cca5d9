"""Data-parallel training by Ray Train V2: the worker group, its restarts and its checkpoints.

The training loop is the caller's.
"""

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import fsspec.core
import ray
import ray.train
import torch
from pyarrow.fs import FSSpecHandler, PyFileSystem
from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import (
    get_or_create_autoscaling_coordinator,
)
from ray.train import (
    Checkpoint,
    CheckpointConfig,
    FailureConfig,
    RunConfig,
    ScalingConfig,
    TrainingFailedError,
)
from ray.train.torch import TorchConfig, TorchTrainer, get_device, prepare_model
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution import context as execution_context
from ray.train.v2.api.config import LoggingConfig
from ray.train.v2.api.exceptions import WorkerGroupError

from dualtoken.infra.ray_errors import ProcessesDied, lost_workers
from dualtoken.infra.ray_session import environment

POLL_SECONDS = 0.5
"""Time between two looks of the controller at its workers.

A checkpoint stays uncommitted as long, which is 2 s by Ray's default.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerRun:
    """The worker that a training loop runs in."""

    rank: int
    """Rank, 0 to world_size - 1; after a restart a worker may have another one."""
    world_size: int
    device: torch.device

    @contextmanager
    def latest_checkpoint(self) -> Iterator[Path | None]:
        """Yield the last committed checkpoint as a local folder, None at the start of a training.

        The folder is gone after the block if it was fetched.
        """
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            yield None
            return
        with checkpoint.as_directory() as folder:
            yield Path(folder)

    def report(self, step: int, metrics: Mapping[str, float], checkpoint_dir: Path | None = None) -> None:
        """Report a finished step; every rank calls this equally often, and waits here for the others.

        Rank 0 may hand over a checkpoint, a folder that is copied to storage before this returns. It is
        committed, so that a restart begins with it, at the controller's next look, within about POLL_SECONDS.
        """
        assert checkpoint_dir is None or self.rank == 0, "only rank 0 hands over a checkpoint"
        checkpoint = None
        if checkpoint_dir is not None:
            checkpoint = Checkpoint.from_directory(checkpoint_dir)
        # Named by step: what a killed worker copied but nobody committed is overwritten, not left behind.
        ray.train.report(
            {**metrics, "step": step}, checkpoint=checkpoint, checkpoint_dir_name=f"step-{step:09d}"
        )

    def wrap(self, model: torch.nn.Module, **ddp_options: Any) -> torch.nn.Module:  # noqa: ANN401
        """Move a model to the device and average its gradients over the workers.

        Buffers are equal at the start only. `ddp_options` are those of DistributedDataParallel.
        """
        return prepare_model(model, parallel_strategy_kwargs={"forward_sync_buffers": False, **ddp_options})


Loop = Callable[[dict[str, Any], WorkerRun], None]
"""Training loop. It runs in each worker, so: a function of an importable module, and settings that pickle."""


def fit(
    loop: Loop,
    settings: dict[str, Any],
    *,
    name: str,
    storage_path: str,
    num_workers: int = 1,
    cpus_per_worker: int = 1,
    use_gpu: bool = False,
    max_failures: int = 0,
    num_to_keep: int = 2,
) -> str:
    """Run `loop` in `num_workers` processes, on CPUs over gloo or one GPU each over nccl.

    Needs a Ray session.

    `storage_path`, a folder or any fsspec URL that all nodes reach, holds `name`/step-NNNNNNNNN checkpoints,
    the last `num_to_keep` of them. A fit of the same name and storage goes on from the last committed one. So
    does one that lost workers, `max_failures` times at most. Returns the last committed checkpoint's folder
    or URL.

    Raises ValueError, or its subclass, where the loop did, ProcessesDied where workers died too often,
    TrainingFailedError where the loop failed otherwise, RuntimeError if there never was a checkpoint.
    """
    filesystem, root = fsspec.core.url_to_fs(storage_path)
    is_local = _is_local(filesystem)
    trainer = _Trainer(
        partial(_run_loop, loop),
        train_loop_config=settings,
        torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=num_workers,
            use_gpu=use_gpu,
            resources_per_worker=_resources(cpus_per_worker, use_gpu),
        ),
        run_config=RunConfig(
            name=name,
            storage_path=root,
            storage_filesystem=None if is_local else PyFileSystem(FSSpecHandler(filesystem)),
            checkpoint_config=CheckpointConfig(num_to_keep=num_to_keep),
            failure_config=FailureConfig(max_failures=max_failures),
            logging_config=LoggingConfig(log_level="WARNING"),
        ),
    )
    # Train needs this actor; it starts now, beside the controller and not after it.
    get_or_create_autoscaling_coordinator()
    with environment(_variables()):
        try:
            checkpoint = trainer.fit().checkpoint
        except TrainingFailedError as error:
            mistake = _find_user_mistake(error)
            if mistake is not None:
                raise mistake from error
            if lost_workers(error):
                raise ProcessesDied(
                    f"{name}: workers died more than {max_failures} times (max_failures), "
                    "as of too little memory or a crash"
                ) from error
            raise
    if checkpoint is None:
        raise RuntimeError(f"{name}: the loop ended without a checkpoint in {storage_path}")
    if is_local:
        return checkpoint.path
    return filesystem.unstrip_protocol(checkpoint.path)


def _is_local(filesystem: Any) -> bool:  # noqa: ANN401  (fsspec has no types)
    protocols = filesystem.protocol
    if isinstance(protocols, str):
        protocols = (protocols,)
    return "file" in protocols


class _Trainer(TorchTrainer):
    """Trainer without Ray's watcher of orphaned placement groups, where they end with the session anyway."""

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
    # Ray names this logger by its file, which escapes the level set for ray.train; it has a line for each
    # report.
    logging.getLogger(execution_context.__file__).setLevel(logging.WARNING)
    run = WorkerRun(rank=context.get_world_rank(), world_size=context.get_world_size(), device=device)
    loop(settings, run)


def _find_user_mistake(error: TrainingFailedError) -> ValueError | None:
    """Return the ValueError that a worker's loop raised, if one did.

    It comes wrapped, with a traceback that only a developer wants.
    """
    if not isinstance(error, WorkerGroupError):
        return None
    for failure in error.worker_failures.values():
        origin: BaseException | None = failure
        while origin is not None:
            if isinstance(origin, ValueError):
                return origin
            origin = getattr(origin, "cause", None) or origin.__cause__
    return None
