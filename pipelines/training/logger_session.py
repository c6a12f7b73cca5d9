"""What a service that shows trainings is told, and what it can do: the contract of W&B's and MLflow's."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

from torch import Tensor

CLOSE_SECONDS = 60.0
"""Time that a service has to take what waits, when a training is done."""

End = Literal["done", "stopped", "failed"]
"""How a run ends; one that was stopped is gone on with."""


class RunFacts(NamedTuple):
    """What a service is told of a run when it begins, and when it goes on."""

    id: str
    """The same each time that the training of a folder goes on."""
    name: str
    settings: Mapping[str, Any]
    """The training's settings, as JSON values without secrets of URLs."""
    folder: Path
    """Local folder for files of the service's own."""


class LoggerSession(Protocol):
    """An open run of a service. Its calls may take their time, and may fail."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Log values by name after a step, 0 the first of all."""
        ...

    def write_pictures(self, step: int, pictures: Mapping[str, Tensor]) -> None:
        """Log pictures by name, (3, H, W) uint8."""
        ...

    def close(self, end: End) -> None:
        """Hand over what is left."""
        ...
