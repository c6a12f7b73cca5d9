"""Stopping by a signal, where the moment can be chosen exactly."""

import signal
import subprocess
import sys

import pytest

SIGNALLED_AS_PYTHON_ENDS = """
import os
from dualtoken.jobs.stopping import stop_on_signals


class LastObject:
    def __del__(self, kill=os.kill, pid=os.getpid()):
        kill(pid, {number})


stop_on_signals()
last = LastObject()
print("done")
"""


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_after_the_work_is_done_changes_nothing(sent: signal.Signals) -> None:
    script = SIGNALLED_AS_PYTHON_ENDS.format(number=int(sent))
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "done\n", "")
