"""What a URL asks for, as a real server sees it, and which host it names."""

import pytest

from dualtoken.infra.fetch import Fetched
from dualtoken.infra.request_urls import canonical_host, host_of
from tests.helpers.scripted_server import get, in_turn, reply, serving

VALID_TARGETS = [
    "/a%27b.jpg",
    "/a'b(1)!*.jpg",
    "/a%2Cb,c%7Ed~e%40f@g",
    "/a%2fb%2Fc/%c3%a9%C3%A9",
    "/a?u=http%3A%2F%2Fx%2Fy&v=http://x/y",
    "/a?X-Amz-Signature=a%2Bb+c&e=%20;=,",
    "/a?",
    "/a?b?c=%3f",
    "/a//b/./c/../d",
    "/?=&&=",
    "/%00%ff",
]


def asked(head: str) -> str:
    """Return the target of a request line."""
    return head.split(" ", 1)[1].partition(" HTTP/1.1\r\n")[0]


@pytest.mark.parametrize("target", VALID_TARGETS)
def test_a_valid_target_goes_out_byte_for_byte(target: str) -> None:
    with serving(reply(b"ok")) as server:
        assert isinstance(get(server.base + target), Fetched)
    assert [asked(head) for head in server.requests] == [target]


@pytest.mark.parametrize("target", VALID_TARGETS)
def test_a_redirects_target_goes_out_byte_for_byte(target: str) -> None:
    with serving(reply(b"ok")) as other:
        for location in (f"{other.base}{target}", f"{other.base.removeprefix('http:')}{target}"):
            with serving(reply(status="302 Found", Location=location)) as first:
                assert isinstance(get(first.base), Fetched)
    assert [asked(head) for head in other.requests] == [target, target]
    if target.startswith("//"):
        return
    with serving(in_turn(reply(status="307 Moved", Location=target), reply(b"ok"))) as server:
        assert isinstance(get(f"{server.base}/x?y"), Fetched)
    assert [asked(head) for head in server.requests] == ["/x?y", target]


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("c%27", "/a/b/c%27"),
        ("../c?%2F", "/a/c?%2F"),
        ("./", "/a/b/"),
        ("?z=%3A", "/a/b/x?z=%3A"),
        ("#part", "/a/b/x?y"),
    ],
)
def test_relative_redirects_follow_from_where_they_were_given(location: str, expected: str) -> None:
    with serving(in_turn(reply(status="302 Found", Location=location), reply(b"ok"))) as server:
        assert isinstance(get(f"{server.base}/a/b/x?y"), Fetched)
    assert asked(server.requests[1]) == expected


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("/a b.jpg", "/a%20b.jpg"),
        ("/é?q=ü", "/%C3%A9?q=%C3%BC"),
        ("/100%", "/100%25"),
        ("/%zz%4", "/%25zz%254"),
        ('/<"|\\^`{}>', "/%3C%22%7C%5C%5E%60%7B%7D%3E"),
        ("/a\r\nHost: evil", "/a%0D%0AHost:%20evil"),
        ("/a#part", "/a"),
        ("", "/"),
        ("?q", "/?q"),
    ],
)
def test_only_what_no_target_may_hold_is_encoded(target: str, expected: str) -> None:
    with serving(reply(b"ok")) as server:
        assert isinstance(get(f" {server.base}{target}\n"), Fetched)
    assert asked(server.requests[0]) == expected
    assert len(server.requests[0].split("\r\nHost:")) == 2


def test_a_locations_bytes_beyond_utf_8_are_encoded_as_they_are() -> None:
    with serving(in_turn(reply(status="302 Found", Location="/caf\udce9"), reply(b"ok"))) as server:
        assert isinstance(get(server.base), Fetched)
    assert asked(server.requests[1]) == "/caf%E9"


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("http://img.example.org/a", "img.example.org"),
        ("HTTPS://IMG.Example.ORG.:443/a", "img.example.org"),
        ("http://user:p%40ss@img.example.org:8080", "img.example.org"),
        ("http://ｉｍｇ.ｅｘａｍｐｌｅ.org/a", "img.example.org"),
        ("http://img。example。org/a", "img.example.org"),
        ("http://bücher.example/a", "xn--bcher-kva.example"),
        ("http://BÜCHER.example/a", "xn--bcher-kva.example"),
        ("http://xn--bcher-kva.example/a", "xn--bcher-kva.example"),
        (" http://img.example.org/a", "img.example.org"),
        ("//img.example.org/a", "img.example.org"),
        ("ftp://img.example.org/a", "img.example.org"),
        ("http://0x7f.1/a", "127.0.0.1"),
        ("http://2130706433/a", "127.0.0.1"),
        ("http://0177.0.0.1./a", "127.0.0.1"),
        ("http://[2001:DB8:0:0::1]:80/a", "2001:db8::1"),
        ("http://[::ffff:127.0.0.1]/a", "127.0.0.1"),
        (f"http://{'A' * 64}.org/a", f"{'a' * 64}.org"),
        ("img.example.org/a", ""),
        ("", ""),
    ],
)
def test_a_host_has_one_spelling(url: str, host: str) -> None:
    assert host_of(url) == host
    assert canonical_host(host) == host
