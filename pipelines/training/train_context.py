"""Train context: what the training loop needs of the process it runs in.

That is its rank and device, and the averaging of gradients. `infra/ray_train.py` has the context of a worker
of Ray Train.
"""

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

    def wrap(self, model: torch.nn.Module) -> torch.nn.Module:
        """Return the model, in DistributedDataParallel where there are several workers."""
        ...


class SingleProcessContext:
    """The context of training in this process, without other workers."""

    rank = 0
    world_size = 1

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def wrap(self, model: torch.nn.Module) -> torch.nn.Module:
        """Return the model as it is."""
        return model
