"""Train context: what a training needs to know of the process it runs in.

`infra/ray_train.py` has the context of a worker of Ray Train.
"""

from typing import Protocol, runtime_checkable

import torch

from dualtoken.infra.stop_request import stop_request


class RankContext(Protocol):
    """The rank of a worker, which takes its part of each batch, and its device."""

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
    """A worker that trains; several have a default process group of `torch.distributed`."""

    def asked_to_stop(self) -> bool:
        """Tell whether the run was asked to end soon; it is enough that one worker hears of it."""
        ...


@runtime_checkable
class RequestsValidation(Protocol):
    """A worker of a run that can have its checkpoints measured beside the training."""

    def request_validation(self, checkpoint: str, step: int) -> None:
        """Ask for the validation of a step's whole checkpoint, by its folder's name; all workers at once."""
        ...


class SingleProcessContext:
    """The context of training in this process, without other workers."""

    rank = 0
    world_size = 1

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def asked_to_stop(self) -> bool:
        """Tell whether a signal asks this process to end."""
        return stop_request.is_set()
