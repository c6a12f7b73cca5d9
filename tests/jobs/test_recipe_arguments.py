"""A root where no folder can be, or be written, is told in one line before any work."""

import os
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dualtoken.jobs.recipe_arguments import open_recipe
from dualtoken.pipelines.errors import ExitCode, UserError, exit_code
from dualtoken.pipelines.runtime.executor import LocalExecutor
from dualtoken.pipelines.runtime.run import run_command
from tests.helpers.tiny_run import TINY


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda place: place.write_bytes(b""), "a file"),
        (os.mkfifo, "a FIFO"),
        (lambda place: place.symlink_to("gone"), "a link to gone, which is not there"),
    ],
)
@pytest.mark.parametrize("below", ["", "/deep/run"])
def test_a_root_that_is_no_folder_is_told_by_what_it_is(
    make: Callable[[Path], object], kind: str, below: str, tmp_path: Path
) -> None:
    place = tmp_path / "place"
    make(place)
    told = f"root={place}{below}: {place} is {kind}: set --root to a folder or a URL"
    with pytest.raises(UserError, match=f"^{re.escape(told)}$"):
        open_recipe(TINY, None, f"{place}{below}")


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """A folder that nobody may write into, root included."""
    command = ["mount", "-t", "tmpfs", "-o", "size=1m,ro", "tmpfs", str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode:
        pytest.skip(f"no disk can be mounted here: {ended.stderr.strip()}")
    yield tmp_path
    subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)


def test_a_root_that_may_not_be_written_is_told_before_any_work(read_only: Path) -> None:
    recipe = open_recipe(TINY, None, str(read_only))
    said: list[str] = []
    told = rf"^{read_only}/.*/scenes/.* cannot be written \(Read-only file system\): set root to a folder"
    with pytest.raises(UserError, match=told) as error:
        run_command("scenes", recipe, LocalExecutor(), said.append)
    assert exit_code(error.value) == ExitCode.CONFIGURATION
    assert said == []
