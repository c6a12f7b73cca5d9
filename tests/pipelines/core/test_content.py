"""Files are told apart by content, however alike their names, sizes and times are."""

import os
from pathlib import Path

import pytest

from dualtoken.infra.storage import Store
from dualtoken.pipelines.core import content
from dualtoken.pipelines.core.content import content_ids
from tests.helpers.s3_servers import s3_server


@pytest.fixture(autouse=True)
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    return tmp_path / "caches"


def id_of(store: Store, name: str) -> object:
    (file,) = [file for file in store.entries() if file.name == name]
    return content_ids(store, [file])[name]


def rewrite_with_the_same_time(path: Path, data: bytes) -> None:
    """Rewrite a file in place, with the time of its last change put back."""
    status = path.stat()
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_a_file_rewritten_within_a_tick_of_the_clock_has_another_identity(tmp_path: Path) -> None:
    shard = tmp_path / "shards/00000.tar"
    shard.parent.mkdir()
    store = Store(str(shard.parent))
    seen: set[str] = set()
    for number in range(20):
        data = b"%04d" % number
        if number == 0:
            shard.write_bytes(data)
        rewrite_with_the_same_time(shard, data)
        seen.add(str(id_of(store, "00000.tar")))
    assert len(seen) == 20


def test_a_remembered_hash_counts_until_the_file_is_rewritten_with_its_size_and_time(
    tmp_path: Path, caches: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(content, "SETTLED_SECONDS", -1)  # so that it is remembered at once
    shard = tmp_path / "shards/00000.tar"
    shard.parent.mkdir()
    shard.write_bytes(b"red")
    store = Store(str(shard.parent))
    first = id_of(store, "00000.tar")
    (remembered,) = caches.rglob("*.json")
    assert first != {"sha256": "0" * 64}
    text = remembered.read_text()
    remembered.write_text(text.replace(str(first)[12:76], "0" * 64))
    assert id_of(store, "00000.tar") == {"sha256": "0" * 64}, "the file was read though its hash is known"

    changed_at = shard.stat().st_ctime_ns
    while shard.stat().st_ctime_ns == changed_at:
        rewrite_with_the_same_time(shard, b"red")
    assert id_of(store, "00000.tar") == first


@pytest.mark.parametrize("damage", ["not JSON", "[]", '{"00000.tar": 7}'])
def test_hashes_that_cannot_be_remembered_or_read_are_taken_again(
    tmp_path: Path, caches: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    monkeypatch.setattr(content, "SETTLED_SECONDS", -1)
    (tmp_path / "00000.tar").write_bytes(b"red")
    store = Store(str(tmp_path))
    first = id_of(store, "00000.tar")
    (remembered,) = caches.rglob("*.json")
    remembered.write_text(damage)
    assert id_of(store, "00000.tar") == first
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "00000.tar"))  # no folder can be made there
    assert id_of(store, "00000.tar") == first


def test_objects_of_one_size_are_told_apart_by_the_stores_tag(tmp_path: Path) -> None:
    with s3_server("moto", tmp_path) as url:
        store = Store(url)
        store.put_bytes(b"red", "00000.tar")
        first = id_of(store, "00000.tar")
        file = store.entry("00000.tar")
        assert file is not None
        assert content_ids(store, [file])["00000.tar"] == first, "listed and asked for alone, it is the same"
        store.put_bytes(b"sea", "00000.tar")
        assert id_of(store, "00000.tar") != first
        store.put_bytes(b"red", "00000.tar")
        assert id_of(store, "00000.tar") == first


def test_a_store_without_tags_is_read() -> None:
    store = Store("memory://content")
    store.put_bytes(b"red", "00000.tar")
    first = id_of(store, "00000.tar")
    store.put_bytes(b"sea", "00000.tar")
    assert id_of(store, "00000.tar") != first
    store.put_bytes(b"red", "00000.tar")
    assert id_of(store, "00000.tar") == first
