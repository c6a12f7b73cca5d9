"""The NVIDIA driver of this machine, as its kernel module tells."""

import re
from pathlib import Path

_VERSION_FILE = Path("/proc/driver/nvidia/version")
"""File of the kernel module; containers see their node's."""
_VERSION = re.compile(r"^NVRM version:.*?\b(\d+\.\d+(?:\.\d+)?)\b", re.MULTILINE)


def driver_version(file: Path = _VERSION_FILE) -> str | None:
    """Return the driver's version, such as 580.82.07; None where no driver is loaded."""
    try:
        text = file.read_text()
    except OSError:
        return None
    found = _VERSION.search(text)
    return found[1] if found else "unknown"
