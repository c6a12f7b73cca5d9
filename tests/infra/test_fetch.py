"""The fetcher against servers that mean harm, all of them real ones on this machine."""

import asyncio
import gzip
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest

from infra import fetch
from infra.addresses import is_public
from infra.fetch import Fetched, Fetcher, FetchFailed, FetchLimits, user_agent

Answer = Callable[[socket.socket, str, int], None]
"""Gets the connection, the whole request head, and how many requests came before."""
LIMITS = FetchLimits(max_bytes=100_000, deadline_seconds=2.0, max_redirects=3, retries=2, concurrency=4, allow_private_addresses=True)


class Served:
    """A server that answers each request as told, and remembers what it was asked."""

    def __init__(self) -> None:
        self.requests: list[str] = []
        self.times: list[float] = []
        self.base = ""


def _head(connection: socket.socket) -> str:
    data = b""
    while b"\r\n\r\n" not in data:
        chunk = connection.recv(65536)
        if not chunk:
            return ""
        data += chunk
    return data.decode()


@contextmanager
def serving(answer: Answer) -> Iterator[Served]:
    served, listener = Served(), socket.create_server(("127.0.0.1", 0))
    served.base = f"http://127.0.0.1:{listener.getsockname()[1]}"

    def one(connection: socket.socket) -> None:
        with connection:
            if head := _head(connection):
                number = len(served.requests)
                served.requests.append(head)
                served.times.append(time.monotonic())
                try:
                    answer(connection, head, number)
                except OSError:
                    return  # The client had enough.

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=one, args=(connection,), daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield served
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


def reply(body: bytes = b"", status: str = "200 OK", **headers: str) -> Answer:
    lines = {"Content-Length": str(len(body)), "Connection": "close"} | {k.replace("_", "-"): v for k, v in headers.items()}
    head = f"HTTP/1.1 {status}\r\n" + "".join(f"{name}: {value}\r\n" for name, value in lines.items() if value)
    return lambda connection, _head, _number: connection.sendall(head.encode() + b"\r\n" + body)


def in_turn(*answers: Answer) -> Answer:
    return lambda connection, head, number: answers[min(number, len(answers) - 1)](connection, head, number)


def drip(connection: socket.socket, _head: str, _number: int) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        connection.sendall(b"x")
        time.sleep(0.02)


def endless(connection: socket.socket, _head: str, _number: int) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        connection.sendall(b"x" * 65536)


def get(url: str, limits: FetchLimits = LIMITS) -> Fetched | FetchFailed:
    async def once() -> Fetched | FetchFailed:
        async with Fetcher(limits) as fetcher:
            return await fetcher.fetch(url)

    return asyncio.run(once())


def reason(result: Fetched | FetchFailed) -> str:
    assert isinstance(result, FetchFailed), result
    return result.reason


def test_a_body_comes_back_whole_and_the_agent_is_honest() -> None:
    with serving(reply(b"abc" * 1000, Content_Type="image/png")) as server:
        assert get(f"{server.base}/a.png") == Fetched(b"abc" * 1000, "image/png")
    assert f"User-Agent: {user_agent()}\r\n" in server.requests[0]
    assert user_agent().startswith("dualtoken/")


def test_connections_are_kept_alive() -> None:
    from infra.image_server import serve_images  # noqa: PLC0415

    threads: set[int] = set()

    def lookup(_: str) -> bytes:
        threads.add(threading.get_ident())
        return b"body"

    async def several(base: str) -> list[Fetched | FetchFailed]:
        async with Fetcher(replace(LIMITS, concurrency=1)) as fetcher:
            return [await fetcher.fetch(f"{base}/{number}") for number in range(5)]

    with serve_images(lookup) as base:
        results = asyncio.run(several(base))
    assert all(isinstance(result, Fetched) for result in results)
    assert len(threads) == 1  # The server has a thread per connection.


@pytest.mark.parametrize("status", ["404 Not Found", "403 Forbidden", "410 Gone"])
def test_what_will_not_pass_is_not_retried(status: str) -> None:
    with serving(reply(status=status)) as server:
        assert reason(get(server.base)) == f"http_{status[:3]}"
    assert len(server.requests) == 1


def test_503_then_200_is_a_body_after_a_pause() -> None:
    with serving(in_turn(reply(status="503 Busy"), reply(b"ok"))) as server:
        assert isinstance(get(server.base), Fetched)
    assert server.times[1] - server.times[0] >= 0.12


def test_503_for_ever_stops_after_the_retries() -> None:
    with serving(reply(status="503 Busy")) as server:
        assert reason(get(server.base)) == "http_503"
    assert len(server.requests) == 3


def test_retry_after_is_waited_for() -> None:
    with serving(in_turn(reply(status="429 Slow down", Retry_After="1"), reply(b"ok"))) as server:
        assert isinstance(get(server.base), Fetched)
    assert server.times[1] - server.times[0] >= 1.0


def test_retry_after_beyond_the_deadline_is_not_waited_for() -> None:
    start = time.monotonic()
    with serving(reply(status="429 Slow down", Retry_After="3600")) as server:
        assert reason(get(server.base)) == "http_429"
    assert len(server.requests) == 1
    assert time.monotonic() - start < 1.0


@pytest.mark.parametrize("header", ["Mon, 01 Jan 2024 00:00:00 +99999999999999999999", "9" * 500, "soon", "-1", "Mon, 99 Foo 2024"])
def test_a_retry_after_that_says_nothing_is_no_error(header: str) -> None:
    with serving(reply(status="503 Busy", Retry_After=header)) as server:
        assert reason(get(server.base, replace(LIMITS, retries=0))) == "http_503"


def test_whatever_one_url_raises_is_that_rows_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def odd(value: str) -> bool:
        raise RecursionError(f"in {value}")

    monkeypatch.setattr(fetch, "_opts_out", odd)
    with serving(reply(b"body", X_Robots_Tag="noai")) as server:
        assert get(server.base) == FetchFailed("bad_response", "RecursionError: in noai")


def test_a_dripping_body_ends_at_the_deadline() -> None:
    start = time.monotonic()
    with serving(drip) as server:
        assert reason(get(server.base, replace(LIMITS, deadline_seconds=0.5))) == "timeout"
    assert 0.4 < time.monotonic() - start < 1.5


def test_an_endless_body_ends_at_the_cap() -> None:
    start = time.monotonic()
    with serving(endless) as server:
        assert reason(get(server.base)) == "too_many_bytes"
    assert time.monotonic() - start < 1.5


def test_a_content_length_over_the_cap_is_refused_before_the_body() -> None:
    def promise(connection: socket.socket, _head: str, _number: int) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 10000000000\r\n\r\n")
        time.sleep(5)

    start = time.monotonic()
    with serving(promise) as server:
        assert reason(get(server.base)) == "too_many_bytes"
    assert time.monotonic() - start < 1.5


def test_a_body_shorter_than_its_length_is_incomplete_and_retried() -> None:
    with serving(reply(b"short", Content_Length="5000")) as server:
        assert reason(get(server.base)) == "incomplete_body"
    assert len(server.requests) == 3


def test_a_gzip_bomb_unfolds_no_further_than_the_cap() -> None:
    bomb = gzip.compress(b"\0" * 50_000_000)
    assert len(bomb) < LIMITS.max_bytes
    with serving(reply(bomb, Content_Encoding="gzip")) as server:
        assert reason(get(server.base)) == "too_many_bytes"


def test_a_small_gzip_body_is_decoded_and_a_cut_one_is_incomplete() -> None:
    body = gzip.compress(b"picture" * 100)
    with serving(reply(body, Content_Encoding="gzip")) as server:
        assert get(server.base) == Fetched(b"picture" * 100, "application/octet-stream")
    with serving(reply(body[:-12], Content_Encoding="gzip")) as server:
        assert reason(get(server.base)) == "incomplete_body"
    with serving(reply(body, Content_Encoding="br")) as server:
        assert reason(get(server.base)) == "bad_response"


def test_redirects_are_followed_up_to_the_limit() -> None:
    step = reply(status="302 Found", Location="/next")
    with serving(in_turn(step, step, step, reply(b"here"))) as server:
        assert isinstance(get(server.base), Fetched)
    with serving(step) as server:
        assert reason(get(server.base)) == "too_many_redirects"
    assert len(server.requests) == 4


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://example.org/a", "gopher://127.0.0.1/"])
def test_a_redirect_to_another_scheme_is_refused(target: str) -> None:
    with serving(reply(status="301 Moved", Location=target)) as server:
        assert reason(get(server.base)) == "not_http"


def test_a_redirect_to_a_private_address_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    # The first hop stands for a public server: only its address passes the check.
    monkeypatch.setattr("infra.addresses.is_public", lambda address: is_public(address) or address == "127.0.0.1")
    hidden = []
    strict = replace(LIMITS, allow_private_addresses=False)
    for target in ("http://127.0.0.2:{}/", "http://[::1]:{}/", "http://169.254.169.254/latest/meta-data/", "http://[::ffff:127.0.0.1]:{}/"):
        with serving(lambda *_: hidden.append(1)) as inner:
            location = target.format(inner.base.rpartition(":")[2])
            with serving(reply(status="302 Found", Location=location)) as server:
                assert reason(get(server.base, strict)) == "private_address", target
    assert not hidden


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "10.0.0.1", "[::1]", "100.64.0.1", "169.254.169.254", "[fe80::1]"])
def test_private_hosts_are_refused_by_number_and_by_name(host: str) -> None:
    assert reason(get(f"http://{host}:9/", replace(LIMITS, allow_private_addresses=False))) == "private_address"


@pytest.mark.parametrize("host", ["127.1", "2130706433", "0x7f.0.0.1", "0177.0.0.1"])
def test_odd_spellings_of_loopback_do_not_reach_it(host: str) -> None:
    with serving(reply(b"secret")) as server:
        port = server.base.rpartition(":")[2]
        assert reason(get(f"http://{host}:{port}/", replace(LIMITS, allow_private_addresses=False))) in {"private_address", "bad_url"}
    assert not server.requests


def test_a_name_that_changes_its_address_gains_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The address checked is the one connected to: a second look-up would say another, and there is none."""
    looked_up = []

    def rebinding(host: str, port: int, *_: object) -> list[tuple[object, ...]]:
        looked_up.append(host)
        address = "127.0.0.1" if len(looked_up) == 1 else "127.0.0.9"
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))]

    with serving(reply(b"ok")) as server:
        monkeypatch.setattr(socket, "getaddrinfo", rebinding)
        monkeypatch.setattr("infra.addresses.is_public", lambda address: is_public(address) or address == "127.0.0.1")
        url = f"http://rebinding.test:{server.base.rpartition(':')[2]}/"
        assert isinstance(get(url, replace(LIMITS, allow_private_addresses=False)), Fetched)
    assert looked_up == ["rebinding.test"]


@pytest.mark.parametrize(
    ("url", "expected"),
    [("file:///etc/passwd", "not_http"), ("data:image/png,x", "not_http"), ("/no/host.png", "bad_url"), ("http://", "bad_url"),
     ("http://[::1", "bad_url"), ("http://a:99999/", "bad_url"), ("", "bad_url"), ("http://foo..bar/x", "bad_url"),
     (f"http://{'a' * 64}.org/", "bad_url")],
)  # fmt: skip
def test_bad_urls_have_their_reason(url: str, expected: str) -> None:
    assert reason(get(url)) == expected


def test_no_connection_and_no_name_have_their_reason() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    assert reason(get(f"http://127.0.0.1:{port}/")) == "connection"
    assert reason(get("http://no-such-host.invalid/", replace(LIMITS, deadline_seconds=10))) == "dns"


def test_an_opt_out_header_is_honoured_before_the_body() -> None:
    with serving(reply(b"picture", X_Robots_Tag="noai, noarchive")) as server:
        assert reason(get(server.base)) == "opted_out"
    with serving(reply(b"picture", X_Robots_Tag="otherbot: noai")) as server:
        assert isinstance(get(server.base), Fetched)


def test_proxies_of_the_environment_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    with serving(reply(b"direct")) as server:
        assert isinstance(get(server.base), Fetched)


def test_no_more_fetches_are_under_way_than_allowed() -> None:
    lock, now, most = threading.Lock(), 0, 0

    def count(connection: socket.socket, head: str, number: int) -> None:
        nonlocal now, most
        with lock:
            now, most = now + 1, max(most, now + 1)
        time.sleep(0.05)
        with lock:
            now -= 1
        reply(b"ok")(connection, head, number)

    async def many(base: str) -> None:
        async with Fetcher(LIMITS) as fetcher:
            await asyncio.gather(*(fetcher.fetch(f"{base}/{number}") for number in range(16)))

    with serving(count) as server:
        asyncio.run(many(server.base))
    assert most == LIMITS.concurrency


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700::1111", "64:ff9b::808:808"])
def test_public_addresses_are_public(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    "address",
    ["0.0.0.0", "10.1.2.3", "100.64.0.1", "127.0.0.1", "169.254.1.1", "172.16.0.1", "192.0.0.8", "192.168.0.1", "224.0.0.1",
     "255.255.255.255", "::", "::1", "fc00::1", "fe80::1%eth0", "ff02::1", "::ffff:8.8.8.8", "64:ff9b::7f00:1", "2002:7f00:1::"],
)  # fmt: skip
def test_private_addresses_are_not_public(address: str) -> None:
    assert not is_public(address)
