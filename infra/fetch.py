"""Fetch from URLs that nobody vouches for: http(s) only, with bounds on addresses, bytes, time, redirects and retries.

Every hop's addresses are checked before a connection is made, and the address checked is the one connected
to, so a name that changes its mind between two look-ups gains nothing. A failure is a value, not an exception.
"""

import asyncio
import email.utils
import random
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

CHUNK_BYTES = 1 << 16
BACKOFF_SECONDS = 0.25
"""Before the first retry, on average; doubles with each."""
REDIRECTS = frozenset({301, 302, 303, 307, 308})
RETRIED = frozenset({408, 429, *range(500, 600)})
OPT_OUTS = frozenset({"noai", "noimageai", "noindex", "noimageindex"})
"""Directives of X-Robots-Tag that img2dataset honours by default."""


class FetchReason(StrEnum):
    """Why a fetch failed; with `http_<status>`, a closed list."""

    BAD_URL = "bad_url"
    NOT_HTTP = "not_http"
    """The URL, or one that it redirects to, has another scheme."""
    DNS = "dns"
    PRIVATE_ADDRESS = "private_address"
    CONNECTION = "connection"
    TLS = "tls"
    TIMEOUT = "timeout"
    BAD_RESPONSE = "bad_response"
    """Not HTTP, or an encoding that cannot be undone."""
    INCOMPLETE_BODY = "incomplete_body"
    TOO_MANY_BYTES = "too_many_bytes"
    TOO_MANY_REDIRECTS = "too_many_redirects"
    OPTED_OUT = "opted_out"
    """The server's X-Robots-Tag asks not to be used."""


MAY_PASS = frozenset(
    {
        FetchReason.DNS,
        FetchReason.CONNECTION,
        FetchReason.TIMEOUT,
        FetchReason.INCOMPLETE_BODY,
        *(f"http_{status}" for status in RETRIED),
    }
)
"""Reasons that a later try may not meet."""
_TRIED_AGAIN = MAY_PASS - {FetchReason.DNS, FetchReason.TIMEOUT}
"""At once: a resolver has tried several times by itself, and a timeout is the end of a URL's time."""
WITHOUT_A_NETWORK = frozenset({FetchReason.BAD_URL, FetchReason.NOT_HTTP, FetchReason.PRIVATE_ADDRESS})
"""Reasons that a URL alone may have given: they do not say that anything answered."""


@dataclass(frozen=True, slots=True)
class FetchLimits:
    """Bounds of every fetch."""

    max_bytes: int
    """Of a body, decoded."""
    deadline_seconds: float
    """For one URL in all: look-ups, redirects, retries and bodies; waiting for a free slot does not count."""
    max_redirects: int
    retries: int
    concurrency: int
    """Fetches under way at once."""
    allow_private_addresses: bool = False


@dataclass(frozen=True, slots=True)
class Fetched:
    """A whole body."""

    body: bytes
    content_type: str


@dataclass(frozen=True, slots=True)
class FetchFailed:
    """No body, and why."""

    reason: str
    """A `FetchReason`, or `http_<status>`."""
    detail: str


class _Failure(Exception):
    def __init__(self, reason: str, detail: str, retry_after: float = 0.0) -> None:
        super().__init__(detail)
        self.failed = FetchFailed(reason, detail)
        self.retry_after = retry_after


@cache
def user_agent() -> str:
    """Say who asks: `dualtoken/<version>`."""
    try:
        return f"dualtoken/{metadata.version('dualtoken')}"
    except metadata.PackageNotFoundError:
        return "dualtoken/unknown"


class Fetcher:
    """Fetches with keep-alive, within limits; use it as an async context manager, in one event loop."""

    def __init__(self, limits: FetchLimits) -> None:
        self._limits = limits
        self._slots = asyncio.Semaphore(limits.concurrency)
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        """Open the session."""
        threads = min(self._limits.concurrency, 32)
        resolver = CheckedResolver(threads=threads, allow_private=self._limits.allow_private_addresses)
        # No limit of its own: the slots are one. A cached look-up is one that was checked.
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
        """Return a URL's body, or why there is none; never raises for what a server or a URL does."""
        async with self._slots:
            stop = time.monotonic() + self._limits.deadline_seconds
            last: FetchFailed | None = None
            try:
                async with asyncio.timeout(self._limits.deadline_seconds):
                    for attempt in range(self._limits.retries + 1):
                        try:
                            return await self._follow(url)
                        except _Failure as failure:
                            last = failure.failed
                            # Jitter, since the rows of one host fail together.
                            pause = max(
                                failure.retry_after, BACKOFF_SECONDS * 2**attempt * random.uniform(0.5, 1.5)
                            )
                        if (
                            last.reason not in _TRIED_AGAIN
                            or attempt == self._limits.retries
                            or time.monotonic() + pause >= stop
                        ):
                            return last
                        await asyncio.sleep(pause)
            except TimeoutError:
                after = f", after {last.reason}" if last else ""
                return FetchFailed(
                    FetchReason.TIMEOUT, f"not done in {self._limits.deadline_seconds:g} s{after}"
                )
            except Exception as error:  # noqa: BLE001  (the last resort: one hostile answer must not fail the thousands of rows beside it)
                return FetchFailed(FetchReason.BAD_RESPONSE, f"{type(error).__name__}: {error}"[:200])
            raise AssertionError("the last attempt returns")

    async def _follow(self, url: str) -> Fetched:
        target = self._checked(url)
        for _ in range(self._limits.max_redirects + 1):
            try:
                answer = await self._request(target)
            except aiohttp.ClientError as error:
                _classify(error)
            except (
                ValueError
            ) as error:  # of a host that no look-up can spell, such as one with two dots in a row
                raise _Failure(FetchReason.BAD_URL, str(error)) from error
            if isinstance(answer, Fetched):
                return answer
            target = self._checked(answer, base=target)
        raise _Failure(FetchReason.TOO_MANY_REDIRECTS, f"more than {self._limits.max_redirects}")

    def _checked(self, url: str, base: URL | None = None) -> URL:
        try:
            target = base.join(URL(url)) if base else URL(url.strip())
            host = target.host
        except (ValueError, UnicodeError) as error:
            raise _Failure(FetchReason.BAD_URL, str(error)) from error
        if target.scheme not in {"http", "https"}:
            kind = FetchReason.NOT_HTTP if target.scheme else FetchReason.BAD_URL
            raise _Failure(kind, f"scheme {target.scheme!r}")
        if not host:
            raise _Failure(FetchReason.BAD_URL, "no host")
        try:
            literal = is_public(host)
        except ValueError:
            return target  # A name: the resolver checks its addresses.
        if not (literal or self._limits.allow_private_addresses):
            raise _Failure(FetchReason.PRIVATE_ADDRESS, host)
        return target

    async def _request(self, target: URL) -> Fetched | str:
        """Return the body, or where it is said to be."""
        assert self._session is not None
        async with self._session.get(target, allow_redirects=False) as response:
            if response.status in REDIRECTS and (location := response.headers.get("Location")):
                return location
            if response.status != 200:
                raise _Failure(
                    f"http_{response.status}",
                    response.reason or "",
                    _retry_after(response.headers.get("Retry-After")),
                )
            if any(_opts_out(value) for value in response.headers.getall("X-Robots-Tag", [])):
                raise _Failure(FetchReason.OPTED_OUT, "X-Robots-Tag")
            return Fetched(await self._body(response), response.content_type)

    async def _body(self, response: aiohttp.ClientResponse) -> bytes:
        cap = self._limits.max_bytes
        if (response.content_length or 0) > cap:
            raise _Failure(
                FetchReason.TOO_MANY_BYTES, f"Content-Length {response.content_length}, max_bytes={cap}"
            )
        body, inflate = (
            bytearray(),
            _decoder(response.headers.get("Content-Encoding", "identity").strip().lower()),
        )
        async for chunk in response.content.iter_chunked(CHUNK_BYTES):
            try:
                # One byte over the cap is enough to know, so a bomb never unfolds.
                body += inflate.decompress(chunk, cap + 1 - len(body)) if inflate else chunk
            except zlib.error as error:
                raise _Failure(FetchReason.BAD_RESPONSE, str(error)) from error
            if len(body) > cap:
                raise _Failure(FetchReason.TOO_MANY_BYTES, f"max_bytes={cap}")
        if inflate and not inflate.eof:
            raise _Failure(FetchReason.INCOMPLETE_BODY, "compressed body ends early")
        return bytes(body)


def _decoder(encoding: str) -> Any:  # noqa: ANN401  (zlib does not name the type)
    if encoding in {"", "identity"}:
        return None
    if encoding in {"gzip", "x-gzip", "deflate"}:
        return zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)
    raise _Failure(FetchReason.BAD_RESPONSE, f"Content-Encoding {encoding[:40]!r}")


def _opts_out(value: str) -> bool:
    agent, colon, directives = value.rpartition(":")
    if colon and agent.strip().lower() != "dualtoken":
        return False
    return not OPT_OUTS.isdisjoint(directive.strip().lower() for directive in directives.split(","))


def _retry_after(value: str | None) -> float:
    """Return the seconds that a server asks to wait, given as seconds or as a date; 0 where it says nothing clear."""
    if value is None:
        return 0.0
    if value.strip().isdecimal():
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (TypeError, ValueError, OverflowError):  # the last one of a time zone that no clock has
        return 0.0


def _classify(error: aiohttp.ClientError) -> NoReturn:
    """Raise an aiohttp error as one of the closed list."""
    detail = str(error) or type(error).__name__
    match error:
        case aiohttp.ClientConnectorDNSError(os_error=PrivateAddressError()):
            reason, detail = FetchReason.PRIVATE_ADDRESS, str(error.os_error)
        case aiohttp.ClientConnectorDNSError():
            reason, detail = FetchReason.DNS, str(error.os_error)
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
