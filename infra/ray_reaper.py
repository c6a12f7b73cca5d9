"""Ends what a local Ray cluster leaves behind, also as the small process that outlives a killed driver.

Ray's main processes die with their driver. But its agents wait a minute for a server that is gone with them,
and a worker in a long native call hears of nothing until the call returns. This file is run by its path,
isolated, so it imports only Python's own library.
"""

import os
import shutil
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

GRACE_SECONDS = 1.0
"""Time that processes have to end by themselves."""
LONGEST_SECONDS = 15.0
"""Time after which the rest is left alone."""


def main(folder: str) -> None:
    """Wait for the driver at the other end of standard input; clean up after it if it dies without a word."""
    if sys.stdin.buffer.read(1):
        return  # the driver ended as it should, and cleans up itself
    end_users(folder)
    shutil.rmtree(folder, ignore_errors=True)


def end_users(folder: str) -> None:
    """Kill the processes of a session that is over, except this one.

    They have a moment to end by themselves.
    """
    started = time.monotonic()
    while True:
        pids = _users(folder)
        waited = time.monotonic() - started
        if not pids or waited >= LONGEST_SECONDS:
            return
        if waited > GRACE_SECONDS:
            _kill(pids)
        time.sleep(0.1)


def _kill(pids: list[int]) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _users(folder: str) -> list[int]:
    """Return the other processes with a file of the folder open: each of Ray's has its log there."""
    pids = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        if _has_open_file(entry / "fd", folder):
            pids.append(int(entry.name))
    return pids


def _has_open_file(descriptors: Path, folder: str) -> bool:
    with suppress(OSError):  # the process ended, or is another user's
        for descriptor in descriptors.iterdir():
            with suppress(OSError):
                if str(descriptor.readlink()).startswith(f"{folder}/"):
                    return True
    return False


if __name__ == "__main__":
    main(sys.argv[1])
