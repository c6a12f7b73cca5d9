"""Scratch folders go with their block, or with a later process where theirs was killed; names are synced."""

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from dualtoken.infra.scratch import remove_abandoned, scratch_folder, shared_scratch_folder
from dualtoken.infra.storage import Store

KILLED = """
import os, signal
from pathlib import Path
from dualtoken.infra.scratch import scratch_folder
with scratch_folder() as folder:
    (Path(folder) / "half.arrow").write_bytes(b"rows")
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_a_scratch_folder_goes_with_its_block_whatever_is_in_it(temporary: Path) -> None:
    # The folder is looked at within the block.
    with pytest.raises(ValueError, match="of the block"), scratch_folder() as folder:  # noqa: PT012
        assert Path(folder).parent == temporary
        assert list(Path(folder).iterdir()) == []
        (Path(folder) / "deep").mkdir()
        (Path(folder) / "deep/file").write_bytes(b"1")
        raise ValueError("of the block")
    assert list(temporary.iterdir()) == []


def test_the_folder_of_a_killed_process_is_removed_and_one_in_use_is_not(temporary: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", KILLED], check=False, env={**os.environ, "TMPDIR": str(temporary)}
    )
    assert ended.returncode == -signal.SIGKILL
    (left,) = temporary.glob("dualtoken-*/half.arrow")
    (temporary / "dualtoken-of-somebody-else").mkdir()
    with scratch_folder() as folder:
        (Path(folder) / "file").write_bytes(b"1")
        assert remove_abandoned() == 1
        assert not left.parent.exists()
        assert (Path(folder) / "file").exists()
        assert remove_abandoned() == 0
    assert [path.name for path in temporary.iterdir()] == ["dualtoken-of-somebody-else"]


def test_a_link_in_place_of_a_folder_or_lock_is_not_followed(temporary: Path) -> None:
    linked = temporary / "linked"
    linked.mkdir()
    (linked / "file").write_bytes(b"1")
    (temporary / "dualtoken-a").symlink_to(linked)
    (temporary / "dualtoken-b.lock").symlink_to(linked / "file")
    remove_abandoned()
    assert (linked / "file").exists()


JOINED = """
import sys
from dualtoken.infra.scratch import shared_scratch_folder
with shared_scratch_folder("copies") as folder:
    (folder / "theirs").write_bytes(b"1")
    print(folder, flush=True)
    sys.stdin.read()
"""


def test_a_shared_folder_stays_until_the_last_process_leaves_it(temporary: Path) -> None:
    with shared_scratch_folder("copies") as folder:
        (folder / "ours").write_bytes(b"1")
        other = subprocess.Popen(
            [sys.executable, "-c", JOINED],
            env={**os.environ, "TMPDIR": str(temporary)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert other.stdout is not None
        assert other.stdout.readline().strip() == str(folder)
        assert (folder / "theirs").exists()
    assert (folder / "ours").exists()
    assert remove_abandoned() == 0
    other.communicate("")
    assert list(temporary.iterdir()) == []


def test_a_shared_folder_of_killed_processes_is_removed_like_any_other(temporary: Path) -> None:
    killed = JOINED.replace("sys.stdin.read()", "import os; os.kill(os.getpid(), 9)")
    subprocess.run([sys.executable, "-c", killed], check=False, env={**os.environ, "TMPDIR": str(temporary)})
    assert len(list(temporary.glob("dualtoken-*/theirs"))) == 1
    assert remove_abandoned() == 1
    assert list(temporary.iterdir()) == []


def test_a_shared_folder_is_never_joined_through_a_link(temporary: Path) -> None:
    target = temporary / "target"
    target.mkdir()
    (temporary / f"dualtoken-{os.getuid()}-copies").symlink_to(target)
    with pytest.raises(FileExistsError, match="set TMPDIR"), shared_scratch_folder("copies"):
        pass
    assert target.exists()


def test_a_receipt_is_reported_once_its_name_is_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[tuple[str, list[str]]] = []
    sync = os.fsync

    def noting(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        names: list[str] = []
        if path.is_dir():
            names = sorted(entry.name for entry in path.iterdir())
        synced.append((path.name, names))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", noting)
    store = Store(str(tmp_path))
    assert store.put_if_absent(b"receipt", "receipts/00000.json")
    assert synced[-1] == ("receipts", ["00000.json"])
    store.put_bytes(b"manifest", "made/manifest.json")
    assert synced[-1] == ("made", ["manifest.json"])
