"""Exit handling of every command: typed codes, one line for a mistake, a traceback for our bugs only."""

import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn, TextIO, cast

from dualtoken.infra.openmp import wait_briefly
from dualtoken.infra.redaction import RedactedStream
from dualtoken.infra.store_refusals import RENEW
from dualtoken.jobs.stopping import end_if_stopped, raise_when_stopped, stop_on_signals
from dualtoken.pipelines.errors import (
    ExitCode,
    Preempted,
    StageFailed,
    UnitsFailed,
    exit_code,
    lacks_credentials,
)


def run_program(command: Callable[[], None]) -> None:
    """Run a command as this process's program; see `ExitCode` for what it exits with."""
    stop_on_signals()
    _escape_output()
    sys.stdout = cast("TextIO", RedactedStream(sys.stdout))
    sys.stderr = cast("TextIO", RedactedStream(sys.stderr))
    try:
        raise_when_stopped(Preempted)
        wait_briefly()
        with typed_exit():
            command()
    finally:
        _flush_output()
        # However the command ended: libraries turn the interruption into errors of their own, or lose it.
        end_if_stopped()


def _escape_output() -> None:
    """Escape what a terminal or log cannot show, such as names that are not UTF-8, in place of failing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


@contextmanager
def typed_exit() -> Iterator[None]:
    """End the process with the code that the block's error calls for."""
    try:
        yield
    except BrokenPipeError:
        _end_unread()
    except SystemExit as end:
        if isinstance(end.__context__, BrokenPipeError):  # typer's own end of it, by 1
            _end_unread()
        raise
    except Exception as error:
        code = exit_code(error)
        if code == ExitCode.BUG and not isinstance(error, (UnitsFailed, StageFailed)):
            raise
        _exit(f"{error}{_advice(error, code)}", code)


def _end_unread() -> NoReturn:
    """End a command whose reader has seen enough, such as `head`."""
    _discard_output()
    sys.exit(ExitCode.DONE)


def _flush_output() -> None:
    """Write what is still held back, while a reader who has left can still be told from a fault."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        _discard_output()


def _discard_output() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _advice(error: Exception, code: ExitCode) -> str:
    if code == ExitCode.TEMPORARY and not str(error).endswith(RENEW):
        return "; try again"
    if lacks_credentials(error):
        return "; for S3 set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
    return ""


def _exit(message: str, code: ExitCode) -> NoReturn:
    print(f"dualtoken: {message}", file=sys.stderr, flush=True)
    sys.exit(code)
