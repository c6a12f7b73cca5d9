"""What is damaged for good, and what could not be read just now."""

import errno
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dualtoken.infra.storage import Store
from dualtoken.pipelines.core.damage import is_damage, naming_damage
from dualtoken.pipelines.core.tables import read_input
from dualtoken.pipelines.errors import ExitCode, UserError, exit_code
from tests.helpers.damage import damage_column


def test_what_arrow_says_of_content_is_damage() -> None:
    assert is_damage(pa.ArrowInvalid("not a Parquet file"))
    assert is_damage(OSError("Corrupt snappy compressed data."))


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EIO, "disk"),
        OSError(errno.EMFILE, "files"),
        pa.ArrowMemoryError("malloc of size 64 failed"),
        ConnectionResetError("reset"),
        TimeoutError(),
    ],
)
def test_what_may_pass_is_no_damage(error: Exception) -> None:
    assert not is_damage(error)
    with pytest.raises(type(error)), naming_damage("t.parquet", "give a sound file"):
        raise error
    assert exit_code(error) == ExitCode.TEMPORARY


def test_a_damaged_table_of_a_finished_stage_is_named_with_its_repair(tmp_path: Path) -> None:
    pq.write_table(pa.table({"key": [f"{row} of many" for row in range(500)]}), tmp_path / "00000.parquet")
    damage_column(tmp_path / "00000.parquet", 0, 0)
    with pytest.raises(
        UserError, match=r"00000\.parquet cannot be read: .*; run `dualtoken verify .* --repair`"
    ):
        read_input(Store(str(tmp_path)), "00000.parquet")
