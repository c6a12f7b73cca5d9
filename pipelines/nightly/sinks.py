"""Sends an event to a webhook, a command or a file. Whatever goes wrong there is one error with one line."""

import asyncio
import fcntl
import json
import os
import random
import signal
import subprocess
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import aiohttp
from yarl import URL

from dualtoken.infra.addresses import CheckedResolver, PrivateAddressError, is_public
from dualtoken.infra.fetch import BACKOFF_SECONDS, RETRIED, user_agent
from dualtoken.infra.request_urls import request_url
from dualtoken.pipelines.config.nightly import CommandSink, FileSink, WebhookSink
from dualtoken.pipelines.nightly.records import one_line

Body = Mapping[str, Any]


class NotSent(Exception):
    """An event that did not arrive, and why."""


class _MayPass(NotSent):
    """One that a second try may bring there."""


def send(sink: WebhookSink | CommandSink | FileSink, body: Body) -> None:
    """Send an event; raises `NotSent`."""
    match sink:
        case WebhookSink():
            # In a thread of its own, since the caller may be inside an event loop.
            with ThreadPoolExecutor(1, thread_name_prefix="webhook") as thread:
                thread.submit(asyncio.run, _post_repeatedly(sink, body)).result()
        case CommandSink():
            _run_command(sink, body)
        case FileSink():
            _append(sink, body)


async def _post_repeatedly(sink: WebhookSink, body: Body) -> None:
    headers = _headers(sink, body)
    target = _target(sink)
    for number in range(sink.retries + 1):
        try:
            await _post(sink, target, headers, json.dumps(body))
        except _MayPass:
            if number == sink.retries:
                raise
            await asyncio.sleep(BACKOFF_SECONDS * 2**number * random.uniform(0.5, 1.5))
        else:
            return


def _headers(sink: WebhookSink, body: Body) -> dict[str, str]:
    headers = {
        "Content-Type": "application/json",
        "Idempotency-Key": str(body["key"]),
        "User-Agent": user_agent(),
    }
    if sink.secret is not None:
        secret = os.environ.get(sink.secret)
        if not secret:
            raise NotSent(f"the environment variable {sink.secret} of its secret is not set")
        if not secret.isprintable():
            raise NotSent(f"the environment variable {sink.secret} holds what no header may hold")
        headers[sink.header] = secret
    return headers


def _target(sink: WebhookSink) -> URL:
    """Return the address; raises `NotSent` where it is an IP address that must not be reached."""
    target = request_url(sink.url)
    host = target.host or ""
    try:
        is_allowed = sink.allow_private_addresses or is_public(host)
    except ValueError:
        return target  # a name: the resolver checks its addresses
    if not is_allowed:
        raise NotSent(_private(host))
    return target


def _private(where: str) -> str:
    return f"{where}, no public address: set allow_private_addresses, if you mean it"


async def _post(sink: WebhookSink, target: URL, headers: Mapping[str, str], text: str) -> None:
    resolver = CheckedResolver(threads=1, allow_private=sink.allow_private_addresses)
    connector = aiohttp.TCPConnector(resolver=resolver)
    timeout = aiohttp.ClientTimeout(total=sink.timeout_seconds)
    try:
        async with (
            aiohttp.ClientSession(
                connector=connector, timeout=timeout, trust_env=False, cookie_jar=aiohttp.DummyCookieJar()
            ) as session,
            session.post(target, data=text, headers=headers, allow_redirects=False) as response,
        ):
            status = response.status
    except TimeoutError:
        raise _MayPass(f"no answer within {sink.timeout_seconds:g} s") from None
    except aiohttp.ClientConnectorDNSError as error:
        if isinstance(error.os_error, PrivateAddressError):
            raise NotSent(_private(str(error.os_error))) from error
        raise _MayPass(one_line(error.os_error)) from error
    except (aiohttp.ClientError, OSError, ValueError) as error:
        raise _MayPass(one_line(error)) from error
    if status in RETRIED:
        raise _MayPass(f"the server answers {status}")
    if not 200 <= status < 300:  # a redirect too: what the secret is for is this address
        raise NotSent(f"the server answers {status}")


def _run_command(sink: CommandSink, body: Body) -> None:
    with tempfile.TemporaryFile() as errors:
        try:
            process = subprocess.Popen(  # noqa: S603  (the spec's own command, without a shell)
                sink.command,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                start_new_session=True,
            )
        except OSError as error:
            raise NotSent(f"{sink.command[0]} cannot be started: {error.strerror or error}") from error
        try:
            process.communicate(json.dumps(body).encode(), timeout=sink.timeout_seconds)
        except subprocess.TimeoutExpired:
            raise NotSent(f"{sink.command[0]} did not end within {sink.timeout_seconds:g} s") from None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)  # what it started too
                process.wait()
        if process.returncode:
            errors.seek(0)
            lines = errors.read()[-2000:].decode(errors="replace").split("\n")
            last = next((line.strip() for line in reversed(lines) if line.strip()), "no word")
            raise NotSent(f"{sink.command[0]} ended with {process.returncode}: {last}")


def _append(sink: FileSink, body: Body) -> None:
    """Append a line, unless one with the event's key is there: a run may have been killed behind it."""
    path = Path(sink.path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            data = file.read()
            if any(_key(line) == body["key"] for line in data.splitlines()):
                return
            start = b"" if not data or data.endswith(b"\n") else b"\n"  # behind a line cut short
            file.write(start + json.dumps(body).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise NotSent(one_line(error)) from error


def _key(line: bytes) -> str | None:
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event.get("key") if isinstance(event, dict) else None
