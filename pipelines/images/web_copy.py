"""Copies of files at web addresses, often signed ones: each is fetched once by a process.

Not every server gives parts of a file, a signature may run out between two requests, and some signatures
allow no other method than GET.
"""

import os
import tempfile
import weakref
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

import aiohttp
import fsspec

from dualtoken.infra.digests import digest_stream
from dualtoken.infra.fetch import RETRIED
from dualtoken.infra.redaction import redacted
from dualtoken.infra.request_urls import request_url
from dualtoken.pipelines.errors import UserError

_SILENCE_SECONDS = 60
"""Longest wait for the next bytes of an answer."""


def is_web(location: str) -> bool:
    """Tell whether a location is asked for over HTTP."""
    return location.lower().startswith(("http://", "https://"))


class _Copy:
    """A file without a name, so that a process that is killed leaves nothing behind."""

    def __init__(self, url: str, setting: str) -> None:
        descriptor, path = tempfile.mkstemp()
        self._close = weakref.finalize(self, os.close, descriptor)
        Path(path).unlink()
        self.descriptor = descriptor
        with self.open() as file:
            _fetch(url, setting, file)

    def open(self) -> IO[bytes]:
        """Open the file at its beginning."""
        file = os.fdopen(os.dup(self.descriptor), "r+b")
        file.seek(0)
        return file


def web_copy(url: str, setting: str) -> IO[bytes]:
    """Open this process's copy of a file; raises `UserError` where the server refuses it."""
    return _copy_of(url, setting).open()


def web_digest(url: str, setting: str) -> dict[str, Any]:
    """Identify a file by its content, as JSON values."""
    with web_copy(url, setting) as copy:
        return {"sha256": digest_stream(copy).sha256}


@lru_cache(maxsize=4)
def _copy_of(url: str, setting: str) -> _Copy:
    return _Copy(url, setting)


def _fetch(url: str, setting: str, target: IO[bytes]) -> None:
    fs = fsspec.filesystem("http", encoded=True, client_kwargs=_client_settings(), skip_instance_cache=True)
    try:
        fs.get_file(str(request_url(url)), target)
    except FileNotFoundError:
        raise _mistake(url, setting, "is not there") from None
    except aiohttp.ClientResponseError as error:
        if error.status in RETRIED:
            raise ConnectionError(f"{setting}={shown_url(url)!r}: HTTP {error.status}") from None
        raise _mistake(url, setting, f"is refused, HTTP {error.status} {error.message}") from None
    except ValueError as error:
        raise _mistake(url, setting, f"is no URL ({error})") from None


def shown_url(url: str) -> str:
    """Return an address for people, without its query and user part."""
    return redacted(url.partition("?")[0])


def _client_settings() -> dict[str, Any]:
    return {
        "timeout": aiohttp.ClientTimeout(
            total=None, sock_connect=_SILENCE_SECONDS, sock_read=_SILENCE_SECONDS
        ),
        "requote_redirect_url": False,  # a signature covers the spelling
    }


def _mistake(url: str, setting: str, words: str) -> UserError:
    return UserError(
        f"{setting}={shown_url(url)!r} {words}: set it to a URL that answers; a signature may have run out"
    )
