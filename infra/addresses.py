"""Public addresses: the test for them, and a resolver that looks names up and refuses all others."""

import asyncio
import ipaddress
import socket
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

from aiohttp.abc import AbstractResolver, ResolveResult

from dualtoken.infra.machine_trouble import is_machine_trouble

_NAT64 = ipaddress.ip_network("64:ff9b::/96")
"""IPv6 addresses that wrap an IPv4 address in their last 32 bits."""
_GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")
_PROTOCOLS = ipaddress.ip_network("192.0.0.0/24")


class PrivateAddressError(OSError):
    """A name has an address outside the public internet."""


def is_public(address: str) -> bool:
    """Tell whether an IP address is of the public internet.

    An IPv6 address that wraps an IPv4 address is judged by that. Raises `ValueError` where it is no IP
    address.
    """
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv4Address):
        # 192.0.0.0/24 is for protocols between neighbours, though a part of it counts as global.
        return ip.is_global and not ip.is_multicast and ip not in _PROTOCOLS
    if ip in _NAT64:
        wrapped = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        return is_public(str(wrapped))
    # Global unicast leaves out v4-mapped, unique local, link-local and multicast addresses.
    return ip in _GLOBAL_UNICAST and ip.is_global and ip.sixtofour is None and ip.teredo is None


class CheckedResolver(AbstractResolver):
    """Looks names up in threads of its own, and refuses a name with any address that is not public."""

    def __init__(self, *, threads: int, allow_private: bool) -> None:
        """Start with no thread, `threads` at most; with `allow_private` no name is refused."""
        self._allow_private = allow_private
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="dns")

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Return the name's addresses, each of them checked.

        Raises `PrivateAddressError`, and what `socket.getaddrinfo` raises.
        """
        loop = asyncio.get_running_loop()
        entries = await loop.run_in_executor(self._threads, _look_up, host, port, family)
        results = []
        for entry_family, _, protocol, _, address in entries:
            ip = str(address[0])
            if not self._allow_private and not is_public(ip):
                raise PrivateAddressError(f"{host} is at {ip}")
            result = ResolveResult(
                hostname=host,
                host=ip,
                port=port,
                family=entry_family,
                proto=protocol,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            results.append(result)
        return results

    async def close(self) -> None:
        """End the threads; look-ups under way are left to finish."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def _look_up(host: str, port: int, family: socket.AddressFamily) -> list[Any]:
    try:
        return socket.getaddrinfo(host, port, family, socket.SOCK_STREAM)
    except socket.gaierror:
        # Without a free descriptor a resolver may say of any name that it is not known.
        socket.socket().close()
        raise


def direct_proxies(url: str) -> dict[str, Any] | None:
    """Return the `proxies` by which the library requests reaches a URL of a private host: none of any kind.

    None for a public host, whose requests go by the environment's proxies. A private one is out of a proxy's
    reach, whether or not `no_proxy` names it.
    """
    if _is_private_host(urlsplit(url).hostname or ""):
        return dict.fromkeys(("http", "https", "all"))
    return None


def _is_private_host(host: str) -> bool:
    try:
        entries = _look_up(host, 0, socket.AF_UNSPEC)
    except (OSError, UnicodeError) as error:
        if is_machine_trouble(error):
            raise
        return False
    return all(not is_public(str(address[0]).partition("%")[0]) for *_, address in entries)
