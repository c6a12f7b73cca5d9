"""Peak memory of a call; Linux with glibc only."""

import ctypes
from collections.abc import Callable
from pathlib import Path


def peak_memory(run: Callable[[], object]) -> float:
    """Call twice; return by how many MB the second call raises resident memory at most."""
    run()
    ctypes.CDLL(None).malloc_trim(0)  # or what the first call left to the allocator would not count
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # forgets the peak
    before = memory_status("VmRSS")
    run()
    return max(0.0, memory_status("VmHWM") - before)


def memory_status(field: str) -> float:
    """Return a field of /proc/self/status, such as VmRSS (resident memory) or VmHWM (its peak), MB."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(field):
            kibibytes = int(line.split()[1])
            return kibibytes * 1024 / 1e6
    raise ValueError(f"/proc/self/status has no {field}")
