"""Files take their names at once and whole, also where a file system has no hard links."""

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dualtoken.infra.storage import Store

WITHOUT_LINKS = """
#include <errno.h>
int link(const char *a, const char *b) { errno = %(number)d; return -1; }
int linkat(int a, const char *b, int c, const char *d, int e) { errno = %(number)d; return -1; }
"""
PUT = """
import sys
from dualtoken.infra.storage import Store
print(Store(sys.argv[1]).put_if_absent(sys.argv[2].encode(), "receipts/00000.json"))
"""


def shim(folder: Path, number: int) -> Path:
    """Build a library that takes a process's hard links away, as a file system without them does."""
    source = folder / "links.c"
    source.write_text(WITHOUT_LINKS % {"number": number})
    library = folder / "links.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
    return library


@pytest.fixture(params=[errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS])
def no_links(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(os, "link", refuse)
    return request.param


def test_of_many_writers_without_links_one_is_the_first(no_links: int, tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    contents = [b"%d" % number for number in range(16)]
    with ThreadPoolExecutor(16) as threads:
        won = list(threads.map(lambda data: store.put_if_absent(data, "receipts/00000.json"), contents))
    assert won.count(True) == 1, no_links
    assert store.read("receipts/00000.json") == contents[won.index(True)]
    assert store.put_if_absent(contents[won.index(True)], "receipts/00000.json"), (
        "it is there with this content"
    )
    assert [name for name, _ in store.files()] == ["receipts/00000.json"]
    assert store.honours_put_if_absent()


@pytest.mark.skipif(not Path("/usr/bin/cc").exists(), reason="no compiler here")
def test_processes_without_links_put_a_receipt_once(tmp_path: Path) -> None:
    environment = os.environ | {"LD_PRELOAD": str(shim(tmp_path, errno.EPERM))}
    probe = [sys.executable, "-c", "import os, sys; os.link(sys.argv[1], sys.argv[1] + '2')"]
    refused = subprocess.run(
        [*probe, str(tmp_path / "links.c")], env=environment, capture_output=True, check=False
    )
    assert b"PermissionError" in refused.stderr
    root = tmp_path / "root"
    for content, there in (("first", "True"), ("second", "False"), ("first", "True")):
        command = [sys.executable, "-c", PUT, str(root), content]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == there
    assert (root / "receipts/00000.json").read_bytes() == b"first"


def test_a_file_that_a_writer_left_by_half_is_no_receipt(
    no_links: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def end(*_: object) -> None:
        raise KeyboardInterrupt

    store = Store(str(tmp_path))
    monkeypatch.setattr(Path, "rename", end)
    with pytest.raises(KeyboardInterrupt):
        store.put_if_absent(b"whole", "00000.json")
    assert not store.exists("00000.json"), no_links
    monkeypatch.undo()
    assert store.put_if_absent(b"whole", "00000.json")
