"""The errors that a command ends with, and its exit codes."""

import errno
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from enum import IntEnum

_STORAGE_CLIENTS = ("botocore.", "aiobotocore.", "aiohttp.")
"""s3fs hands on some of their errors as they are, such as of an endpoint that does not answer."""

_NO_KEYS = ("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound")
"""Of botocore: nothing was asked, for this process has no keys to ask with."""

_OF_PATHS = (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError)
"""No file comes or goes by trying again."""
_NO_BUCKET = "specified bucket does not exist"
"""S3 clients raise it as a file that is not found."""


class ExitCode(IntEnum):
    """What a command's exit status means."""

    DONE = 0
    BUG = 1
    CONFIGURATION = 2
    TEMPORARY = 75
    PREEMPTED = 143


class UserError(ValueError):
    """What a user can fix: the message is one line that names the key, the value and what to set."""


@contextmanager
def user_error_on_divergence() -> Iterator[None]:
    """Raise what a training says of values that are no numbers, with the key to lower, as the user's mistake."""
    try:
        yield
    except FloatingPointError as error:
        raise UserError(str(error)) from None


class UnitsFailed(Exception):
    """Some units of a stage have no receipt; carries the exit code that the worst of them calls for."""

    def __init__(
        self, failures: Mapping[str, str], num_units: int, code: ExitCode, num_left: int = 0
    ) -> None:
        unit, reason = next(iter(failures.items()))
        left = f", and {num_left} were not tried after so many in a row" if num_left else ""
        super().__init__(
            f"{len(failures)} of {num_units} units failed{left}; {unit}: {' '.join(reason.split())}"
        )
        self.code = code


class Preempted(BaseException):
    """The process was asked to stop; what is finished stays finished."""


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
    return type(error).__name__ in _NO_KEYS and type(error).__module__.startswith(_STORAGE_CLIENTS)


def exit_code(error: BaseException) -> ExitCode:
    """Sort an error: the user's, one that may pass when tried again, or a bug of ours."""
    if isinstance(error, (UnitsFailed, StageFailed)):
        return error.code
    if (
        isinstance(error, UserError)
        or getattr(error, "exit_code", None) == ExitCode.CONFIGURATION
        or lacks_credentials(error)
    ):
        return ExitCode.CONFIGURATION
    if isinstance(error, PermissionError) or getattr(error, "errno", None) == errno.EROFS:
        return ExitCode.CONFIGURATION  # no folder becomes writable by trying again
    if isinstance(error, _OF_PATHS):
        return ExitCode.CONFIGURATION if _NO_BUCKET in str(error) else ExitCode.BUG
    if isinstance(error, (OSError, TimeoutError)) or type(error).__module__.startswith(_STORAGE_CLIENTS):
        return ExitCode.TEMPORARY
    return ExitCode.BUG
