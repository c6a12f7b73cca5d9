"""Disks that are full or may not be written.

One line names the file, nothing is half written, and a run goes on once it can.
"""

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from dualtoken.infra.storage import Store
from dualtoken.pipelines.config.recipe import Recipe
from dualtoken.pipelines.core.receipts import iter_receipts
from dualtoken.pipelines.errors import ExitCode, UnitsFailed, UserError, exit_code
from dualtoken.pipelines.runtime.executor import LocalExecutor
from dualtoken.pipelines.runtime.run import run_command
from dualtoken.pipelines.tokens.reader import TokenDataset
from tests.helpers.damage import findings_below
from tests.helpers.tiny_run import LoadTiny, root_hashes, tokens_job

pytestmark = pytest.mark.slow


@contextmanager
def mounted_disk(folder: Path, size: str) -> Iterator[Path]:
    """Mount a disk of memory on a new folder while the block runs."""
    folder.mkdir()
    _mount("-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder))
    try:
        yield folder
    finally:
        # Lazily: a reader may still have its files mapped.
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def _mount(*options: str) -> None:
    ended = subprocess.run(["mount", *options], capture_output=True, text=True, check=False)
    if ended.returncode:
        pytest.skip(f"no disk can be mounted here: {ended.stderr.strip()}")


def fill_disk(folder: Path, room_bytes: int) -> Path:
    """Write a file that leaves only so much room on its disk, and return it."""
    ballast = folder / "ballast"
    with ballast.open("wb") as file:
        num_pages = (shutil.disk_usage(folder).free - room_bytes) >> 12
        for _ in range(num_pages):
            file.write(bytes(4096))
    return ballast


def pretokenize(recipe: Recipe) -> None:
    run_command("pretokenize", recipe, LocalExecutor(), lambda _: None)


def test_a_full_disk_is_named_and_the_run_goes_on_when_there_is_room(
    tmp_path: Path, finished: Recipe, load_tiny: LoadTiny
) -> None:
    with mounted_disk(tmp_path / "disk", "64m") as disk:
        recipe = load_tiny(Path(shutil.copytree(finished.root, disk / "run")))
        folder = Path(tokens_job(recipe).folder)
        shutil.rmtree(folder)
        ballast = fill_disk(disk, room_bytes=80_000)
        message = rf"^[1-8] of 10 units failed; .* No space left on device: '{folder}/"
        with pytest.raises(UnitsFailed, match=message) as error:
            pretokenize(recipe)
        assert error.value.code == ExitCode.TEMPORARY
        assert_receipts_name_whole_files(folder)
        assert list(folder.rglob("*.part")) == []
        with pytest.raises(ValueError, match="is unfinished"):
            TokenDataset(str(folder))
        ballast.unlink()
        pretokenize(recipe)
        assert root_hashes(recipe, "pretokenize") == root_hashes(finished, "pretokenize")
        assert findings_below(recipe.root) == []


def assert_receipts_name_whole_files(folder: Path) -> None:
    """Some units are done, not all of them, and the files of those are whole."""
    receipts = list(iter_receipts(Store(str(folder))))
    assert 0 < len(receipts) < 10
    for receipt in receipts:
        for file in receipt.files:
            assert (folder / file.name).stat().st_size == file.bytes


def test_a_full_scratch_disk_is_named_with_what_to_set(
    tmp_path: Path, finished: Recipe, load_tiny: LoadTiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = load_tiny(Path(shutil.copytree(finished.root, tmp_path / "run")))
    shutil.rmtree(tokens_job(recipe).folder)
    with mounted_disk(tmp_path / "scratch", "16k") as scratch:
        monkeypatch.setattr(tempfile, "tempdir", str(scratch))
        message = rf"No space left on device; set TMPDIR to a folder with more room: '{scratch}/"
        with pytest.raises(UnitsFailed, match=message) as error:
            pretokenize(recipe)
        assert error.value.code == ExitCode.TEMPORARY
        assert list(scratch.iterdir()) == []


def test_a_folder_that_may_not_be_written_is_named_as_the_users_to_change_and_still_read(
    tmp_path: Path, finished: Recipe, load_tiny: LoadTiny
) -> None:
    with mounted_disk(tmp_path / "disk", "64m") as disk:
        recipe = load_tiny(Path(shutil.copytree(finished.root, disk / "run")))
        tokens = Path(tokens_job(recipe).folder)
        shutil.rmtree(tokens.parents[1] / "targets")
        _mount("-o", "remount,ro", str(disk))
        with pytest.raises(
            UserError, match=r"cannot be written \(Read-only file system\): set root"
        ) as error:
            run_command("targets", recipe, LocalExecutor(), lambda _: None)
        assert exit_code(error.value) == ExitCode.CONFIGURATION
        assert findings_below(tokens) == []
        dataset = TokenDataset(str(tokens))
        assert len(dataset.read(np.arange(len(dataset))).keys) == len(dataset)
