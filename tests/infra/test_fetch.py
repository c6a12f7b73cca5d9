"""The fetcher against servers that mean harm, all of them real ones on this machine."""

import asyncio
import gzip
import socket
import threading
import time
from dataclasses import replace

import pytest

from dualtoken.infra import fetch
from dualtoken.infra.fetch import Fetched, Fetcher, FetchFailed, user_agent
from dualtoken.infra.machine_trouble import is_machine_trouble
from tests.helpers.descriptors import no_free_descriptor
from tests.helpers.scripted_server import LIMITS, drip, endless, get, in_turn, reason, reply, serving


def test_a_body_comes_back_whole_and_the_agent_is_honest() -> None:
    with serving(reply(b"abc" * 1000, Content_Type="image/png")) as server:
        assert get(f"{server.base}/a.png") == Fetched(b"abc" * 1000, "image/png")
    assert f"User-Agent: {user_agent()}\r\n" in server.requests[0]
    assert user_agent().startswith("dualtoken/")


def test_connections_are_kept_alive() -> None:
    from dualtoken.infra.image_server import serve_images  # noqa: PLC0415

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


@pytest.mark.parametrize(
    "header", ["Mon, 01 Jan 2024 00:00:00 +99999999999999999999", "9" * 500, "soon", "-1", "Mon, 99 Foo 2024"]
)
def test_a_retry_after_that_says_nothing_is_no_error(header: str) -> None:
    with serving(reply(status="503 Busy", Retry_After=header)) as server:
        assert reason(get(server.base, replace(LIMITS, retries=0))) == "http_503"


def test_whatever_one_url_raises_is_that_rows_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def odd(values: list[str], _agent: str) -> bool:
        raise RecursionError(f"in {values[0]}")

    monkeypatch.setattr(fetch, "opts_out", odd)
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


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("file:///etc/passwd", "not_http"),
        ("data:image/png,x", "not_http"),
        ("/no/host.png", "bad_url"),
        ("http://", "bad_url"),
        ("http://[::1", "bad_url"),
        ("http://a:99999/", "bad_url"),
        ("", "bad_url"),
        ("http://foo..bar/x", "bad_url"),
        (f"http://{'a' * 64}.org/", "bad_url"),
    ],
)
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
    lock = threading.Lock()
    under_way = 0
    most = 0

    def count(connection: socket.socket, head: str, number: int) -> None:
        nonlocal under_way, most
        with lock:
            under_way += 1
            most = max(most, under_way)
        time.sleep(0.05)
        with lock:
            under_way -= 1
        reply(b"ok")(connection, head, number)

    async def many(base: str) -> None:
        async with Fetcher(LIMITS) as fetcher:
            await asyncio.gather(*(fetcher.fetch(f"{base}/{number}") for number in range(16)))

    with serving(count) as server:
        asyncio.run(many(server.base))
    assert most == LIMITS.concurrency


def without_descriptors(url: str) -> FetchFailed | Fetched:
    """Fetch a URL with a session that is open, and no descriptor to be had."""

    async def fetch_once() -> Fetched | FetchFailed:
        async with Fetcher(replace(LIMITS, retries=0)) as fetcher:
            with no_free_descriptor():
                return await fetcher.fetch(url)

    return asyncio.run(fetch_once())


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "no-such-host.invalid"])
def test_a_machine_without_descriptors_is_no_reason_of_a_row(host: str) -> None:
    with serving(reply(b"ok")) as server:
        port = server.base.rpartition(":")[2]
        with pytest.raises(OSError, match="Too many open files") as error:
            without_descriptors(f"http://{host}:{port}/")
    assert is_machine_trouble(error.value)


def test_full_memory_is_no_reason_of_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_values: list[str], _agent: str) -> bool:
        raise MemoryError

    monkeypatch.setattr(fetch, "opts_out", full)
    with serving(reply(b"body")) as server, pytest.raises(MemoryError):
        get(server.base)


def test_a_servers_words_about_memory_are_its_own() -> None:
    with serving(reply(b"", status="500 out of memory")) as server:
        assert reason(get(server.base)) == "http_500"

    def no_http(connection: socket.socket, _head: str, _number: int) -> None:
        connection.sendall(b"out of memory: can't start new thread\r\n\r\n")

    with serving(no_http) as server:
        assert reason(get(server.base)) == "bad_response"


def resolver(monkeypatch: pytest.MonkeyPatch, *errors: int) -> list[str]:
    """Let look-ups fail by these codes, one after the other, and then succeed; return the names asked for."""
    asked: list[str] = []

    def look_up(host: str, port: int, *_: object) -> list[tuple[object, ...]]:
        asked.append(host)
        if len(asked) <= len(errors):
            raise socket.gaierror(errors[len(asked) - 1], "no answer")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    return asked


def test_a_resolver_that_says_try_again_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = resolver(monkeypatch, socket.EAI_AGAIN, socket.EAI_AGAIN)
    with serving(reply(b"ok")) as server:
        port = server.base.rpartition(":")[2]
        assert isinstance(get(f"http://busy.test:{port}/"), Fetched)
    assert asked == ["busy.test"] * 3


def test_a_resolver_that_goes_on_saying_try_again_is_a_reason_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = resolver(monkeypatch, *[socket.EAI_AGAIN] * 10)
    assert reason(get("http://busy.test/")) == "dns_unavailable"
    assert asked == ["busy.test"] * 3


def test_a_name_that_is_not_found_is_asked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = resolver(monkeypatch, socket.EAI_NONAME)
    assert reason(get("http://none.test/")) == "dns"
    assert asked == ["none.test"]


def test_a_look_up_that_this_machine_cannot_make_is_no_reason_of_a_row(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    resolver(monkeypatch, socket.EAI_MEMORY)
    with pytest.raises(OSError, match="no answer") as error:
        get("http://any.test/")
    assert is_machine_trouble(error.value)
