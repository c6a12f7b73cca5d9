"""Lists of tombstones as they are stored."""

import json

from dualtoken.pipelines.core.tombstones import Tombstones, url_hash


def test_a_stored_list_is_in_order_whatever_order_it_was_made_in() -> None:
    urls = [url_hash(f"http://example.org/{number}.jpg") for number in range(50)]
    stored = Tombstones(urls=frozenset(urls)).to_bytes()
    assert stored == Tombstones(urls=frozenset(reversed(urls))).to_bytes()
    assert json.loads(stored)["urls"] == sorted(urls)
    assert Tombstones.from_bytes(stored).urls == set(urls)
