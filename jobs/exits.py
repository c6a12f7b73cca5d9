"""How every command ends: one line for the user's mistakes, a typed exit code, a traceback only for our bugs."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from dualtoken.pipelines.errors import (
    ExitCode,
    Preempted,
    StageFailed,
    UnitsFailed,
    exit_code,
    lacks_credentials,
)

_KEYS = "; for S3 set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"


@contextmanager
def typed_exit() -> Iterator[None]:
    """End the process with the code that the block's error calls for."""
    signal.signal(signal.SIGTERM, _preempt)
    try:
        yield
    except Preempted:
        _end("stopped; run the same command again to go on", ExitCode.PREEMPTED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(ExitCode.DONE)
    except Exception as error:
        if (code := exit_code(error)) == ExitCode.BUG and not isinstance(error, (UnitsFailed, StageFailed)):
            raise
        fix = "; try again" if code == ExitCode.TEMPORARY else _KEYS if lacks_credentials(error) else ""
        _end(f"{error}{fix}", code)


def _preempt(_signal: int, _frame: FrameType | None) -> None:
    raise Preempted


def _end(message: str, code: ExitCode) -> None:
    print(f"dualtoken: {message}", file=sys.stderr, flush=True)
    sys.exit(code)
