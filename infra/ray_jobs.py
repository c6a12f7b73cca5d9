"""Idempotent submission to a Ray cluster by its Jobs API.

A job's id is a function of its name and attempt, so a client that comes back finds its job instead of starting a second
one; and whether a job is done is for its receipts to say, since Ray reports a job failed when only the head node was lost.
"""

import asyncio
import logging
import re
import shlex
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

import aiohttp
import requests
from ray._private.runtime_env.packaging import _dir_travel, _get_excludes
from ray.dashboard.modules.job.common import JobErrorType
from ray.dashboard.modules.job.pydantic_models import JobDetails
from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus, JobSubmissionClient

from dualtoken.infra.ray_session import AuthenticationRefused, ClusterUnreachable, reread_authentication

__all__ = ["EXCLUDES", "AuthenticationRefused", "ClusterUnreachable", "JobOutcome", "submit_and_follow"]

EXCLUDES = (
    *(
        ".env",
        ".env.*",
        ".netrc",
        ".aws",
        ".ssh",
        ".ray",
        "auth_token",
        "id_rsa*",
        "id_ed25519*",
        "*.pem",
        "*.key",
    ),
    *(".git", ".venv", "__pycache__", "node_modules", "/data"),
)
"""Never uploaded, in .gitignore's syntax: secrets first, then what a job does not need."""
MAX_UPLOAD_MIB = 100

_DONE, _BUG, _CONFIG, _TEMPORARY, _PREEMPTED = 0, 1, 2, 75, 143
_TRANSIENT = (OSError, aiohttp.ClientError)
"""How a request that may work later shows itself; what requests raises are OSErrors, time limits too."""
_LOST = {JobErrorType.JOB_SUPERVISOR_ACTOR_DIED, JobErrorType.JOB_SUPERVISOR_ACTOR_START_TIMEOUT}
_HTTP_ADDRESS = re.compile(r"^(?:https?://)?(?:\[[0-9a-fA-F:]+\]|[^\s:/@\[\]]+):\d{1,5}/?$")
_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,199}$")
_SECRET = re.compile(r"(?<!DUAL)TOKEN|SECRET|PASSWORD|PRIVATE_KEY|ACCESS_KEY|CREDENTIAL", re.IGNORECASE)
_SILENCE_SECONDS = 20.0
_RECONNECT_SECONDS = 300.0
_LONGEST_BACKOFF_SECONDS = 15.0
_LAST_TAILS = 3
"""Attempts to get the end of an ended job's log; its node may be gone."""


_T = TypeVar("_T")

# Of each connection's end; they set their own level, so that Ray's `logging_level` does not reach them.
logging.getLogger("ray.dashboard.modules.job.sdk").setLevel(logging.WARNING)
logging.getLogger("ray.dashboard.modules.dashboard_sdk").setLevel(logging.WARNING)


@dataclass(frozen=True, slots=True, kw_only=True)
class JobOutcome:
    """How a named piece of work stands after `submit_and_follow`."""

    done: bool
    """All receipts are there."""
    exit_code: int
    """0 done, 2 configuration, 75 temporary, 143 preempted or stopped, 1 anything else."""
    submission_id: str | None = None
    """Of the last job that was followed; None where nothing was left to do."""
    message: str = ""
    """What Ray says of it, first line."""


@dataclass(slots=True)
class _Log:
    """Prints each line of a job's log once, however often the server sends it from the start."""

    print_line: Callable[[str], None]
    characters: int = 0
    _tail: str = ""

    def feed(self, chunk: str, position: int) -> None:
        """Print what is new in `chunk`, which starts `position` characters into the log."""
        new = chunk[max(0, self.characters - position) :]
        if not new:
            return
        self.characters += len(new)
        *lines, self._tail = (self._tail + new).split("\n")
        for line in lines:
            self.print_line(line)

    def close(self) -> None:
        """Print a last line that has no end."""
        if self._tail:
            self.print_line(self._tail)
            self._tail = ""


class _Client(JobSubmissionClient):
    """Ray's client, with a time limit on each request, and a look-up that tells "no such job" from a failure."""

    def __init__(self, address: str) -> None:
        super().__init__(address)
        self._ssl_context = True  # as by default, in the words that aiohttp does not deprecate

    def _do_request(self, method: str, endpoint: str, **options: Any) -> requests.Response:  # noqa: ANN401  # those of requests
        return super()._do_request(method, endpoint, **{"timeout": (10, 60), **options})

    def find(self, submission_id: str) -> JobDetails | None:
        answer = self._do_request("GET", f"/api/jobs/{submission_id}")
        if answer.status_code == requests.codes.not_found:
            return None
        answer.raise_for_status()
        return JobDetails(**answer.json())


@dataclass(slots=True)
class _Work:
    """One call of `submit_and_follow`."""

    address: str
    name: str
    entrypoint: str
    runtime_env: dict[str, Any]
    is_done: Callable[[], bool]
    print_line: Callable[[str], None]
    patience_seconds: float
    client: _Client
    current: str | None = field(default=None, init=False)

    def run(self, max_attempts: int) -> JobOutcome:
        number = 1
        for remaining in range(max_attempts - 1, -1, -1):
            while (job := self.patiently(partial(self.client.find, f"{self.name}-a{number}"))) and _ended(
                job
            ):
                number += 1
            self.current = f"{self.name}-a{number}"
            if job is None:
                self.submit(self.current)
                self.print_line(f"submitted {self.current}")
            else:
                self.print_line(f"following {self.current}, which is {job.status.value.lower()} already")
            outcome, again = self.judge(self.follow(self.current))
            if outcome.done or not again or not remaining:
                return outcome
            self.print_line(
                f"{self.current} ended with status {outcome.exit_code}: trying again, {remaining} left"
            )
        raise AssertionError("max_attempts was checked to be positive")

    def submit(self, submission_id: str) -> None:
        def once() -> None:
            try:
                self.client.submit_job(
                    entrypoint=self.entrypoint, submission_id=submission_id, runtime_env=self.runtime_env
                )
            except (*_TRANSIENT, RuntimeError) as error:
                # The answer may have been lost after the job was taken, or another client was first: both are fine.
                if self.client.find(submission_id) is not None:
                    return
                if isinstance(error, RuntimeError) and "status code 5" not in str(error):
                    raise ValueError(f"the cluster refused the job: {_first_line(error)}") from None
                raise ConnectionError(_first_line(error)) from None

        self.patiently(once)

    def patiently(self, ask: Callable[[], _T]) -> _T:
        """Ask the cluster until it answers, or until it has not done so for `patience_seconds`."""
        deadline, pause = time.monotonic() + self.patience_seconds, 0.5
        while True:
            try:
                return ask()
            except AuthenticationError:
                raise AuthenticationRefused(self.address) from None
            except _TRANSIENT as error:
                if time.monotonic() > deadline:
                    doing = f"; {self.current} may go on" if self.current else ""
                    raise ClusterUnreachable(
                        f"lost the Ray cluster at {self.address} ({_first_line(error)}){doing}"
                    ) from None
                time.sleep(pause)
                pause = min(2 * pause, _LONGEST_BACKOFF_SECONDS)

    def follow(self, submission_id: str) -> JobDetails | None:
        """Print the job's log until it ends; its last state, None if the cluster has forgotten it."""
        log = _Log(self.print_line)
        pause, last_tails = 0.5, 0
        try:
            while True:
                before = log.characters
                complete = asyncio.run(self._tail(submission_id, log))
                job = self.patiently(partial(self.client.find, submission_id))
                last_tails += job is not None and _ended(job)
                if job is None or (last_tails and complete) or last_tails == _LAST_TAILS:
                    return job
                pause = 0.5 if log.characters > before else min(2 * pause, _LONGEST_BACKOFF_SECONDS)
                time.sleep(pause)
        finally:
            log.close()

    async def _tail(self, submission_id: str, log: _Log) -> bool:
        """Print the log as it comes, until the server ends it (True) or the connection fails or falls silent (False)."""
        # Ray sends chunks of at most 10 lines, so a long log costs no memory; each connection starts at the beginning.
        chunks, position = cast("AsyncGenerator[str, None]", self.client.tail_job_logs(submission_id)), 0
        async with aclosing(chunks):
            while True:
                following = asyncio.ensure_future(anext(chunks, None))
                try:
                    if not await self._arrives(following, submission_id):
                        return False
                    chunk = following.result()
                except AuthenticationError:
                    raise AuthenticationRefused(self.address) from None
                except (*_TRANSIENT, RuntimeError):
                    return False
                finally:
                    following.cancel()  # a generator can be closed only after its pending step has ended
                    await asyncio.gather(following, return_exceptions=True)
                if chunk is None:
                    return True
                log.feed(chunk, position)
                position += len(chunk)

    async def _arrives(self, following: "asyncio.Future[str | None]", submission_id: str) -> bool:
        """Wait for the next chunk; False once the job has ended meanwhile, or the silence is too long to trust."""
        since = time.monotonic()
        while not (await asyncio.wait({following}, timeout=_SILENCE_SECONDS))[0]:
            # A silent connection is a quiet job or a dead peer: only a question tells.
            job = self.client.find(submission_id)
            if job is None or _ended(job) or time.monotonic() - since > _RECONNECT_SECONDS:
                return False
        return True

    def judge(self, job: JobDetails | None) -> tuple[JobOutcome, bool]:
        """The outcome of a job that ended, and whether another attempt may help."""
        message = (
            "the cluster has no record of it any more" if job is None else _first_line(job.message or "")
        )
        if self.is_done():
            return JobOutcome(done=True, exit_code=_DONE, submission_id=self.current, message=message), False
        if job is None or job.error_type in _LOST:
            code, again = _TEMPORARY, True
        elif job.status == JobStatus.STOPPED:
            code, again = _PREEMPTED, False  # somebody wanted it to stop
        else:
            reported = {-15: _PREEMPTED}.get(job.driver_exit_code or 0, job.driver_exit_code)
            code = reported if reported in {_CONFIG, _TEMPORARY, _PREEMPTED} else _BUG
            again = reported not in {_CONFIG, _BUG, 0}
        return JobOutcome(done=False, exit_code=code, submission_id=self.current, message=message), again


def submit_and_follow(
    address: str,
    *,
    name: str,
    entrypoint: str,
    working_dir: str | Path,
    env: Mapping[str, str],
    is_done: Callable[[], bool],
    print_line: Callable[[str], None] = print,
    max_attempts: int = 1,
    patience_seconds: float = 300.0,
) -> JobOutcome:
    """Get a named piece of work done on a cluster, by a job that is submitted once and followed to its end.

    `address` is that of the dashboard, [http[s]://]host:port. The job of attempt n has the id `{name}-a{n}`: one that is
    pending or running is followed, else the next one is submitted, unless `is_done()` says that nothing is left to do.
    `is_done` alone decides whether it worked. Of the jobs of this call, `max_attempts` at most, another one is started only
    after a failure that may pass.
    `patience_seconds` is for how long the cluster may be out of reach. Ctrl-C detaches; the job goes on.

    Authentication is on if RAY_AUTH_MODE=token; the token comes from RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or
    ~/.ray/auth_token, and goes nowhere else. `env` is shown in Ray's dashboard, so names of secrets are refused in it.

    Raises ValueError for bad arguments, ClusterUnreachable, AuthenticationRefused, and KeyboardInterrupt after detaching.
    """
    if not _HTTP_ADDRESS.match(address):
        raise ValueError(
            f"address={address!r} names no Ray dashboard: set it to host:port, such as http://127.0.0.1:8265"
        )
    if not _NAME.match(name):
        raise ValueError(f"name={name!r}: use up to 200 letters, digits, dots, dashes and underscores")
    if max_attempts < 1:
        raise ValueError(f"max_attempts={max_attempts}: set it to 1 or more")
    for variable in env:
        if _SECRET.search(variable):
            raise ValueError(
                f"env.{variable} looks like a secret, and Ray shows a job's environment: set it on the cluster's nodes"
            )
    if is_done():
        return JobOutcome(done=True, exit_code=_DONE)
    _check_size(Path(working_dir))
    runtime_env = {"working_dir": str(working_dir), "excludes": list(EXCLUDES), "env_vars": dict(env)}
    address = (address if "://" in address else f"http://{address}").rstrip("/")
    work = _Work(
        address, name, entrypoint, runtime_env, is_done, print_line, patience_seconds, _connect(address)
    )
    try:
        return work.run(max_attempts)
    except KeyboardInterrupt:
        if work.current:
            print_line(
                f"detached from {work.current}, which goes on; to follow it again, repeat the command; to stop it:"
            )
            print_line(shlex.join(["ray", "job", "stop", "--address", address, work.current]))
        raise


def _connect(address: str) -> _Client:
    reread_authentication()
    try:
        return _Client(address)
    except AuthenticationError:
        raise AuthenticationRefused(address) from None
    except (*_TRANSIENT, RuntimeError) as error:
        raise ClusterUnreachable(f"no Ray dashboard answers at {address} ({_first_line(error)})") from None


def _check_size(folder: Path) -> None:
    """Refuse to upload a folder over the limit, as Ray itself would walk it."""
    if not folder.is_dir():
        raise ValueError(f"working_dir={folder} is no folder")
    sizes: dict[Path, int] = {}

    def add(path: Path) -> None:
        if path.is_file():
            sizes[path.relative_to(folder)] = path.stat().st_size

    _dir_travel(folder, [_get_excludes(folder, list(EXCLUDES))], add, include_gitignore=True)
    total = sum(sizes.values())
    if total > MAX_UPLOAD_MIB * 2**20:
        largest = sorted(sizes, key=sizes.__getitem__, reverse=True)[:5]
        listed = ", ".join(f"{path} ({sizes[path] / 2**20:.0f} MiB)" for path in largest)
        raise ValueError(
            f"working_dir={folder} holds {total / 2**20:.0f} MiB, over {MAX_UPLOAD_MIB}: name in .gitignore or .rayignore "
            f"what the job does not need. Largest: {listed}"
        )


def _ended(job: JobDetails) -> bool:
    return job.status in {JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.STOPPED}


def _first_line(error: object) -> str:
    return next(iter(str(error).strip().splitlines()), "")[:200]
