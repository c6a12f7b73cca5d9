"""Verify names every file that is not as committed; repair restores its bytes."""

import shutil
from pathlib import Path

import pytest

from infra.storage import digest
from pipelines.config import Recipe
from pipelines.errors import UserError
from pipelines.receipts import StageRecord
from pipelines.run_local import LocalExecutor
from pipelines.steps import STEPS
from pipelines.verify import Finding, in_order_of_work, repair, verify
from tests.conftest import LoadTiny, planned

CORPUS = "tiny-train"


@pytest.fixture
def tokens(tmp_path: Path, finished: Recipe, load_tiny: LoadTiny) -> Path:
    """The token dataset of a copy of the finished run."""
    shutil.copytree(finished.root, tmp_path / "copy")
    job = planned(load_tiny(tmp_path / "copy"), "pretokenize", CORPUS).job
    assert job is not None
    return Path(job.folder)


def findings(folder: Path) -> list[Finding]:
    return [finding for checked in verify(str(folder)) for finding in checked.findings]


def described(folder: Path) -> list[tuple[str, str]]:
    return [(finding.name, finding.problem.split(":")[0]) for finding in findings(folder)]


def flip_a_byte(file: Path, at: int) -> None:
    data = bytearray(file.read_bytes())
    data[at] ^= 1
    file.write_bytes(data)


def test_a_finished_run_is_as_committed(finished: Recipe) -> None:
    checked = list(verify(finished.root))
    assert [finding for one in checked for finding in one.findings] == []
    assert len(checked) == 2 * 6 + 3


def test_a_flipped_byte_is_named_and_repair_restores_the_same_bytes(tokens: Path) -> None:
    shard = tokens / "data/00001.arrow"
    before = digest(shard)
    flip_a_byte(shard, shard.stat().st_size // 2)
    assert described(tokens) == [("data/00001.arrow", "altered")]
    untouched = (tokens / "receipts/00000.json").stat().st_mtime_ns
    (damaged,) = verify(str(tokens))
    repair(damaged, LocalExecutor(), lambda _: None)
    assert digest(shard) == before
    assert findings(tokens) == []
    assert (tokens / "receipts/00000.json").stat().st_mtime_ns == untouched


def test_each_kind_of_damage_is_named(tokens: Path) -> None:
    shard = tokens / "data/00000.arrow"
    shard.write_bytes(shard.read_bytes()[:-1])
    (tokens / "meta/00001.parquet").unlink()
    (tokens / "data/00099.arrow").write_bytes(b"stray")
    (tokens / "receipts/00002.json").write_text("{")
    assert sorted(described(tokens)) == [
        ("data/00000.arrow", "truncated"),
        ("data/00002.arrow", "extra"),
        ("data/00099.arrow", "extra"),
        ("ledger/00002.parquet", "extra"),
        ("manifest.json", "altered"),
        ("meta/00001.parquet", "missing"),
        ("meta/00002.parquet", "extra"),
        ("receipts/00002.json", "unreadable"),
    ]


def test_a_damaged_index_is_written_anew(tokens: Path) -> None:
    before = digest(tokens / "index.parquet")
    flip_a_byte(tokens / "index.parquet", 10)
    assert described(tokens) == [("index.parquet", "altered")]
    (damaged,) = verify(str(tokens))
    repair(damaged, LocalExecutor(), lambda _: None)
    assert digest(tokens / "index.parquet") == before


def test_what_a_killed_write_left_behind_is_no_damage(tokens: Path) -> None:
    for name in ("data/.00000.arrow.0123.part", "receipts/.00000.json.0123.part"):
        (tokens / name).write_bytes(b"{")
    assert findings(tokens) == []


def test_folders_are_repaired_before_what_is_made_from_them(finished: Recipe) -> None:
    order = [
        StageRecord.from_bytes((Path(one.folder) / "stage.json").read_bytes()).stage for one in in_order_of_work(verify(finished.root))
    ]
    assert order == sorted(order, key=list(STEPS).index)
    assert order[0] == "scenes"


def test_swapped_shards_are_both_named(tokens: Path) -> None:
    first, second = tokens / "data/00000.arrow", tokens / "data/00001.arrow"
    first_bytes = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(first_bytes)
    assert [name for name, _ in described(tokens)] == ["data/00000.arrow", "data/00001.arrow"]


def test_repair_refuses_when_the_inputs_are_gone(tokens: Path) -> None:
    flip_a_byte(tokens / "data/00000.arrow", 100)
    shutil.rmtree(tokens.parents[1] / "decision")
    (damaged,) = verify(str(tokens))
    with pytest.raises(UserError, match="inputs have changed or are unfinished"):
        repair(damaged, LocalExecutor(), lambda _: None)


def test_a_folder_without_a_dataset_is_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no finished or begun stage"):
        list(verify(str(tmp_path)))
