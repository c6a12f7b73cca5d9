"""Keeps secrets of URLs out of what is written and printed: a signature in a query, a password before a host.

Every record and every line for people passes here. Requests themselves use the URLs as they are given.
"""

import re
from typing import Any, TextIO, TypeVar

_QUOTES = r"'\"<>"
_OF_URL = rf"(?:[^\s{_QUOTES}]|[{_QUOTES}](?![{_QUOTES}]*(?:[,;:.)\]}}][^\s=]*)?(?:\s|$)))"
"""A character of a URL in a text. A quotation mark ends it only before punctuation, a space or the end, and
not where another value follows: signed queries may hold such marks themselves."""
_OF_PATH = rf"(?!\?){_OF_URL}"
_OF_USER_PART = rf"(?![/?#]){_OF_URL}"
_NEXT_PROTOCOL = r"::[A-Za-z][A-Za-z0-9+.-]*:[:/]"
"""Where fsspec's next URL of a chain begins: `simplecache::https://...`."""
_USER_PART = re.compile(rf"(?<=://)(?:{_OF_USER_PART})*@")
_WEB_QUERY = re.compile(rf"(https?://(?:(?!{_NEXT_PROTOCOL}){_OF_PATH})*)\?{_OF_URL}*", re.IGNORECASE)
_NAMED_QUERY = re.compile(rf"\?[\w.~%+-]+={_OF_URL}*")
"""A query of any other URL, or of a path alone as HTTP libraries print it; a glob's question mark is none."""

_Values = TypeVar("_Values")


def redacted(text: str) -> str:
    """Return a text whose URLs have lost their queries and user parts."""
    if "://" not in text and "?" not in text:
        return text
    text = _USER_PART.sub("", text)
    text = _WEB_QUERY.sub(r"\1", text)
    return _NAMED_QUERY.sub("", text)


def redacted_values(values: _Values) -> _Values:
    """Return JSON values with every URL among them redacted; other texts stay as they are."""
    return _redacted_value(values)


def _redacted_value(value: Any) -> Any:  # noqa: ANN401
    if isinstance(value, str) and "://" in value:
        return redacted(value)
    if isinstance(value, dict):
        return {key: _redacted_value(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_redacted_value(item) for item in value]
    return value


class RedactedStream:
    """A text stream, such as standard error, that redacts what is written to it: tracebacks and logs too."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write a text, redacted; returns the length of what was given."""
        self._stream.write(redacted(text))
        return len(text)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401  (those of the stream)
        return getattr(self._stream, name)
