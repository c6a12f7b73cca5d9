"""The workers of a training, as they agree with each other over a process group of their own.

That group is gloo's on every machine: it carries small Python values between CPUs, and is of use to a
background thread while the default group sums gradients.
"""

from collections.abc import Callable
from datetime import timedelta
from typing import Any, Generic, NamedTuple, TypeVar, cast

import torch
import torch.distributed as dist

from dualtoken.pipelines.training.train_context import TrainContext

Value = TypeVar("Value")


class WorkerGroup:
    """A process group of all workers; alone, a worker agrees with itself."""

    def __init__(self, context: TrainContext, timeout_seconds: float) -> None:
        self.rank = context.rank
        self.size = context.world_size
        self.group: dist.ProcessGroup | None = None
        if self.size > 1:
            group = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout_seconds))
            assert isinstance(group, dist.ProcessGroup), "this process is one of its ranks"
            self.group = group

    def any(self, *, value: bool) -> bool:
        """Tell whether the value is true on some worker."""
        if self.group is None:
            return value
        votes = torch.tensor([float(value)])
        dist.all_reduce(votes, group=self.group)
        return bool(votes.item())

    def gather(self, value: Value) -> list[Value]:
        """Return each worker's value, in the order of ranks."""
        if self.group is None:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self.group)
        return values

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the sum of all workers' tensors, of one shape and type, on the CPU."""
        summed = tensor.cpu().clone()
        if self.group is not None:
            dist.all_reduce(summed, group=self.group)
        return summed

    def of_first(self, call: Callable[[], Value]) -> Value:
        """Return what a call gives on rank 0, which alone makes it; where it fails, every rank raises."""
        outcome: _Outcome[Value] = _Outcome()
        if self.rank == 0:
            outcome = _attempt(call)
        return self._results([self._exchange(outcome)[0]], outcome)[0]

    def all(self, call: Callable[[], Value]) -> list[Value]:
        """Make a call on every rank, and return what each gives; where one fails, every rank raises."""
        outcome = _attempt(call)
        return self._results(self._exchange(outcome), outcome)

    def _exchange(self, outcome: "_Outcome[Value]") -> "list[_Outcome[Value]]":
        """Return the outcomes of all ranks, errors by their message: not every error can be pickled."""
        return self.gather(outcome._replace(error=None))

    def _results(self, outcomes: "list[_Outcome[Value]]", own: "_Outcome[Value]") -> list[Value]:
        """Return the results; raises this rank's own error, or one that names another rank's."""
        if own.error is not None:
            raise own.error
        for outcome in outcomes:
            if outcome.message:
                raise OSError(f"another worker failed: {outcome.message}")
        return [cast("Value", outcome.result) for outcome in outcomes]


class _Outcome(NamedTuple, Generic[Value]):
    """Outcome of a call on one rank."""

    result: Value | None = None
    error: Exception | None = None
    message: str = ""
    """What failed; empty where nothing did."""


def _attempt(call: Callable[[], Value]) -> _Outcome[Value]:
    try:
        return _Outcome(result=call())
    except Exception as error:  # noqa: BLE001  (every rank raises it)
        return _Outcome(error=error, message=str(error) or type(error).__name__)
