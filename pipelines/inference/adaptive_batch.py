"""Runs networks on batches that may not fit: where memory runs out, the batch is halved and tried again.

On a CPU codes do not depend on the batch (`model.quantize.nearest`), so a smaller one changes no byte. A GPU
may choose other kernels for another batch size and round differently: `benchmarks.agreement` measures how
many codes that changes.
"""

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from dualtoken.infra.device_errors import is_device_memory_full
from dualtoken.infra.machine_trouble import is_machine_trouble
from dualtoken.pipelines.errors import UserError
from dualtoken.pipelines.inference.networks import Array, StreamCodes, TeacherRunner

Result = TypeVar("Result")


class ImageTooLargeError(UserError):
    """Not even a single image fits into the device's memory."""


class AdaptiveBatch:
    """A batch size that shrinks until batches fit, and stays as small until `begin` is called."""

    def __init__(self, largest: int, key: str) -> None:
        """Begin with `largest` images at once, which the recipe's `key` sets."""
        self._largest = largest
        self._key = key
        self.size = largest
        """Images at once, at present."""

    def begin(self) -> None:
        """Try the whole batch again: what took the memory, such as another process, may be gone."""
        self.size = self._largest

    def run(self, count: int, function: Callable[[slice], Result]) -> list[Result]:
        """Return what `function` gives for parts of `count` images, in order.

        Raises `ImageTooLargeError` where one image alone does not fit.
        """
        results: list[Result] = []
        first = 0
        while first < count:
            part = slice(first, min(first + self.size, count))
            attempt = _attempt(function, part)
            if attempt:
                results += attempt
                first = part.stop
                continue
            num_images = part.stop - first
            if num_images == 1:
                raise ImageTooLargeError(
                    f"{self._key}={self._largest}: one image alone does not fit into the memory that is "
                    "free: give the worker more, or use a smaller model"
                )
            self.size = num_images // 2
        return results


def _attempt(function: Callable[[slice], Result], part: slice) -> list[Result]:
    """Return a part's result, or none where memory ran out."""
    try:
        return [function(part)]
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
    # Out here the error is gone, and with it the traceback that kept tensors alive: memory can be freed.
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return []


class Encoder(Protocol):
    """A tokenizer that encodes batches of one size or another."""

    def encode_levels(self, levels: UInt8[Tensor, "B 3 S S"]) -> StreamCodes:
        """Return both streams' codes of pictures as the network sees them."""
        ...


class AdaptiveBatchEncoder:
    """Encodes in batches that shrink until they fit."""

    def __init__(self, encoder: Encoder, batch_size: int) -> None:
        self._encoder = encoder
        self._batch = AdaptiveBatch(batch_size, "pretokenize.batch_size")

    @property
    def batch_size(self) -> int:
        """Images encoded at once, at present."""
        return self._batch.size

    def begin(self) -> None:
        """Try the whole batch again."""
        self._batch.begin()

    def encode(self, levels: UInt8[Tensor, "B 3 S S"]) -> StreamCodes:
        """Return the codes of any number of images, encoded in batches.

        Raises `ImageTooLargeError` where one image alone does not fit.
        """
        parts = self._batch.run(len(levels), lambda part: self._encoder.encode_levels(levels[part]))
        if len(parts) == 1:
            return parts[0]
        return StreamCodes(
            semantic=np.concatenate([part.semantic for part in parts]),
            pixel=np.concatenate([part.pixel for part in parts]),
        )


class AdaptiveBatchTeacher:
    """Asks a teacher in batches that shrink until they fit.

    Either method raises `ImageTooLargeError` where one image alone does not fit.
    """

    def __init__(self, teacher: TeacherRunner, batch_size: int, key: str) -> None:
        """Begin with `batch_size` images at once, which the recipe's `key` sets."""
        self._teacher = teacher
        self._batch = AdaptiveBatch(batch_size, key)

    @property
    def batch_size(self) -> int:
        """Images at once, at present."""
        return self._batch.size

    def begin(self) -> None:
        """Try the whole batch again."""
        self._batch.begin()

    def similarities(self, levels: UInt8[Tensor, "B 3 S S"], captions: Sequence[str]) -> list[float]:
        """Return the cosine of each picture with its caption."""
        parts = self._batch.run(
            len(levels), lambda part: self._teacher.similarities(levels[part], captions[part])
        )
        return [similarity for part in parts for similarity in part]

    def targets(
        self, levels: UInt8[Tensor, "B 3 S S"], captions: Sequence[str], block: int
    ) -> dict[str, Array]:
        """Return the columns of `TeacherRunner.targets`."""
        parts = self._batch.run(
            len(levels), lambda part: self._teacher.targets(levels[part], captions[part], block)
        )
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def is_out_of_memory(error: RuntimeError) -> bool:
    """Tell whether an error says that a device's memory, or this machine's, ran out."""
    return is_device_memory_full(error) or is_machine_trouble(error)
