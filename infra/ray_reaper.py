"""The end of a local Ray cluster; as the process that outlives a killed driver it is small, so it imports only Python.

Ray's main processes die with their driver, but its agents wait a minute for a server that is gone with them, and a
worker in a long native call hears of nothing until the call returns.
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
    end_users(folder)
    shutil.rmtree(folder, ignore_errors=True)


def end_users(folder: str) -> None:
    """Kill the processes of a session that is over, this one excepted, when they have had a moment to end by themselves."""
    since = time.monotonic()
    while (pids := _users(folder)) and (waited := time.monotonic() - since) < LONGEST_SECONDS:
        for pid in pids if waited > GRACE_SECONDS else ():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.1)


def _users(folder: str) -> list[int]:
    """The processes with a file of the folder open: every one of Ray's has its log there."""
    pids = {int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()} - {os.getpid()}
    return [pid for pid in pids if _has_open(Path(f"/proc/{pid}/fd"), folder)]


def _has_open(files: Path, folder: str) -> bool:
    with suppress(OSError):  # it ended, or is another user's
        for file in files.iterdir():
            with suppress(OSError):
                if str(file.readlink()).startswith(f"{folder}/"):
                    return True
    return False


if __name__ == "__main__":
    main(sys.argv[1])
