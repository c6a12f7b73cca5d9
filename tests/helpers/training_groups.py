"""Trainings by a group of processes over gloo, without Ray, and what they end with."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import start_processes

from dualtoken.infra.storage import Store
from dualtoken.pipelines.core.stage import StageJob
from dualtoken.pipelines.training.checkpoint_saver import load_module
from dualtoken.pipelines.training.checkpoints import Checkpoints
from dualtoken.pipelines.training.engine import OpenTask, train

CPU = torch.device("cpu")
GroupJob = tuple[StageJob, OpenTask]
"""A job, and how its task is opened."""


@dataclass(frozen=True)
class GlooContext:
    """A worker of a group, without Ray."""

    rank: int
    world_size: int
    device: torch.device = CPU

    def asked_to_stop(self) -> bool:
        """Never ask."""
        return False


def _train_as_rank(rank: int, num_workers: int, jobs: Sequence[GroupJob], meeting: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=num_workers)
    for job, open_task in jobs:
        train(job, GlooContext(rank, num_workers), open_task)
    dist.destroy_process_group()


def train_as_group(jobs: Sequence[GroupJob], num_workers: int, scratch: Path) -> None:
    """Train one job after the other with so many processes, from their last checkpoints on if they have any.

    Together, since the processes' imports take the longest.
    """
    meeting = scratch / f"meeting-{num_workers}-{len(list(scratch.iterdir()))}"
    start_processes(
        _train_as_rank,
        args=(num_workers, jobs, str(meeting)),
        nprocs=num_workers,
        start_method="spawn",
    )


def load_trained(job: StageJob, part: str, module: torch.nn.Module, scratch: Path) -> dict[str, torch.Tensor]:
    """Load one part of a job's last checkpoint, such as `model`, into a module; return its weights."""
    checkpoint = Checkpoints(Store(job.folder)).latest(scratch / "copies")
    assert checkpoint is not None
    load_module(checkpoint, part, module, scratch / "copies")
    return module.state_dict()


def distance(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """Return the distance of all weights together from those that they should be, relative to their norm."""
    errors = [(found[name] - tensor).float().norm() for name, tensor in expected.items()]
    norms = [tensor.float().norm() for tensor in expected.values()]
    return float(torch.stack(errors).norm() / torch.stack(norms).norm())
