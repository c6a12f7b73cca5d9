"""Precision of the networks' arithmetic: chosen for a block of code, and full where that is needed."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any

import torch

from dualtoken.model.config.base import Precision


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Turn autocast off for a block of code on a device; the device `meta` has no autocast."""
    if device.type == "meta":
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


def tower_precision(device: torch.device, precision: Precision) -> torch.autocast:
    """Return the context in which networks compute in a precision.

    Code searches stay in float32 (`without_autocast`).
    """
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")


def kept_float32_precision() -> Callable[[], None]:
    """Return a function that sets this process's precision of float32 on a GPU to what it is now."""
    cudnn: Any = torch.backends.cudnn  # torch's stubs lack its parts
    matmul: Any = torch.backends.cuda.matmul
    mkldnn: Any = torch.backends.mkldnn
    newer_names = [(place, place.fp32_precision) for place in (matmul, mkldnn.matmul, cudnn.conv, cudnn.rnn)]
    of_matmul = None
    with suppress(RuntimeError):  # while PyTorch's two interfaces disagree
        of_matmul = torch.get_float32_matmul_precision()
    allow_tf32 = None
    with suppress(RuntimeError):
        allow_tf32 = cudnn.allow_tf32

    def restore() -> None:
        # The older names first: they set the newer ones.
        if of_matmul is not None:
            torch.set_float32_matmul_precision(of_matmul)
        if allow_tf32 is not None:
            cudnn.allow_tf32 = allow_tf32
        for place, precision in newer_names:
            place.fp32_precision = precision

    return restore


def forbid_tf32() -> None:
    """Make float32 mean float32 on a GPU in this process, whatever was set before.

    By default cuDNN's convolutions round to TF32, 10 bits in place of 23.
    """
    # First of all, since PyTorch's older getters raise an error while its two interfaces disagree.
    torch.set_float32_matmul_precision("highest")
    # By the older names: set by the newer ones alone, cuDNN's older ones, which PyTorch itself still reads,
    # raise an error.
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    # By the newer names too: `torch.backends.fp32_precision` would else be what convolutions follow.
    for operators in ("conv", "rnn"):  # which torch's stubs lack
        getattr(torch.backends.cudnn, operators).fp32_precision = "ieee"
