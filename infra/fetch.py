"""Fetches untrusted URLs: http(s) only, with bounds on addresses, bytes, time, redirects and retries.

Every hop's addresses are checked before a connection is made, and the address checked is the one connected
to, so a name that resolves to another address at a second look-up gains nothing. A failure is a value, not an
exception.
"""

import asyncio
import email.utils
import errno
import random
import socket
import time
import zlib
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from importlib import metadata
from types import TracebackType
from typing import Any, NoReturn, Self

import aiohttp
from yarl import URL

from dualtoken.infra.addresses import CheckedResolver, PrivateAddressError, is_public
from dualtoken.infra.machine_trouble import is_machine_trouble
from dualtoken.infra.opt_outs import opts_out
from dualtoken.infra.request_urls import NotHttpError, request_url

CHUNK_BYTES = 1 << 16
BACKOFF_SECONDS = 0.25
"""Mean pause before the first retry; doubles with each."""
REDIRECTS = frozenset({301, 302, 303, 307, 308})
"""HTTP statuses that lead to another URL."""
RETRIED = frozenset({408, 429, *range(500, 600)})
"""HTTP statuses that a later try may not meet."""
AGENT = "dualtoken"
"""Name that servers know this project by."""


class FetchReason(StrEnum):
    """Reason of a failed fetch; together with `http_<status>`, a closed list."""

    BAD_URL = "bad_url"
    NOT_HTTP = "not_http"
    """Another scheme, of the URL or of one that it redirects to."""
    DNS = "dns"
    """A name that the resolver does not find."""
    DNS_UNAVAILABLE = "dns_unavailable"
    """A resolver that said "try again" to the last try, too."""
    PRIVATE_ADDRESS = "private_address"
    CONNECTION = "connection"
    TLS = "tls"
    TIMEOUT = "timeout"
    BAD_RESPONSE = "bad_response"
    """An answer that is no HTTP, or has an encoding that cannot be decoded."""
    INCOMPLETE_BODY = "incomplete_body"
    TOO_MANY_BYTES = "too_many_bytes"
    TOO_MANY_REDIRECTS = "too_many_redirects"
    OPTED_OUT = "opted_out"
    """An X-Robots-Tag of the server that asks not to be used."""


MAY_PASS = frozenset(
    {
        FetchReason.DNS,
        FetchReason.DNS_UNAVAILABLE,
        FetchReason.CONNECTION,
        FetchReason.TIMEOUT,
        FetchReason.INCOMPLETE_BODY,
        *(f"http_{status}" for status in RETRIED),
    }
)
"""Reasons that a later try may not meet."""
_TRIED_AGAIN = MAY_PASS - {FetchReason.DNS, FetchReason.TIMEOUT}
"""Reasons to try again at once. A name that is not found stays so; a timeout ends a URL's time."""
WITHOUT_A_NETWORK = frozenset({FetchReason.BAD_URL, FetchReason.NOT_HTTP, FetchReason.PRIVATE_ADDRESS})
"""Reasons that a URL alone may give: they do not show that anything answered."""


@dataclass(frozen=True, slots=True)
class FetchLimits:
    """Bounds of every fetch."""

    max_bytes: int
    """Size of a body, decoded."""
    deadline_seconds: float
    """Time for one URL in all: look-ups, redirects, retries and bodies, but not the wait for a free slot."""
    max_redirects: int
    retries: int
    concurrency: int
    """Fetches under way at once."""
    allow_private_addresses: bool = False


@dataclass(frozen=True, slots=True)
class Fetched:
    """A fetched body."""

    body: bytes
    content_type: str


@dataclass(frozen=True, slots=True)
class FetchFailed:
    """A failed fetch, and why it failed."""

    reason: str
    """A `FetchReason`, or `http_<status>`."""
    detail: str


class _Failure(Exception):
    """A failed attempt; `retry_after` is the pause in seconds that the server asks for."""

    def __init__(self, reason: str, detail: str, retry_after: float = 0.0) -> None:
        super().__init__(detail)
        self.failed = FetchFailed(reason, detail)
        self.retry_after = retry_after


@cache
def user_agent() -> str:
    """Return the User-Agent: `dualtoken/<version>`."""
    try:
        return f"{AGENT}/{metadata.version('dualtoken')}"
    except metadata.PackageNotFoundError:
        return f"{AGENT}/unknown"


class Fetcher:
    """Fetches with keep-alive, within limits.

    Use it as an async context manager, in one event loop::

        async with Fetcher(limits) as fetcher:
            result = await fetcher.fetch("https://example.org/a.jpg")
    """

    def __init__(self, limits: FetchLimits) -> None:
        self._limits = limits
        self._slots = asyncio.Semaphore(limits.concurrency)
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        """Open the session."""
        threads = min(self._limits.concurrency, 32)
        resolver = CheckedResolver(threads=threads, allow_private=self._limits.allow_private_addresses)
        # The connector needs no limit of its own beside the slots. A cached look-up is one that was checked.
        connector = aiohttp.TCPConnector(limit=0, resolver=resolver, ttl_dns_cache=300)
        self._session = aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
            auto_decompress=False,
            timeout=aiohttp.ClientTimeout(total=None),
            # Images are compressed already.
            headers={
                "User-Agent": user_agent(),
                "Accept": "image/*,*/*;q=0.5",
                "Accept-Encoding": "identity",
            },
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close all connections."""
        assert self._session is not None
        await self._session.close()

    async def fetch(self, url: str) -> Fetched | FetchFailed:
        """Return a URL's body, or why there is none; never raises for what a server or a URL does.

        Raises what shows that this machine is in trouble, such as one without a free descriptor.
        """
        async with self._slots:
            attempts = _Attempts(self._limits)
            try:
                async with asyncio.timeout(self._limits.deadline_seconds):
                    return await self._try_repeatedly(url, attempts)
            except TimeoutError:
                after = ""
                if attempts.last_failure is not None:
                    after = f", after {attempts.last_failure.reason}"
                return FetchFailed(
                    FetchReason.TIMEOUT, f"not done in {self._limits.deadline_seconds:g} s{after}"
                )
            # The last resort: one hostile answer must not fail the thousands of rows beside it.
            except Exception as error:
                if _is_machines(error):
                    raise
                return FetchFailed(FetchReason.BAD_RESPONSE, f"{type(error).__name__}: {error}"[:200])

    async def _try_repeatedly(self, url: str, attempts: "_Attempts") -> Fetched | FetchFailed:
        """Try a URL until it gives a body, or another attempt would be of no use."""
        while True:
            try:
                return await self._follow(url)
            except _Failure as failure:
                pause = attempts.pause_after(failure)
                if pause is None:
                    return failure.failed
            await asyncio.sleep(pause)

    async def _follow(self, url: str) -> Fetched:
        """Return the body at the end of a URL's redirects; raises `_Failure`."""
        target = self._check_url(url)
        for _ in range(self._limits.max_redirects + 1):
            try:
                answer = await self._request(target)
            except aiohttp.ClientError as error:
                _raise_classified(error)
            except ValueError as error:
                # Of a host that no look-up can spell, such as one with two dots in a row.
                raise _Failure(FetchReason.BAD_URL, str(error)) from error
            if isinstance(answer, Fetched):
                return answer
            target = self._check_url(answer, base=target)
        raise _Failure(FetchReason.TOO_MANY_REDIRECTS, f"more than {self._limits.max_redirects}")

    def _check_url(self, url: str, base: URL | None = None) -> URL:
        """Parse a URL, or a redirect from `base`; raises `_Failure` where it must not be fetched."""
        try:
            target = request_url(url, base)
        except NotHttpError as error:
            raise _Failure(FetchReason.NOT_HTTP, str(error)) from error
        except ValueError as error:
            raise _Failure(FetchReason.BAD_URL, str(error)) from error
        host = target.host or ""
        try:
            is_allowed = is_public(host) or self._limits.allow_private_addresses
        except ValueError:
            return target  # A name: the resolver checks its addresses.
        if not is_allowed:
            raise _Failure(FetchReason.PRIVATE_ADDRESS, host)
        return target

    async def _request(self, target: URL) -> Fetched | str:
        """Return the body, or the URL that the server redirects to."""
        assert self._session is not None
        async with self._session.get(target, allow_redirects=False) as response:
            location = response.headers.get("Location")
            if response.status in REDIRECTS and location:
                return location
            if response.status != 200:
                raise _Failure(
                    f"http_{response.status}",
                    response.reason or "",
                    _retry_after(response.headers.get("Retry-After")),
                )
            if opts_out(response.headers.getall("X-Robots-Tag", []), AGENT):
                raise _Failure(FetchReason.OPTED_OUT, "X-Robots-Tag")
            return Fetched(await self._body(response), response.content_type)

    async def _body(self, response: aiohttp.ClientResponse) -> bytes:
        cap = self._limits.max_bytes
        if (response.content_length or 0) > cap:
            raise _Failure(
                FetchReason.TOO_MANY_BYTES, f"Content-Length {response.content_length}, max_bytes={cap}"
            )
        body = bytearray()
        decoder = _decoder(response.headers.get("Content-Encoding", "identity").strip().lower())
        async for chunk in response.content.iter_chunked(CHUNK_BYTES):
            if decoder is None:
                body += chunk
            else:
                try:
                    # One byte over the cap is enough to know, so a bomb never unfolds.
                    body += decoder.decompress(chunk, cap + 1 - len(body))
                except zlib.error as error:
                    raise _Failure(FetchReason.BAD_RESPONSE, str(error)) from error
            if len(body) > cap:
                raise _Failure(FetchReason.TOO_MANY_BYTES, f"max_bytes={cap}")
        if decoder is not None and not decoder.eof:
            raise _Failure(FetchReason.INCOMPLETE_BODY, "compressed body ends early")
        return bytes(body)


class _Attempts:
    """Decides whether and when one URL is tried again."""

    def __init__(self, limits: FetchLimits) -> None:
        self.last_failure: FetchFailed | None = None
        self._deadline = time.monotonic() + limits.deadline_seconds
        self._retries = limits.retries
        self._failures = 0

    def pause_after(self, failure: _Failure) -> float | None:
        """Return the seconds to wait before the next attempt, or None where there must be none."""
        self.last_failure = failure.failed
        # Jitter, since the rows of one host fail together.
        backoff = BACKOFF_SECONDS * 2**self._failures * random.uniform(0.5, 1.5)
        pause = max(failure.retry_after, backoff)
        self._failures += 1
        if failure.failed.reason not in _TRIED_AGAIN or self._failures > self._retries:
            return None
        if time.monotonic() + pause >= self._deadline:
            return None
        return pause


def _decoder(encoding: str) -> Any:  # noqa: ANN401  (zlib does not name the type)
    """Return the decompressor of a Content-Encoding, None where there is nothing to decode."""
    if encoding in {"", "identity"}:
        return None
    if encoding in {"gzip", "x-gzip", "deflate"}:
        return zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)
    raise _Failure(FetchReason.BAD_RESPONSE, f"Content-Encoding {encoding[:40]!r}")


def _retry_after(value: str | None) -> float:
    """Return the seconds that a server asks to wait, given as seconds or a date; 0 where that is unclear."""
    if value is None:
        return 0.0
    if value.strip().isdecimal():
        return float(value)
    try:
        moment = email.utils.parsedate_to_datetime(value).timestamp()
    except (TypeError, ValueError, OverflowError):  # OverflowError for a time zone that no clock has
        return 0.0
    return max(0.0, moment - time.time())


def _is_machines(error: Exception) -> bool:
    """Tell whether a fetch failed for this machine's trouble, whatever a server wrote into the error."""
    if isinstance(error, aiohttp.ClientSSLError):
        return False
    if isinstance(error, aiohttp.ClientConnectorError):
        return _is_machines(error.os_error)
    if not isinstance(error, (OSError, MemoryError, RuntimeError)):
        return False
    return is_machine_trouble(error) or getattr(error, "errno", None) == errno.ENETDOWN


def _raise_classified(error: aiohttp.ClientError) -> NoReturn:
    """Raise an aiohttp error as a `_Failure` with a reason of the closed list; the machine's as it is."""
    if _is_machines(error):
        raise error
    detail = str(error) or type(error).__name__
    match error:
        case aiohttp.ClientConnectorDNSError(os_error=PrivateAddressError()):
            reason = FetchReason.PRIVATE_ADDRESS
            detail = str(error.os_error)
        case aiohttp.ClientConnectorDNSError(os_error=socket.gaierror(errno=socket.EAI_AGAIN)):
            reason = FetchReason.DNS_UNAVAILABLE
            detail = str(error.os_error)
        case aiohttp.ClientConnectorDNSError():
            reason = FetchReason.DNS
            detail = str(error.os_error)
        case aiohttp.InvalidURL():
            reason = FetchReason.BAD_URL
        case aiohttp.ClientSSLError():
            reason = FetchReason.TLS
        case aiohttp.ClientPayloadError():
            reason = FetchReason.INCOMPLETE_BODY
        case aiohttp.ClientConnectionError():
            reason = FetchReason.CONNECTION
        case _:
            reason = FetchReason.BAD_RESPONSE
    raise _Failure(reason, detail) from error
