"""Encodes batches that may not fit: where memory runs out, the batch is halved and its images tried again.

On a CPU codes do not depend on the batch (`model.quantize.nearest`), so a smaller one changes no byte. A GPU
may choose other kernels for another batch size and round differently: `benchmarks.agreement` measures how
many codes that changes.
"""

from typing import Protocol

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from dualtoken.pipelines.errors import UserError
from dualtoken.pipelines.inference.networks import StreamCodes

NO_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "cublas_status_alloc_failed",
    "cublas_status_not_initialized",  # no room for a handle, beside another process on the card
    "cudnn_status_alloc_failed",
    "host_allocation_failed",
    "unable to find an engine to execute this computation",  # no room for cuDNN's workspace
)
"""Error texts, lower case, where PyTorch has no class of its own: driver, CPU allocator, cuBLAS, cuDNN."""


class ImageTooLargeError(UserError):
    """Not even a single image fits into the device's memory."""


class Encoder(Protocol):
    """A tokenizer that encodes batches of one size or another."""

    def encode_levels(self, levels: UInt8[Tensor, "B 3 S S"]) -> StreamCodes:
        """Return both streams' codes of pictures as the network sees them."""
        ...


class AdaptiveBatchEncoder:
    """Encodes in batches that shrink until they fit, and stay as small until `begin` is called."""

    def __init__(self, encoder: Encoder, batch_size: int) -> None:
        self._encoder = encoder
        self._largest = batch_size
        self.batch_size = batch_size
        """Images encoded at once, at present."""

    def begin(self) -> None:
        """Try the whole batch again: what took the memory, such as another process, may be gone."""
        self.batch_size = self._largest

    def encode(self, levels: UInt8[Tensor, "B 3 S S"]) -> StreamCodes:
        """Return the codes of any number of images, encoded in batches.

        Raises `ImageTooLargeError` where one image alone does not fit.
        """
        parts: list[StreamCodes] = []
        first = 0
        while first < len(levels):
            batch = levels[first : first + self.batch_size]
            codes = self._attempt(batch)
            if codes is not None:
                parts.append(codes)
                first += len(batch)
            elif len(batch) == 1:
                size = tuple(levels.shape[2:])
                raise ImageTooLargeError(
                    f"pretokenize.batch_size={self._largest}: one image of {size} pixels alone does not fit "
                    "into the memory that is free: give the worker more, or use a smaller tokenizer"
                )
            else:
                self.batch_size = len(batch) // 2
        if len(parts) == 1:
            return parts[0]
        return StreamCodes(
            semantic=np.concatenate([part.semantic for part in parts]),
            pixel=np.concatenate([part.pixel for part in parts]),
        )

    def _attempt(self, batch: UInt8[Tensor, "B 3 S S"]) -> StreamCodes | None:
        """Return a batch's codes, or None where memory ran out."""
        try:
            return self._encoder.encode_levels(batch)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        # Out here the error is gone, and with it the traceback that kept tensors alive: memory can be freed.
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return None


def is_out_of_memory(error: RuntimeError) -> bool:
    """Tell whether an error says that a device's memory, or this machine's, ran out."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    text = str(error).lower()
    return any(words in text for words in NO_MEMORY)
