"""One store, three kinds of storage: what commits are made of behaves alike, or says where it does not."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from dualtoken.infra.digests import digest
from dualtoken.infra.storage import Store
from tests.helpers.descriptors import no_free_descriptor
from tests.helpers.s3_servers import s3_server

KINDS = ("local", "moto", "rclone")


@pytest.fixture(scope="module", params=KINDS)
def kind_and_url(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, str]]:
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "local":
        yield "local", str(folder)
        return
    with s3_server(request.param, folder) as url:
        yield request.param, url


@pytest.fixture
def store(kind_and_url: tuple[str, str], request: pytest.FixtureRequest) -> Store:
    return Store(f"{kind_and_url[1]}/{request.node.originalname}")


def test_moving_a_link_copies_what_it_points_to(tmp_path: Path) -> None:
    original = tmp_path / "original"
    link = tmp_path / "scratch"
    original.write_bytes(b"image")
    link.symlink_to(original)
    Store(str(tmp_path / "stored")).put(link, "00000.tar", move=True)
    original.unlink()
    assert (tmp_path / "stored/00000.tar").read_bytes() == b"image"


def test_what_is_put_is_read_back(store: Store, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(bytes(range(256)) * 40_000)
    store.put(source, "deep/er/file")
    store.put_bytes(b"small", "other")
    assert list(store.files()) == [("deep/er/file", 10_240_000), ("other", 5)]
    assert store.size("other") == 5
    assert store.size("nothing") is None
    assert store.exists("other")
    assert not store.exists("deep")
    assert store.read("other") == b"small"
    assert digest(store.local_copy("deep/er/file", tmp_path / "scratch")) == digest(source)
    store.remove("other")
    store.remove("other")
    assert [name for name, _ in store.files()] == ["deep/er/file"]
    assert list(store.at("nowhere").files()) == []


def test_a_file_that_is_moved_arrives_as_one_that_is_copied(store: Store, tmp_path: Path) -> None:
    for name, move in (("copied", False), ("moved", True)):
        source = tmp_path / name
        source.write_bytes(b"abc" * 1000)
        store.put(source, f"deep/{name}", move=move)
        assert source.exists() or (move and store.is_local)
    assert store.read("deep/copied") == store.read("deep/moved") == b"abc" * 1000


def test_a_second_store_sees_at_once_what_the_first_one_writes(store: Store) -> None:
    other = Store(store.url)
    assert list(other.files()) == []
    store.put_bytes(b"1", "receipts/00000.json")
    assert [name for name, _ in other.files()] == ["receipts/00000.json"]
    store.put_bytes(b"22", "receipts/00000.json")
    assert (other.size("receipts/00000.json"), other.read("receipts/00000.json")) == (2, b"22")


def test_the_first_of_two_conditional_puts_wins_or_the_probe_says_that_it_does_not(
    kind_and_url: tuple[str, str], store: Store
) -> None:
    honours = kind_and_url[0] != "rclone"
    assert store.honours_put_if_absent() == honours
    assert store.put_if_absent(b"first", "receipt")
    assert store.put_if_absent(b"second", "receipt") == (not honours)
    winner = b"first"
    if not honours:
        winner = b"second"
    assert store.read("receipt") == winner


@pytest.mark.parametrize("spelt", ["{}//run", "{}/run/", "{}//run//"])
def test_a_slash_that_repeats_another_or_ends_a_root_is_nothing(tmp_path: Path, spelt: str) -> None:
    plain = Store(f"{tmp_path}/run")
    plain.put_bytes(b"here", "scores/0/stage.json")
    store = Store(spelt.format(tmp_path))
    assert (store.url, store.root) == (plain.url, plain.root)
    assert store.read("scores/0/stage.json") == b"here"


def test_a_machine_without_descriptors_is_not_asked_twice(tmp_path: Path) -> None:
    store = Store("memory://twice")
    store.put_bytes(b"1", "here")
    asked: list[str] = []
    get_file = store.fs.get_file

    def counted(path: str, target: str) -> None:
        asked.append(path)
        get_file(path, target)

    (tmp_path / "scratch").mkdir()
    with pytest.MonkeyPatch.context() as patch, no_free_descriptor():
        patch.setattr(store.fs, "get_file", counted)
        with pytest.raises(OSError, match="Too many open files"):
            store.local_copy("here", tmp_path / "scratch")
    assert asked == ["/twice/here"]
