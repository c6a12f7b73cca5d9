"""A disk that is full, or that may not be written: one line names the file, nothing is done by half, and a run goes on once it can."""

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
from dualtoken.pipelines.errors import ExitCode, UnitsFailed, exit_code
from dualtoken.pipelines.maintenance.verify import verify
from dualtoken.pipelines.runtime.executor import LocalExecutor
from dualtoken.pipelines.runtime.run import run_command
from dualtoken.pipelines.tokens.reader import TokenDataset
from tests.helpers.tiny_run import LoadTiny, planned, tokens_job

pytestmark = pytest.mark.slow
CORPUS = "tiny-train"


@contextmanager
def disk(folder: Path, size: str) -> Iterator[Path]:
    """Mount a disk of memory on a new folder."""
    folder.mkdir()
    _mount("-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder))
    try:
        yield folder
    finally:
        subprocess.run(
            ["umount", "--lazy", str(folder)], check=True
        )  # a reader may still have its files mapped


def _mount(*options: str) -> None:
    if (done := subprocess.run(["mount", *options], capture_output=True, text=True, check=False)).returncode:
        pytest.skip(f"no disk can be mounted here: {done.stderr.strip()}")


def fill(folder: Path, but_bytes: int) -> Path:
    """Write a file that leaves so much room, and return it."""
    ballast = folder / "ballast"
    with ballast.open("wb") as file:
        file.truncate(0)
        for _ in range((shutil.disk_usage(folder).free - but_bytes) >> 12):
            file.write(bytes(4096))
    return ballast


def tokens(recipe: Recipe) -> Path:
    job = tokens_job(recipe)
    return Path(job.folder)


def pretokenize(recipe: Recipe) -> None:
    run_command("pretokenize", recipe, LocalExecutor(), lambda _: None)


def test_a_full_disk_is_named_and_the_run_goes_on_when_there_is_room(
    tmp_path: Path, finished: Recipe, load_tiny: LoadTiny
) -> None:
    with disk(tmp_path / "disk", "64m") as top:
        recipe = load_tiny(Path(shutil.copytree(finished.root, top / "run")))
        folder = tokens(recipe)
        shutil.rmtree(folder)
        ballast = fill(top, but_bytes=80_000)
        with pytest.raises(
            UnitsFailed, match=rf"^[1-8] of 10 units failed; .* No space left on device: '{folder}/"
        ) as error:
            pretokenize(recipe)
        assert error.value.code == ExitCode.TEMPORARY
        begun = {receipt.unit: receipt for receipt in iter_receipts(Store(str(folder)))}
        assert 0 < len(begun) < 10
        assert [
            file
            for receipt in begun.values()
            for file in receipt.files
            if (folder / file.name).stat().st_size != file.bytes
        ] == []
        assert list(folder.rglob("*.part")) == []
        with pytest.raises(ValueError, match="is unfinished"):
            TokenDataset(str(folder))
        ballast.unlink()
        pretokenize(recipe)
        ours, theirs = (planned(run, "pretokenize", CORPUS).manifest for run in (recipe, finished))
        assert ours is not None
        assert theirs is not None
        assert ours.root_hash == theirs.root_hash
        assert [finding for checked in verify(recipe.root) for finding in checked.findings] == []


def test_a_full_scratch_disk_is_named_with_what_to_set(
    tmp_path: Path, finished: Recipe, load_tiny: LoadTiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = load_tiny(Path(shutil.copytree(finished.root, tmp_path / "run")))
    shutil.rmtree(tokens(recipe))
    with disk(tmp_path / "scratch", "16k") as scratch:
        monkeypatch.setattr(tempfile, "tempdir", str(scratch))
        with pytest.raises(
            UnitsFailed, match=rf"No space left on device; set TMPDIR to a folder with more room: '{scratch}/"
        ) as error:
            pretokenize(recipe)
        assert error.value.code == ExitCode.TEMPORARY
        assert list(scratch.iterdir()) == []


def test_a_folder_that_may_not_be_written_is_named_as_the_users_to_change_and_still_read(
    tmp_path: Path, finished: Recipe, load_tiny: LoadTiny
) -> None:
    with disk(tmp_path / "disk", "64m") as top:
        recipe = load_tiny(Path(shutil.copytree(finished.root, top / "run")))
        whole = tokens(recipe)
        shutil.rmtree(whole.parents[1] / "targets")
        _mount("-o", "remount,ro", str(top))
        with pytest.raises(OSError, match=r"Read-only file system: '.*/targets'$") as error:
            run_command("targets", recipe, LocalExecutor(), lambda _: None)
        assert exit_code(error.value) == ExitCode.CONFIGURATION
        assert [finding for checked in verify(str(whole)) for finding in checked.findings] == []
        dataset = TokenDataset(str(whole))
        assert len(dataset.read(np.arange(len(dataset))).keys) == len(dataset)
