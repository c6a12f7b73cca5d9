"""Errors that a command ends with, and its exit codes."""

import errno
from collections.abc import Mapping
from enum import IntEnum

from dualtoken.infra.device_errors import is_device_lost, is_device_memory_full
from dualtoken.infra.machine_trouble import is_machine_trouble
from dualtoken.infra.redaction import redacted

_STORAGE_CLIENTS = ("botocore.", "aiobotocore.", "aiohttp.")
"""Modules of S3 clients. s3fs passes some of their errors on, such as for an endpoint that is down."""
_NO_KEYS = ("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound")
"""Errors of botocore for a process without access keys: no request was made."""
_PATH_ERRORS = (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError)
"""Errors that trying again does not change: no file comes or goes by it."""
_NO_BUCKET = "specified bucket does not exist"
"""Message of a `FileNotFoundError` that S3 clients raise for a bucket."""


class ExitCode(IntEnum):
    """Exit status of a command."""

    DONE = 0
    BUG = 1
    CONFIGURATION = 2
    REGRESSED = 3
    """An evaluation is worse than it should be, by more than chance and margin explain."""
    MISSED = 4
    """A night that should have been evaluated was not."""
    TEMPORARY = 75
    INTERRUPTED = 130
    """Stopped by SIGINT, as of Ctrl-C."""
    PREEMPTED = 143
    """Stopped by SIGTERM or SIGHUP."""


class UserError(ValueError):
    """An error that the user can fix: the message is one line with the key, the value and what to set.

    URLs in it lose their queries and user parts.
    """

    def __init__(self, message: str) -> None:
        super().__init__(redacted(message))


class UnitsFailed(Exception):
    """Some units of a stage have no receipt; `code` is the exit code that the worst of them calls for."""

    def __init__(
        self, failures: Mapping[str, str], num_units: int, code: ExitCode, num_left: int = 0
    ) -> None:
        left = ""
        if num_left:
            left = f", and {num_left} were not tried, which would fail alike"
        unit, reason = next(iter(failures.items()))
        reason = " ".join(reason.split())
        super().__init__(f"{len(failures)} of {num_units} units failed{left}; {unit}: {reason}")
        self.code = code


class Preempted(KeyboardInterrupt):
    """The process was asked to stop; finished units stay finished.

    Libraries know KeyboardInterrupt and let it through, from native code as well; others they may lose there.
    """


class StageFailed(Exception):
    """A stage that ran as a job elsewhere has not all its receipts."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = ExitCode(code)


class TokenAlarm(StageFailed):
    """An audited token shard is not like the others, and the recipe says to stop there."""

    def __init__(self, message: str) -> None:
        super().__init__(message, ExitCode.BUG)


def lacks_credentials(error: BaseException) -> bool:
    """Tell whether S3 was not even asked, for want of an access key."""
    return type(error).__name__ in _NO_KEYS and _is_of_storage_client(error)


def ends_run(error: BaseException) -> bool:
    """Tell whether the other units of a run would fail alike: the store refuses this process."""
    return lacks_credentials(error) or getattr(error, "ends_run", False)


def _is_of_storage_client(error: BaseException) -> bool:
    return type(error).__module__.startswith(_STORAGE_CLIENTS)


def exit_code(error: BaseException) -> ExitCode:
    """Classify an error: the user's, one that may pass when tried again, or a bug of ours."""
    if isinstance(error, (UnitsFailed, StageFailed)):
        return error.code
    if getattr(error, "exit_code", None) in (ExitCode.CONFIGURATION, ExitCode.TEMPORARY):
        return ExitCode(error.exit_code)  # pyright: ignore[reportAttributeAccessIssue]  # looked for above
    if _is_the_users(error):
        return ExitCode.CONFIGURATION
    if _may_pass(error):
        return ExitCode.TEMPORARY
    return ExitCode.BUG


def _is_the_users(error: BaseException) -> bool:
    if isinstance(error, UserError) or lacks_credentials(error):
        return True
    if is_device_memory_full(error):
        return True  # the recipe decides how much of it is asked for
    if isinstance(error, PermissionError) or getattr(error, "errno", None) == errno.EROFS:
        return True  # no folder becomes writable by trying again
    return isinstance(error, _PATH_ERRORS) and _NO_BUCKET in str(error)


def _may_pass(error: BaseException) -> bool:
    if is_machine_trouble(error) or is_device_lost(error):
        return True
    if isinstance(error, _PATH_ERRORS):
        return False
    return isinstance(error, (OSError, TimeoutError)) or _is_of_storage_client(error)
