"""Replays recorded operations on a CPU as a CUDA graph does: the same calls, on the same tensors."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

UNRECORDABLE = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
"""What a graph has no place for: reading a value back, and sizes that follow from values."""


class Call(NamedTuple):
    """One operation with the very tensors that it ran on."""

    function: OpOverload
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: object


class Tape(TorchDispatchMode):
    """Operations in their order."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []
        self._is_new = True

    def __torch_dispatch__(
        self,
        func: OpOverload,
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> object:
        """Run and keep an operation."""
        by_number = func is torch.ops.aten.index.Tensor and not _has_mask(args)
        assert by_number or not UNRECORDABLE.intersection(func.tags), f"{func} can't be in a graph"
        assert func is not torch.ops.aten.lift_fresh.default, "a tensor is made from Python's numbers"
        output = func(*args, **(kwargs or {}))
        self.calls.append(Call(func, args, kwargs or {}, output))
        return output

    def replay(self) -> None:
        """Run all operations again, and put each result where the first one was.

        The first time nothing is left to do: recording has run them.
        """
        if self._is_new:
            self._is_new = False
            return
        for call in self.calls:
            fresh = call.function(*call.args, **call.kwargs)
            for old, new in zip(tree_leaves(call.output), tree_leaves(fresh), strict=True):
                if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


def _has_mask(args: tuple[Any, ...]) -> bool:
    """Tell whether a tensor is indexed by a mask, whose values decide the size."""
    return any(index.dtype == torch.bool for index in tree_leaves(args[1]) if isinstance(index, Tensor))


def record_on_tape(step: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> Callable[[], Tensor]:
    """Record a step as `recorded_step.record_graph` does."""
    tape = Tape()
    with tape:
        output = step(*inputs)

    def replay() -> Tensor:
        tape.replay()
        return output

    return replay
