"""Where full precision is a must, whatever the caller's autocast."""

from contextlib import AbstractContextManager, nullcontext

import torch


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Turn autocast off for a block on a device; the device `meta`, which has shapes alone, has none."""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)
