"""Sources of bodies: where the encoded images of a unit's rows come from, the web or a folder."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

from dualtoken.infra.fetch import Fetched, Fetcher, FetchFailed, FetchLimits, FetchReason

Bodies = Callable[[int], Awaitable[Fetched | FetchFailed]]
"""Returns the body of a row of the unit (0 is its first), or why there is none."""


@asynccontextmanager
async def web_bodies(limits: FetchLimits, base_url: str, urls: Sequence[str | None]) -> AsyncIterator[Bodies]:
    """Give bodies that are fetched from the rows' URLs, behind `base_url`."""
    async with Fetcher(limits) as fetcher:

        async def body(row: int) -> Fetched | FetchFailed:
            url = urls[row]
            if url is None or not url.strip():
                return FetchFailed(FetchReason.BAD_URL, "no URL")
            return await fetcher.fetch(base_url + url)

        yield body


@asynccontextmanager
async def read_bodies(read: Callable[[int], Fetched | FetchFailed]) -> AsyncIterator[Bodies]:
    """Give bodies that a function reads in threads beside the event loop."""

    async def body(row: int) -> Fetched | FetchFailed:
        return await asyncio.to_thread(read, row)

    yield body
