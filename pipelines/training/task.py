"""A task: one training, as the engine sees it.

A task has all of `Task`. The protocols after it are optional: a task that has the method of one, by its name,
has more in its log.
"""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

from torch import Tensor

from dualtoken.model.config.base import Precision
from dualtoken.model.optimizer import StepCheck
from dualtoken.pipelines.core.stage import StageJob
from dualtoken.pipelines.training.state_tensors import TrainedParts
from dualtoken.pipelines.training.train_context import TrainContext

Batch = TypeVar("Batch")


class Task(Protocol[Batch]):
    """The state, the data and the step of a training, on one worker."""

    @property
    def step(self) -> int:
        """The step that comes next, 0 the first: the engine sets it, and a step that was taken raises it."""
        ...

    @step.setter
    def step(self, step: int) -> None: ...

    @property
    def steps(self) -> int:
        """Number of steps of the whole training."""
        ...

    @property
    def batch_size(self) -> int:
        """Samples of a step, over all workers together."""
        ...

    @property
    def sample_name(self) -> str:
        """What rates call samples, in the plural: images or sequences."""
        ...

    @property
    def accumulate_steps(self) -> int:
        """Parts that a worker takes its share of a batch in."""
        ...

    @property
    def parts(self) -> TrainedParts:
        """All that changes from step to step, but `step`."""
        ...

    def batches(self, steps: range) -> Iterable[Batch]:
        """Yield this worker's share of the batch of each step, which depends on the step alone."""
        ...

    def sample_keys(self, step: int) -> list[str]:
        """Return the keys of the samples in this worker's share of a step's batch."""
        ...

    def train_step(self, batch: Batch, check: StepCheck) -> Mapping[str, float]:
        """Take the next step on a batch, and return its metrics, the `loss` among them.

        Calls `check` before anything changes, with the norm of the gradient, which is the same on all
        workers, and with what is not finite. Lets its errors through.
        """
        ...

    def accumulate_more(self) -> bool:
        """Take a share in more parts from now on; return False where it cannot be taken in more."""
        ...

    def close(self) -> None:
        """Release what reads the data."""
        ...

    @property
    def smaller(self) -> str:
        """Advice for a step that needs too much memory even so, such as what to lower."""
        ...


OpenTask = Callable[[StageJob, TrainContext, Path], Task[Any]]
"""Builds a task at its first step, from a job, its worker, and a scratch folder."""


@runtime_checkable
class CountsLostSamples(Protocol):
    """A task whose reader goes on without samples that are damaged."""

    def num_lost(self) -> int:
        """Return how many samples this worker lost to damage so far, those of damaged shards included."""
        ...


class StepCost(NamedTuple):
    """Arithmetic of a step."""

    flop: float
    """Floating-point operations of the model; none that are done twice to save memory."""
    precision: Precision
    """Precision of most of them."""


@runtime_checkable
class CountsOperations(Protocol):
    """A task that knows the operations of its steps, so that the log can say what share of a GPU they use."""

    def step_cost(self) -> StepCost | None:
        """Return the cost of this worker's share of a step; None where it is not counted.

        Where steps differ, that is the mean of those since the last call. All workers call it at the same
        step.
        """
        ...


@runtime_checkable
class ShowsPictures(Protocol):
    """A task whose progress can be seen, such as by reconstructions of a few fixed samples."""

    def pictures(self) -> Mapping[str, Tensor]:
        """Return pictures by name, (3, H, W) uint8; an empty mapping shows none.

        All workers call it at the same step, since a model may be sharded; those of rank 0 are shown. Leaves
        what is trained, and its random numbers, as they are.
        """
        ...


@runtime_checkable
class ShowsTexts(Protocol):
    """A task whose progress can be read, such as by answers about a few fixed samples."""

    def texts(self) -> Mapping[str, str]:
        """Return texts by name, Markdown; an empty mapping shows none.

        All workers call it after the pictures of the same step, likewise.
        """
        ...


@runtime_checkable
class CountsCodes(Protocol):
    """A task with codebooks."""

    def code_counts(self) -> Mapping[str, Tensor]:
        """Return how often this worker's share of the last batch has each code, by stream: (D, K) int64.

        D depths, K codes. All workers call it at the same step, likewise.
        """
        ...


class Sum(NamedTuple):
    """Sum of a metric over steps or samples, and how many they are."""

    total: float
    number: int


@runtime_checkable
class Validates(Protocol):
    """A task that can be measured on held-out samples while it trains."""

    def validate(self) -> Mapping[str, Sum]:
        """Return each metric's sum over this worker's share of the held-out samples; none without samples.

        The shares of all workers make up the same samples whatever their number. All workers call it at the
        same step, and all call a sharded model equally often. Leaves what is trained, and its random
        numbers, as they are.
        """
        ...
