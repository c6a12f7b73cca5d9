"""The end of a local Ray cluster whose driver was killed; a small process of its own, so it imports nothing but Python.

Ray's main processes die with their driver, but its agents wait a minute for a server that is gone with them.
"""

import os
import shutil
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

GRACE_SECONDS = 1.0
LONGEST_SECONDS = 15.0


def main(folder: str) -> None:
    """Wait for the driver at the other end of standard input; if it dies without a word, clear away what it started."""
    if sys.stdin.buffer.read(1):
        return
    deadline = time.monotonic() + LONGEST_SECONDS
    time.sleep(GRACE_SECONDS)
    while (pids := _users(folder)) and time.monotonic() < deadline:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.2)
    shutil.rmtree(folder, ignore_errors=True)


def _users(folder: str) -> list[int]:
    """The processes with a file of the folder open: every one of Ray's has its log there."""
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit() and _has_open(entry / "fd", folder)]


def _has_open(files: Path, folder: str) -> bool:
    with suppress(OSError):  # it ended, or is another user's
        for file in files.iterdir():
            with suppress(OSError):
                if str(file.readlink()).startswith(f"{folder}/"):
                    return True
    return False


if __name__ == "__main__":
    main(sys.argv[1])
