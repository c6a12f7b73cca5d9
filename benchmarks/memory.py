"""How much memory a call takes at its peak; Linux with glibc only."""

import ctypes
from collections.abc import Callable
from pathlib import Path


def peak_memory(run: Callable[[], object]) -> float:
    """Return by how many MB a second call raises resident memory at most."""
    run()
    ctypes.CDLL(None).malloc_trim(0)  # or what the first call left to the allocator would not count
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # forgets the peak
    before = _status("VmRSS")
    run()
    return max(0, _status("VmHWM") - before) / 1000


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 // 1000 for line in lines if line.startswith(field))
