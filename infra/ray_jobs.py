"""Idempotent submission to a Ray cluster by its Jobs API.

A job's id is a function of its name and attempt, so a client that comes back finds its job instead of
starting a second one. Whether a job is done is for its receipts to say, since Ray reports a job failed when
only the head node was lost.
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
from ray.dashboard.modules.job.pydantic_models import JobDetails
from ray.exceptions import AuthenticationError
from ray.job_submission import JobSubmissionClient

from dualtoken.infra.addresses import direct_proxies
from dualtoken.infra.log_levels import at_least
from dualtoken.infra.ray_job_end import DONE, ended, exit_code, may_be_retried
from dualtoken.infra.ray_session import AuthenticationRefused, ClusterUnreachable, reread_authentication
from dualtoken.infra.ray_upload import EXCLUDES, check_size

__all__ = ["AuthenticationRefused", "ClusterUnreachable", "JobOutcome", "submit_and_follow"]

_TRANSIENT = (OSError, aiohttp.ClientError)
"""Errors of a request that may work later; what the library requests raises are OSErrors, time limits too."""
_HTTP_ADDRESS = re.compile(r"^(?:https?://)?(?:\[[0-9a-fA-F:]+\]|[^\s:/@\[\]]+):\d{1,5}/?$")
_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,199}$")
_SECRET = re.compile(r"(?<!DUAL)TOKEN|SECRET|PASSWORD|PRIVATE_KEY|ACCESS_KEY|CREDENTIAL", re.IGNORECASE)
_SILENCE_SECONDS = 20.0
"""Silence of a log's connection after which the job's state is asked for."""
_RECONNECT_SECONDS = 300.0
"""Silence after which a log's connection is opened anew."""
_FIRST_BACKOFF_SECONDS = 0.5
_LONGEST_BACKOFF_SECONDS = 15.0
_LAST_TAILS = 3
"""Attempts to get the end of an ended job's log; its node may be gone."""

_T = TypeVar("_T")

_CHATTY = (
    # They log each connection's end, and set their own level, so that Ray's `logging_level` does not reach
    # them.
    "ray.dashboard.modules.job.sdk",
    "ray.dashboard.modules.dashboard_sdk",
    # It has a line for each package that is uploaded.
    "ray._private.runtime_env.packaging",
)
"""Loggers of Ray whose information is nothing to a user."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobOutcome:
    """State of a named piece of work after `submit_and_follow`."""

    done: bool
    """Whether all receipts are there."""
    exit_code: int
    """Exit code: 0 done, 2 configuration, 75 temporary, 143 preempted or stopped, 1 anything else."""
    submission_id: str | None = None
    """Id of the last job that was followed; None where nothing was left to do."""
    message: str = ""
    """First line of Ray's message about that job."""


@dataclass(slots=True)
class _Log:
    """Prints each line of a job's log once, however often the server sends it from the start."""

    print_line: Callable[[str], None]
    characters: int = 0
    _tail: str = ""

    def feed(self, chunk: str, position: int) -> None:
        """Print what is new in `chunk`, which starts `position` characters into the log."""
        already_printed = max(0, self.characters - position)
        new = chunk[already_printed:]
        if not new:
            return
        self.characters += len(new)
        *lines, self._tail = (self._tail + new).split("\n")
        for line in lines:
            self.print_line(line)

    def close(self) -> None:
        """Print a last line that has no line end."""
        if self._tail:
            self.print_line(self._tail)
            self._tail = ""


class _Client(JobSubmissionClient):
    """Ray's client, with a time limit on each request and a look-up that tells "no such job" from failure."""

    def __init__(self, address: str) -> None:
        self._proxies = direct_proxies(address)
        super().__init__(address)
        self._ssl_context = True  # as by default, in the words that aiohttp does not deprecate

    def _do_request(self, method: str, endpoint: str, **options: Any) -> requests.Response:  # noqa: ANN401
        settings = {"timeout": (10, 60), "proxies": self._proxies, **options}
        return super()._do_request(method, endpoint, **settings)

    def find(self, submission_id: str) -> JobDetails | None:
        """Return a job's state, or None where the cluster has no such job."""
        answer = self._do_request("GET", f"/api/jobs/{submission_id}")
        if answer.status_code == requests.codes.not_found:
            return None
        answer.raise_for_status()
        return JobDetails(**answer.json())


@dataclass(slots=True)
class _Work:
    """One call of `submit_and_follow`: its arguments, and the job that it follows."""

    address: str
    name: str
    entrypoint: str
    runtime_env: dict[str, Any]
    is_done: Callable[[], bool]
    print_line: Callable[[str], None]
    patience_seconds: float
    client: _Client
    metadata: dict[str, str]
    describe_found: Callable[[Mapping[str, str]], str]
    number: int = field(default=1, init=False)
    """Number of the attempt."""
    current: str | None = field(default=None, init=False)
    """Id of the job that is followed."""
    started_at: int | None = field(default=None, init=False)
    """Start of that job, ms since 1970: a cluster that was started anew may have another one by its id."""

    def run(self, max_attempts: int) -> JobOutcome:
        """Follow one job after the other, `max_attempts` at most, until one ends for good."""
        remaining = max_attempts
        while True:
            remaining -= 1
            submission_id = self.submit_or_find()
            job = self.follow(submission_id)
            outcome = self.judge(job)
            if outcome.done or not may_be_retried(job) or not remaining:
                return outcome
            if job is None:
                self.number += 1  # its id names another job from here on
            self.print_line(
                f"{submission_id} ended with status {outcome.exit_code}: trying again, {remaining} left"
            )

    def submit_or_find(self) -> str:
        """Submit the first attempt without a job, unless one before it is under way; return the job's id."""
        job = self.find_attempt()
        while job is not None and ended(job):
            self.number += 1
            job = self.find_attempt()
        submission_id = self.attempt_id()
        found = ""
        if job is not None:
            found = self.describe_found(job.metadata or {})
        self.current = submission_id
        self.started_at = None
        if job is None:
            self.submit(submission_id)
            self.print_line(f"submitted {submission_id}")
        else:
            self.print_line(f"following {submission_id}, which is {job.status.value.lower()} already{found}")
        return submission_id

    def attempt_id(self) -> str:
        return f"{self.name}-a{self.number}"

    def find_attempt(self) -> JobDetails | None:
        return self.patiently(partial(self.client.find, self.attempt_id()))

    def submit(self, submission_id: str) -> None:
        """Submit a job; one that the cluster has already is no error."""

        def once() -> None:
            try:
                self.client.submit_job(
                    entrypoint=self.entrypoint,
                    submission_id=submission_id,
                    runtime_env=self.runtime_env,
                    metadata=self.metadata,
                )
            except (*_TRANSIENT, RuntimeError) as error:
                # The answer may have been lost after the job was taken, or another client was first: both are
                # fine.
                if self.client.find(submission_id) is not None:
                    return
                if isinstance(error, RuntimeError) and "status code 5" not in str(error):
                    raise ValueError(f"the cluster refused the job: {_first_line(error)}") from None
                raise ConnectionError(_first_line(error)) from None

        self.patiently(once)

    def patiently(self, ask: Callable[[], _T]) -> _T:
        """Ask the cluster until it answers, or until it has not done so for `patience_seconds`."""
        deadline = time.monotonic() + self.patience_seconds
        pause = _FIRST_BACKOFF_SECONDS
        while True:
            try:
                return ask()
            except AuthenticationError:
                raise AuthenticationRefused(self.address) from None
            except _TRANSIENT as error:
                if time.monotonic() > deadline:
                    raise self._cluster_lost(error) from None
                time.sleep(pause)
                pause = min(2 * pause, _LONGEST_BACKOFF_SECONDS)

    def _cluster_lost(self, error: Exception) -> ClusterUnreachable:
        doing = ""
        if self.current:
            doing = f"; {self.current} may go on"
        return ClusterUnreachable(f"lost the Ray cluster at {self.address} ({_first_line(error)}){doing}")

    def follow(self, submission_id: str) -> JobDetails | None:
        """Print the job's log until it ends; return its last state, None if the cluster has forgotten it."""
        log = _Log(self.print_line)
        try:
            return self._follow(submission_id, log)
        finally:
            log.close()

    def _follow(self, submission_id: str, log: _Log) -> JobDetails | None:
        pause = _FIRST_BACKOFF_SECONDS
        last_tails = 0
        self.patiently(partial(self.find_same, submission_id))  # remembers which job it is
        while True:
            characters_before = log.characters
            is_complete = asyncio.run(self._tail(submission_id, log))
            job = self.patiently(partial(self.find_same, submission_id))
            if job is None:
                return None
            if ended(job):
                last_tails += 1
                if is_complete or last_tails == _LAST_TAILS:
                    return job
            pause = min(2 * pause, _LONGEST_BACKOFF_SECONDS)
            if log.characters > characters_before:
                pause = _FIRST_BACKOFF_SECONDS
            time.sleep(pause)

    def find_same(self, submission_id: str) -> JobDetails | None:
        """Return the followed job's state; None where it is gone, or another job has its id by now."""
        job = self.client.find(submission_id)
        if job is None:
            return None
        if self.started_at is None:
            self.started_at = job.start_time
        if job.start_time != self.started_at:
            return None
        return job

    async def _tail(self, submission_id: str, log: _Log) -> bool:
        """Print the log as it comes, until it ends; return whether the server ended it.

        False where the connection failed or fell silent.
        """
        # Ray sends chunks of at most 10 lines, so a long log costs no memory; each connection starts at the
        # beginning.
        chunks = cast("AsyncGenerator[str, None]", self.client.tail_job_logs(submission_id))
        position = 0
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
        """Wait for the next chunk; False once the job has ended meanwhile, or the silence is too long."""
        started = time.monotonic()
        while True:
            arrived, _ = await asyncio.wait({following}, timeout=_SILENCE_SECONDS)
            if arrived:
                return True
            # A silent connection is a quiet job or a dead peer: only a question tells.
            job = self.client.find(submission_id)
            if job is None or ended(job) or time.monotonic() - started > _RECONNECT_SECONDS:
                return False

    def judge(self, job: JobDetails | None) -> JobOutcome:
        """Return the outcome of a job that ended: its receipts decide, its exit code only explains."""
        message = "the cluster has no record of it any more"
        if job is not None:
            message = _first_line(job.message or "")
        if self.is_done():
            return JobOutcome(done=True, exit_code=DONE, submission_id=self.current, message=message)
        return JobOutcome(done=False, exit_code=exit_code(job), submission_id=self.current, message=message)


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
    metadata: Mapping[str, str] | None = None,
    describe_found: Callable[[Mapping[str, str]], str] = lambda _: "",
) -> JobOutcome:
    """Get a named piece of work done on a cluster, by a job that is submitted once and followed to its end.

    `address` is that of the dashboard, [http[s]://]host:port. The job of attempt n has the id `{name}-a{n}`:
    one that is pending or running is followed, else the next one is submitted, unless `is_done()` says that
    nothing is left to do. `is_done` alone decides whether it worked. This call starts or follows
    `max_attempts` jobs at most, and another one only after a failure that may pass. `patience_seconds` is for
    how long the cluster may be out of reach. Ctrl-C detaches; the job goes on.

    `metadata` is kept with a job that is submitted. Where one is found under way, `describe_found` is given
    its metadata and returns what to add to the line that says so, or raises ValueError to leave it alone.

    Authentication is on if RAY_AUTH_MODE=token; the token comes from RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or
    ~/.ray/auth_token, and goes nowhere else. `env` is shown in Ray's dashboard, so names of secrets are
    refused in it.

    Raises ValueError for bad arguments, ClusterUnreachable, AuthenticationRefused, and KeyboardInterrupt
    after detaching.
    """
    _check_arguments(address, name, env, max_attempts)
    if is_done():
        return JobOutcome(done=True, exit_code=DONE)
    check_size(Path(working_dir))
    if "://" not in address:
        address = f"http://{address}"
    address = address.rstrip("/")
    work = _Work(
        address=address,
        name=name,
        entrypoint=entrypoint,
        runtime_env={"working_dir": str(working_dir), "excludes": list(EXCLUDES), "env_vars": dict(env)},
        is_done=is_done,
        print_line=print_line,
        patience_seconds=patience_seconds,
        client=_connect(address),
        metadata=dict(metadata or {}),
        describe_found=describe_found,
    )
    try:
        with at_least(logging.WARNING, *_CHATTY):
            return work.run(max_attempts)
    except KeyboardInterrupt:
        if work.current:
            print_line(
                f"detached from {work.current}, which goes on; "
                "to follow it again, repeat the command; to stop it:"
            )
            print_line(shlex.join(["ray", "job", "stop", "--address", address, work.current]))
        raise


def _check_arguments(address: str, name: str, env: Mapping[str, str], max_attempts: int) -> None:
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
                f"env.{variable} looks like a secret, and Ray shows a job's environment: "
                "set it on the cluster's nodes"
            )


def _connect(address: str) -> _Client:
    reread_authentication()
    try:
        return _Client(address)
    except AuthenticationError:
        raise AuthenticationRefused(address) from None
    except (*_TRANSIENT, RuntimeError) as error:
        raise ClusterUnreachable(f"no Ray dashboard answers at {address} ({_first_line(error)})") from None


def _first_line(error: object) -> str:
    lines = str(error).strip().splitlines()
    if not lines:
        return ""
    return lines[0][:200]
