"""What the training loop needs of the process it runs in: rank, device, checkpoints, gradient averaging."""

import shutil
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Protocol

import torch


class WorkerRank(Protocol):
    """Which worker of how many takes its part of each batch."""

    @property
    def rank(self) -> int:
        """0 to `world_size` - 1."""
        ...

    @property
    def world_size(self) -> int:
        """Number of workers."""
        ...

    @property
    def device(self) -> torch.device:
        """Where the model goes."""
        ...


class TrainingRun(WorkerRank, Protocol):
    """What the loop needs to know of the worker that it runs in."""

    def latest_checkpoint(self) -> AbstractContextManager[Path | None]:
        """Open the folder of the last committed checkpoint."""
        ...

    def report(self, step: int, metrics: Mapping[str, float], checkpoint_dir: Path | None = None) -> None:
        """Tell of a step that is done; all ranks call it, rank 0 may hand over a checkpoint."""
        ...

    def wrap(self, model: torch.nn.Module) -> torch.nn.Module:
        """Return the model, in DistributedDataParallel where there are several workers."""
        ...


class OwnRun:
    """A group of one worker."""

    rank, world_size = 0, 1

    def __init__(self, folder: Path, device: torch.device) -> None:
        self.folder = folder
        self.device = device

    def latest_checkpoint(self) -> AbstractContextManager[Path | None]:
        """There is none: a run in this process begins anew."""
        return nullcontext(None)

    def report(self, step: int, metrics: Mapping[str, float], checkpoint_dir: Path | None = None) -> None:
        """Keep the last checkpoint that is handed over."""
        assert metrics["learning_rate"] >= 0, f"step {step} has no metrics"
        if checkpoint_dir is not None:
            shutil.copytree(checkpoint_dir, self.folder, dirs_exist_ok=True)

    def wrap(self, model: torch.nn.Module) -> torch.nn.Module:
        """Return the model as it is."""
        return model
