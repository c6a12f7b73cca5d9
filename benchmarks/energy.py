"""The energy that a processor or card has used, where the machine lets it be read: RAPL's counters, or NVML's."""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import torch

POWERCAP = Path("/sys/class/powercap")


def energy_counter(device: torch.device, powercap: Path = POWERCAP) -> Callable[[], float] | None:
    """Return a function that gives the joules used since some moment, all processes together; None where none can be read.

    RAPL's counters start again at zero after hours at the least, so a difference may come out negative once in a while.
    """
    if device.type == "cuda":
        return (
            _nvml(torch.cuda.current_device() if device.index is None else device.index)
            if find_spec("pynvml")
            else None
        )
    counters = sorted(powercap.glob("*rapl:[0-9]/energy_uj"))

    def joules() -> float:
        return sum(int(counter.read_text()) for counter in counters) / 1e6

    try:
        joules()
    except OSError:  # root's alone on many systems
        return None
    return joules if counters else None


def _nvml(index: int) -> Callable[[], float] | None:
    import pynvml  # noqa: PLC0415  # pyright: ignore[reportMissingImports]  (only where there is a card)

    try:
        pynvml.nvmlInit()
        card = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(index).uuid}")
        pynvml.nvmlDeviceGetTotalEnergyConsumption(card)
    except pynvml.NVMLError:
        return None
    return lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(card) / 1e3
