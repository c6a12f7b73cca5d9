"""Data-parallel training by Ray Train V2: the worker group, its restarts and its checkpoints; the loop is the caller's."""

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
"""Between two looks of the controller at its workers; Ray's default of 2 s is also how long a checkpoint stays uncommitted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerRun:
    """What a training loop knows of the worker that it runs in."""

    rank: int
    """0 to world_size - 1; after a restart a worker may have another one."""
    world_size: int
    device: torch.device

    @contextmanager
    def latest_checkpoint(self) -> Iterator[Path | None]:
        """The last committed checkpoint as a local folder, gone after the block if it was fetched; None at the start."""
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            yield None
            return
        with checkpoint.as_directory() as folder:
            yield Path(folder)

    def report(self, step: int, metrics: Mapping[str, float], checkpoint_dir: Path | None = None) -> None:
        """Tell of a step that is done; every rank calls this equally often, and waits here for the others.

        Rank 0 may hand over a checkpoint, a folder that is copied to storage before this returns. It is committed, so that
        a restart begins with it, at the controller's next look, within about POLL_SECONDS.
        """
        assert checkpoint_dir is None or self.rank == 0, "only rank 0 hands over a checkpoint"
        checkpoint = None if checkpoint_dir is None else Checkpoint.from_directory(checkpoint_dir)
        # Named by step: what a killed worker copied but nobody committed is overwritten, not left behind.
        ray.train.report(
            {**metrics, "step": step}, checkpoint=checkpoint, checkpoint_dir_name=f"step-{step:09d}"
        )

    def wrap(self, model: torch.nn.Module, **ddp_options: Any) -> torch.nn.Module:  # noqa: ANN401  # those of DistributedDataParallel
        """Move a model to the device and average its gradients over the workers; buffers are equal at the start only."""
        return prepare_model(model, parallel_strategy_kwargs={"forward_sync_buffers": False, **ddp_options})


Loop = Callable[[dict[str, Any], WorkerRun], None]
"""Runs in each worker, so: a function of an importable module, and settings that pickle."""


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
    """Run `loop` in `num_workers` processes, on CPUs over gloo or one GPU each over nccl; needs a Ray session.

    `storage_path`, a folder or any fsspec URL that all nodes reach, holds `name`/step-NNNNNNNNN checkpoints, the last
    `num_to_keep` of them. A fit of the same name and storage goes on from the last committed one; so does one whose
    workers died, `max_failures` times at most. Returns the last committed checkpoint's folder or URL.

    Raises ValueError, or its subclass, where the loop did, ProcessesDied where workers died too often, TrainingFailedError where the loop
    failed otherwise, RuntimeError if there never was a checkpoint.
    """
    filesystem, root = fsspec.core.url_to_fs(storage_path)
    local = "file" in (
        filesystem.protocol if isinstance(filesystem.protocol, tuple) else (filesystem.protocol,)
    )
    trainer = _Trainer(
        partial(_work, loop),
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
            storage_filesystem=None if local else PyFileSystem(FSSpecHandler(filesystem)),
            checkpoint_config=CheckpointConfig(num_to_keep=num_to_keep),
            failure_config=FailureConfig(max_failures=max_failures),
            logging_config=LoggingConfig(log_level="WARNING"),
        ),
    )
    get_or_create_autoscaling_coordinator()  # Train needs this actor; it starts now beside the controller, not after it
    with environment(_variables()):
        try:
            checkpoint = trainer.fit().checkpoint
        except TrainingFailedError as error:
            if mistake := _mistake(error):
                raise mistake from error
            if lost_workers(error):
                message = f"{name}: workers died more than {max_failures} times (max_failures), as of too little memory or a crash"
                raise ProcessesDied(message) from error
            raise
    if checkpoint is None:
        raise RuntimeError(f"{name}: the loop ended without a checkpoint in {storage_path}")
    return checkpoint.path if local else filesystem.unstrip_protocol(checkpoint.path)


class _Trainer(TorchTrainer):
    """Without Ray's watcher of orphaned placement groups, where they go with the session in any case."""

    def _create_default_callbacks(self) -> list[Any]:
        # The watcher asks the dashboard each second, and says so each second where there is none.
        callbacks = super()._create_default_callbacks()
        return [
            callback
            for callback in callbacks
            if _many_nodes() or not isinstance(callback, PlacementGroupCleanerCallback)
        ]


def _many_nodes() -> bool:
    return sum(node["Alive"] for node in ray.nodes()) > 1


def _resources(cpus: int, use_gpu: bool) -> dict[str, float]:
    return {"CPU": cpus, "GPU": 1} if use_gpu else {"CPU": cpus}


def _variables() -> dict[str, str]:
    """Ray Train's settings, which it takes from the environment only; the user's own have precedence."""
    variables = {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": str(POLL_SECONDS)}
    if not _many_nodes():
        # Its notice of a node's end is of use only where other nodes live on; it is a process.
        variables["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] = "0"
    return {name: value for name, value in variables.items() if name not in os.environ}


def _work(loop: Loop, settings: dict[str, Any]) -> None:
    context = ray.train.get_context()
    device = get_device()
    assert isinstance(device, torch.device)
    # Ray names this logger by its file, which escapes the level set for ray.train; it has a line for each report.
    logging.getLogger(execution_context.__file__).setLevel(logging.WARNING)
    loop(
        settings, WorkerRun(rank=context.get_world_rank(), world_size=context.get_world_size(), device=device)
    )


def _mistake(error: TrainingFailedError) -> ValueError | None:
    """A user's mistake as what it was; it comes wrapped, with a traceback that only a developer wants."""
    for failure in error.worker_failures.values() if isinstance(error, WorkerGroupError) else ():
        origin: BaseException | None = failure
        while origin is not None:
            if isinstance(origin, ValueError):
                return origin
            origin = getattr(origin, "cause", None) or origin.__cause__
    return None
