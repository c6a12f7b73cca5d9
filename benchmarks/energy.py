"""Energy that a processor or card has used, from RAPL's or NVML's counters where they can be read."""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import torch

POWERCAP = Path("/sys/class/powercap")


def energy_counter(device: torch.device, powercap: Path = POWERCAP) -> Callable[[], float] | None:
    """Return a function that gives the joules used since some moment by all processes.

    None where no counter can be read. RAPL's counters start again at zero after hours at the least, so a
    difference may come out negative once in a while.
    """
    if device.type == "cuda":
        return _card_counter(device)
    counters = sorted(powercap.glob("*rapl:[0-9]/energy_uj"))
    if not counters:
        return None

    def joules() -> float:
        microjoules = [int(counter.read_text()) for counter in counters]
        return sum(microjoules) / 1e6

    try:
        joules()
    except OSError:  # only root may read it on many systems
        return None
    return joules


def _card_counter(device: torch.device) -> Callable[[], float] | None:
    if not find_spec("pynvml"):
        return None
    import pynvml  # noqa: PLC0415  # pyright: ignore[reportMissingImports]  (only where there is a card)

    index = device.index
    if index is None:
        index = torch.cuda.current_device()
    try:
        pynvml.nvmlInit()
        card = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(index).uuid}")
        pynvml.nvmlDeviceGetTotalEnergyConsumption(card)
    except pynvml.NVMLError:
        return None
    return lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(card) / 1e3
