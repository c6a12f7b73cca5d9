"""What a URL asks for: the host, and the request's target byte for byte (RFC 3986, RFC 9110 section 7.1).

A signature covers a URL's spelling, so `%27`, `%2F` and `~` stay as they are. Only what no request may hold,
such as a space or a letter beyond ASCII, is percent-encoded.
"""

import ipaddress
import re
import socket
from typing import NamedTuple

from yarl import URL

_PARTS = re.compile(
    r"(?:(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*):)?(?://(?P<authority>[^/?#]*))?"
    r"(?P<path>[^?#]*)(?P<query>\?[^#]*)?(?:#.*)?",
    re.DOTALL,
)
_INVALID = re.compile(rb"%(?![0-9A-Fa-f]{2})|[^A-Za-z0-9._~!$&'()*+,;=:@/?%-]")
"""A byte that no target may hold as it is."""
_NO_AUTHORITY = re.compile(r"[\x00-\x20\\\x7f]")
"""Letters of which a browser and a parser by the standard would make different hosts."""


class NotHttpError(ValueError):
    """A URL of another scheme than http and https."""


class _Parts(NamedTuple):
    """The parts of a URL or of a relative reference, without its fragment."""

    scheme: str
    """In lower case; "" in a relative reference."""
    authority: str | None
    path: str
    query: str
    """With its question mark; "" where there is none."""


def request_url(text: str, base: URL | None = None) -> URL:
    """Return the URL that a text names, or a redirect's `Location` relative to `base`.

    The whole target, with its query, is the result's path. Raises `NotHttpError`, or ValueError for a text
    that names no host.
    """
    parts = _split(text)
    if base is not None and not parts.scheme:
        parts = _resolve(parts, base)
    if not parts.scheme:
        raise ValueError("no scheme")
    if parts.scheme not in {"http", "https"}:
        raise NotHttpError(f"scheme {parts.scheme!r}")
    if not parts.authority:
        raise ValueError("no host")
    origin = _origin(parts.scheme, parts.authority)
    path = parts.path
    if not path.startswith("/"):
        path = f"/{path}"
    return URL.build(
        scheme=parts.scheme, authority=origin.raw_authority, path=_target(path + parts.query), encoded=True
    )


def host_of(text: str) -> str:
    """Return the host that a URL of any scheme names, as `canonical_host` spells it; "" where it has none."""
    authority = _split(text).authority
    if not authority:
        return ""
    try:
        host = _origin("http", authority).raw_host
    except ValueError:  # such as a label over 63 letters, which nobody can ask for
        host = authority.rpartition("@")[2].lower()
    return canonical_host(host or "")


def canonical_host(host: str) -> str:
    """Return one spelling for all of a host's: no last dot, and an IP address as the resolver reads it."""
    host = host.rstrip(".")
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return _dotted(host)
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(address)


def _dotted(host: str) -> str:
    """Return an IPv4 address of any notation, such as 0x7f.1, with dots; a name as it is."""
    try:
        return socket.inet_ntoa(socket.inet_aton(host))
    except OSError:
        return host


def _split(text: str) -> _Parts:
    found = _PARTS.fullmatch(text.strip())
    assert found is not None, "the pattern takes every text"
    scheme = (found["scheme"] or "").lower()
    return _Parts(scheme, found["authority"], found["path"], found["query"] or "")


def _origin(scheme: str, authority: str) -> URL:
    """Return the URL of a server; its host is in lower case, and in ASCII as the resolver is asked for it."""
    if _NO_AUTHORITY.search(authority):
        raise ValueError(f"no host in {authority!r}")
    origin = URL(f"{scheme}://{authority}/")
    if not origin.raw_host:
        raise ValueError("no host")
    return origin


def _resolve(reference: _Parts, base: URL) -> _Parts:
    """Return what a relative reference names (RFC 3986 section 5.2.2)."""
    if reference.authority is not None:
        return reference._replace(scheme=base.scheme)
    base_path, mark, base_query = base.raw_path.partition("?")
    resolved = reference._replace(scheme=base.scheme, authority=base.raw_authority)
    if reference.path.startswith("/"):
        return resolved
    if reference.path:
        folder = base_path.rpartition("/")[0]
        return resolved._replace(path=_without_dots(f"{folder}/{reference.path}"))
    return resolved._replace(path=base_path, query=reference.query or mark + base_query)


def _without_dots(path: str) -> str:
    """Return a path that was joined of two, without its segments `.` and `..`."""
    *folders, last = path.split("/")[1:]
    kept: list[str] = []
    if last in {".", ".."}:
        folders.append(last)
        last = ""
    for segment in folders:
        if segment == "..":
            del kept[-1:]
        elif segment != ".":
            kept.append(segment)
    return "/".join(["", *kept, last])


def _target(text: str) -> str:
    """Percent-encode what no target may hold; a header's bytes beyond UTF-8 are encoded as they are."""
    data = text.encode("utf-8", "surrogateescape")
    return _INVALID.sub(lambda found: b"%%%02X" % found[0][0], data).decode("ascii")
