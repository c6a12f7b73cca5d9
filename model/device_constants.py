"""Small tables of numbers on a device, made there once: each new one would be a copy that is waited for."""

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch._guards import detect_fake_mode


def constant(values: tuple[Any, ...], device: torch.device) -> Tensor:
    """Return numbers, nested in tuples, as a tensor on a device; do not change it: others have it too.

    Where a graph is traced or shapes alone are computed, it is made anew: such a tensor is of that graph.
    """
    if torch.compiler.is_compiling() or device.type == "meta" or detect_fake_mode() is not None:
        return torch.tensor(values, device=device)
    return _kept(values, device)


@cache
def _kept(values: tuple[Any, ...], device: torch.device) -> Tensor:
    # An inference tensor could not be saved for a backward pass.
    with torch.inference_mode(False):
        return torch.tensor(values, device=device)
