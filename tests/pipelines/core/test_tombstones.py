"""Lists of tombstones as they are stored."""

import hashlib
import json

import pytest

from dualtoken.pipelines.core.ledger import sample_key
from dualtoken.pipelines.core.tombstones import Tombstones, url_hash

KEY = sample_key("web", 0)


def test_a_stored_list_is_in_order_whatever_order_it_was_made_in() -> None:
    urls = [url_hash(str(number)) for number in range(50)]
    stored = Tombstones(urls=frozenset(urls)).to_bytes()
    assert stored == Tombstones(urls=frozenset(reversed(urls))).to_bytes()
    assert json.loads(stored)["urls"] == sorted(urls)
    assert Tombstones.from_bytes(stored).urls == set(urls)


SPELLINGS = [
    "http://img.example.org/a.jpg",
    "HTTP://user:secret@IMG.Example.ORG:80/a.jpg",
    "http://ｉｍｇ.ｅｘａｍｐｌｅ.org./a.jpg",
    "http://img。example。org/a.jpg",
    " http://img.example.org/a.jpg#top",
    b"http://img.example.org/a.jpg",
    b"http://img.example.org/caf\xe9.jpg",
    "ftp://img.example.org/a.jpg",
    "//img.example.org/a.jpg",
]


@pytest.mark.parametrize("url", SPELLINGS)
@pytest.mark.parametrize("host", ["example.org", "img.example.org", "IMG.example.org.", "ｅｘａｍｐｌｅ.org"])
def test_a_host_is_found_in_all_spellings_that_the_fetcher_asks_it_by(url: str | bytes, host: str) -> None:
    assert Tombstones(hosts=frozenset({host})).match(KEY, url)
    assert not Tombstones(hosts=frozenset({"other.org"})).match(KEY, url)


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("bücher.example", "http://xn--bcher-kva.example/a"),
        ("xn--bcher-kva.example", "http://BÜCHER.example/a"),
        ("127.0.0.1", "http://0x7f.1/a"),
        ("127.0.0.1", "http://[::FFFF:127.0.0.1]/a"),
        ("0177.1", "http://127.0.0.1/a"),
        ("[2001:db8::1]", "http://[2001:DB8:0:0::1]:8080/a"),
    ],
)
def test_punycode_and_addresses_are_compared_as_what_they_name(host: str, url: str) -> None:
    assert Tombstones(hosts=frozenset({host})).match(KEY, url)


def test_an_address_is_found_in_all_spellings_of_one_request() -> None:
    listed = Tombstones(urls=frozenset({url_hash("http://example.org/a%27b.jpg")}))
    assert listed.match(KEY, "HTTP://Example.ORG:80/a%27b.jpg#top")
    assert listed.match(KEY, b"http://example.org/a%27b.jpg")
    assert not listed.match(KEY, "http://example.org/a'b.jpg")


def test_a_list_of_addresses_by_their_letters_still_counts() -> None:
    address = "HTTP://Example.org/a.jpg"
    old = Tombstones(urls=frozenset({hashlib.sha256(address.encode()).hexdigest()}))
    assert old.match(KEY, address)
