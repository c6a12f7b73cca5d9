"""What the machine lacks is tried again, and is never told as a mistake in a file or as damage."""

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from typer.testing import CliRunner

from dualtoken.infra.source_code import commit
from dualtoken.infra.storage import Store
from dualtoken.jobs.cli import app
from dualtoken.model.hub.json_files import read_json
from dualtoken.model.training.lpips import load_lpips
from dualtoken.pipelines.core.receipts import Receipt, receipt_name
from dualtoken.pipelines.core.writable import require_writable
from dualtoken.pipelines.errors import ExitCode, exit_code
from dualtoken.pipelines.tokens.checked_files import CheckedFiles
from tests.helpers.descriptors import no_free_descriptor
from tests.helpers.tiny_run import TINY
from tests.helpers.token_datasets import write_tokens

FAILING_FILE = Path("/proc/self/mem")
"""A regular file that a read of its beginning ends with EIO for, as on a failing disk."""


@pytest.mark.parametrize(
    "read",
    [read_json, lambda file: load_lpips(file, file)],
    ids=["model folder", "weights"],
)
def test_a_disk_that_fails_is_no_mistake_in_a_file(read: Callable[[Path], object]) -> None:
    with pytest.raises(OSError, match="Input/output error") as error:
        read(FAILING_FILE)
    assert exit_code(error.value) == ExitCode.TEMPORARY


def test_a_disk_that_fails_is_no_mistake_in_a_list_of_keys(tmp_path: Path) -> None:
    ended = CliRunner().invoke(app, ["forget", TINY, "--root", str(tmp_path), "--keys", str(FAILING_FILE)])
    assert ended.exception is not None
    assert exit_code(ended.exception) == ExitCode.TEMPORARY


def test_a_folder_is_not_called_read_only_for_want_of_descriptors(tmp_path: Path) -> None:
    with no_free_descriptor(), pytest.raises(OSError, match="Too many open files") as error:
        require_writable(tmp_path, "name another place")
    assert exit_code(error.value) == ExitCode.TEMPORARY


def test_a_commit_is_not_taken_for_unknown_for_want_of_descriptors() -> None:
    with no_free_descriptor(), pytest.raises(OSError, match="Too many open files"):
        commit.__wrapped__()


def test_a_shard_is_not_called_damaged_for_want_of_memory(tmp_path: Path) -> None:
    store = Store(write_tokens(tmp_path / "tokens", 20, rows_per_shard=10))
    (file, *_) = Receipt.read(store, receipt_name("00000")).files
    files = CheckedFiles(store.url, "first_touch", cache=None)
    with pytest.raises(MemoryError):
        files.open(store, file, lambda _: pa.allocate_buffer(2**62))
