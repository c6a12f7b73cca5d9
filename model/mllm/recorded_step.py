"""Runs a step of fixed sizes again and again, on a GPU as one CUDA graph.

A step of drawing is a thousand small kernels. Launched one by one they wait for Python longer than they run;
a graph launches them at once.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

Step = Callable[..., Tensor]
"""A function of tensors of fixed sizes.

It may change tensors of its own in place, and must not read a value back to Python.
"""
Replay = Callable[[], Tensor]
"""Does once more what was recorded, on what its tensors hold now; its result may be the same tensor."""
Record = Callable[[Step, tuple[Tensor, ...]], Replay]
"""Records a step on tensors; it takes effect when the replay is called."""


def record_graph(step: Step, inputs: tuple[Tensor, ...]) -> Replay:
    """Record a step as a CUDA graph; source: `torch.cuda.graph`."""
    graph = torch.cuda.CUDAGraph()
    # Other threads, such as those that decode images, go on using the GPU meanwhile.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        output = step(*inputs)

    def replay() -> Tensor:
        graph.replay()
        return output

    return replay


def run_plainly(step: Step, inputs: tuple[Tensor, ...]) -> Replay:
    """Record nothing: each time the step itself runs."""
    return partial(step, *inputs)


def recording_on(device: torch.device) -> Record:
    """Return what suits a device: graphs on a GPU."""
    return record_graph if device.type == "cuda" else run_plainly


class RecordedStep:
    """A step that is recorded at its second call; all calls take tensors of the same sizes.

    The first call runs as it is: libraries set themselves up in it, which no recording can contain.
    """

    def __init__(self, step: Step, record: Record) -> None:
        self._step = step
        self._record = record
        self._inputs: tuple[Tensor, ...] | None = None
        self._replay: Replay | None = None

    def __call__(self, *inputs: Tensor) -> Tensor:
        """Return the step's result on these inputs."""
        if self._inputs is None:
            self._inputs = tuple(torch.empty_like(tensor) for tensor in inputs)
            return _run_aside(self._step, inputs)
        for own, given in zip(self._inputs, inputs, strict=True):
            own.copy_(given)
        if self._replay is None:
            self._replay = self._record(self._step, self._inputs)
        return self._replay().clone()


def _run_aside(step: Step, inputs: tuple[Tensor, ...]) -> Tensor:
    """Run a step; on a GPU not on its default stream, since recordings leave that one, too."""
    if not inputs[0].is_cuda:
        return step(*inputs)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        output = step(*inputs)
    torch.cuda.current_stream().wait_stream(stream)
    return output
