"""Tells the errors that leave a process without its GPU: CUDA's context is lost, and each later call fails.

An illegal memory access, an uncorrectable ECC error or a failed launch are "sticky" (CUDA C++ Programming
Guide, section Error Checking; `cudaErrorIllegalAddress` in the Runtime API): only a new process can go on.
"""

import sys

_CLASS = "AcceleratorError"
"""Torch's class for errors of the accelerator's runtime."""
_TEXTS = ("cuda error", "triton error [cuda]", "cudnn error", "cudnn_status_execution_failed")
"""Words of the runtime, of Triton's launcher, of cuBLAS and of cuDNN, in lower case."""
_NO_MEMORY = (
    "out of memory",
    "alloc_failed",
    "allocation_failed",
    "not_initialized",
    "unable to find an engine",
)
"""Words of errors that say no more than that memory ran out: the context is whole."""


def lost_device(error: BaseException) -> bool:
    """Tell whether this process can use its GPU no more after an error.

    Where CUDA runs in this process it is asked: after a sticky error it fails again. So an error that a fresh
    process would only repeat, such as a kernel that was not built for this card, is none.
    """
    if not _is_of_device(error):
        return False
    cuda = getattr(sys.modules.get("torch"), "cuda", None)
    if cuda is None or not cuda.is_initialized():
        return True
    try:
        cuda.synchronize()
    except RuntimeError:
        return True
    return False


def _is_of_device(error: BaseException | None) -> bool:
    """Tell whether an error, or one that it was raised from, is the accelerator's, and not of full memory."""
    while error is not None:
        if isinstance(error, RuntimeError) and _says_device(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _says_device(error: RuntimeError) -> bool:
    text = str(error).lower()
    if any(words in text for words in _NO_MEMORY):
        return False
    return type(error).__name__ == _CLASS or any(words in text for words in _TEXTS)
