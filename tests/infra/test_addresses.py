"""Which addresses are fetched from: no spelling, redirect or second look-up reaches a private one."""

import socket
from dataclasses import replace

import pytest
import requests

from dualtoken.infra.addresses import direct_proxies, is_public
from dualtoken.infra.fetch import Fetched
from tests.helpers.scripted_server import LIMITS, get, reason, reply, serving


def test_a_redirect_to_a_private_address_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    # The first hop stands for a public server: only its address passes the check.
    monkeypatch.setattr(
        "dualtoken.infra.addresses.is_public", lambda address: is_public(address) or address == "127.0.0.1"
    )
    hidden = []
    strict = replace(LIMITS, allow_private_addresses=False)
    for target in (
        "http://127.0.0.2:{}/",
        "http://[::1]:{}/",
        "http://169.254.169.254/latest/meta-data/",
        "http://[::ffff:127.0.0.1]:{}/",
    ):
        with serving(lambda *_: hidden.append(1)) as inner:
            location = target.format(inner.base.rpartition(":")[2])
            with serving(reply(status="302 Found", Location=location)) as server:
                assert reason(get(server.base, strict)) == "private_address", target
    assert not hidden


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "10.0.0.1", "[::1]", "100.64.0.1", "169.254.169.254", "[fe80::1]"]
)
def test_private_hosts_are_refused_by_number_and_by_name(host: str) -> None:
    assert (
        reason(get(f"http://{host}:9/", replace(LIMITS, allow_private_addresses=False))) == "private_address"
    )


@pytest.mark.parametrize("host", ["127.1", "2130706433", "0x7f.0.0.1", "0177.0.0.1"])
def test_odd_spellings_of_loopback_do_not_reach_it(host: str) -> None:
    with serving(reply(b"secret")) as server:
        port = server.base.rpartition(":")[2]
        assert reason(get(f"http://{host}:{port}/", replace(LIMITS, allow_private_addresses=False))) in {
            "private_address",
            "bad_url",
        }
    assert not server.requests


def test_a_name_that_changes_its_address_gains_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The address checked is the one connected to: there is no second look-up, which would give another."""
    looked_up = []

    def rebinding(host: str, port: int, *_: object) -> list[tuple[object, ...]]:
        looked_up.append(host)
        address = "127.0.0.1" if len(looked_up) == 1 else "127.0.0.9"
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))]

    with serving(reply(b"ok")) as server:
        monkeypatch.setattr(socket, "getaddrinfo", rebinding)
        monkeypatch.setattr(
            "dualtoken.infra.addresses.is_public",
            lambda address: is_public(address) or address == "127.0.0.1",
        )
        url = f"http://rebinding.test:{server.base.rpartition(':')[2]}/"
        assert isinstance(get(url, replace(LIMITS, allow_private_addresses=False)), Fetched)
    assert looked_up == ["rebinding.test"]


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700::1111", "64:ff9b::808:808"])
def test_public_addresses_are_public(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    "address",
    [
        *("0.0.0.0", "10.1.2.3", "100.64.0.1", "127.0.0.1", "169.254.1.1", "172.16.0.1", "192.0.0.8"),
        *("192.168.0.1", "224.0.0.1", "255.255.255.255", "::", "::1", "fc00::1", "fe80::1%eth0", "ff02::1"),
        *("::ffff:8.8.8.8", "64:ff9b::7f00:1", "2002:7f00:1::"),
    ],
)
def test_private_addresses_are_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize(
    ("url", "is_direct"),
    [
        *(("http://127.0.0.1:8265", True), ("http://localhost:8265", True), ("http://[::1]:8265", True)),
        *(("http://10.0.0.5:8265", True), ("https://192.168.1.2", True), ("http://8.8.8.8:8265", False)),
        ("http://name-without-an-address.invalid:8265", False),
    ],
)
def test_only_private_hosts_are_asked_without_a_proxy(
    url: str, *, is_direct: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    assert (direct_proxies(url) is not None) == is_direct


def test_a_private_host_answers_behind_dead_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.delenv("NO_PROXY", raising=False)
    with serving(reply(b"here")) as server:
        with pytest.raises(requests.exceptions.ProxyError):
            requests.get(server.base, timeout=10)
        assert requests.get(server.base, proxies=direct_proxies(server.base), timeout=10).text == "here"
