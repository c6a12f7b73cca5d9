"""A signal while a command starts: one sentence, its exit code, and no process left."""

import os
import signal
import subprocess
import time
import uuid
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.helpers.command_line import dualtoken_command
from tests.helpers.tiny_run import PROJECT, TINY
from tests.helpers.waiting import wait_until

SENTENCE = "dualtoken: stopped; run the same command again to go on\n"
EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 143}
IN_PROCESS = ("--in-process",)


class Stopped(NamedTuple):
    """How a command ended that a signal was sent to."""

    code: int
    errors: str
    seconds: float


def stop(command: str, root: Path, options: tuple[str, ...], sent: signal.Signals, moment: float) -> Stopped:
    """Start a command, send it a signal after so many seconds, and wait until all its processes are gone."""
    mark = uuid.uuid4().hex
    with subprocess.Popen(
        dualtoken_command(command, TINY, "--root", root, *options),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        cwd=PROJECT,
        env={**os.environ, "TEST_MARK": mark},
        # As in a terminal: a job in the background ignores SIGINT.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # noqa: PLW1509
    ) as process:
        time.sleep(moment)
        process.send_signal(sent)
        sent_at = time.monotonic()
        time.sleep(0.3)
        process.send_signal(signal.SIGTERM)  # a second one changes nothing
        _, errors = process.communicate(timeout=60)
        seconds = time.monotonic() - sent_at
    wait_until(lambda: not marked_processes(mark), seconds=15)
    return Stopped(process.returncode, errors, seconds)


def marked_processes(mark: str) -> list[int]:
    """Return the processes with a mark in their environment, which their children inherit."""
    pids: list[int] = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            environment = (entry / "environ").read_bytes()
        except OSError:
            continue
        if mark.encode() in environment:
            pids.append(int(entry.name))
    return pids


def assert_stopped(stopped: Stopped, sent: signal.Signals) -> None:
    if stopped.code == 0:
        return  # the command had ended before
    assert stopped.code == EXIT_CODES[sent], stopped.errors
    assert stopped.errors == SENTENCE
    assert stopped.seconds < 10


@pytest.mark.parametrize(("sent", "moment"), [(signal.SIGINT, 1.0), (signal.SIGHUP, 3.0)])
def test_a_signal_while_a_command_starts_ends_it_with_one_sentence(
    sent: signal.Signals, moment: float, tmp_path: Path
) -> None:
    stopped = stop("scenes", tmp_path, IN_PROCESS, sent, moment)
    assert_stopped(stopped, sent)
