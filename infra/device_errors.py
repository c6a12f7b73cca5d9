"""Tells what an accelerator's errors mean: its memory is full, or this process has lost it.

An illegal memory access, an uncorrectable ECC error or a failed launch are "sticky" (CUDA C++ Programming
Guide, section Error Checking; `cudaErrorIllegalAddress` in the Runtime API): CUDA's context is lost, each
later call fails, and only a new process can go on.
"""

import sys

_MEMORY_CLASS = "OutOfMemoryError"
"""Torch's class for an accelerator's full memory."""
_DEVICE_CLASS = "AcceleratorError"
"""Torch's class for errors of the accelerator's runtime."""
_MEMORY_TEXTS = (
    *("cuda out of memory", "cuda error: out of memory", "hip out of memory"),
    "cublas_status_alloc_failed",
    "cublas_status_not_initialized",  # no room for a handle, beside another process on the card
    *("cudnn_status_alloc_failed", "host_allocation_failed"),
    "unable to find an engine to execute this computation",  # no room for cuDNN's workspace
)
"""Texts for full memory, lower case, where PyTorch has no class of its own: driver, cuBLAS, cuDNN."""
_DEVICE_TEXTS = ("cuda error", "triton error [cuda]", "cudnn error", "cudnn_status_execution_failed")
"""Words of the runtime, of Triton's launcher, of cuBLAS and of cuDNN, lower case."""


def is_device_memory_full(error: BaseException) -> bool:
    """Tell whether an accelerator has no memory for what was asked; the recipe decides how much that is."""
    if not isinstance(error, RuntimeError):
        return False
    text = str(error).lower()
    return type(error).__name__ == _MEMORY_CLASS or any(words in text for words in _MEMORY_TEXTS)


def is_device_lost(error: BaseException) -> bool:
    """Tell whether this process can use its accelerator no more after an error.

    Where CUDA runs in this process it is asked: after a sticky error it fails again. So an error that a fresh
    process would only repeat, such as a kernel that was not built for this card, is none.
    """
    if not _comes_from_device(error):
        return False
    cuda = getattr(sys.modules.get("torch"), "cuda", None)
    if cuda is None or not cuda.is_initialized():
        return True
    try:
        cuda.synchronize()
    except RuntimeError:
        return True
    return False


def _comes_from_device(error: BaseException | None) -> bool:
    """Tell whether an error, or one that it was raised from, is the accelerator's, and not of full memory."""
    while error is not None:
        if isinstance(error, RuntimeError) and _says_device(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _says_device(error: RuntimeError) -> bool:
    if is_device_memory_full(error):
        return False
    text = str(error).lower()
    return type(error).__name__ == _DEVICE_CLASS or any(words in text for words in _DEVICE_TEXTS)
