"""Verify names every file that is not as committed; repair restores its bytes."""

import json
import shutil
from pathlib import Path

import pytest

from dualtoken.infra.digests import digest
from dualtoken.infra.storage import Store
from dualtoken.pipelines.config.recipe import Recipe
from dualtoken.pipelines.core.receipts import MANIFEST_FILE, Manifest, Receipt, StageRecord, receipt_name
from dualtoken.pipelines.errors import UnitsFailed, UserError
from dualtoken.pipelines.maintenance.findings import FindingKind
from dualtoken.pipelines.maintenance.repair import in_order_of_work, repair
from dualtoken.pipelines.maintenance.verify import verify
from dualtoken.pipelines.runtime.executor import LocalExecutor
from dualtoken.pipelines.runtime.run import run_command
from dualtoken.pipelines.runtime.stages import position
from dualtoken.pipelines.tokens.reader import TokenDataset
from tests.helpers.damage import findings_below, flip_byte
from tests.helpers.tiny_run import LoadTiny

CORPUS = "tiny-train"


def described(folder: Path) -> list[tuple[str, str]]:
    return [(finding.name, str(finding.problem).split(":")[0]) for finding in findings_below(folder)]


def test_a_finished_run_is_as_committed(finished: Recipe) -> None:
    checked = list(verify(finished.root))
    assert [finding for one in checked for finding in one.findings] == []
    assert len(checked) == 2 * 6 + 6


def test_a_flipped_byte_is_named_and_repair_restores_the_same_bytes(tokens: Path) -> None:
    shard = tokens / "data/00001.arrow"
    before = digest(shard)
    flip_byte(shard, shard.stat().st_size // 2)
    assert described(tokens) == [("data/00001.arrow", "altered")]
    untouched = (tokens / "receipts/00000.json").stat().st_mtime_ns
    (damaged,) = verify(str(tokens))
    repair(damaged, LocalExecutor(), lambda _: None)
    assert digest(shard) == before
    assert findings_below(tokens) == []
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
    flip_byte(tokens / "index.parquet", 10)
    assert described(tokens) == [("index.parquet", "altered")]
    (damaged,) = verify(str(tokens))
    repair(damaged, LocalExecutor(), lambda _: None)
    assert digest(tokens / "index.parquet") == before


def test_what_a_killed_write_left_behind_is_no_damage(tokens: Path) -> None:
    for name in ("data/.00000.arrow.0123.part", "receipts/.00000.json.0123.part"):
        (tokens / name).write_bytes(b"{")
    assert findings_below(tokens) == []


def test_folders_are_repaired_before_what_is_made_from_them(finished: Recipe) -> None:
    order = [
        StageRecord.from_bytes((Path(one.folder) / "stage.json").read_bytes()).stage
        for one in in_order_of_work(verify(finished.root))
    ]
    assert order == sorted(order, key=position)
    assert order[0] == "scenes"


def test_swapped_shards_are_both_named(tokens: Path) -> None:
    first, second = tokens / "data/00000.arrow", tokens / "data/00001.arrow"
    first_bytes = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(first_bytes)
    assert [name for name, _ in described(tokens)] == ["data/00000.arrow", "data/00001.arrow"]


def test_a_unit_finished_in_times_to_come_is_named_not_trained_from_and_mended(tokens: Path) -> None:
    store, later = (
        Store(str(tokens)),
        "2999-01-01T00:00:00.000+00:00",
    )  # as if the clock had been set back since
    before = Manifest.from_bytes(store.read(MANIFEST_FILE))
    receipt = Receipt.from_bytes(store.read(receipt_name("00001")))
    store.put_bytes(receipt.model_copy(update={"finished_at": later}).to_bytes(), receipt_name("00001"))
    store.put_bytes(before.model_copy(update={"last_finished_at": later}).to_bytes(), MANIFEST_FILE)
    said = f"misdated: finished at {later}, which is yet to come by this machine's clock"
    assert [(finding.name, str(finding.problem)) for finding in findings_below(tokens)] == [
        (MANIFEST_FILE, said),
        ("receipts/00001.json", said),
    ]
    with pytest.raises(
        ValueError,
        match=rf"^{tokens} was finished at 2999.*: set the clock right, "
        "or, where it was wrong then, run `dualtoken",
    ):
        TokenDataset(str(tokens))
    (damaged,) = verify(str(tokens))
    repair(damaged, LocalExecutor(), lambda _: None)
    assert findings_below(tokens) == []
    assert Manifest.from_bytes(store.read(MANIFEST_FILE)).root_hash == before.root_hash


def test_a_stage_finished_before_it_was_started_is_named_and_not_trained_from(tokens: Path) -> None:
    store = Store(str(tokens))
    manifest = Manifest.from_bytes(store.read(MANIFEST_FILE))
    store.put_bytes(
        manifest.model_copy(update={"last_finished_at": "2001-01-01T00:00:00.000+00:00"}).to_bytes(),
        MANIFEST_FILE,
    )
    assert described(tokens) == [(MANIFEST_FILE, "misdated")]
    with pytest.raises(ValueError, match=r"was finished at 2001-.*, before it was started at 20"):
        TokenDataset(str(tokens))


@pytest.mark.parametrize(
    ("file", "key", "value", "problem"),
    [
        ("stage.json", "fingerprint", "0123456789ab", "altered: its identity has the fingerprint"),
        ("stage.json", "identity", {"stage": "report"}, "altered: its identity has the fingerprint"),
        ("receipts/00001.json", "unit", "00002", "altered: it is of the unit 00002 of "),
        (
            "receipts/00001.json",
            "fingerprint",
            "0123456789ab",
            "altered: it is of the unit 00001 of 0123456789ab",
        ),
        ("receipts/00001.json", "rows", 7, "altered: it counts "),
        ("manifest.json", "fingerprint", "0123456789ab", "altered: it is of 0123456789ab"),
        ("manifest.json", "rows_in", 7, "altered: its counts are not the sum of the receipts'"),
        ("manifest.json", "counts", {"ok": 7}, "altered: its counts are not the sum of the receipts'"),
    ],
)
def test_records_that_contradict_each_other_are_named(
    tokens: Path, file: str, key: str, value: object, problem: str
) -> None:
    before = (tokens / file).read_bytes()
    (tokens / file).write_text(json.dumps(json.loads(before) | {key: value}))
    found = findings_below(tokens)
    assert [finding.name for finding in found if not finding.name.startswith("manifest")] == [file] * (
        not file.startswith("manifest")
    )
    assert any(finding.name == file and str(finding.problem).startswith(problem) for finding in found)
    if file != "stage.json":
        (damaged,) = verify(str(tokens))
        repair(damaged, LocalExecutor(), lambda _: None)
        assert findings_below(tokens) == []
        after, first = (json.loads(data) for data in ((tokens / file).read_bytes(), before))
        assert after[key] == first[key]


def test_a_manifest_that_later_stages_were_made_from_is_missing_and_written_again(tokens: Path) -> None:
    decision = next((tokens.parents[1] / "decision").iterdir())
    before = (decision / MANIFEST_FILE).read_bytes()
    (decision / MANIFEST_FILE).unlink()
    (damaged,) = (checked for checked in verify(str(tokens.parents[2])) if checked.findings)
    assert [(finding.name, finding.kind) for finding in damaged.findings] == [
        (MANIFEST_FILE, FindingKind.MISSING)
    ]
    repair(damaged, LocalExecutor(), lambda _: None)
    assert (decision / MANIFEST_FILE).read_bytes() == before


def test_a_folder_that_lost_what_it_is_is_named_and_told_by_its_command(
    tokens: Path, load_tiny: LoadTiny
) -> None:
    before = StageRecord.from_bytes((tokens / "stage.json").read_bytes())
    (tokens / "stage.json").unlink()
    root = tokens.parents[2]
    named = [(finding.folder, finding.name, finding.kind) for finding in findings_below(root)]
    assert named == [(str(tokens), "stage.json", FindingKind.MISSING)]
    run_command("pretokenize", load_tiny(root), LocalExecutor(), lambda _: None)
    after = StageRecord.from_bytes((tokens / "stage.json").read_bytes())
    assert (after.fingerprint, after.identity) == (before.fingerprint, before.identity)
    assert findings_below(root) == []


def test_repair_refuses_when_the_inputs_are_gone(tokens: Path) -> None:
    flip_byte(tokens / "data/00000.arrow", 100)
    shutil.rmtree(tokens.parents[1] / "decision")
    (damaged,) = verify(str(tokens))
    with pytest.raises(UserError, match="inputs have changed or are unfinished"):
        repair(damaged, LocalExecutor(), lambda _: None)


def test_repair_leaves_all_that_is_stored_where_the_unit_gives_other_bytes(tokens: Path) -> None:
    flip_byte(tokens / "data/00001.arrow", 100)
    store = Store(
        str(tokens)
    )  # a receipt that no run of today agrees with, as of images whose server is gone
    receipt = Receipt.from_bytes(store.read(receipt_name("00001")))
    files = tuple(
        file.model_copy(update={"sha256": "0" * 64}) if "meta" in file.name else file
        for file in receipt.files
    )
    store.put_bytes(receipt.model_copy(update={"files": files}).to_bytes(), receipt_name("00001"))
    before = {file: file.read_bytes() for file in tokens.rglob("*") if file.is_file()}
    (damaged,) = verify(str(tokens))
    with pytest.raises(
        UnitsFailed, match=r"meta/00001.parquet: done again on cpu .*, its unit .* first on cpu .*, torch 2"
    ):
        repair(damaged, LocalExecutor(), lambda _: None)
    assert {file: file.read_bytes() for file in tokens.rglob("*") if file.is_file()} == before


def test_repair_touches_only_the_file_that_is_wrong(tokens: Path) -> None:
    flip_byte(tokens / "data/00001.arrow", 100)
    others = [file for file in tokens.rglob("*00001.*") if file.name != "00001.arrow"]
    before = [file.stat().st_mtime_ns for file in others]
    (damaged,) = verify(str(tokens))
    repair(damaged, LocalExecutor(), lambda _: None)
    assert len(others) >= 3
    assert [file.stat().st_mtime_ns for file in others] == before
    assert findings_below(tokens) == []


def test_repair_does_no_open_unit_of_an_unfinished_stage(tokens: Path) -> None:
    (tokens / MANIFEST_FILE).unlink()
    (tokens / "receipts/00002.json").unlink()
    flip_byte(tokens / "data/00001.arrow", 100)
    (damaged,) = verify(str(tokens))
    repair(damaged, LocalExecutor(), lambda _: None)
    assert "data/00001.arrow" not in [name for name, _ in described(tokens)]
    assert not (tokens / "receipts/00002.json").exists()
    assert not (tokens / MANIFEST_FILE).exists()


def test_a_folder_without_a_dataset_is_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no finished or begun stage"):
        list(verify(str(tmp_path)))
