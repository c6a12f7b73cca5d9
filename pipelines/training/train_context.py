"""Train context: what the training loop needs of the process it runs in.

That is its rank and device, checkpoints, and the averaging of gradients. `infra/ray_train.py` has the context of a worker
of Ray Train.
"""

import shutil
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Protocol

import torch


class RankContext(Protocol):
    """The rank of a worker, which takes its part of each batch."""

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
        """Device of the model."""
        ...


class TrainContext(RankContext, Protocol):
    """A worker that trains."""

    def latest_checkpoint(self) -> AbstractContextManager[Path | None]:
        """Open the folder of the last committed checkpoint; None where there is none."""
        ...

    def report(self, step: int, metrics: Mapping[str, float], checkpoint_dir: Path | None = None) -> None:
        """Report a finished step; all ranks call it, and rank 0 may hand over a checkpoint."""
        ...

    def wrap(self, model: torch.nn.Module) -> torch.nn.Module:
        """Return the model, in DistributedDataParallel where there are several workers."""
        ...


class SingleProcessContext:
    """The context of training in this process, without other workers."""

    rank = 0
    world_size = 1

    def __init__(self, folder: Path, device: torch.device) -> None:
        """Keep the last checkpoint in `folder`."""
        self.folder = folder
        self.device = device

    def latest_checkpoint(self) -> AbstractContextManager[Path | None]:
        """Open nothing: a run in this process starts anew."""
        return nullcontext(None)

    def report(self, step: int, metrics: Mapping[str, float], checkpoint_dir: Path | None = None) -> None:
        """Keep the checkpoint, in place of the last one."""
        assert metrics["learning_rate"] >= 0, f"step {step} has no metrics"
        if checkpoint_dir is not None:
            shutil.copytree(checkpoint_dir, self.folder, dirs_exist_ok=True)

    def wrap(self, model: torch.nn.Module) -> torch.nn.Module:
        """Return the model as it is."""
        return model
